"The commands on a folder: what they print, in any encoding, and their exit codes."
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COMMAND = Path(sys.executable).with_name("cifar-nb")
QUICK = ["--recipe", "simple", "--epochs", "1", "--batch-size", "8", "--precision", "float32",
         "--device", "cpu"]


def run(*args, encoding="ascii"):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([COMMAND, *map(str, args)], env=environment, capture_output=True, check=False)
    done.out, done.err = (text.decode(encoding) for text in (done.stdout, done.stderr))
    assert "Traceback" not in done.err, done.err
    return done


def build(root, *folders, n=25):
    rng = np.random.default_rng(len(folders))
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    "A class whose name Latin 1 lacks, a copy in another class, and a name that says nothing in ASCII."
    root = tmp_path_factory.mktemp("data") / "v\u00f6gel"
    build(root, "\u0441\u043e\u0440\u043e\u043a\u0430", "emu")
    shutil.copy(root / "emu" / "3.png", root / "\u0441\u043e\u0440\u043e\u043a\u0430" / "\u4e2d.png")
    return root


@pytest.fixture(scope="module")
def model(birds, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "birds.safetensors"
    return out, run("train", "--data", birds, *QUICK, "--out", out)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_data_says_what_training_would_see(birds, encoding):
    done = run("data", birds, encoding=encoding)
    assert done.returncode == 0 and "emu" in done.out and r"\u0441\u043e" in done.out
    assert "identical images in several classes: 1 (" in done.out


def test_data_as_json(birds):
    done = run("data", birds, "--size", "16", "--json")
    found = json.loads(done.out)
    assert done.returncode == 0 and set(found["classes"]) == {"\u0441\u043e\u0440\u043e\u043a\u0430", "emu"}
    assert sum(sum(counts.values()) for counts in found["counts"].values()) == 51
    assert found["modes"] == {"RGB": 51} and len(found["copies"]["in several classes"]) == 1


def test_train_says_classes_and_counts_before_it_starts(model):
    out, done = model
    assert done.returncode == 0 and out.exists()
    assert "2 classes (train + validation + test): emu " in done.err


def test_evaluate_and_predict_in_ascii(birds, model):
    done = run("evaluate", "--model", model[0], "--data", birds)
    assert done.returncode == 0 and r"\u0441" in done.out
    done = run("predict", "--model", model[0], birds / "\u0441\u043e\u0440\u043e\u043a\u0430" / "\u4e2d.png")
    assert done.returncode == 0 and r"\u4e2d.png: " in done.out


def test_broken_images_are_listed_and_can_be_left_out(tmp_path):
    build(tmp_path / "pets", "cat", "dog")
    broken = ["cat/1.png", "cat/2.png", "dog/7.png", "dog/9.png"]
    for name in broken: (tmp_path / "pets" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("data", tmp_path / "pets")
    assert done.returncode == 3 and all(f"{name}: " in done.out for name in broken)
    train = ["train", "--data", tmp_path / "pets", *QUICK, "--out", tmp_path / "m.safetensors"]
    done = run(*train)
    assert done.returncode == 3 and all(f"{name}: " in done.err for name in broken)
    assert "--skip-broken" in done.err.splitlines()[-1]
    done = run(*train, "--skip-broken")
    assert done.returncode == 0 and (tmp_path / "m.safetensors").exists()


def test_parts_are_not_classes(tmp_path):
    build(tmp_path / "my pets", "training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog")
    done = run("data", tmp_path / "my pets")
    assert done.returncode == 3 and "look like parts of one data set" in done.err
    parts, _ = (shlex.split(text) for text in done.err.split("`")[1::2])
    assert parts[:3] == ["cifar-nb", "train", "--data"]
    done = run(*parts[1:], *QUICK, "--out", tmp_path / "m.safetensors")
    assert done.returncode == 0 and "2 classes (train + validation + test): cat " in done.err
