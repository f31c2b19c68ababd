"""What a change of the fast recipe is worth: pairs of runs with the same seed, judged on held-out images.

    python benchmarks/trials.py run small "small, relu" --seeds 5  adds a line per run to results/trials.jsonl
    python benchmarks/trials.py run airbench --test                five runs on all images, tested once
    python benchmarks/trials.py table small                        differences from `small`, 95% intervals

A run trains on 45,000 images and is judged on 5,000 others; with --test it trains on all 50,000 and is tested
on the official 10,000. Two processes of one thread each (--first 0 --step 2 and --first 1 --step 2, and
OMP_NUM_THREADS=1) finish sooner than one of two threads. A run that is in the file is not repeated.
"""
import json
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import typer
from machine import RESULTS, conditions, counted_work, summary
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cifar_nb.device import keep_memory
from cifar_nb.evaluate import SixViews
from cifar_nb.experiment import measure, split_data
from cifar_nb.fit import fit
from cifar_nb.folders import load_dataset
from cifar_nb.parts import Parts, build_parts
from cifar_nb.recipes import find_recipe

app = typer.Typer(add_completion=False)
FILE = RESULTS / "trials.jsonl"


@dataclass
class Trial:
    "A run that can still be changed before it begins."
    recipe: Any
    images: Any  # To train on
    parts: Parts

    @property
    def n_steps(self): return len(self.images) // self.recipe.batch_size  # In an epoch

    def before_epoch(self, change):
        "Call a function with the number of each epoch before it."
        loader = self.parts.loader
        def changed(epoch):
            change(epoch)
            return loader(epoch)
        self.parts = replace(self.parts, loader=changed)


def falling(steps): return lambda step: 1 - min(1, step / steps)


def learning_bias(trial, epochs):
    "The first layer's bias learns for a few epochs, at a rate that falls to 0 (airbench)."
    bias, opt = trial.parts.model.whiten.bias, trial.parts.opt
    sgd = {k: v for k, v in opt.param_groups[1].items() if k not in ("params", "initial_lr")}
    sgd["lr"] = trial.recipe.bias_lr * trial.recipe.batch_size
    opt.add_param_group({**sgd, "params": [bias]})
    whole = falling(trial.recipe.epochs * trial.n_steps)
    trial.parts = replace(trial.parts, sched=LambdaLR(opt, [whole] * 3 + [falling(epochs * trial.n_steps)]))
    def switch(epoch):
        bias.requires_grad_(epoch < epochs)
        bias.grad = None
    trial.before_epoch(switch)


def norm_eps(trial, eps):
    "The constant under the root of batch norm."
    for module in trial.parts.model.modules():
        if isinstance(module, nn.BatchNorm2d): module.eps = eps


def jitter(trial, most):
    "Brightness and contrast, in standard deviations of the images (Hiverge)."
    loader = trial.parts.loader
    def jittered(epoch):
        for x, y in loader(epoch):
            shift, scale = (by * (2 * torch.rand(len(x), 1, 1, 1) - 1) for by in most)
            yield (x + shift) * (1 + scale), y
    trial.parts = replace(trial.parts, loader=jittered)


def frozen(trial, epochs):
    "The first block learns no more in the last epochs."
    model = trial.parts.model
    filters = [p for p in model.blocks[0].parameters() if p.requires_grad]
    def switch(epoch):
        for p in filters: p.requires_grad_(epoch < trial.recipe.epochs - epochs)
        trial.parts.opt.zero_grad()
    trial.before_epoch(switch)


class Work:
    "Multiplications and additions of a run: those of the first batch of each epoch, times its batches."
    def __init__(self, trial):
        self.total, self.watched, self.model = 0, trial.parts.step["watch"], trial.parts.model
        trial.before_epoch(self.begin)

    def begin(self, epoch):
        self.counting, self.first = counted_work(self.model), None
        self.counter = self.counting.__enter__()

    def watch(self, **seen):
        if self.first is None:
            self.counting.__exit__(None, None, None)
            self.first = self.counter.get_total_flops()
        self.total += self.first
        self.watched(**seen)


EXTRAS = dict(bias_epochs=learning_bias, eps=norm_eps, jitter=jitter, frozen=frozen)

# airbench94_muon as published, in our loop
AIRBENCH = dict(epochs=8, batch_size=2000, zoom=(), smoothing=.2, activation="gelu")
# What a recipe can say of https://github.com/fulcrumresearch/cifar-10-speedrun, E1
FULCRUM = dict(epochs=9, batch_size=1500, smoothing=.09, activation="silu", lr=.2255, momentum=.655,
               bias_lr=.0573, head_lr=.5415, sgd_momentum=.825, decay=1.0418e-6)
