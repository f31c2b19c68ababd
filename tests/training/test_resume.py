"`kill -9` at random moments, start again, and get the same model file, byte for byte."
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cifar_nb.images import synthetic

COMMAND = Path(sys.executable).with_name("cifar-nb")
FIXED = ["--epochs", "3", "--precision", "float32", "--seed", "3"]


def train_command(out, *, recipe="simple", data="synthetic", batch_size=100):
    what = ["--recipe", recipe, "--data", str(data), "--batch-size", str(batch_size)]
    return [COMMAND, "train", *what, *FIXED, "--out", str(out)]


def start(out, **what):
    "A training in a process of its own. A commit meanwhile would change the card, so it sees no repository."
    environment = {**os.environ, "GIT_DIR": os.devnull}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(train_command(out, **what), env=environment, **pipes)


@pytest.fixture
def dots(tmp_path_factory):
    "A folder with few images, since the fast network is a large one."
    root = tmp_path_factory.mktemp("dots")
    shapes = synthetic("test")
    for i in range(300):
        path = root / shapes.classes[shapes.labels[i]] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(shapes.pixels[i].permute(1, 2, 0).numpy()).save(path)
    return root


def train_undisturbed(out, **what):
    "Seconds of an epoch."
    process = start(out, **what)
    process.stdout.readline()
    since = time.monotonic()
    process.stdout.readline()
    seconds = time.monotonic() - since
    assert process.wait(300) == 0, process.stderr.read()
    return seconds


def train_and_kill(out, seconds, **what):
    "Kill a training at a random moment after its first new epoch. False when it was finished before."
    process = start(out, **what)
    process.stdout.readline()
    time.sleep(random.uniform(0, .8) * seconds)
    os.kill(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL and not out.exists()


@pytest.mark.parametrize("recipe", ["simple", "speed94"])
def test_killed_and_resumed_is_the_same_run(tmp_path, recipe, dots):
    what = dict(recipe=recipe) if recipe == "simple" else dict(recipe=recipe, data=dots, batch_size=20)
    calm, out = tmp_path / "calm.safetensors", tmp_path / "killed.safetensors"
    epoch = train_undisturbed(calm, **what)
    kills = 0
    for _ in range(11):
        if kills == 2: break
        if train_and_kill(out, epoch, **what):
            kills += 1
        else:  # it was finished before: once more from the start, and sooner
            out.unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "runs")
            kills, epoch = 0, epoch / 2
    process = start(out, **what)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert kills == 2 and "Resuming" in errors
    assert out.read_bytes() == calm.read_bytes()
    left = {p.name for p in tmp_path.iterdir() if not p.name.endswith((".part", ".lock"))}
    assert left == {calm.name, out.name, "runs"}
    rows = (tmp_path / "runs" / "killed-0001" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert [row.partition(",")[0] for row in rows] == ["epoch", "1", "2", "3"]


def test_another_run_is_not_continued(tmp_path):
    out = tmp_path / "m.safetensors"
    process = start(out)
    process.stdout.readline()
    process.kill()
    process.wait()
    done = subprocess.run([*train_command(out), "--lr", "0.1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "lr was 0.001, is now 0.1" in done.stderr
