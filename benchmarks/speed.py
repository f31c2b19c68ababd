"""How fast to which accuracy: trains a fast recipe several times and measures everything.

    python benchmarks/speed.py run speed94                   five seeds, into results/speed94.json
    python benchmarks/speed.py run speed94 --device cuda     on a GPU, into results/speed94_cuda.json
    python benchmarks/speed.py layers                        where the time of a step goes, layer by layer
    python benchmarks/speed.py plain                         torchvision's ResNet-18 in a plain loop

`run` continues a results file of the same revision. All of them train on the 50,000 training images and test
on the official 10,000. No choice is made here. benchmarks/beside.py compares with airbench.
"""
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from typing import Annotated

import torch
import typer
from loading import only_loading, plain_epoch, torchvision_images
from machine import RESULTS, conditions, counted_work, summary, write
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from cifar_nb.choice import milliseconds
from cifar_nb.core import ConfigError
from cifar_nb.device import best_device, best_precision, keep_memory, repeatable_kernels, seed_everything
from cifar_nb.easy import images_per_epoch
from cifar_nb.evaluate import SixViews
from cifar_nb.experiment import measure
from cifar_nb.folders import load_dataset
from cifar_nb.loop import train_epoch
from cifar_nb.parts import build_parts
from cifar_nb.recipes import find_recipe
from cifar_nb.records import SpeedRecipe

app = typer.Typer(add_completion=False)


def fast_recipe(name, **changes):
    "A fast recipe by name."
    try: recipe = find_recipe(name, **changes)
    except ConfigError as e: raise typer.BadParameter(str(e)) from e
    if isinstance(recipe, SpeedRecipe): return recipe
    raise typer.BadParameter(f"{name} is not a fast recipe: benchmarks/recipes.py trains it")


def changed(recipe, **changes):
    "The same recipe with other choices that need no check."
    return recipe.model_copy(update=changes)


