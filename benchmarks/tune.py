"""Does a study find a better recipe? Searches around a recipe, then trains it and the winner again.

    python benchmarks/tune.py            10,000 images, 8 epochs, 40 trials: long
    python benchmarks/tune.py --small    2,500 images, 4 epochs, a network of a quarter of the width

Learns from some of the training images and judges by validation images; test images are not read. A killed
run goes on where it was. The seeds of the comparison are new to the study. Writes results/tune.json.
"""
import time
from pathlib import Path
from typing import Annotated

import typer
from machine import RESULTS, summary, write

from cifar_nb.core import Settings
from cifar_nb.device import best_device, keep_memory, repeatable_kernels
from cifar_nb.recipes import find_recipe, with_changes
from cifar_nb.search import best_first, import_optuna, study_rows, trial_line
from cifar_nb.tune import default_space, make_plan, open_trial_data, search, train_once

WHAT = ("a search around a recipe by validation accuracy, with pruning; then the recipe and the winner, "
        "trained again with seeds that the search did not use; accuracies of validation images as fractions; "
        "no test images")
# The size of the study: training and validation images, epochs, trials, seeds of the comparison
FULL = dict(images=10_000, valid=5000, epochs=8, trials=40, seeds=5)
SMALL = dict(images=2500, valid=2000, epochs=4, trials=16, seeds=5)
FOLDER = "Where the study is kept, so that a killed run goes on"


def main(
    recipe: str = "simple",
    small: Annotated[bool, typer.Option(help="A study of some minutes")] = False,
    note: Annotated[str, typer.Option(help="What else there is to know, such as other work")] = "",
    folder: Annotated[Path, typer.Option(help=FOLDER)] = RESULTS.parent / "models" / "studies" / "benchmark",
):
    "Search, compare, note everything."
    settings, begun, size = Settings.read(), time.perf_counter(), SMALL if small else FULL
    repeatable_kernels()
    if best_device(settings.device) == "cpu": keep_memory()
    narrow = dict(model__widths=[8, 16], model__hidden=64) if small else {}
    plan = make_plan(find_recipe(recipe, epochs=size["epochs"], **narrow))
    data = open_trial_data(plan.recipe, settings)
    data = data._replace(train=data.train[:size["images"]], valid=data.valid[:size["valid"]])

    def show(study, trial): print(trial_line(study_rows(study)[trial.number]), flush=True)

    study = search(plan, folder, settings, size["trials"], data=data, show=show)
    rows, searched = study_rows(study), time.perf_counter() - begun
    best = best_first(rows, maximize=True)[0]
    again = {"start": [], "best": []}
    for i in range(size["seeds"]):
        for name, values in (("start", {}), ("best", best["values"])):
            changed = with_changes(plan.recipe, {**values, "seed": plan.recipe.seed + 1000 + i})
            again[name].append(train_once(changed, data, settings)["valid_accuracy"])
            print(f"{name}, seed {changed.seed}: {again[name][-1]:.2%}", flush=True)
    gain = summary([b - a for a, b in zip(again["start"], again["best"])])
    importance = import_optuna().importance.get_param_importances(study)
    sizes = dict(images=len(data.train), valid=len(data.valid), epochs=plan.recipe.epochs)
    write("tune", what=WHAT, recipe=recipe, **sizes, choices=plan.recipe.model_dump(mode="json"),
          space=default_space(plan.recipe), start=plan.start, rows=rows, importance=importance, again=again,
          gain=gain, seconds=searched, note=note)
    print(f"gain {gain}")


if __name__ == "__main__": typer.run(main)
