"A folder of one's own pictures: any sizes and modes, and clear words where something is wrong."
import sys

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cifar_nb.core import DatasetError, Settings
from cifar_nb.data import load_images
from cifar_nb.models import create_model
from cifar_nb.predict import Predictor
from cifar_nb.recipes import find_recipe, run_recipe
from cifar_nb.serve import create_app, served


def picture(path, size=(40, 30), colour="wheat", mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    image.convert(mode).save(path)


@pytest.fixture
def pets(tmp_path):
    for i in range(10):
        picture(tmp_path / "cat" / f"{i}.png", (20 + i, 50))
        picture(tmp_path / "dog" / "old" / f"{i}.jpg", (64, 64), "white")
    return tmp_path


def test_any_size_becomes_one_size(pets):
    picture(pets / "cat" / "grey.png", mode="L")
    picture(pets / "cat" / "palette.gif", mode="P")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(pets / "dog" / "sixteen.png")
    train, test = load_images(str(pets), "train", 48), load_images(str(pets), "test", 48)
    assert train.classes == ("cat", "dog") and train.pixels.shape[1:] == (3, 48, 48)
    assert len(train) + len(test) == 23 and train.mean == test.mean


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Test"), ("training", "val"), ("train", "validation"), ("train", "eval")])
def test_train_and_test_folders_are_used(tmp_path, names):
    for split, n in zip(names, (4, 2)):
        for i in range(n):
            for kind in ("good", "scratched"): picture(tmp_path / split / kind / f"{i}.png")
    assert (len(load_images(str(tmp_path), "train")), len(load_images(str(tmp_path), "test"))) == (8, 4)


def test_train_may_be_a_class(tmp_path):
    for kind in ("bus", "train"):
        for i in range(5): picture(tmp_path / kind / f"{i}.png")
    assert load_images(str(tmp_path)).classes == ("bus", "train")


def test_parts_without_a_training_part_are_no_classes(tmp_path):
    for split in ("val", "test"):
        for kind in ("good", "scratched"): picture(tmp_path / split / kind / "1.png")
    with pytest.raises(DatasetError, match="test, val have the same folders inside"): load_images(str(tmp_path))


@pytest.mark.parametrize("grey, said", [(("cat", "dog"), ["all pictures are grey"]), (("cat",), ["all pictures of cat are grey, and others are not"]), ((), [])])
def test_grey_pictures_are_mentioned(tmp_path, caplog, grey, said):
    for kind in ("cat", "dog"):
        for i in range(5): picture(tmp_path / kind / f"{i}.png", mode="L" if kind in grey else "RGB")
    for split in ("train", "test"): load_images(str(tmp_path), split)
    assert len(caplog.messages) == len(said) and all(words in line for words, line in zip(said, caplog.messages))


def test_hidden_files_are_no_pictures(pets):
    (pets / "cat" / "._1.png").write_bytes(b"what a Mac leaves behind")
    picture(pets / "cat" / ".ipynb_checkpoints" / "1-checkpoint.png")
    assert sum(len(load_images(str(pets), split)) for split in ("train", "test")) == 20


def test_a_folder_may_begin_at_home(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    monkeypatch.setenv("USERPROFILE", str(pets.parent))
    assert load_images(f"~/{pets.name}").classes == ("cat", "dog")


def test_a_broken_picture_is_named(pets):
    (pets / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    with pytest.raises(DatasetError, match="3.png: the picture is damaged"): load_images(str(pets))


def test_a_channel_without_spread_is_named(tmp_path):
    for kind in ("a", "b"):
        for i in range(5): picture(tmp_path / kind / f"{i}.png", colour="teal")  # no red anywhere
    with pytest.raises(DatasetError, match="the red of all training pictures"): load_images(str(tmp_path))


@pytest.mark.parametrize("build, said", [
    (lambda p: picture(p / "only" / "1.png"), "1 class folder; at least 2"),
    (lambda p: p.mkdir(exist_ok=True), "0 class folders"),
    (lambda p: (picture(p / "a" / "1.png"), (p / "b").mkdir()), "holds no picture"),
    (lambda p: (picture(p / "a" / "1.png"), picture(p / "b" / "1.png")), "too few to hold out"),
    (lambda p: [picture(p / s / c / "1.png") for s, c in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "c"))], "different classes"),
    (lambda p: [picture(p / s / c / "1.png") for s in ("train", "val", "test") for c in "ab"], "has test, train, val: leave two of them"),
    (lambda p: [picture(p / c / f"1.{kind}") for c, kind in (("a", "png"), ("b", "tiff"))], "b.1.tiff: we read .*; convert it"),
    (lambda p: [picture(p / c / "1.png") for c in "ab"] + [(p / "b" / "2.png").symlink_to(p / "gone.png")], "b.2.png: .*No such file"),
    (lambda p: [picture(p / c / "1.png") for c in "ab"] + [(p / "b" / "more").symlink_to(p / "a")], "b.more is a link to a folder"),
    pytest.param(lambda p: [picture(p / c / "1.png") for c in ("a", "caf\udce9")], "is not UTF-8; rename", marks=pytest.mark.skipif(sys.platform != "linux", reason="no such names there")),
])
def test_says_what_is_wrong(tmp_path, build, said):
    build(tmp_path)
    with pytest.raises(DatasetError, match=said): load_images(str(tmp_path))


@pytest.fixture
def snow(tmp_path):
    "Two classes of coloured noise, one brighter, of 32, 64 and 96 pixels; enough for a few steps."
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("dim", "bright")):
        (tmp_path / kind).mkdir()
        for i, size in enumerate((32, 64, 96, 32) * 10): Image.fromarray(rng.integers(60 * k, 160 + 60 * k, (size, size, 3), np.uint8)).save(tmp_path / kind / f"{i}.png")
    return tmp_path


