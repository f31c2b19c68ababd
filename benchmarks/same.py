"""Is our training the same algorithm as airbench94_muon's? The loss of each step next to theirs.

    python benchmarks/same.py airbench94_muon.py    a minute; prints the differences, writes nothing

The script is that of https://github.com/KellerJordan/cifar10-airbench; none of its code is here. Its network
and its optimiser get our first weights and our batches, in float64, so that rounding does not hide a
difference. Both sides have ReLU and a first-layer bias that stays 0; our loss is summed over the batch, as
theirs is, and not averaged.
"""
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from beside import replaced
from torch import nn

from cifar_nb.augment import random_shift
from cifar_nb.batches import BatchLoader
from cifar_nb.device import seed_everything
from cifar_nb.folders import load_dataset
from cifar_nb.loop import train_epoch
from cifar_nb.rates import make_schedule
from cifar_nb.speed import init_network, make_muon

BATCH, EPOCHS, IMAGES, SMOOTHING = 200, 2, 2000, .2
# So that their module computes on a CPU with the numbers that it is given, and trains nothing by itself
CHANGES = [("with open(sys.argv[0]) as f:\n    code = f.read()\n", "", 1), ("@torch.compile\n", "", 1),
           (".half()", "", 2), ("X = G.bfloat16()", "X = G.clone()", 1), ("nn.GELU()", "nn.ReLU()", 2)]


def airbench(path):
    "What the script defines before its `main`."
    text = replaced(path.read_text(encoding="utf-8").partition("\ndef main(")[0], CHANGES, path.name)
    module = ModuleType(path.stem)
    exec(compile(text, path.name, "exec"), vars(module))
    return module


def their_losses(module, net, batches):
    "As their `main` trains, step by step."
    decay, steps = 2e-6 * BATCH, len(batches)
    biases = [p for name, p in net.named_parameters() if "norm" in name and p.requires_grad]
    filters = [p for p in net.parameters() if p.ndim == 4 and p.requires_grad]
    groups = [dict(params=biases, lr=.053, weight_decay=decay / .053),
              dict(params=[net.head.weight], lr=.67, weight_decay=decay / .67)]
    optimizers = [torch.optim.SGD(groups, momentum=.85, nesterov=True),
                  module.Muon(filters, lr=.24, momentum=.6, nesterov=True)]
    schedules = [make_schedule(opt, "linear", 1, steps) for opt in optimizers]
    net.train()
    for x, y in batches:
        loss = F.cross_entropy(net(x, whiten_bias_grad=False), y, label_smoothing=SMOOTHING, reduction="sum")
        loss.backward()
        for opt, sched in zip(optimizers, schedules):
            opt.step()
            sched.step()
        net.zero_grad(set_to_none=True)
        yield loss.item() / len(y)


def our_losses(net, batches):
    found = []
    opt = make_muon(net, images_per_step=1, decay=2e-6 * BATCH)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=SMOOTHING, reduction="sum")
    train_epoch(net, batches, opt, loss_fn, sched=make_schedule(opt, "linear", 1, len(batches)),
                watch=lambda loss, **seen: found.append(loss.item() / BATCH))
    return found


def main(script: Annotated[Path, typer.Argument(help="airbench94_muon.py", exists=True, dir_okay=False)]):
    "The loss of each step, and the largest difference."
    seed_everything(0)
    data, module = load_dataset("cifar10"), airbench(script)
    images = data.train[:IMAGES]
    dl = BatchLoader(images, data.stats, BATCH, shuffle=True, augment=lambda x: random_shift(x, 2))
    batches = [(x.double(), y) for _ in range(EPOCHS) for x, y in dl]
    ours, theirs = init_network(images, data.stats), module.CifarNet()
    for layer in ours.modules():
        if isinstance(layer, nn.BatchNorm2d): layer.eps = 1e-12
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    largest = 0.
    for ours_now, theirs_now in zip(our_losses(ours.double(), batches),
                                    their_losses(module, theirs.double(), batches), strict=True):
        largest = max(largest, abs(ours_now - theirs_now))
        print(f"{ours_now:.9f} {theirs_now:.9f} {ours_now - theirs_now:+.1e}", flush=True)
    print(f"largest difference {largest:.1e}")


if __name__ == "__main__": typer.run(main)
