"A full disk, a folder without permission, a name that is too long: one line, an exit code, nothing lost."
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cifar_nb.rescue
from cifar_nb.core import ConfigError, Settings
from cifar_nb.experiment import checkpoint_path, run_recipe
from cifar_nb.images import synthetic
from cifar_nb.modelfile import read_model, save_model
from cifar_nb.recipes import find_recipe

CLI = Path(sys.executable).with_name("cifar-nb")
RECIPE = dict(data="synthetic", batch_size=200, held_out=.5, precision="float32", epochs=1,
              architecture="speed_net", model=dict(widths=(8, 8)))
FULL = OSError(errno.ENOSPC, "No space left on device")


def command(*words, **options):
    done = subprocess.run([CLI, *map(str, words)], stderr=subprocess.PIPE, text=True, **options)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


def refuse(monkeypatch, n):
    "The disk is full for the first `n` times that a model is saved."
    calls = []

    def save(*args, **options):
        calls.append(1)
        if len(calls) <= n: raise FULL
        return save_model(*args, **options)
    monkeypatch.setattr(cifar_nb.rescue, "save_model", save)


def test_a_model_that_cannot_be_saved_is_elsewhere(tmp_path, monkeypatch):
    out = tmp_path / "m.safetensors"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    refuse(monkeypatch, 1)
    with pytest.raises(ConfigError, match="No space left.* MB are free. The model is in ") as error:
        run_recipe(find_recipe("simple", **RECIPE), out, Settings(device="cpu"))
    assert read_model(str(error.value).partition("The model is in ")[2].partition(" instead")[0])
    assert not out.exists() and checkpoint_path(out).exists()


def test_nothing_is_trained_twice_after_making_room(tmp_path, monkeypatch):
    out = tmp_path / "m.safetensors"
    refuse(monkeypatch, 2)
    recipe = find_recipe("simple", **RECIPE)
    with pytest.raises(ConfigError, match="it goes on from the checkpoint"):
        run_recipe(recipe, out, Settings(device="cpu"))
    trained = []
    run_recipe(recipe, out, Settings(device="cpu"), on_epoch=trained.append)
    assert not trained and read_model(out)[1].epochs == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", ["recipes simple", "--version"])
def test_an_output_on_a_full_disk(words):
    with open("/dev/full", "w", encoding="utf-8") as full: done = command(*words.split(), stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "cifar-nb: output: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_training_goes_on_when_its_output_cannot_be_written(tmp_path):
    "The log of a long training may fill a disk that is not the one with the model."
    out = tmp_path / "m.safetensors"
    words = "train --data synthetic --epochs 1 --batch-size 200 --set held_out=.9 --device cpu --out"
    with open("/dev/full", "w", encoding="utf-8") as full: done = command(*words.split(), out, stdout=full)
    assert done.returncode == 1 and read_model(out)[1].epochs == 1
    assert done.stderr.count("the output cannot be written: No space left on device") == 1
    assert "valid" in (tmp_path / "runs" / "m-0001" / "log.txt").read_text(encoding="utf-8")


def test_names_of_classes_that_are_not_text(image):
    done = command("import", image, "--architecture", "resnet18", "--classes", image)
    assert done.returncode == 2 and "cannot be read: it is not text in UTF-8" in done.stderr


def test_a_reader_that_stops_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = command("recipes", stdout=write)
    os.close(write)
    assert done.returncode == 1 and not done.stderr


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "good.png"
    Image.fromarray(synthetic("test").pixels[0].permute(1, 2, 0).numpy()).save(path)
    return path


def test_what_cannot_be_opened_is_named_and_the_others_are_answered(image, tmp_path):
    bad = ["x" * 300 + ".png", tmp_path, image / "inside.png", tmp_path / "nowhere.png"]
    done = command("predict", *bad, image, stdout=subprocess.PIPE)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == len(bad) and done.stdout.startswith(f"{image}: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(image, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0)
    done = command("predict", locked / "0.png", image, stdout=subprocess.PIPE)
    locked.chmod(0o700)
    assert done.returncode == 5 and "Permission denied" in done.stderr and image.name in done.stdout


def test_an_overlong_name_is_found_before_training(tmp_path):
    "The name itself would do, but not that of its unfinished form."
    done = command("train", "--data", "synthetic", "--out", tmp_path / f"{'x' * 240}.safetensors",
                   stdout=subprocess.PIPE)
    assert done.returncode == 2 and "File name too long" in done.stderr and "--out" in done.stderr
