"A run that goes wrong keeps what is good of it, and says so."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools.files import two_classes

import cifar_nb.fit
from cifar_nb.checkpoint import Checkpointer
from cifar_nb.core import ConfigError, Settings, TrainingDiverged
from cifar_nb.experiment import checkpoint_path, run_recipe
from cifar_nb.judge import verdict
from cifar_nb.modelfile import read_model
from cifar_nb.recipes import find_recipe

CLI = Path(sys.executable).with_name("cifar-nb")
CPU = Settings(device="cpu")
QUICK = dict(batch_size=16, held_out=.3, precision="float32", epochs=4)
SMALL = dict(architecture="speed_net", model=dict(widths=(8, 8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return two_classes(tmp_path_factory.mktemp("data") / "leaves")


@pytest.fixture
def train(folder):
    "Runs a recipe on the folder."
    def run(out, name="simple", **changes):
        small = SMALL if name == "simple" else {}
        return run_recipe(find_recipe(name, **{"data": str(folder), **QUICK, **small, **changes}), out, CPU)
    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "m.safetensors"


def fail_at(monkeypatch, epoch):
    "Training diverges in that epoch."
    calls, real = [], cifar_nb.fit.train_epoch

    def train_epoch(*args, **options):
        calls.append(1)
        if len(calls) == epoch: raise TrainingDiverged("step 1, learning rate 9: the loss is nan; try less")
        return real(*args, **options)
    monkeypatch.setattr(cifar_nb.fit, "train_epoch", train_epoch)


def test_a_late_divergence_keeps_the_best_epoch(train, out, monkeypatch):
    calm, report = train(out.with_name("calm.safetensors"), epochs=2)
    fail_at(monkeypatch, 3)
    with pytest.raises(TrainingDiverged, match="epoch 3, step 1.*best epoch so far, 2, is saved as") as error:
        train(out, epochs=2 + 1)
    model, card = read_model(out)
    assert card.validation_accuracy == calm.validation_accuracy and card.kept_epoch == calm.kept_epoch
    assert card.epochs == 2 and f"test accuracy {report.accuracy:.2%}" in str(error.value)
    assert not checkpoint_path(out).exists()  # so a smaller learning rate is not another run


def test_an_early_divergence_saves_nothing(train, out, monkeypatch):
    fail_at(monkeypatch, 1)
    with pytest.raises(TrainingDiverged, match="epoch 1, step 1"): train(out)
    assert not out.exists()


@pytest.mark.parametrize("changes", [dict(held_out=0), dict(name="speed94", widths=(8, 8, 8))])
def test_without_a_choice_of_the_best_epoch_nothing_is_saved(train, out, monkeypatch, changes):
    fail_at(monkeypatch, 3)
    with pytest.raises(TrainingDiverged, match="epoch 3"): train(out, **changes)
    assert not out.exists() and checkpoint_path(out).exists()


def test_the_card_says_which_epoch_was_kept(train, out):
    card, _ = train(out, epochs=2)
    assert card.kept_epoch in (1, 2) and card.epochs == 2
    assert train(out, epochs=2, held_out=0)[0].kept_epoch == 2


@pytest.mark.parametrize("changes", [
    dict(optimizer__lr=100., epochs=2), dict(name="speed94", widths=(8, 8, 8), lr=100., head_lr=100.,
                                             bias_lr=100., epochs=2)])
def test_a_dead_model_is_not_saved(train, out, changes):
    with pytest.raises(TrainingDiverged, match="--fresh|smaller learning rate"): train(out, **changes)
    assert not out.exists()


def test_guessing_is_saved_and_judged(train, out):
    _, report = train(out, optimizer__lr=1e-9, epochs=1)
    assert out.exists() and "better than" in " ".join(verdict(report))


def interrupted(folder, out, **changes):
    "A run that was killed after its first epoch."
    def killed(history): raise KeyboardInterrupt
    recipe = find_recipe("simple", **{"data": str(folder), **QUICK, **SMALL, **changes})
    with pytest.raises(KeyboardInterrupt): run_recipe(recipe, out, CPU, on_epoch=killed)
    assert checkpoint_path(out).exists()
    return recipe


def test_changed_images_are_noticed_on_resume(folder, out):
    recipe = interrupted(folder, out)
    rng = np.random.default_rng(1)
    changed = sorted((folder / "oak").glob("*.png"))[:10]
    before = [path.read_bytes() for path in changed]
    for path in changed: Image.fromarray(rng.integers(0, 255, (12, 14, 3), np.uint8)).save(path)
    with pytest.raises(ConfigError, match="digest of the images was .* start over with --fresh"):
        run_recipe(recipe, out, CPU)
    for path, data in zip(changed, before): path.write_bytes(data)
    card, _ = run_recipe(recipe, out, CPU)
    assert card.epochs == 4


def test_every_advice_is_fresh(train, folder, out):
    recipe = interrupted(folder, out)
    with pytest.raises(ConfigError, match="lr was .*start over with --fresh"): train(out, optimizer__lr=.5)
    checkpoint_path(out).write_bytes(b"damaged")
    with pytest.raises(Exception, match="start over with --fresh"): train(out)
    checkpoint_path(out).unlink()  # which --fresh does
    card, _ = run_recipe(recipe, out, CPU)
    assert card.epochs == 4


def test_fp16_on_a_cpu_is_one_clear_line(train, folder, out):
    recipe = interrupted(folder, out)
    checkpoint = checkpoint_path(out)
    saved = torch.load(checkpoint, weights_only=True)
    saved["config"]["precision"] = "fp16"
    torch.save(saved, checkpoint)
    assert Checkpointer(checkpoint).read()["config"]["precision"] == "fp16"
    with pytest.raises(ConfigError, match="needs a CUDA GPU.*--fresh"): train(out, precision="auto")
    with pytest.raises(ConfigError, match="precision was 'fp16'.*--fresh"): run_recipe(recipe, out, CPU)


def test_the_command_says_what_it_kept(folder, out):
    flags = ["--data", folder, "--epochs", "2", "--batch-size", "16", "--precision", "float32"]
    small = ["--set", "architecture=speed_net", "--set", "model.widths=[8,8]"]
    done = subprocess.run([CLI, "train", *flags, *small, "--out", out, "--device", "cpu"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "; weights of epoch " in done.stdout.splitlines()[-1]
