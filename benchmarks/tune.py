"""Does a study find a better recipe? Searches around a recipe, then trains it and the winner again.

    python benchmarks/tune.py                          40 trials: about half an hour on two cores
    python benchmarks/tune.py --trials 24 --epochs 5 --images 5000    some minutes

Learns from some of the training images and judges by validation images; test images are not read. A killed run
goes on where it was. The seeds of the comparison are new to the study. Writes results/tune.json.
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

WHAT = ("a search around a recipe by validation accuracy, with pruning; then the recipe and the winner, trained "
        "again with seeds that the search did not use; accuracies of validation images as fractions; no test "
        "images")
FOLDER = "Where the study is kept, so that a killed run goes on"


def main(  # noqa: PLR0913, PLR0917, the flags of a command
    recipe: str = "simple",
    images: Annotated[int, typer.Option(help="Training images")] = 10_000,
    valid: Annotated[int, typer.Option(help="Validation images")] = 5000,
    epochs: int = 8,
    trials: int = 40,
    seeds: Annotated[int, typer.Option(help="Trainings of each recipe in the comparison")] = 5,
    note: Annotated[str, typer.Option(help="What else there is to know, such as other work")] = "",
    folder: Annotated[Path, typer.Option(help=FOLDER)] = RESULTS.parent / "models" / "studies" / "benchmark",
):
    "Search, compare, note everything."
    settings, begun = Settings.read(), time.perf_counter()
    repeatable_kernels()
    if best_device(settings.device) == "cpu": keep_memory()
    plan = make_plan(find_recipe(recipe, epochs=epochs))
    data = open_trial_data(plan.recipe, settings)
    data = data._replace(train=data.train[:images], valid=data.valid[:valid])

    def show(study, trial): print(trial_line(study_rows(study)[trial.number]), flush=True)

    study = search(plan, folder, settings, trials, data=data, show=show)
    rows, searched = study_rows(study), time.perf_counter() - begun
    best = best_first(rows, maximize=True)[0]
    again = {"start": [], "best": []}
    for i in range(seeds):
        for name, values in (("start", {}), ("best", best["values"])):
            changed = with_changes(plan.recipe, {**values, "seed": plan.recipe.seed + 1000 + i})
            again[name].append(train_once(changed, data, settings)["valid_accuracy"])
            print(f"{name}, seed {changed.seed}: {again[name][-1]:.2%}", flush=True)
    gain = summary([b - a for a, b in zip(again["start"], again["best"])])
    importance = import_optuna().importance.get_param_importances(study)
    write("tune", what=WHAT, recipe=recipe, images=len(data.train), valid=len(data.valid), epochs=epochs,
          space=default_space(plan.recipe), start=plan.start, rows=rows, importance=importance, again=again,
          gain=gain, seconds=sum(row["seconds"] or 0 for row in rows), seconds_of_this_call=searched, note=note)
    print(f"gain {gain}")


if __name__ == "__main__": typer.run(main)
