"""How fast to which accuracy: trains a fast recipe several times, with different seeds, and measures everything about it.

    python benchmarks/speed.py run speed94                            five runs; goes on with results/speed94.json if it is of the same revision
    python benchmarks/speed.py run speed94 --runs 20 --device cuda    the same on a GPU, into results/speed94_cuda.json
    python benchmarks/speed.py beside airbench94_muon.py              a published script and ours on the same GPU, into results/beside_speed94.json; with --compiled into beside_speed94_compiled.json
    python benchmarks/speed.py beside airbench96_faster.py --name speed96    likewise, as many runs as the script makes
    python benchmarks/speed.py layers                                 where the time of a step goes, layer by layer
    python benchmarks/speed.py plain                                  torchvision's ResNet-18 in a plain loop, and the loaders, beside ours

Trains on all 50,000 training pictures and tests on the official 10,000. No choice is made here.
"""
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from loading import only_loading, plain_epoch, torchvision_pictures
from machine import RESULTS, conditions, summary, write
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from cifar_nb.core import ConfigError, best_device, seed_everything
from cifar_nb.data import BatchLoader, load_images
from cifar_nb.evaluate import evaluate
from cifar_nb.export import milliseconds
from cifar_nb.recipes import find_recipe
from cifar_nb.speed import HardPart, SixViews, SpeedRecipe, epoch_loader, keep_memory, muon_for, prepared, resized, size_in, speedrun
from cifar_nb.train import Amp, best_precision, schedule_for, train_epoch

app = typer.Typer(add_completion=False)


def fast_recipe(name, **changes):
    "A recipe of `speedrun` by name."
    try:
        if not isinstance(find_recipe(name), SpeedRecipe): raise ConfigError(f"{name} is no fast recipe: benchmarks/recipes.py trains it")
        return find_recipe(name, **changes)
    except ConfigError as e: raise typer.BadParameter(str(e)) from None


def flops_of(recipe, images, device):
    "Of a whole training, optimiser included, by PyTorch's counter: one step at each size, times the steps."
    few, total = images[:2 * recipe.batch_size], 0
    steps = len(images) // recipe.batch_size / recipe.accumulate
    for size in {size_in(recipe, e) for e in range(recipe.epochs)}:
        epochs = [e for e in range(recipe.epochs) if size_in(recipe, e) == size]
        model = prepared(few, recipe, device)
        opt = muon_for(model, replace(recipe, compiled=False), recipe.batch_size)  # the rates do not matter
        batch = next(iter(epoch_loader(resized(few, size), recipe, epochs[0], device)))
        if recipe.hard < 1:
            proxy = prepared(few, recipe, device, widths=recipe.proxy_widths, depth=2)
            proxy_opt = muon_for(proxy, replace(recipe, compiled=False), recipe.batch_size)
            with FlopCounterMode(display=False) as counter:  # it looks at every batch, and learns from one in so many
                batch, *_ = HardPart([batch] * recipe.proxy_every, recipe.hard, proxy, proxy_opt, F.cross_entropy, Amp(device, recipe.precision), every=recipe.proxy_every)
            total += counter.get_total_flops() / recipe.proxy_every * steps * recipe.accumulate * len(epochs)
        with FlopCounterMode(display=False) as counter: train_epoch(model, [batch] * recipe.accumulate, opt, device=device, amp=Amp(device, recipe.precision), accumulate=recipe.accumulate)
        total += counter.get_total_flops() * steps * len(epochs)
    return total


def wait(device):
    if device.startswith("cuda"): torch.cuda.synchronize(device)


def compiling(rows):
    "Seconds that the first epoch of each size took longer than the next one of that size."
    by_size = {}
    for row in rows: by_size.setdefault(row["size"], []).append(row["seconds"])
    return sum(first - second for first, second, *_ in (seconds for seconds in by_size.values() if len(seconds) > 1))