def fast(folder, tmp_path, **changes):
    recipe = find_recipe("speed94", **{"data": str(folder), "epochs": 2, "batch_size": 8, "widths": (8, 8, 8), "precision": "float32", **changes})
    return run_recipe(recipe, tmp_path / "out" / "m.safetensors", Settings(device="cpu"))


def test_the_fast_recipe_learns_a_folder(snow, tmp_path_factory):
    card, report = fast(snow, tmp_path_factory.mktemp("out"), size=40)
    assert card.classes == ("bright", "dim") and card.input_size == 40 and report.accuracy > .8


@pytest.mark.parametrize("spoil, changes, said", [
    (lambda p: [Image.open(f).convert("L").save(f) for f in p.rglob("*.png")], {}, "are the pictures grey"),
    (lambda p: (p / "dim" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much"), {}, "dim.7.png: the picture is damaged"),
    (lambda p: [f.unlink() for f in p.glob("dim/*")] and (p / "dim").rmdir(), {}, "1 class folder; at least 2"),
    (lambda p: None, dict(batch_size=1000), "batch_size = 1000, and 58 of the 80 pictures are left"),
])
def test_the_fast_recipe_refuses_by_name(snow, tmp_path_factory, spoil, changes, said):
    spoil(snow)
    out = tmp_path_factory.mktemp("out")
    with pytest.raises(DatasetError, match=said): fast(snow, out, **changes)
    assert not list(out.rglob("*.safetensors"))


def test_imagenet_weights_learn_a_folder(snow, tmp_path_factory, monkeypatch):
    "From a file of the name and format that torchvision downloads; its numbers are random here."
    hub, out = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("out") / "snow.safetensors"
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(hub))
    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: pytest.fail("there is a file, and a download was tried"))
    (hub / "checkpoints").mkdir()
    torch.save(create_model("resnet18", n_classes=1000, stem="imagenet").state_dict(), hub / "checkpoints" / "resnet18-f37072fd.pth")
    recipe = find_recipe("resnet18", data=str(snow), start="imagenet", model=dict(stem="imagenet", upsample=48), epochs=1, batch_size=8, precision="float32")
    card, _ = run_recipe(recipe, out, Settings(device="cpu"))
    assert card.classes == ("bright", "dim") and card.recipe["start"] == "imagenet" and card.mean == pytest.approx((.485, .456, .406))


def test_a_bundled_model_learns_other_classes_and_serves_them(snow, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "snow.safetensors"
    settings = Settings(device="cpu")
    card, report = run_recipe(find_recipe("finetune", data=str(snow), epochs=6, batch_size=8, precision="float32"), out, settings)
    assert card.classes == ("bright", "dim") and report.accuracy > .8
    assert card.recipe["start"] == "cifar10" and card.architecture == "speed_net"
    with served(create_app(settings, Predictor.load(str(out), settings))) as url:
        assert httpx.get(f"{url}/classes").json() == {"classes": ["bright", "dim"]}
        answer = httpx.post(f"{url}/predict", files={"file": (snow / "dim" / "0.png").read_bytes()}).json()
    assert set(answer["probabilities"]) == {"bright", "dim"}