SMALL = dict(widths=(32, 128, 128))  # A quarter of the work
NARROW = dict(widths=(32, 192, 256))  # Half of it: the first blocks take more time than work
# Keys of `speed94` that differ, and what a recipe cannot say
TRIALS = {
    "speed94": ({}, {}),
    "airbench": (AIRBENCH, dict(bias_epochs=3, eps=1e-12)),
    "fulcrum": (FULCRUM, {}),
    "narrow": (FULCRUM | NARROW, {}),
    "small": (FULCRUM | SMALL, {}),
}
CHANGES = {
    "relu": (dict(activation="relu"), {}),
    "gelu": (dict(activation="gelu"), {}),
    "batches of 1000": (dict(batch_size=1000), {}),
    "head 1": (dict(head_lr=1.), {}),
    "smoothing 0.2": (dict(smoothing=.2), {}),
    "8 epochs": (dict(epochs=8), {}),
    "7 epochs": (dict(epochs=7), {}),
    "10 epochs": (dict(epochs=10), {}),
    "skip 25%": (dict(skip=.25), {}),
    "10 epochs, skip 25%": (dict(epochs=10, skip=.25), {}),
    "14 epochs": (dict(epochs=14), {}),
    "12 epochs, skip 33%": (dict(epochs=12, skip=.33), {}),
    "13 epochs, skip 40%": (dict(epochs=13, skip=.4), {}),
    "15 epochs, skip 33%": (dict(epochs=15, skip=.33), {}),
    "20 epochs, skip 33%": (dict(epochs=20, skip=.33), {}),
    "10 epochs, 24 pixels first, silu": (dict(epochs=10, zoom=((.75, .3),), activation="silu"), {}),
    "frozen": ({}, dict(frozen=3)),
    "jitter": ({}, dict(jitter=(.14, .13))),
}
for base in ("airbench", "fulcrum", "narrow", "small"):
    keys, what = TRIALS[base]
    for change, (more, extras) in CHANGES.items(): TRIALS[f"{base}, {change}"] = (keys | more, what | extras)


def done():
    "The rows so far."
    if not FILE.exists(): return []
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def one(name, seed, judged):
    "Train and measure once."
    keys, extras = TRIALS[name]
    held_out = 0 if judged == "test" else .1
    recipe = find_recipe("speed94", seed=seed, held_out=held_out, precision="bf16", **keys)
    data = load_dataset(recipe.data)
    images, valid = split_data(recipe, data)
    start = time.perf_counter()
    trial = Trial(recipe, images, build_parts(recipe, images, data.stats))
    for extra, value in extras.items(): EXTRAS[extra](trial, value)
    work, parts = Work(trial), trial.parts
    history = fit(parts.model, parts.loader, parts.opt, recipe.epochs, **parts.step | dict(watch=work.watch))
    seconds = time.perf_counter() - start
    unseen = data.test if judged == "test" else valid
    def accuracy(model): return measure(model, unseen, data.stats, device="cpu", amp=parts.amp).accuracy
    return dict(
        trial=name, seed=seed, judged=judged, accuracy=accuracy(parts.model),
        accuracy_tta=accuracy(SixViews(parts.model)), seconds=seconds, keys=keys, extras=extras,
        petaflop=work.total / 1e15, train_loss=history.rows[-1]["train_loss"], **conditions())


@app.command()
def run(  # noqa: PLR0917, the flags of a command
    names: list[str], seeds: int = 5, first: int = 0, step: int = 1, test: bool = False,
):
    "Runs of each trial with the same seeds."
    for name in names:
        if name not in TRIALS: raise typer.BadParameter(f"{name!r} is none of {', '.join(TRIALS)}")
    keep_memory()
    judged = "test" if test else "validation"
    for seed in range(first, seeds, step):
        for name in names:
            if (name, seed, judged) in {(r["trial"], r["seed"], r["judged"]) for r in done()}: continue
            row = one(name, seed, judged)
            with FILE.open("a", encoding="utf-8") as file: file.write(json.dumps(row) + "\n")
            print(f"{name}, seed {seed}: {row['accuracy']:.2%} ({row['accuracy_tta']:.2%}), "
                  f"{row['seconds']:.0f} s", flush=True)


@app.command()
def table(control: str, test: bool = False):
    "Each trial, and what it has more than the control with the same seeds: points, with 95% intervals."
    judged = "test" if test else "validation"
    found = {(row["trial"], row["seed"]): row for row in done() if row["judged"] == judged}
    for name in dict.fromkeys(name for name, _ in found):
        rows = {seed: row for (trial, seed), row in found.items() if trial == name}
        pairs = [(row, found[control, seed]) for seed, row in rows.items() if (control, seed) in found]
        said = []
        for key in ("accuracy", "accuracy_tta"):
            said.append(f"{summary([row[key] for row in rows.values()])['mean']:.2%}")
            if pairs and name != control:
                more = summary([100 * (row[key] - base[key]) for row, base in pairs])
                said.append(f"{more['mean']:+.2f} ± {more['ci95'] or math.nan:.2f}")
        print(f"{name:32} n = {len(rows):2}  {'  '.join(said)}")


if __name__ == "__main__": app()
