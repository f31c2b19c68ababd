"`finetune` chooses network, size and epochs by the images, within a time; what is set stays, and is resumed."
import json
import shutil
from urllib.error import URLError

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tools.command import run
from tools.files import two_classes
from typer.testing import CliRunner

import cifar_nb.finetune as chooser
from cifar_nb.cli import app
from cifar_nb.core import ConfigError, DatasetError, Settings
from cifar_nb.datasets import training_keys
from cifar_nb.finetune import choose_recipe
from cifar_nb.images import synthetic
from cifar_nb.modelfile import ModelCard, read_card, read_model, save_model
from cifar_nb.models import create_model, why_no_imagenet
from cifar_nb.predict import Predictor
from cifar_nb.recipes import find_recipe
from cifar_nb.serve import create_app, served

CPU = Settings(device="cpu")
SMALL = dict(widths=[8, 16])


@pytest.fixture(autouse=True)
def without_imagenet(monkeypatch):
    monkeypatch.setattr(chooser, "why_no_imagenet", lambda name: "the weights of ImageNet are elsewhere")


def cloth(rng, fine):
    "Threads of one pixel or of two: 32 pixels of 64 cannot show the difference."
    threads = np.roll(np.arange(64) // (1 if fine else 2) % 2, rng.integers(4))
    return Image.fromarray((70 + 60 * threads + 60 * rng.random((64, 64))).astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data") / "cloth", np.random.default_rng(0)
    for kind in ("coarse", "fine"):
        (root / kind).mkdir(parents=True)
        for i in range(24): cloth(rng, kind == "fine").save(root / kind / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory): return two_classes(tmp_path_factory.mktemp("data") / "leaves")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    "A small network of our own to start from; its weights are random."
    torch.manual_seed(0)
    images, path = synthetic("test"), tmp_path_factory.mktemp("start") / "small.safetensors"
    model = create_model("speed_net", n_classes=10, size=32, **SMALL)
    save_model(model, ModelCard.for_images(images, "speed_net", arguments=SMALL), path)
    return path


def asked(folder, **changes):
    changes = {key: str(value) if key == "start" else value for key, value in changes.items()}
    return find_recipe("finetune", data=str(folder), batch_size=8, precision="float32", **changes)


def train(folder, out, start, *more):
    return run("train", "--recipe", "finetune", "--data", folder, "--out", out, "--start", start,
               "--batch-size", 8, "--precision", "float32", "--device", "cpu", *more)


def test_detail_decides_on_the_size(large):
    choice = choose_recipe(asked(large, start="cifar10"), 60, CPU, fixed=["start"])
    small, big = choice.trials
    assert (small.recipe.size, big.recipe.size, choice.sample.side) == (32, 64, 64)
    assert big.known > small.known + .2 and choice.recipe.size == 64
    assert (choice.recipe.epochs, choice.recipe.freeze) == (20, False)
    assert "chosen: cifar10 at 64 pixels, 20 epochs" in str(choice)


def test_small_images_are_not_enlarged(tiny):
    choice = choose_recipe(asked(tiny), 60, CPU)
    assert [(t.recipe.start, t.recipe.size) for t in choice.trials] == [("cifar10", 32), ("cifar100", 32)]
    assert choice.sample.side < 32 and not choice.note


def test_a_network_that_knows_the_images_is_left_out(tiny, monkeypatch):
    sample = chooser.look_at_images(asked(tiny), CPU)
    keys = {"cifar10.safetensors": training_keys(sample.images)}
    monkeypatch.setattr(chooser, "read_trained_keys", lambda path: keys.get(path.name, torch.tensor([1])))
    choice = choose_recipe(asked(tiny), 60, CPU)
    assert {trial.recipe.start for trial in choice.trials} == {"cifar100"}


def test_what_is_set_stays(large, start):
    choice = choose_recipe(asked(large, start=start, size=40), 60, CPU, fixed=["start", "size"])
    assert [trial.recipe.size for trial in choice.trials] == [40] == [choice.recipe.size]
    own = asked(large, start="", architecture="speed_net", model=SMALL, size=48)
    choice = choose_recipe(own, 60, CPU, fixed=["start", "architecture", "model", "size"])
    assert (choice.recipe.size, choice.recipe.start, choice.trials[0].known) == (48, "", None)
    choice = choose_recipe(asked(large, start=start, epochs=33), 60, CPU, fixed=["start", "epochs"])
    assert choice.recipe.epochs == 33
    frozen = asked(large, start=start, freeze=True)
    choice = choose_recipe(frozen, 60, CPU, fixed=["start", "freeze"])
    assert choice.recipe.freeze and choice.recipe.optimizer.lr == .1
    choice = choose_recipe(frozen, 60, CPU, fixed=["start", "freeze", "lr"])
    assert choice.recipe.optimizer.lr == .001


def take_time(monkeypatch, seconds):
    "An epoch of 32 pixels takes this long, with frozen features a third of it."
    def time_epoch(recipe, sample, device):
        return seconds * (recipe.size / 32)**2 / (3 if recipe.freeze else 1)
    monkeypatch.setattr(chooser, "time_epoch", time_epoch)


def test_the_time_decides_on_the_epochs(tiny, start, monkeypatch):
    take_time(monkeypatch, 10)
    for minutes, expected in ((10, (20, False)), (2, (12, False)), (.8, (14, True))):
        choice = choose_recipe(asked(tiny, start=start), minutes, CPU, fixed=["start"])
        assert (choice.recipe.epochs, choice.recipe.freeze) == expected
        assert 60 * minutes >= choice.recipe.epochs * choice.best.seconds


def test_more_pixels_where_the_features_are_as_good(large, start, monkeypatch):
    "Training all layers gains more from detail than a probe of the features can show."
    monkeypatch.setattr(chooser, "_probe", lambda *args: .9)
    for seconds, size in ((1, 64), (20, 32)):
        take_time(monkeypatch, seconds)
        assert choose_recipe(asked(large, start=start), 10, CPU, fixed=["start"]).recipe.size == size


def test_a_time_that_is_too_short_says_what_fits(large, start, monkeypatch, tmp_path):
    take_time(monkeypatch, 10)
    code, printed, said = train(large, tmp_path / "x.safetensors", start, "--minutes", .1)
    assert (code, printed) == (2, "") and not list(tmp_path.rglob("*.safetensors"))
    line = said.splitlines()[-1]
    assert "0.1 min of training are too few for 10 epochs" in line and "use --minutes 0.7" in line
    assert choose_recipe(asked(large, start=start), .7, CPU, fixed=["start"]).recipe.epochs == 12
    with pytest.raises(ConfigError, match="use --minutes 3.7"):
        choose_recipe(asked(large, start=start, freeze=False), .1, CPU, fixed=["start", "freeze", "epochs"])
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="give the time"):
            choose_recipe(asked(large, start=start), minutes, CPU)
    code, _, said = run("train", "--recipe", "simple", "--data", large, "--minutes", 5)
    assert code == 2 and "--minutes is for --recipe finetune" in said


def test_imagenet_weights_are_tried_where_they_are(large, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **kwargs: pytest.fail("a download was tried"))
    monkeypatch.setattr(chooser, "why_no_imagenet", lambda name: "" if name == "resnet18" else "elsewhere")
    monkeypatch.setattr(chooser, "read_trained_keys", lambda path: training_keys(sample.images))
    sample = chooser.look_at_images(asked(large), CPU)
    take_time(monkeypatch, 1)
    (tmp_path / "checkpoints").mkdir()
    place = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    torch.save(create_model("resnet18", n_classes=1000, stem="imagenet").state_dict(), place)
    choice = choose_recipe(asked(large), 60, CPU)
    assert [trial.name for trial in choice.trials] == ["resnet18, imagenet"] and choice.note == "elsewhere"
    recipe = choice.recipe
    assert (recipe.architecture, recipe.start, recipe.size) == ("resnet18", "imagenet", 64)
    assert find_recipe("finetune", **recipe.model_dump(include={"start", "architecture", "model"}))


def test_without_the_weights_it_says_where_they_would_be(monkeypatch, tmp_path):
    def refuse(*args, **more): raise URLError("no network")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("cifar_nb.models.urlopen", refuse)
    said = why_no_imagenet("resnet18")
    assert "no network" in said and str(tmp_path / "checkpoints") in said and "\n" not in said
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert why_no_imagenet("resnet18") == ""


def test_what_cannot_be_read_does_not_stop_the_choice(large, start, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(large, folder)
    (folder / "fine" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    assert len(choose_recipe(asked(folder, start=start), 60, CPU, fixed=["start"]).sample.images) < 48
    for path in folder.rglob("*.png"): path.write_bytes(b"\x89PNG\r\n\x1a\nnot " + str(path).encode())
    with pytest.raises(DatasetError, match="cannot be read"):
        choose_recipe(asked(folder, start=start), 60, CPU, fixed=["start"])
    wide = asked(large, start=start, fit="tiles")
    assert choose_recipe(wide, 60, CPU, fixed=["start"]).best.known is not None


def test_from_the_command_to_the_service(large, start, tmp_path):
    out = tmp_path / "m.safetensors"
    code, printed, said = train(large, out, start, "--minutes", 5, "--epochs", 2)
    assert code == 0 and "epoch   2/2" in printed
    assert "at most 5 minutes" in said and "epochs in 5 min" in said and "chosen: " in said
    card, kept = read_card(out), json.loads((tmp_path / "runs/m-0001/choice.json").read_text())
    assert card.recipe["size"] == card.input_size == kept["chosen"]["size"]
    assert (card.recipe["start"], card.epochs) == ("small", 2)
    with served(create_app(predictor=Predictor.load(str(out), CPU))) as url:
        picture = next((large / "fine").iterdir()).read_bytes()
        answer = httpx.post(f"{url}/predict", files={"file": picture}).json()
    assert set(answer["probabilities"]) == {"coarse", "fine"}


def test_a_run_that_goes_on_is_not_chosen_again(large, start, tmp_path, monkeypatch):
    "Interrupted after its first epoch, and then given more epochs."
    def stop(*args): raise KeyboardInterrupt
    out = tmp_path / "m.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("cifar_nb.messages.epoch_line", stop)
        take_time(patch, 1e-3)
        assert train(large, out, start, "--minutes", .05)[0] != 0
    size = json.loads((tmp_path / "runs/m-0001/choice.json").read_text())["chosen"]["size"]
    monkeypatch.setattr(chooser, "choose_recipe", lambda *args, **more: pytest.fail("it chose again"))
    code, printed, said = train(large, out, start, "--minutes", .05)
    assert code == 0 and "after epoch 1" in said and "epoch   1/" not in printed
    assert read_card(out).recipe["size"] == size and read_card(out).epochs == 20
    code, printed, said = train(large, out, start, "--minutes", .05, "--epochs", 21)
    assert code == 0 and "Adding 1 epochs" in said and read_card(out).epochs == 21
    # Another question gets another answer
    with pytest.raises(pytest.fail.Exception, match="chose again"):
        CliRunner().invoke(app, ["train", "--recipe", "finetune", "--data", str(large), "--out", str(out),
                                 "--start", str(start), "--minutes", "0.06"], catch_exceptions=False)


def test_nothing_is_measured_where_everything_is_set(tiny, start, tmp_path, monkeypatch):
    monkeypatch.setattr(chooser, "choose_recipe", lambda *args, **more: pytest.fail("it chose"))
    out = tmp_path / "m.safetensors"
    code, _, said = train(tiny, out, start, "--size", 24, "--epochs", 1)
    assert code == 0 and "chosen" not in said and read_card(out).input_size == 24
    network = ["--architecture", "speed_net", "--set", "model.widths=[8,8]"]
    out = tmp_path / "n.safetensors"
    code, _, _ = run("train", "--recipe", "finetune", "--data", tiny, "--out", out, *network, "--size", 24,
                     "--epochs", 1, "--batch-size", 8)
    assert code == 0 and read_card(out).recipe["start"] == ""


def test_frozen_features_stay_as_they_were(tiny, start, tmp_path):
    out = tmp_path / "m.safetensors"
    assert train(tiny, out, start, "--size", 32, "--epochs", 1, "--set", "freeze=true")[0] == 0
    (before, _), (after, card) = read_model(start), read_model(out)
    weights = before.state_dict()
    same = {name for name, value in after.state_dict().items() if torch.equal(value, weights.get(name))}
    assert set(weights) - same == {"head.weight"} and card.recipe["freeze"]
