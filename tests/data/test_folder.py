"A folder of your own images: any size and mode, every layout, and clear errors where something is wrong."
import os
import sys
from pathlib import Path
from unittest.mock import patch

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cifar_nb.core import DatasetError, Settings
from cifar_nb.experiment import run_recipe
from cifar_nb.folders import load_dataset
from cifar_nb.models import create_model
from cifar_nb.predict import Predictor
from cifar_nb.recipes import find_recipe
from cifar_nb.serve import create_app, served


def write_image(path, size=(40, 30), colour="wheat", mode="RGB"):
    "A two-coloured image; its own file name is in its last pixel, so that no two files are equal."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    if mode == "RGB": image.putpixel((0, 0), (sum(os.fsencode(path)) % 256, 9, len(path.name)))
    image.convert(mode).save(path)


@pytest.fixture
def pets(tmp_path):
    for i in range(10):
        write_image(tmp_path / "cat" / f"{i}.png", (20 + i, 50))
        write_image(tmp_path / "dog" / "old" / f"{i}.jpg", (64, 64 + i), "white")
    return tmp_path


def layout(root, **parts):
    "Folders of `n` images for each of two classes."
    for number, (part, n) in enumerate(parts.items()):
        for i in range(n):
            for kind in ("good", "scratched"):
                colour = "wheat" if kind == "good" else "teal"
                write_image(root / part / kind / f"{i}.png", (20 + number, 30 + i), colour)


def sizes(data): return [len(images) if images else images for images in (data.train, data.valid, data.test)]


def test_any_size_becomes_one_size(pets):
    write_image(pets / "cat" / "grey.png", mode="L")
    write_image(pets / "cat" / "palette.gif", mode="P")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(pets / "dog" / "sixteen.png")
    data = load_dataset(str(pets), 48)
    assert data.train.classes == data.test.classes == ("cat", "dog")
    assert data.train.pixels.shape[1:] == data.test.pixels.shape[1:] == (3, 48, 48)
    assert len(data.train) + len(data.test) == 23 and data.valid is None


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Test"), ("training", "testing")])
def test_train_and_test_folders_are_used(tmp_path, names):
    layout(tmp_path, **dict(zip(names, (4, 2), strict=True)))
    assert sizes(load_dataset(str(tmp_path))) == [8, None, 4]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "eval", "VAL"])
def test_three_parts_are_used(tmp_path, val):
    layout(tmp_path, **{"train": 4, val: 3, "test": 2})
    assert sizes(load_dataset(str(tmp_path))) == [8, 6, 4]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "eval"])
def test_validation_images_are_never_the_test_set(tmp_path, val):
    layout(tmp_path, **{"train": 20, val: 5})
    data = load_dataset(str(tmp_path))
    assert len(data.valid) == 10 and len(data.train) + len(data.test) == 40 and len(data.test) > 1
    valid = set(data.valid.file_keys.tolist())
    assert not valid & set(data.test.file_keys.tolist()) and not valid & set(data.train.file_keys.tolist())


def test_train_may_be_a_class(tmp_path):
    for kind in ("bus", "train"):
        for i in range(5): write_image(tmp_path / kind / f"{i}.png", (40 + i, 30))
    assert load_dataset(str(tmp_path)).train.classes == ("bus", "train")


def test_train_and_bus_with_folders_of_their_own_are_classes(tmp_path):
    for kind, places in (("bus", ("city", "land")), ("train", ("rail",)), ("val", ())):
        for i in range(5):
            for place in places: write_image(tmp_path / kind / place / f"{i}.png", (40 + i, 30))
    (tmp_path / "val").mkdir(exist_ok=True)
    write_image(tmp_path / "val" / "1.png")
    with pytest.raises(DatasetError, match="bus, train, val look like parts of one data set"):
        load_dataset(str(tmp_path))
    (tmp_path / "val" / "1.png").unlink()
    assert load_dataset(str(tmp_path)).train.classes == ("bus", "train")


@pytest.mark.parametrize("grey, said", [
    (("cat", "dog"), ["all images are grey"]),
    (("cat",), ["all images of cat are grey, and others are not"]),
    ((), []),
])
def test_grey_images_are_mentioned(tmp_path, caplog, grey, said):
    for kind in ("cat", "dog"):
        for i in range(10):
            mode = "L" if kind in grey else "RGB"
            write_image(tmp_path / kind / f"{i}.png", (40 + i, 30 + (kind == "dog")), mode=mode)
    data = load_dataset(str(tmp_path))
    _ = data.train, data.test
    assert len(caplog.messages) == len(said)
    assert all(words in line for words, line in zip(said, caplog.messages, strict=True))


