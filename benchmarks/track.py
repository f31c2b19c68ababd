"""What does tracking cost? Epochs of `simple` with and without it, by turns, on the real data.

    python benchmarks/track.py

Each tracked run has a new SQLite store, so the import of MLflow and the making of its tables are in its first
epoch. The machine should have nothing else to do. Writes results/track.json.
"""
import tempfile
import time
from pathlib import Path
from typing import Annotated
from unittest import mock

import typer
from machine import summary, write

from cifar_nb.checkpoint import flat_choices
from cifar_nb.core import Settings
from cifar_nb.device import best_device, keep_memory
from cifar_nb.experiment import run_recipe
from cifar_nb.recipes import find_recipe, to_toml
from cifar_nb.runs import describe, open_run
from cifar_nb.track import send_run, tracked

WHAT = ("processor seconds of sending over those of the whole process, until the end of the last epoch, "
        "of tracked runs; seconds of all epochs of a tracked run divided by those of a plain one with "
        "the same seed, one after the other, where which one is first changes by turns; and the seconds "
        "that the end of a tracked run takes (model, figures, artifacts), which a plain run does not "
        "have")


def train(recipe, folder, *, track):
    "Seconds of each epoch, from the end of the last one to the end of the tracking, and processor seconds."
    sent, begun = [], time.process_time()

    def timed(*args):
        before = time.thread_time()
        try: return send_run(*args)
        finally: sent.append(time.thread_time() - before)

    settings = Settings.read(track=track, track_dir=str(folder / "store"))
    choices = flat_choices(recipe.model_dump(mode="json"))
    with open_run(folder / "simple.safetensors", choices) as run:
        with mock.patch("cifar_nb.track.send_run", timed), tracked(run, settings):
            describe(run, to_toml(recipe), recipe="simple", data=recipe.data)
            run_recipe(recipe, run.model, settings, on_epoch=lambda history: run.record(history.rows))
            ended, worked, n = time.perf_counter(), time.process_time() - begun, len(sent)
        seconds = [row["seconds"] for row in run.rows]
        return seconds, time.perf_counter() - ended, sum(sent[:n]) / worked


def main(
    pairs: int = 4,
    epochs: int = 5,
    note: Annotated[str, typer.Option(help="What else there is to know, such as other work")] = "",
):
    "Train by turns, and note everything."
    device = best_device(Settings.read().device)
    if device == "cpu": keep_memory()
    seconds, ends, shares = {"plain": [], "tracked": []}, [], []
    for i in range(pairs):
        recipe = find_recipe("simple", epochs=epochs, seed=i)
        for name in (("plain", "tracked"), ("tracked", "plain"))[i % 2]:
            with tempfile.TemporaryDirectory() as tmp:
                found, end, share = train(recipe, Path(tmp), track=name == "tracked")
            seconds[name].append(found)
            if name == "tracked":
                ends.append(end)
                shares.append(share)
            print(f"{name}, seed {i}: {', '.join(f'{value:.2f}' for value in found)} s", flush=True)
    both = [*zip(seconds["plain"], seconds["tracked"])]
    write("track", what=WHAT, device=device, epochs=epochs, note=note,
          processor_time=summary(shares),
          ratio=summary([sum(tracked) / sum(plain) for plain, tracked in both]),
          ratio_without_first_epoch=summary([sum(tracked[1:]) / sum(plain[1:]) for plain, tracked in both]),
          seconds_at_the_end=summary(ends), seconds=seconds)


if __name__ == "__main__": typer.run(main)
