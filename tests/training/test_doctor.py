"`doctor --train` tests a training before it starts, and changes nothing."
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tools.command import run
from torch import nn, optim

from cifar_nb.device import random_state
from cifar_nb.doctor import (
    check_axes,
    check_evaluation,
    check_first_loss,
    check_gradients,
    check_input,
    check_labels,
    check_logits,
    check_loop,
    check_overfit,
    check_scale,
    check_training,
)
from cifar_nb.images import normalize, synthetic

NETS = """
import torch
import torch.nn.functional as F
from torch import nn

class Softmax(nn.Module):
    def __init__(self, n_classes=10, size=32):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3*size*size, n_classes))

    def forward(self, x): return self.head(x).softmax(1)

class Dropout(Softmax):
    def forward(self, x): return self.head(F.dropout(x))

class Unused(Softmax):
    def __init__(self, n_classes=10, size=32):
        super().__init__(n_classes, size)
        self.spare = nn.Linear(3, 3)

    def forward(self, x): return self.head(x)

class Loud(Softmax):
    def forward(self, x): return 1000*self.head(x)
"""
FAILS = {"Softmax": "logits", "Dropout": "evaluation", "Unused": "gradients", "Loud": "first loss"}


def doctor(*words):
    "Exit code, and the names of the tests that failed."
    code, out, said = run("doctor", "--train", *words, "--device", "cpu", "--json")
    assert out, said
    found = json.loads(out)
    assert found["failed"] == [check["name"] for check in found["checks"] if not check["passed"]]
    return code, found["failed"]


@pytest.mark.parametrize("recipe", ["simple", "speed94"])
def test_a_recipe_of_ours_passes(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("doctor", "--train", "synthetic", "--recipe", recipe, "--device", "cpu")
    assert code == 0 and out.endswith("all 9 tests passed\n"), out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FAILS)
def test_a_network_with_a_mistake_fails(name, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    code, failed = doctor("synthetic", "--architecture", f"{tmp_path}/nets.py:{name}")
    assert code == 1 and FAILS[name] in failed


def test_a_learning_rate_that_is_too_large_and_a_leak(tmp_path):
    images = synthetic("test")
    for i in range(60):
        path = tmp_path / images.classes[images.labels[i]] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images.pixels[i].permute(1, 2, 0).numpy()).save(path)
    small = ("--recipe", "simple", "--set", "batch_size=16")
    assert doctor(tmp_path, *small) == (0, [])
    assert doctor(f"train={tmp_path},valid={tmp_path}", *small) == (1, ["leak"])
    assert doctor(tmp_path, *small, "--set", "optimizer.lr=10") == (1, ["one batch"])


@pytest.mark.parametrize("words, said", [
    (("--train", "--url", "http://127.0.0.1:1"), "--url is for a service"),
    (("--train", "--model", "cifar10"), "--model is for a service"),
    (("--recipe", "simple"), "--recipe is for a training: add --train"),
    (("--set", "size=64"), "--set is for a training: add --train"),
    (("--train", "synthetic", "--set", "epohcs=1"), "epochs"),
    (("--train", "synthetic", "--data", "cifar10"), "mean the same thing")])
def test_flags_that_do_not_belong_together(words, said):
    code, out, error = run("doctor", *words)
    assert code == 2 and said in error and not out


@pytest.fixture
def setup():
    "A small network, its optimiser, and a batch of drawn shapes."
    torch.manual_seed(0)
    images = synthetic()[:200]
    x = normalize(images.pixels, ((.5,)*3, (.3,)*3))
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Dropout(.1), nn.Linear(128, 10))
    return net, optim.SGD(net.parameters(), lr=.05, momentum=.9), (x, images.labels), images


def epoch(model, batches, opt, loss_fn, *, scaler=None):
    model.train()
    for x, y in batches:
        loss = loss_fn(model(x), y)
        opt.zero_grad()
        if scaler is None: loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), .1)
        if scaler is None: opt.step()
        else: scaler.step(opt)


def test_nothing_of_the_user_is_changed(setup):
    net, opt, batch, images = setup
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = random_state()
    found = check_training(net, opt, F.cross_entropy, batch, n_classes=10, valid=synthetic("test").pixels,
                           train=(images.pixels, images.labels))
    found += [*check_loop(epoch, net, opt, batch), check_scale(epoch, net, opt, batch)]
    assert all(check.passed for check in found), [check for check in found if not check.passed]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and not opt.state and all(p.grad is None for p in net.parameters())
    assert torch.equal(random_state()["torch"], state["torch"])


def test_each_test_can_fail(setup):
    net, opt, (x, y), images = setup
    assert not check_input(images.pixels.float()).passed and not check_input(images.pixels/255).passed
    assert not check_axes(x.permute(0, 2, 3, 1).reshape(x.shape)).passed
    assert not check_labels((x, y.roll(1)), images.pixels, y).passed
    assert not check_logits(nn.Sequential(net, nn.Softmax(1)), x).passed
    assert check_logits(nn.Sequential(net, nn.ReLU()), x).passed  # not negative, but no probabilities
    summed = nn.CrossEntropyLoss(reduction="sum")
    assert not check_first_loss(net, summed, (x, y), 10).passed
    assert not check_gradients(nn.Sequential(net, nn.Hardtanh(5, 6)), F.cross_entropy, (x, y)).passed
    nans = check_gradients(net, lambda z, y: F.cross_entropy(z, y)*torch.nan, (x, y))
    assert not nans.passed and "0.weight" in nans.said
    assert not check_overfit(net, optim.SGD(net.parameters(), lr=1e-9), F.cross_entropy, (x, y)).passed
    assert check_evaluation(net.eval(), x).passed and not check_evaluation(net.train(), x).passed


def test_each_test_of_the_loop_can_fail(setup):
    net, opt, batch, _ = setup
    kept = []

    def careless(model, batches, opt, loss_fn):
        model.eval()
        for x, y in batches:
            kept.append(loss_fn(model(x), y))
            kept[-1].backward()
            opt.step()

    def clears_at_the_end(model, batches, opt, loss_fn):
        model.train()
        for x, y in batches:
            loss_fn(model(x), y).backward()
            opt.step()
            opt.zero_grad(set_to_none=False)

    assert [check.passed for check in check_loop(careless, net, opt, batch)] == [False]*3
    assert [check.passed for check in check_loop(clears_at_the_end, net, opt, batch)] == [True]*3

    def clips_scaled(model, batches, opt, loss_fn, *, scaler):
        for x, y in batches:
            opt.zero_grad()
            scaler.scale(loss_fn(model(x), y)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), .1)
            scaler.step(opt)

    assert not check_scale(clips_scaled, net, opt, batch).passed