def test_hidden_files_are_left_out(pets):
    (pets / "cat" / "._1.png").write_bytes(b"what a Mac leaves behind")
    write_image(pets / "cat" / ".ipynb_checkpoints" / "1-checkpoint.png")
    write_image(pets / ".cache" / "1.png")
    (pets / "cat" / ".link").symlink_to(pets / "dog")
    (pets / "cat" / "notes.txt").write_text("not an image")
    (pets / "README.md").write_text("not a class")
    data = load_dataset(str(pets))
    assert len(data.train) + len(data.test) == 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(pets):
    os.mkfifo(pets / "cat" / "pipe.png")
    assert len(load_dataset(str(pets)).test.classes) == 2


def test_a_folder_may_begin_at_home(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    monkeypatch.setenv("USERPROFILE", str(pets.parent))
    assert load_dataset(f"~/{pets.name}").train.classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["", "no such folder", "x" * 5000, "a\0b"])
def test_an_unknown_name_is_an_error_even_in_a_folder_of_images(pets, monkeypatch, name):
    monkeypatch.chdir(pets)  # an empty path would be this folder
    assert load_dataset(".").test.classes == ("cat", "dog")
    with pytest.raises(DatasetError): load_dataset(name)


def test_a_damaged_image_is_named_and_the_cause_is_kept(pets):
    (pets / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    data = load_dataset(str(pets))
    with pytest.raises(DatasetError, match=r"3.png: the image is damaged") as error: _ = data.train, data.test
    causes = error.value.__cause__, error.value.__cause__.__cause__
    assert [type(e).__name__ for e in causes] == ["ImageError", "OSError"]


def test_a_constant_channel_is_named(tmp_path):
    for kind in ("a", "b"):
        for i in range(5):
            (tmp_path / kind).mkdir(exist_ok=True)
            colour = (0, 100 + i, 50 * (kind == "a"))
            Image.new("RGB", (8, 8), colour).save(tmp_path / kind / f"{i}.png")
    data = load_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match="the red of all training images"): _ = data.stats


@pytest.mark.parametrize("build, said", [
    (lambda p: write_image(p / "only" / "1.png"), "1 class folder; at least 2"),
    (lambda p: p.mkdir(exist_ok=True), "0 class folders"),
    (lambda p: (write_image(p / "a" / "1.png"), (p / "b").mkdir()),
     "1 class folder; at least 2 .*; b has no image"),
    (lambda p: [write_image(p / c / "1.png", (20, 20 + len(c))) for c in ("a", "bb")],
     "class 'a' has 1 different image: too few to hold out 20%"),
    (lambda p: [write_image(p / name / "1.png") for name in ("train/a", "train/b", "test/a", "test/c")],
     "test.c: the training images have no class .c."),
    (lambda p: layout(p, train=1, val=1, test=1, extra=1),
     "extra, test, train, val look like parts"),
    (lambda p: layout(p, train=1, val=1, dev=1), "dev, train, val look like parts"),
    (lambda p: layout(p, val=1, test=1),
     "test, val look like parts .* say which is which"),
    (lambda p: layout(p, train=1, holdout=1), "holdout, train look like parts"),
    (lambda p: (layout(p, **{"": 9}), (p / "good" / "x.jxl").write_bytes(b"\xff\x0a \xfa")), "good.x.jxl: "),
    (lambda p: (layout(p, **{"": 9}), (p / "good" / "x.png").symlink_to(p / "gone")),
     "good.x.png: .*No such file"),
    (lambda p: [write_image(p / c / "1.png") for c in "ab"] + [(p / "b" / "more").symlink_to(p / "a")],
     "b.more is a link to a folder"),
    pytest.param(lambda p: [write_image(p / c / "1.png") for c in ("a", "caf\udce9")], "is not UTF-8; rename",
                 marks=pytest.mark.skipif(sys.platform != "linux", reason="no such names there")),
])
def test_says_what_is_wrong(tmp_path, build, said):
    build(tmp_path)
    with pytest.raises(DatasetError, match=said) as error:
        data = load_dataset(str(tmp_path))
        _ = data.train, data.test
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [".", "cat", "dog/old"])
def test_a_folder_that_may_not_be_read_is_named(pets, place):
    "Its images are not left out in silence. Root may read everything, so the system's answer is simulated."
    closed, real = pets / place, os.scandir

    def scandir(path):
        if Path(path) == closed: raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    def listdir(path): return [entry.name for entry in scandir(path)]
    refused = pytest.raises(DatasetError, match=f"{closed.name} cannot be read: Permission denied")
    with patch("os.scandir", scandir), patch("os.listdir", listdir), refused:
        _ = load_dataset(str(pets)).train


@pytest.fixture
def counted():
    "How many images were decoded."
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with patch("cifar_nb.folders.image_pixels", return_value=pixels) as decoded: yield decoded


@pytest.mark.parametrize("parts, part, n", [
    (dict(train=6, test=2), "test", 4), (dict(train=6, test=2), "train", 12),
    (dict(train=15, val=4), "valid", 8), (dict(train=6, val=4, test=2), "valid", 8),
])
def test_a_part_decodes_its_own_images_once(tmp_path, counted, *, parts, part, n):
    layout(tmp_path, **parts)
    data = load_dataset(str(tmp_path), 8)
    for _ in range(2): assert len(getattr(data, part)) == n
    assert counted.call_count == n


