"""Who is faster: a published script and a fast recipe of ours, in turns on the same device.

    python benchmarks/beside.py airbench94_muon.py --minutes 8           on a GPU, 20 pairs of runs at most
    python benchmarks/beside.py airbench94_muon.py --device cpu          one pair; the script is ported
    python benchmarks/beside.py airbench94_muon.py --device cpu --tiny   whether all of this works

The script is that of https://github.com/KellerJordan/cifar10-airbench; none of its code is here. Each
side is a process of its own, which is warmed up first (on a GPU) and then makes one run when it is asked
to: theirs, ours, theirs, … `WHAT` says what the clock counts. results/beside_NAME.json is written anew
after each pair, with every run in it. The next call continues it if code, script, recipe and machine are
the same; otherwise it replaces the file.
"""
import hashlib
import json
import math
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from machine import RESULTS, conditions, summary, write
from speed import changed, fast_recipe, wait

from cifar_nb.device import best_device, best_precision, keep_memory
from cifar_nb.evaluate import SixViews
from cifar_nb.experiment import measure
from cifar_nb.folders import load_dataset
from cifar_nb.parts import build_parts
from cifar_nb.records import SpeedRecipe

WHAT = (
    "seconds from images of whole bytes on the device, and an untrained network, to a trained one and the "
    "test accuracy of six views, by one clock for both sides, which waits for the device when it starts and "
    "stops. Both count: converting and augmenting the images, new weights, whitening, training, the test. "
    "Neither counts: imports, reading the data, the first run (compiling, searching for kernels, recording; "
    "on a GPU only), and the script's test after each epoch, which ours does not make. seconds_as_told is "
    "the script's own clock: whitening, training and the last test. ratio is our seconds over theirs, the "
    "mean over pairs. On a GPU cuDNN searches for the fastest kernels on both sides, so our runs cannot be "
    "repeated bit by bit. There are no progress bars; on a CPU both processes keep freed memory")

# How the scripts' loop over their runs gets the next one: text, replacement, how often it must occur
LOOP = [("range(200)", "turns(globals())", 1)]
# What makes a CPU run them, with the weights in bfloat16 instead of float16, without compiling
PORT = {
    "airbench94_muon": [
        ("@torch.compile\n", "", 1),
        ('model.compile(mode="max-autotune")', "pass", 1),
        ('main("warmup", model)', "pass", 1),
        ('torch.device("cuda")', 'torch.device("cpu")', 1),
        ("torch.cuda.Event(enable_timing=True)", "Event()", 2),
        ("torch.cuda.synchronize()", "pass", 1),
        (".cuda()", "", 1),
        (".half()", ".bfloat16()", 2)]}
# One epoch
SHORT = {"airbench94_muon": [("ceil(8 *", "ceil(1 *", 1)]}
TINY = dict(train=2048, test=256, epochs=2)

app = typer.Typer(add_completion=False)
# Nothing of one side, CUDA's state above all, may be in the other
CONTEXT = multiprocessing.get_context("spawn")


def replaced(text, changes, name):
    "The text of a script with other words in it. Ends the program when it is not the script that we know."
    for old, new, n in changes:
        found = text.count(old)
        if found != n:
            sys.exit(f"{name}: {old.strip()!r} occurs {found} times and not {n}: this is another version of "
                     "the script than the one that benchmarks/beside.py knows")
        text = text.replace(old, new)
    return text


def ported(text, name, *, device="cpu", tiny=False):
    "The script with runs on request: as published on a GPU, with what a CPU needs on a CPU."
    changes = list(LOOP)
    for table, is_needed in ((PORT, device == "cpu"), (SHORT, tiny)):
        if not is_needed: continue
        if name not in table: sys.exit(f"{name} cannot be ported: use {' or '.join(table)}, or a GPU")
        changes += table[name]
    return replaced(text, changes, name)


class Clock:
    "Seconds between start and stop, of which there may be several; waits for the device at both."
    def __init__(self, device): self.device, self.seconds = device, 0.

    def start(self):
        wait(self.device)
        self.seconds -= time.perf_counter()

    def stop(self):
        wait(self.device)
        self.seconds += time.perf_counter()

    def without(self, function, when=lambda **options: True):
        "The function, whose time does not count."
        def uncounted(*args, **options):
            if not when(**options): return function(*args, **options)
            self.stop()
            try: return function(*args, **options)
            finally: self.start()
        return uncounted


class Event:
    "A place in time, as those of CUDA."
    def record(self): self.at = time.perf_counter()

    def elapsed_time(self, other): return 1e3 * (other.at - self.at)  # milliseconds