def one_run(recipe, device):
    "Train and test once; seconds by phase."
    clock = [time.perf_counter()]
    def tick():
        wait(device)
        clock.append(time.perf_counter())

    train, test = load_images(recipe.data), load_images(recipe.data, "test")
    train = replace(train, pixels=train.pixels.to(device), labels=train.labels.to(device))
    tick()
    model, history = speedrun(recipe, train, device, on_epoch=lambda h: print(f"  epoch {len(h)}: {h.rows[-1]['size']} px, loss {h.rows[-1]['train_loss']:.3f}, {h.rows[-1]['seconds']:.1f} s", flush=True))
    tick()
    def accuracy(model): return evaluate(model, BatchLoader(test, 500, device=device), test.classes, device=device, amp=Amp(device, recipe.precision)).accuracy
    twice = accuracy(SixViews(model))
    tick()
    once = accuracy(model)
    load, training, testing = (b - a for a, b in zip(clock, clock[1:]))
    return dict(seed=recipe.seed, accuracy=once, accuracy_tta=twice, seconds_from_disk=load + training + testing, seconds_from_device=training + testing, seconds_training=training,
                seconds_loading=load, seconds_testing=testing, images_per_second=recipe.epochs * (len(train) // recipe.batch_size) * recipe.batch_size / training,
                **(dict(seconds_compiling=compiling(history.rows)) if recipe.compiled else {}))


@app.command()
def plain(rounds: int = 3, n: int = 1500):
    "torchvision's ResNet-18 in a plain PyTorch loop, and torchvision's loader, beside ours in turns."
    seed_everything(0)
    keep_memory()
    images, precision = load_images("cifar10"), best_precision()
    recipe = fast_recipe("speed94", precision=precision)
    files = DataLoader(torchvision_pictures(images, n), 125, shuffle=True)

    def resnet():
        model = resnet18(num_classes=10)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # the usual stem for 32 pixels
        opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
        start = time.perf_counter()
        plain_epoch(model, files, opt)
        return n / (time.perf_counter() - start)

    def ours():
        model = prepared(images[:5000], recipe)
        opt = muon_for(model, recipe, recipe.batch_size)
        start = time.perf_counter()
        dl = epoch_loader(images[:4 * n], recipe, recipe.epochs - 1, "cpu")
        train_epoch(model, dl, opt, amp=Amp("cpu", precision), sched=schedule_for(opt, "linear", 1, 10**6))
        return len(dl) * recipe.batch_size / (time.perf_counter() - start)

    sides = {"resnet18, plain loop": resnet, "speed94, 32 px": ours, "loading, DataLoader": lambda: only_loading(n, files), "loading, ours": lambda: only_loading(len(images), epoch_loader(images, recipe, recipe.epochs - 1, "cpu"))}
    seen = {name: [] for name in sides}
    for i in range(rounds):
        for name, measure in sides.items(): seen[name].append(measure())
        print(f"round {i + 1}: " + ", ".join(f"{name} {v[-1]:,.0f}" for name, v in seen.items()) + " images/s", flush=True)
    write("plain", what="images a second beside a plain PyTorch loop, medians", rounds=rounds, precision={"resnet18, plain loop": "float32", "speed94, 32 px": precision},
          images_per_second={name: statistics.median(v) for name, v in seen.items()}, every_round={k: [round(r) for r in v] for k, v in seen.items()})


@app.command()
def layers(name: str = "speed94", precision: str = "auto"):
    "Forward and backward of each layer on the CPU, and how near its GFLOP/s come to those of a large matrix product."
    precision = best_precision() if precision == "auto" else precision
    recipe, amp = fast_recipe(name, precision=precision), Amp("cpu", precision)
    keep_memory()
    images = load_images(recipe.data)[:5000]
    model, inputs = prepared(images, recipe).train(), {}
    modules = {n: m for n, m in model.named_modules() if not list(m.children())}
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: inputs.update({n: i[0].detach().requires_grad_(i[0].requires_grad)})) for n, m in modules.items()]
    x, _ = next(iter(BatchLoader(images, recipe.batch_size)))
    with amp.autocast(): model(x)
    for hook in hooks: hook.remove()
    a = torch.randn(2048, 2048, dtype=amp.dtype or torch.float32)
    peak = 2 * 2048**3 / milliseconds(lambda: a @ a) / 1e6
    rows = []
    for n, m in modules.items():
        x = inputs[n]  # wants a gradient where training computes one: nothing before the first block learns
        with FlopCounterMode(display=False) as counter, amp.autocast(): y = m(x)
        wanted, ones = [t for t in (x, getattr(m, "weight", None)) if t is not None and t.requires_grad], torch.ones_like(y)
        def forward(m=m, x=x):
            with torch.no_grad(), amp.autocast(): m(x)
        def backward(y=y, wanted=wanted, ones=ones): torch.autograd.grad(y, wanted, ones, retain_graph=True)
        ahead, back = milliseconds(forward), milliseconds(backward) if wanted and y.requires_grad else 0.
        work = counter.get_total_flops() * (1 + len(wanted)) / 1e9
        rate = 1e3 * work / (ahead + back)
        rows.append(dict(layer=n, kind=type(m).__name__, shape=list(y.shape[1:]), forward_ms=ahead, backward_ms=back, gigaflop=work, gigaflop_per_second=rate))
        print(f"{n:20} {ahead:7.2f} {back:7.2f} ms {rate:7.0f} GFLOP/s", flush=True)
    write("layers", what=f"forward and backward of each layer of {name}, fastest of several calls", batch_size=recipe.batch_size, precision=precision, matrix_product_gigaflop_per_second=peak, layers=rows)


