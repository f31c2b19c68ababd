"`kill -9` at random moments, start again, and get the same model file, byte for byte."
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cifar_nb.data import synthetic

COMMAND = Path(sys.executable).with_name("cifar-nb")


def start(out, recipe="simple", data="synthetic", batch_size=100):
    args = ["train", "--recipe", recipe, "--data", str(data), "--epochs", "3", "--batch-size", str(batch_size), "--precision", "float32", "--seed", "3", "--out", str(out)]
    return subprocess.Popen([COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "GIT_DIR": os.devnull})  # a commit meanwhile would change the card


@pytest.fixture
def dots(tmp_path_factory):
    "A folder with few pictures, since the fast network is a large one."
    root, shapes = tmp_path_factory.mktemp("dots"), synthetic("test")
    for i in range(300):
        path = root / shapes.classes[shapes.labels[i]] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(shapes.pixels[i].permute(1, 2, 0).numpy()).save(path)
    return root


@pytest.mark.parametrize("recipe", ["simple", "speed94"])
def test_killed_and_resumed_is_the_same_run(tmp_path, recipe, dots):
    what = dict(recipe=recipe) if recipe == "simple" else dict(recipe=recipe, data=dots, batch_size=20)
    calm = start(tmp_path / "calm.safetensors", **what)
    calm.stdout.readline()
    since = time.monotonic()
    calm.stdout.readline()
    epoch = time.monotonic() - since
    assert calm.wait(300) == 0, calm.stderr.read()
    kills, resumed, out = 0, False, tmp_path / "killed.safetensors"
    for _ in range(12):
        process = start(out, **what)
        if kills < 2:
            process.stdout.readline()  # an epoch is done, the next one runs
            time.sleep(random.uniform(0, .8) * epoch)
            os.kill(process.pid, signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            if out.exists():  # it was done before: once more from the start, and sooner
                out.unlink()
                kills, epoch = 0, epoch / 2
        else:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            resumed = "Resuming" in errors
            break
    assert kills and resumed
    assert out.read_bytes() == (tmp_path / "calm.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith((".part", ".lock"))) == ["calm.safetensors", "killed.safetensors"]


def test_another_run_is_not_continued(tmp_path):
    process = start(tmp_path / "m.safetensors")
    process.stdout.readline()
    process.kill()
    process.wait()
    done = subprocess.run([COMMAND, "train", "--data", "synthetic", "--epochs", "3", "--batch-size", "100", "--lr", "0.1", "--precision", "float32", "--seed", "3", "--out", str(tmp_path / "m.safetensors")],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "lr was 0.001, is now 0.1" in done.stderr
