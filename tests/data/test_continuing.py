"A start is continued only where it has not learned from the images that accuracy is measured on."
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools.files import two_classes

from cifar_nb.core import ConfigError, Settings
from cifar_nb.datasets import content_key, count_trained, image_keys, split_by_hash
from cifar_nb.experiment import run_recipe
from cifar_nb.folders import load_dataset
from cifar_nb.modelfile import read_card, read_trained_keys
from cifar_nb.recipes import find_recipe

CLI = Path(sys.executable).with_name("cifar-nb")
QUICK = dict(epochs=1, batch_size=16, precision="float32", held_out=.2)
SMALL = dict(architecture="speed_net", model=dict(widths=(8, 8)))  # fits images of any size


def train(data, out, **changes):
    network = {} if "start" in changes else SMALL
    recipe = find_recipe("simple", **{**QUICK, **network, "data": str(data), **changes})
    return run_recipe(recipe, out, Settings(device="cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return two_classes(tmp_path_factory.mktemp("data") / "leaves")


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "start.safetensors"
    train(folder, out)
    return out


def parts(data, held_out=.2, size=32):
    data = load_dataset(str(data), size)
    learned, valid = split_by_hash(data.train, held_out, salt="validation")
    return learned, valid, data.test


def said(error):
    "The number of images in a refusal."
    found = re.search(r"learned from ([\d,]+) of the ([\d,]+) (validation|test) images", str(error))
    assert found, str(error)
    return int(found[1].replace(",", "")), int(found[2].replace(",", "")), found[3]


def test_a_model_file_knows_what_it_learned_from(folder, start):
    learned, valid, test = parts(folder)
    known = read_trained_keys(start)
    assert known.tolist() == sorted(set(image_keys(learned).tolist()))
    assert count_trained(valid, known) == count_trained(test, known) == 0
    note = read_card(start).trained_on
    assert note["images"] == len(known) and note["held_out"] == .2 and "hash" in note["rule"]


@pytest.mark.parametrize("size", [32, 64])
def test_another_size_is_continued_and_test_images_stay_unseen(folder, start, tmp_path, *, size):
    card, report = train(folder, tmp_path / "next.safetensors", start=str(start), size=size)
    _, valid, test = parts(folder, size=size)
    known = read_trained_keys(tmp_path / "next.safetensors")
    assert card.input_size == size and len(report) == len(test)
    assert count_trained(test, known) == count_trained(valid, known) == 0
    assert set(read_trained_keys(start).tolist()) <= set(known.tolist())


def test_an_enlarged_validation_set_is_refused_with_the_number(folder, start, tmp_path):
    _, valid, _ = parts(folder, .5)
    expected = count_trained(valid, read_trained_keys(start))
    assert 0 < expected < len(valid)
    with pytest.raises(ConfigError, match="held_out = 0") as error:
        train(folder, tmp_path / "next.safetensors", start=str(start), held_out=.5)
    assert said(error.value) == (expected, len(valid), "validation")
    assert not list(tmp_path.glob("next.*"))


def test_a_smaller_validation_set_is_accepted(folder, start, tmp_path):
    "Its images are part of the larger one, so the start has not seen them."
    train(folder, tmp_path / "next.safetensors", start=str(start), held_out=.1)
    train(folder, tmp_path / "last.safetensors", start=str(start), held_out=0)


@pytest.mark.parametrize("n", [1, 7])
def test_trained_images_in_a_test_folder_are_refused(folder, start, tmp_path, *, n):
    known = set(read_trained_keys(start).tolist())
    root, moved = tmp_path / "leaves", 0
    shutil.copytree(folder, root / "train")
    for path in sorted(root.rglob("*.png")):
        learned = content_key(path.read_bytes()) in known
        if learned and moved >= n: continue  # all that the start has not seen, and a few that it has
        moved += learned
        place = root / "test" / path.parent.name / f"renamed {path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    with pytest.raises(ConfigError, match="another start") as error:
        train(root, tmp_path / "next.safetensors", start=str(start), held_out=0)
    assert said(error.value) == (n, len(load_dataset(str(root)).test), "test")


def test_trained_images_in_a_validation_folder_are_refused_with_the_number(folder, start, tmp_path):
    known = set(read_trained_keys(start).tolist())
    shutil.copytree(folder, tmp_path / "leaves" / "train")
    for kind in ("birch", "oak"):
        files = [p for p in sorted((folder / kind).iterdir()) if content_key(p.read_bytes()) in known]
        (tmp_path / "leaves" / "val" / kind).mkdir(parents=True)
        for path in files[:2]: shutil.copy(path, tmp_path / "leaves" / "val" / kind)
    with pytest.raises(ConfigError, match="validation accuracy") as error:
        train(tmp_path / "leaves", tmp_path / "next.safetensors", start=str(start))
    assert said(error.value) == (4, 4, "validation")


def test_a_grown_folder_is_continued_and_remembered(folder, start, tmp_path):
    rng = np.random.default_rng(1)
    root = tmp_path / "more leaves"
    shutil.copytree(folder, root)
    for kind in ("birch", "oak"):
        for i in range(30):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(root / kind / f"new {i}.png")
    second = tmp_path / "second.safetensors"
    train(root, second, start=str(start))
    learned, valid, test = parts(root)
    known = read_trained_keys(second)
    assert known.tolist() == torch.cat([read_trained_keys(start), image_keys(learned)]).unique().tolist()
    assert count_trained(valid, known) == count_trained(test, known) == 0
    # The third run looks at the old folder again, but `second` has learned from both
    third = tmp_path / "third.safetensors"
    train(folder, third, start=str(second))
    assert torch.equal(read_trained_keys(third), known)


def test_another_data_set_has_nothing_in_common(folder, start, tmp_path):
    rng = np.random.default_rng(2)
    for kind in ("birch", "oak"):
        (tmp_path / "leaves" / kind).mkdir(parents=True)  # called like the first
        for i in range(40):
            image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
            image.save(tmp_path / "leaves" / kind / f"{i}.png")
    train(tmp_path / "leaves", tmp_path / "next.safetensors", start=str(start), held_out=.5)


def test_drawn_shapes_are_compared_by_their_pixels(tmp_path):
    first, data = tmp_path / "first.safetensors", load_dataset("synthetic")
    train("synthetic", first, batch_size=100)
    known = read_trained_keys(first)
    assert count_trained(data.test, known) == 0 and len(known) == pytest.approx(4000, abs=150)
    _, valid, _ = parts("synthetic", .3)
    expected = count_trained(valid, known)
    assert expected > 300
    with pytest.raises(ConfigError) as error:
        train("synthetic", tmp_path / "next.safetensors", start=str(first), held_out=.3)
    assert said(error.value) == (expected, len(valid), "validation")
    train("synthetic", tmp_path / "next.safetensors", start=str(first), batch_size=100)
    assert count_trained(data.test, read_trained_keys(tmp_path / "next.safetensors")) == 0


def test_the_command_line_says_the_number(folder, start, tmp_path):
    _, valid, _ = parts(folder, .5)
    expected = count_trained(valid, read_trained_keys(start))

    def command(held_out):
        flags = dict(data=folder, start=start, held_out=held_out, out=tmp_path / "next.safetensors")
        words = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items()]
        words += ["--epochs=1", "--batch-size=16", "--precision=float32", "--device=cpu"]
        return subprocess.run([CLI, "train", "--recipe", "simple", *words], capture_output=True, text=True)
    refused = command(.5)
    assert refused.returncode == ConfigError.exit_code, refused.stderr
    assert f"learned from {expected} of the {len(valid)} validation images" in refused.stderr
    assert "Traceback" not in refused.stderr and not (tmp_path / "next.safetensors").exists()
    accepted = command(.2)
    assert accepted.returncode == 0, accepted.stderr
    assert (tmp_path / "next.safetensors").exists()