class Job(NamedTuple):
    "What both processes are told."
    recipe: SpeedRecipe
    device: str
    tiny: bool
    folder: str  # Empty; removed at the end

    def prepare(self):
        "Nothing that one side does to its process is missing in the other."
        os.environ["TQDM_DISABLE"] = "1"
        torch.backends.cudnn.benchmark = True
        if self.device == "cpu": keep_memory()

    def images(self):
        "The statistics, training images, test images."
        data = load_dataset(self.recipe.data)
        if not self.tiny: return data.stats, data.train, data.test
        return data.stats, data.train[:TINY["train"]], data.test[:TINY["test"]]


def write_images(images, path):
    "As the scripts keep them: bytes, the channels last."
    pixels = images.pixels.permute(0, 2, 3, 1).contiguous()
    torch.save(dict(images=pixels, labels=images.labels, classes=list(images.classes)), path)


def answer_requests(names, requests, device):
    "Yields the number of a run, for the script whose global names these are, when one is asked for."
    clock, told, print_row = Clock(device), {}, names["print_training_details"]

    def listen(variables, is_final_entry):
        if is_final_entry:
            told.update(seconds_as_told=variables["time_seconds"], accuracy_tta=variables["tta_val_acc"])
        print_row(variables, is_final_entry)

    names["print_training_details"] = listen
    torch.load = clock.without(torch.load)
    names["evaluate"] = clock.without(names["evaluate"], when=lambda tta_level: tta_level == 0)
    while (i := requests.recv()) is not None:
        clock.seconds = 0.
        clock.start()
        yield i
        clock.stop()
        requests.send(dict(seconds=clock.seconds, **told))


def published(requests, job, text):
    "The script's process."
    job.prepare()
    _, train, test = job.images()
    os.chdir(job.folder)
    os.mkdir("cifar10")
    write_images(train, "cifar10/train.pt")
    write_images(test, "cifar10/test.pt")
    Path("script.py").write_text(text, encoding="utf-8")
    def turns(names): return answer_requests(names, requests, job.device)
    runpy.run_path("script.py", dict(turns=turns, Event=Event), "__main__")


def renewed(kept, fresh):
    "The parts of a new run in a network and an optimiser that are compiled already."
    for name in ("model", "opt", "sched"):
        getattr(kept, name).load_state_dict(getattr(fresh, name).state_dict())
    return replace(fresh, model=kept.model, opt=kept.opt, sched=kept.sched, learner=kept.learner)


def ours(requests, job):
    "Our process. What its first run compiled is kept, as the script keeps it."
    job.prepare()
    stats, *parts_of_data = job.images()
    train, test = (replace(images, pixels=images.pixels.to(job.device), labels=images.labels.to(job.device))
                   for images in parts_of_data)
    kept = None
    while (seed := requests.recv()) is not None:
        clock = Clock(job.device)
        clock.start()
        recipe = changed(job.recipe, seed=seed, compiled=job.recipe.compiled and kept is None)
        parts = build_parts(recipe, train, stats, device=job.device)
        kept = parts if kept is None else renewed(kept, parts)
        history = kept.train(recipe.epochs)
        accuracy = measure(SixViews(kept.model), test, stats, device=job.device, amp=kept.amp).accuracy
        clock.stop()
        requests.send(dict(seconds=clock.seconds, accuracy_tta=accuracy, seed=seed,
                           train_loss=history.rows[-1]["train_loss"]))


class Side:
    "A process that makes one run when it is asked to."
    def __init__(self, name, work, *args):
        self.name, self.is_running = name, False
        self.requests, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=work, args=(other, *args))
        self.process.start()
        other.close()

    def run(self, i, end=math.inf):
        "What the run was like; None when it would end too late."
        left = None if end == math.inf else max(0, end - time.monotonic())
        self.is_running = True
        try:
            self.requests.send(i)
            if not self.requests.poll(left): return None
            found = self.requests.recv()
        except (EOFError, OSError): sys.exit(f"{self.name} ended instead of making a run: its error is above")
        self.is_running = False
        return found

    def close(self):
        if not self.is_running and self.process.is_alive():
            self.requests.send(None)
            self.process.join(20)
        self.process.kill()
        self.process.join()