def batches_per_epoch(recipe, n):
    "Full batches in each epoch of n images; a recipe may leave some images out."
    per_step = recipe.batch_size * recipe.accumulate
    counts = images_per_epoch(n, recipe.skip, batch_size=per_step, epochs=recipe.epochs)
    return [count // recipe.batch_size for count in counts]


def flops_of(recipe, data, device):
    "Of a whole training with its optimiser, by PyTorch's counter: some batches of each size, scaled up."
    n_batches = batches_per_epoch(recipe, len(data.train))
    few = data.train[:recipe.batch_size * recipe.accumulate]
    parts, total = build_parts(changed(recipe, compiled=False, skip=0.), few, data.stats, device=device), 0
    for size in set(recipe.sizes):
        batches = parts.loader(recipe.sizes.index(size))
        with counted_work(parts.model) as counter:
            train_epoch(parts.model, batches, parts.opt, **parts.step)
        n_of_size = sum(n for n, s in zip(n_batches, recipe.sizes) if s == size)
        total += counter.get_total_flops() / len(batches) * n_of_size
    return total


def wait(device):
    if device.startswith("cuda"): torch.cuda.synchronize(device)


def compiling(rows):
    "Seconds that the first epoch of each size took longer than the next one of that size."
    by_size = {}
    for row in rows: by_size.setdefault(row["size"], []).append(row["seconds"])
    return sum(seconds[0] - seconds[1] for seconds in by_size.values() if len(seconds) > 1)


def say_epoch(history):
    row = history.rows[-1]
    said = f"{row['size']} px, loss {row['train_loss']:.3f}, {row['seconds']:.1f} s"
    print(f"  epoch {len(history)}: {said}", flush=True)


def one_run(recipe, device):
    "Train and test once; seconds by phase."
    clock = [time.perf_counter()]

    def tick():
        wait(device)
        clock.append(time.perf_counter())

    data = load_dataset(recipe.data)
    train = replace(data.train, pixels=data.train.pixels.to(device), labels=data.train.labels.to(device))
    test = data.test
    tick()
    parts = build_parts(recipe, train, data.stats, device=device)
    history = parts.train(recipe.epochs, on_epoch=say_epoch)
    tick()
    def accuracy(model): return measure(model, test, data.stats, device=device, amp=parts.amp).accuracy
    six_views = accuracy(SixViews(parts.model))
    tick()
    one_view = accuracy(parts.model)
    load, training, testing = (b - a for a, b in zip(clock, clock[1:]))
    n_images = sum(batches_per_epoch(recipe, len(train))) * recipe.batch_size
    run = dict(
        seed=recipe.seed, accuracy=one_view, accuracy_tta=six_views,
        seconds_from_disk=load + training + testing, seconds_from_device=training + testing,
        seconds_training=training, seconds_loading=load,
        seconds_testing=testing, images_per_second=n_images / training)
    if recipe.compiled: run["seconds_compiling"] = compiling(history.rows)
    return run


def prepare(device):
    "What `cifar-nb train` does before it trains."
    repeatable_kernels()
    if device == "cpu": keep_memory()


def resnet_epoch(files, n):
    "Images a second of torchvision's ResNet-18 in a plain loop."
    model = resnet18(num_classes=10)
    # The usual stem for 32 pixels
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    start = time.perf_counter()
    plain_epoch(model, files, opt)
    return n / (time.perf_counter() - start)


def fast_epoch(recipe, data, n):
    "Images a second of a fast recipe on whole images."
    parts = build_parts(changed(recipe, zoom=()), data.train[:n], data.stats)
    batches = parts.loader(recipe.epochs - 1)
    start = time.perf_counter()
    train_epoch(parts.model, batches, parts.opt, **parts.step)
    return len(batches) * recipe.batch_size / (time.perf_counter() - start)


@app.command()
def plain(rounds: int = 3, n: int = 1500):
    "torchvision's ResNet-18 in a plain PyTorch loop, and torchvision's loader, next to ours in turns."
    prepare("cpu")
    seed_everything(0)
    data, precision = load_dataset("cifar10"), best_precision()
    recipe = fast_recipe("speed94", precision=precision)
    files = DataLoader(torchvision_images(data.stats, n), 125, shuffle=True)
    whole = build_parts(changed(recipe, zoom=()), data.train, data.stats).loader(0)
    sides = {"resnet18, plain loop": lambda: resnet_epoch(files, n),
             "speed94, 32 px": lambda: fast_epoch(recipe, data, 4 * n),
             "loading, DataLoader": lambda: only_loading(n, files),
             "loading, ours": lambda: only_loading(len(data.train), whole)}
    seen = {name: [] for name in sides}
    for i in range(rounds):
        for name, measure_side in sides.items(): seen[name].append(measure_side())
        print(f"round {i + 1}: " + ", ".join(f"{name} {v[-1]:,.0f}" for name, v in seen.items()), flush=True)
    write("plain", what="images a second next to a plain PyTorch loop, medians", rounds=rounds,
          precision={"resnet18, plain loop": "float32", "speed94, 32 px": precision},
          images_per_second={name: statistics.median(v) for name, v in seen.items()},
          every_round={k: [round(r) for r in v] for k, v in seen.items()})


def inputs_of(parts, modules):
    "What each layer gets from one batch."
    inputs = {}

    def remember(name):
        def hook(module, args, output):
            inputs[name] = args[0].detach().requires_grad_(args[0].requires_grad)
        return hook

    hooks = [m.register_forward_hook(remember(name)) for name, m in modules.items()]
    x, _ = next(iter(parts.loader(0)))
    with parts.amp.autocast(): parts.model.train()(x)
    for hook in hooks: hook.remove()
    return inputs


def time_layer(module, x, amp):
    "Milliseconds forward and backward, billions of operations, and the shape that comes out."
    # x wants a gradient where training computes one: nothing before the first block learns
    with counted_work(module) as counter, amp.autocast(): module(x)
    with amp.autocast(): y = module(x)
    wanted = [t for t in (x, getattr(module, "weight", None)) if t is not None and t.requires_grad]
    ones = torch.ones_like(y)

    def forward():
        with amp.autocast(): module(x)

    def backward(): torch.autograd.grad(y, wanted, ones, retain_graph=True)

    back = milliseconds(backward) if wanted and y.requires_grad else 0.
    return milliseconds(forward), back, counter.get_total_flops() * (1 + len(wanted)) / 1e9, list(y.shape[1:])


@app.command()
def layers(name: str = "speed94", precision: str = "auto"):
    "Forward and backward of each layer on the CPU, compared with a large matrix product."
    precision = best_precision() if precision == "auto" else precision
    recipe = changed(fast_recipe(name, precision=precision), zoom=())
    prepare("cpu")
    data = load_dataset(recipe.data)
    parts = build_parts(recipe, data.train[:5000], data.stats)
    modules = {n: m for n, m in parts.model.named_modules() if not list(m.children())}
    inputs = inputs_of(parts, modules)
    a = torch.randn(2048, 2048, dtype=parts.amp.dtype or torch.float32)
    peak = 2 * 2048**3 / milliseconds(lambda: a @ a) / 1e6
    rows = []
    for n, m in modules.items():
        ahead, back, work, shape = time_layer(m, inputs[n], parts.amp)
        rate = 1e3 * work / (ahead + back)
        rows.append(dict(layer=n, kind=type(m).__name__, shape=shape, forward_ms=ahead, backward_ms=back,
                         gigaflop=work, gigaflop_per_second=rate))
        print(f"{n:20} {ahead:7.2f} {back:7.2f} ms {rate:7.0f} GFLOP/s", flush=True)
    write("layers", what=f"forward and backward of each layer of {name}, fastest of several calls",
          batch_size=recipe.batch_size, precision=precision, matrix_product_gigaflop_per_second=peak,
          layers=rows)


WHAT_RUN = ("a fast recipe from data on disk (in the system's cache) to the test accuracy of six views; "
            "accuracy as a fraction, time in seconds; imports and the start of the device are not counted")


def peak_memory(device): # Bytes
    if device.startswith("cuda"): return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def runs_so_far(path, now):
    "Runs of a results file of the same revision under the same conditions."
    if not path.exists() or "dirty" in now["revision"]: return []
    old = json.loads(path.read_text(encoding="utf-8"))
    return old["every_run"] if all(old[k] == v for k, v in now.items()) else []


@app.command()
def run(  # noqa: PLR0917, the flags of a command
    name: Annotated[str, typer.Argument(help="A fast recipe")],
    runs: Annotated[int, typer.Option(min=1)] = 5,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    epochs: int | None = None,
):
    "Train a fast recipe with seeds 0, 1, …, and write results/NAME.json after each run."
    device, asked = best_device(device), precision
    prepare(device)
    precision = best_precision(device) if precision == "auto" else precision
    recipe = fast_recipe(name, held_out=0, precision=precision, compiled=compiled, epochs=epochs)
    unusual = [device.partition(":")[0] if device != "cpu" else "", "compiled" if compiled else "",
               asked if asked != "auto" else "", f"{epochs}_epochs" if epochs else ""]
    out = "_".join([name, *(word for word in unusual if word)])
    recorded = recipe.model_dump(mode="json")
    done = runs_so_far(RESULTS / f"{out}.json", {**conditions(device), "device": device, "recipe": recorded})
    flops = flops_of(recipe, load_dataset(recipe.data), device)
    for seed in range(len(done), runs):
        print(f"{name}, seed {seed}, {device}, {precision}", flush=True)
        done.append(one_run(changed(recipe, seed=seed), device))
        columns = {k: summary([row[k] for row in done]) for k in done[0] if k != "seed"}
        write(out, what=WHAT_RUN, device=device, runs=len(done), **columns, petaflop=flops / 1e15,
              gigaflop_per_second=flops / 1e9 / columns["seconds_training"]["mean"],
              peak_memory_gigabytes=peak_memory(device) / 1e9, recipe=recorded, every_run=done)
        last = done[-1]
        print(f"  {last['accuracy']:.2%}, {last['accuracy_tta']:.2%} with test-time augmentation, "
              f"{last['seconds_from_disk']:.0f} s from disk", flush=True)


if __name__ == "__main__": app()
