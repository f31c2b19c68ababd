"""What each idea of the fast recipe is worth: a cumulative ablation with three seeds per rung.

    python benchmarks/ladder.py    some seven minutes on two cores with bf16

It writes results/ladder.json after each rung. The models are evaluated on held-out training images. Some
rungs switch off what every recipe has (the whitened first layer, the identity, Muon, alternating flips), so
the parts of a run are put together here by hand.
"""
import statistics
import time
from dataclasses import dataclass, replace

import torch
import typer
from machine import write
from torch import nn

from cifar_nb.augment import flip_where, random_flip, random_shift, resize_images
from cifar_nb.datasets import split_by_hash
from cifar_nb.device import Amp, best_device, best_precision, keep_memory, seed_everything
from cifar_nb.evaluate import SixViews
from cifar_nb.experiment import measure
from cifar_nb.folders import load_dataset
from cifar_nb.muon import Muon
from cifar_nb.parts import Parts, build_parts
from cifar_nb.rates import make_schedule
from cifar_nb.recipes import find_recipe
from cifar_nb.records import SpeedRecipe
from cifar_nb.speed import SpeedBatches, init_network, make_muon, speed_loader

SEEDS, N_TRAIN, VALID, EPOCHS = 3, 20_000, .1, 4
RATE_WITHOUT_MUON = .0015  # of the filters, for each image in a step
device = best_device()
precision = best_precision(device)


@dataclass(frozen=True)
class Rung:
    "A fast recipe, and which of its ideas are switched on."
    recipe: SpeedRecipe
    whiten: bool = False  # first layer from the statistics of patches
    identity: bool = False  # filters start as the identity
    orthogonal: bool = False  # Muon
    by_turns: bool = False  # flips in every other epoch, instead of by chance

    def choices(self):
        "For the result, in the words of the earlier results."
        switches = {name: value for name, value in vars(self).items() if name != "recipe"}
        return dict(self.recipe.model_dump(mode="json"), sgd_lr=RATE_WITHOUT_MUON, **switches)


def random_loader(images, stats, recipe):
    "As `speed_loader`, with flips by chance."
    def loader(epoch):
        size = recipe.sizes[epoch]
        shift = round(recipe.shift * size / recipe.size)
        def augment(x): return random_flip(random_shift(x, shift))
        scaled = resize_images(images, size)
        return SpeedBatches(scaled, stats, recipe.batch_size, augment=augment, shuffle=True, device=device,
                            drop_last=True)
    return loader


def make_sgd(model, recipe):
    "As `make_muon`, with SGD for the filters."
    groups = make_muon(model, images_per_step=recipe.batch_size).param_groups
    filters = dict(params=groups[0]["params"], lr=RATE_WITHOUT_MUON * recipe.batch_size,
                   momentum=recipe.sgd_momentum, weight_decay=recipe.decay / RATE_WITHOUT_MUON)
    return Muon([filters, *groups[1:]])


def open_rung(rung, train, stats):
    "The parts of a run, as `build_parts` makes them where every idea is switched on."
    recipe = rung.recipe
    seed_everything(recipe.seed)
    images = replace(train, pixels=train.pixels.to(device), labels=train.labels.to(device))
    if rung.by_turns: images = flip_where(images, torch.rand(len(images)) < .5)
    amp = Amp(device, recipe.precision)
    model = init_network(images, stats, widths=recipe.widths, size=min(recipe.sizes), whiten=rung.whiten,
                         identity=rung.identity, device=device)
    loader = random_loader(images, stats, recipe)
    if rung.by_turns:
        loader = speed_loader(images, stats, recipe.batch_size, sizes=recipe.sizes, shift=recipe.shift,
                              device=device)
    opt = make_sgd(model, recipe)
    if rung.orthogonal:
        bf16 = amp.precision == "bf16"
        opt = make_muon(model, images_per_step=recipe.batch_size, lr=recipe.lr, bf16=bf16)
    sched = make_schedule(opt, "linear", recipe.epochs, len(loader(0)))
    loss_fn = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    return Parts(model, loader, opt, sched, loss_fn, amp, device)


def rungs():
    "Name and rung, each with one more idea than the one before it; those in brackets are for comparison."
    fast = dict(widths=(16, 64, 64), epochs=EPOCHS, batch_size=250, lr=.15, precision=precision, zoom=())
    fast["smoothing"] = 0
    rung = Rung(SpeedRecipe(**fast))
    yield "SpeedNet, SGD", rung
    switches = {"+ whitened first layer": "whiten", "+ identity initialisation": "identity",
                "+ Muon": "orthogonal", "+ alternating flips": "by_turns"}
    for name, switch in switches.items():
        rung = replace(rung, **{switch: True})
        yield name, rung
    fast["smoothing"] = SpeedRecipe().smoothing
    yield "+ label smoothing", replace(rung, recipe=SpeedRecipe(**fast))
    yield "(three epochs instead of four)", replace(rung, recipe=SpeedRecipe(**{**fast, "epochs": 3}))
    sizes = {"+ first 20, then 26 pixels": ((.625, .34), (.8125, .33)),
             "first 24, then 28 pixels instead": SpeedRecipe().zoom}
    for name, zoom in sizes.items():
        yield name, replace(rung, recipe=SpeedRecipe(**(fast | {"zoom": zoom})))


def main():
    "Climb the ladder."
    if device == "cpu": keep_memory()
    data = load_dataset("cifar10")
    stats = data.stats
    rest, valid = split_by_hash(data.train, VALID, salt="validation")
    train, found = rest[:N_TRAIN], []
    what = (f"accuracy on {len(valid):,} held-out images after {EPOCHS} epochs of {N_TRAIN:,} others; "
            "seconds of training")

    def accuracy(model):
        return measure(model, valid, stats, device=device, amp=Amp(device, precision)).accuracy

    def timed(parts, epochs):
        start = time.perf_counter()
        parts.train(epochs)
        return parts.model, time.perf_counter() - start

    def add(rung, runs, choices):
        accuracies, seconds = zip(*runs)
        mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies)
        row = dict(rung=rung, mean=mean, sd=sd, seconds=statistics.mean(seconds))
        found.append(dict(row, accuracies=accuracies, recipe=choices))
        write("ladder", what=what, seeds=list(range(SEEDS)), epochs=EPOCHS, widths=(16, 64, 64),
              batch_size=250, precision=precision, rungs=found)
        print(f"{rung}: {mean:.2%} ± {sd:.2%}, {statistics.mean(seconds):.0f} s", flush=True)

    runs = []
    for seed in range(SEEDS):
        recipe = find_recipe("simple", held_out=0, epochs=EPOCHS, precision=precision, seed=seed)
        # Without validation images it keeps the last epoch, as every rung does
        model, seconds = timed(build_parts(recipe, train, stats, device=device), EPOCHS)
        runs.append((accuracy(model), seconds))
    add("simple: SimpleCNN, Adam", runs, recipe.model_dump(mode="json"))
    for name, rung in rungs():
        runs, again = [], []
        for seed in range(SEEDS):
            recipe = rung.recipe.model_copy(update=dict(seed=seed))
            parts = open_rung(replace(rung, recipe=recipe), train, stats)
            model, seconds = timed(parts, recipe.epochs)
            runs.append((accuracy(model), seconds))
            again.append((accuracy(SixViews(model)), seconds))
        add(name, runs, rung.choices())
    add("+ six views", again, rung.choices())


if __name__ == "__main__": typer.run(main)
