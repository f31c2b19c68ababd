"`cifar-nb import` makes a model file of a checkpoint; other commands name it where they cannot use one."
import argparse

import numpy as np
import pytest
import torch

from cifar_nb.core import ModelError
from cifar_nb.modelfile import find_model, read_model


@pytest.fixture(scope="module")
def net():
    return read_model(find_model("simple"))[0]


@pytest.fixture
def theirs(net, tmp_path):
    state = {f"module._orig_mod.{name}": tensor for name, tensor in net.state_dict().items()}
    path = tmp_path / "theirs.pth"
    torch.save({"net": state, "acc": np.float64(80.1), "epoch": 18}, path)
    return path


def test_a_checkpoint_becomes_a_model(command, theirs, net, tmp_path):
    out = tmp_path / "ours.safetensors"
    done = command("import", theirs, "--like", "simple", "--out", out)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "weights: taken from 'net'; dropped from the names: _orig_mod., module."
    assert last.startswith(f"saved {out}; measure it: cifar-nb evaluate --model {out}")
    ours, card = read_model(out)
    for name, tensor in net.state_dict().items(): assert torch.equal(ours.state_dict()[name], tensor)
    assert card.test_accuracy is None and card.epochs == 0 and card.revision == "imported from theirs.pth"


def test_words_inside_of_names_are_dropped(command, net, tmp_path):
    words = "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."
    renamed = {name: words[0] + name.replace(".", f".{words[1]}", 1) for name in net.state_dict()}
    state = {renamed[name]: tensor for name, tensor in net.state_dict().items()}
    path, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save(state, path)
    done = command("import", path, "--like", "simple", "--out", out)
    assert done.returncode == 0 and all(word in done.stdout for word in words), done.stderr
    ours = read_model(out)[0].state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in net.state_dict().items())


def test_everything_by_hand(command, net, tmp_path):
    path, out = tmp_path / "plain.pth", tmp_path / "plain.safetensors"
    torch.save(net.state_dict(), path)
    names = ",".join("abcdefghij")
    done = command("import", path, "--architecture", "simple_cnn", "--classes", names, "--mean", ".5,.5,.5",
                   "--std", ".25,.25,.25", "--out", out)
    assert done.returncode == 0, done.stderr
    card = read_model(out)[1]
    assert card.classes == tuple("abcdefghij") and card.mean == (.5,) * 3 and card.input_size == 32


@pytest.mark.parametrize("flags, code, said", [
    ([], 2, "--architecture"), (["--architecture", "simple_cnn"], 2, "--classes"),
    (["--architecture", "simple_cnnn", "--classes", "a,b"], 2, "did you mean 'simple_cnn'"),
    (["--architecture", "simple_cnn", "--classes", "a,b"], 4, "instead of (2"),
    (["--architecture", "resnet18", "--like", "simple"], 4, "does not fit resnet18 with 10 classes"),
    (["--like", "nobody"], 4, "there is no model 'nobody'"), (["--like", ""], 2, "--like is empty"),
    (["--like", "simple", "--key", "ema"], 4, "use one of net"),
    (["--like", "simple", "--mean", "1,2"], 2, "mean"),
    (["--like", "simple", "--mean", "x"], 2, "three numbers"),
    (["--like", "simple", "--set", "widths"], 2, "KEY=VALUE"),
    (["--like", "simple", "--set", "widths=[8]"], 4, "does not fit"),
    (["--like", "simple", "--set", "wdths=[8]"], 2, "did you mean 'widths'"),
    (["--like", "simple", "--out", "x.pth"], 2, "must end in .safetensors")])
def test_mistakes_are_one_line(command, theirs, *, flags, code, said):
    done = command("import", theirs, *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert said in done.stderr


def test_a_refused_type_is_named(command, net, tmp_path):
    path = tmp_path / "run.pth"
    torch.save({"net": net.state_dict(), "args": argparse.Namespace(lr=.1)}, path)
    done = command("import", path, "--like", "simple")
    assert done.returncode == ModelError.exit_code and "argparse.Namespace" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [
    "predict --model {} x.png", "evaluate --model {} --data synthetic", "train --data synthetic --start {}"])
def test_other_commands_name_this_one(command, theirs, words):
    done = command(*words.format(theirs).split())
    assert done.returncode == ModelError.exit_code and "`cifar-nb import`" in done.stderr