@app.command()
def run(name: Annotated[str, typer.Argument(help="A fast recipe")], runs: Annotated[int, typer.Option(min=1)] = 5, device: str = "auto", precision: str = "auto", compiled: bool = False, epochs: int | None = None):
    "Train a fast recipe with seeds 0, 1, …, and write results/NAME.json after each run."
    device, asked = best_device(device), precision
    fast_recipe(name)
    precision = best_precision(device) if precision == "auto" else precision
    recipe = fast_recipe(name, held_out=0, precision=precision, compiled=compiled, epochs=epochs)
    unusual = dict(device=device != "cpu" and device.partition(":")[0], compiled=compiled and "compiled", precision=asked != "auto" and asked, epochs=epochs and f"{epochs}_epochs")
    out = "_".join([name, *filter(None, unusual.values())])
    path, recorded = RESULTS / f"{out}.json", json.loads(json.dumps(asdict(recipe)))
    done = []
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        now = {**conditions(device), "device": device, "recipe": recorded}
        if "dirty" not in now["revision"] and all(old[k] == v for k, v in now.items()): done = old["every_run"]
    flops = flops_of(recipe, load_images(recipe.data), device)
    for seed in range(len(done), runs):
        print(f"{name}, seed {seed}, {device}, {precision}", flush=True)
        done.append(one_run(replace(recipe, seed=seed), device))
        peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        columns = {k: summary([run[k] for run in done]) for k in done[0] if k != "seed"}
        write(out, what="a fast recipe from data on disk (in the system's cache) to the test accuracy of six views; accuracy as a share, time in seconds; imports and the first touch of the device are not counted", device=device, runs=len(done),
              **columns, petaflop=flops / 1e15, gigaflop_per_second=flops / 1e9 / columns["seconds_training"]["mean"], peak_memory_gigabytes=peak / 1e9, recipe=recorded, every_run=done)
        last = done[-1]
        print(f"  {last['accuracy']:.2%}, {last['accuracy_tta']:.2%} with test-time augmentation, {last['seconds_from_disk']:.0f} s from disk, {last['images_per_second']:,.0f} images/s", flush=True)


def published(script, runs):
    "Accuracy with test-time augmentation and seconds of each run of a script that prints airbench's table, at most so many; its first run, which warms up, is left out."
    found, columns = [], []
    with subprocess.Popen([sys.executable, script.name], cwd=script.parent, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            cells = [cell.strip() for cell in line.split("|")]
            if "tta_val_acc" in cells: columns = cells
            row = dict(zip(columns, cells))
            if row.get("epoch") == "eval": found.append(dict(accuracy_tta=float(row["tta_val_acc"]), seconds_from_device=float(next(v for k, v in row.items() if k.endswith("time_seconds")))))
            if len(found) > runs: break
        process.terminate()
    if len(found) < 2: sys.exit(f"{script} gave {max(0, len(found) - 1)} of {runs} runs, and ended with {process.returncode}: are its packages and its data there?")
    return found[1:]


@app.command()
def beside(script: Annotated[Path, typer.Argument(help="airbench94_muon.py, or another script that prints the same table", exists=True, dir_okay=False)], name: str = "speed94",
           runs: Annotated[int, typer.Option(min=1)] = 20, device: str = "cuda", precision: str = "auto", compiled: bool = False):
    "A published script and a fast recipe of ours, one after the other on the same card: accuracies with test-time augmentation, seconds from the data on the device to that accuracy."
    device = best_device(device)
    fast_recipe(name)
    recipe = fast_recipe(name, held_out=0, precision=best_precision(device) if precision == "auto" else precision, compiled=compiled)
    theirs = published(script, runs)
    one_run(recipe, device)  # warms up, as theirs did
    ours = [one_run(replace(recipe, seed=seed), device) for seed in range(len(theirs))]
    sides = {side: {k: summary([run[k] for run in done]) for k in ("accuracy_tta", "seconds_from_device")} for side, done in ((script.stem, theirs), (name, ours))}
    ratio = sides[name]["seconds_from_device"]["mean"] / sides[script.stem]["seconds_from_device"]["mean"]
    half = ratio * math.hypot(*(found["seconds_from_device"]["ci95"] / found["seconds_from_device"]["mean"] for found in sides.values())) if len(ours) > 1 else None
    write(f"beside_{name}" + ("_compiled" if compiled else ""),
          what="a published script and a recipe of ours on the same machine; the script counts whitening, training and test only, ours also what comes before the first step",
          ratio_ci95=half, device=device, runs={script.stem: len(theirs), name: len(ours)}, ratio=ratio, **sides, recipe=asdict(recipe), every_run={script.stem: theirs, name: ours})
    for side, found in sides.items(): print(f"{side}: {found['accuracy_tta']['mean']:.2%}, {found['seconds_from_device']['mean']:.2f} s")


if __name__ == "__main__": app()