@pytest.mark.parametrize("parts", [dict(train=15, val=4), {"": 15}])
def test_a_split_decodes_each_image_once(tmp_path, counted, parts):
    layout(tmp_path, **parts)
    data = load_dataset(str(tmp_path), 8)
    test = len(data.test)
    assert counted.call_count == test and 0 < test < 15
    train = len(data.train)
    assert counted.call_count == test + train == 30
    _ = data.train, data.test
    assert counted.call_count == 30


def test_bytes_are_read_at_most_twice_and_a_given_test_set_once(tmp_path, counted):
    layout(tmp_path, train=15)
    read = patch.object(Path, "read_bytes", autospec=True, side_effect=Path.read_bytes)
    with read as reads:
        data = load_dataset(str(tmp_path / "train"), 8)
        _ = data.train, data.test
    assert reads.call_count == 60  # once for the hash, once to decode
    layout(tmp_path, test=2)
    with read as reads: _ = load_dataset(str(tmp_path), 8).test
    assert reads.call_count == 4


@pytest.fixture
def snow(tmp_path):
    "Two classes of coloured noise, one brighter, of 32, 64 and 96 pixels; enough for a few steps."
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("dim", "bright")):
        (tmp_path / kind).mkdir()
        for i, size in enumerate((32, 64, 96, 32) * 10):
            noise = rng.integers(60 * k, 160 + 60 * k, (size, size, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / kind / f"{i}.png")
    return tmp_path


def fast(folder, tmp_path, **changes):
    small = {"data": str(folder), "epochs": 2, "batch_size": 8, "widths": (8, 8, 8), "precision": "float32"}
    recipe = find_recipe("speed94", **{**small, **changes})
    return run_recipe(recipe, tmp_path / "out" / "m.safetensors", Settings(device="cpu"))


def test_the_fast_recipe_learns_a_folder(snow, tmp_path_factory):
    card, report = fast(snow, tmp_path_factory.mktemp("out"), size=40)
    assert card.classes == ("bright", "dim") and card.input_size == 40 and report.accuracy > .8


def in_grey(folder):
    for path in folder.rglob("*.png"): Image.open(path).convert("L").save(path)


def without_one_class(folder):
    for path in (folder / "dim").iterdir(): path.unlink()
    (folder / "dim").rmdir()


@pytest.mark.parametrize("spoil, changes, said", [
    (in_grey, {}, "are the images grey"),
    (lambda p: (p / "dim" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much"), {},
     "dim.7.png: the image is damaged"),
    (without_one_class, {}, "1 class folder; at least 2"),
    (lambda p: None, dict(batch_size=1000),
     "batch_size = 1000, and [0-9]+ of the 80 images are left"),
])
def test_the_fast_recipe_refuses_by_name(snow, tmp_path_factory, *, spoil, changes, said):
    spoil(snow)
    out = tmp_path_factory.mktemp("out")
    with pytest.raises(DatasetError, match=said): fast(snow, out, **changes)
    assert not list(out.rglob("*.safetensors"))


def test_imagenet_weights_learn_a_folder(snow, tmp_path_factory, monkeypatch):
    "From a file of the name and format that torchvision downloads; its weights are random here."
    hub, out = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("out") / "snow.safetensors"
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(hub))
    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: pytest.fail("a download was tried"))
    (hub / "checkpoints").mkdir()
    weights = create_model("resnet18", n_classes=1000, stem="imagenet").state_dict()
    torch.save(weights, hub / "checkpoints" / "resnet18-f37072fd.pth")
    recipe = find_recipe("resnet18", data=str(snow), start="imagenet", epochs=1, batch_size=8,
                         model=dict(stem="imagenet", upsample=48), optimizer=dict(lr=.001),
                         precision="float32")
    card, _ = run_recipe(recipe, out, Settings(device="cpu"))
    assert card.classes == ("bright", "dim") and card.recipe["start"] == "imagenet"
    assert card.mean == pytest.approx((.485, .456, .406))


def test_a_bundled_model_learns_other_classes_and_serves_them(snow, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "snow.safetensors"
    settings = Settings(device="cpu")
    recipe = find_recipe("finetune", data=str(snow), epochs=6, batch_size=8, precision="float32")
    card, report = run_recipe(recipe, out, settings)
    assert card.classes == ("bright", "dim") and report.accuracy > .8
    assert card.recipe["start"] == "cifar10" and card.architecture == "speed_net"
    with served(create_app(predictor=Predictor.load(str(out), settings))) as url:
        assert httpx.get(f"{url}/classes").json() == {"classes": ["bright", "dim"]}
        answer = httpx.post(f"{url}/predict", files={"file": (snow / "dim" / "0.png").read_bytes()}).json()
    assert set(answer["probabilities"]) == {"bright", "dim"}