def digest(*contents): return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def conditions_of(job, script):
    "What two pairs must have in common for a mean over both."
    here = Path(__file__).resolve()
    # The revision says nothing on a machine without Git
    files = [here, here.with_name("speed.py"), *sorted(here.parent.parent.glob("cifar_nb/*.py"))]
    told = dict(name=script.name, digest=digest(script.read_bytes()), is_ported=job.device == "cpu")
    return dict(**conditions(job.device), source=digest(*(path.read_bytes() for path in files)),
                device=job.device, tiny=job.tiny, script=told, recipe=job.recipe.model_dump(mode="json"))


def pairs_so_far(path, now):
    "Pairs of a results file that was measured under the same conditions."
    if not path.exists(): return []
    old = json.loads(path.read_text(encoding="utf-8"))
    return old["every_pair"] if all(old.get(k) == v for k, v in now.items()) else []


def summarise(names, pairs):
    "Means over pairs by side, and of the ratio."
    theirs, mine = names
    ratio = summary([pair[mine]["seconds"] / pair[theirs]["seconds"] for pair in pairs])
    columns = {theirs: ("seconds", "seconds_as_told", "accuracy_tta"), mine: ("seconds", "accuracy_tta")}
    means = {name: {k: summary([pair[name][k] for pair in pairs]) for k in columns[name]} for name in names}
    return dict(pairs=len(pairs), ratio=ratio, **means)


def say(found, names):
    for name in names:
        accuracy, seconds = found[name]["accuracy_tta"]["mean"], found[name]["seconds"]["mean"]
        print(f"{name}: {accuracy:.2%}, {seconds:.2f} s")
    ratio, half = found["ratio"]["mean"], found["ratio"]["ci95"]
    print(f"ratio {ratio:.3f}{f' ± {half:.3f}' if half else ''}, {found['pairs']} pairs", flush=True)


def take_turns(sides, runs, path, *, end, now):
    "Pairs of runs until there are enough, or until the end; the file has each as soon as it is complete."
    pairs, names = pairs_so_far(path, now), [side.name for side in sides]
    if now["device"] != "cpu":
        for side in sides:
            # Any number that no run has
            if side.run(runs, end) is None: sys.exit(f"{side.name} did not finish its first run in time")
    while len(pairs) < runs:
        pair = {side.name: side.run(len(pairs), end) for side in sides}
        if None in pair.values(): break
        pairs.append(pair)
        found = summarise(names, pairs)
        write(path.stem, path.parent, what=WHAT, **now, **found, every_pair=pairs)
        say(found, names)


@app.command()
def beside(  # noqa: PLR0913, PLR0917, the flags of a command
    script: Annotated[Path, typer.Argument(help="airbench94_muon.py", exists=True, dir_okay=False)],
    name: Annotated[str, typer.Option(help="A fast recipe for CIFAR-10")] = "speed94",
    runs: Annotated[int | None, typer.Option(min=1, help="Pairs; 20 on a GPU, 1 on a CPU")] = None,
    minutes: Annotated[float, typer.Option(help="Stop then, with the pairs that are complete")] = math.inf,
    device: str = "auto",
    precision: str = "auto",
    compiled: Annotated[bool | None, typer.Option(help="Ours through torch.compile; on a GPU")] = None,
    tiny: Annotated[bool, typer.Option(help="Few images and epochs, to see whether it works")] = False,
    folder: Annotated[Path, typer.Option(help="Of the results file")] = RESULTS,
):
    "Run a published script and a fast recipe in turns: seconds, accuracy, and the ratio of the seconds."
    end = time.monotonic() + 60 * minutes
    device = best_device(device)
    is_gpu = device != "cpu"
    if compiled is None: compiled = is_gpu
    if precision == "auto": precision = best_precision(device)
    changes = dict(epochs=TINY["epochs"]) if tiny else {}
    recipe = fast_recipe(name, held_out=0, precision=precision, compiled=compiled, **changes)
    if recipe.data != "cifar10": raise typer.BadParameter(f"{name} trains on {recipe.data}, not on cifar10")
    text = ported(script.read_text(encoding="utf-8"), script.stem, device=device, tiny=tiny)
    unusual = ["" if is_gpu else "cpu", "tiny" if tiny else ""]
    if compiled != is_gpu: unusual.append("compiled" if compiled else "eager")
    path = folder / ("_".join(["beside", name, *filter(None, unusual)]) + ".json")
    with tempfile.TemporaryDirectory() as place:
        job = Job(recipe, device, tiny, place)
        sides = [Side(script.stem, published, job, text), Side(name, ours, job)]
        try: take_turns(sides, runs or (20 if is_gpu else 1), path, end=end, now=conditions_of(job, script))
        finally:
            for side in sides: side.close()


if __name__ == "__main__": app()
