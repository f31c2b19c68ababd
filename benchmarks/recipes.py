"""What each recipe reaches: trains one at full length and adds a row to results/recipes.json.

    python benchmarks/recipes.py enhanced                       by the recipe; resumes after a kill
    python benchmarks/recipes.py enhanced --seed 1 --out DIR    another seed; model file and checkpoint in DIR
    python benchmarks/recipes.py resnet18 --epochs 10           shorter than the recipe: the row says so

Choices are made on held-out training images; the official test set is evaluated once, at the end.
"""
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from machine import RESULTS, conditions, summary, write

from cifar_nb.checkpoint import Checkpointer
from cifar_nb.convnet import multiply_adds
from cifar_nb.core import Settings
from cifar_nb.device import best_device, keep_memory, repeatable_kernels
from cifar_nb.experiment import checkpoint_path, run_recipe
from cifar_nb.modelfile import load_model
from cifar_nb.recipes import RECIPE_NAMES, find_recipe

# What the runs of one entry have in common, besides their choices
COMMON = ("recipe", "start", "parameters", "multiply_adds", "epochs_planned", "epochs_of_the_recipe")
WHAT = ("recipes trained at full length: accuracies as fractions, seconds of training; "
        "the test set was evaluated once per run")


def entry(runs):
    "Means and standard deviations over runs that differ in their seeds and places."
    def over_seeds(key): return None if runs[0][key] is None else summary([run[key] for run in runs])
    places = {}
    for run in runs:  # the GPU, or the number of threads
        place = f"{run['machine'].split(', ')[-1]} in {run['precision']}"
        places.setdefault(place, []).append(run["seconds"])
    measured = ("validation_accuracy", "test_accuracy", "test_accuracy_tta")
    accuracies = {key: over_seeds(key) for key in measured}
    common = {k: runs[0][k] for k in COMMON}
    seeds = [run["seed"] for run in runs]
    return dict(common, seeds=seeds, epochs=over_seeds("epochs")["mean"], **accuracies,
                seconds_on={place: summary(seconds) for place, seconds in sorted(places.items())},
                notes=[run["note"] for run in runs if run["note"]], choices=runs[0]["choices"])


def by_recipe(rows):
    "One entry for the runs that differ only in seed, precision and machine."
    groups = {}
    for row in rows:
        choices = {k: v for k, v in row["choices"].items() if k not in ("seed", "precision")}
        key = json.dumps([[row[k] for k in COMMON], row.get("half", False), choices])
        groups.setdefault(key, []).append(row)
    return [entry(runs) for runs in groups.values()]


def merge(row):
    "Put a row among those that are there, in place of an earlier run of the same kind."
    path = RESULTS / "recipes.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    same = ("recipe", "start", "seed", "epochs_planned", "half", "device")
    rows = [r for r in rows if [r.get(k, False) for k in same] != [row[k] for k in same]] + [row]
    rows = sorted(rows, key=lambda r: (RECIPE_NAMES.index(r["recipe"]), r["seed"], r["epochs"]))
    write("recipes", what=WHAT, recipes=by_recipe(rows), runs=rows)


NOTE = "What else there is to know, such as other work on the machine"
OUT = "A folder for the model file, and for the checkpoint from which a killed run resumes"


def main(  # noqa: PLR0913, PLR0917, the flags of a command
    name: Annotated[str, typer.Argument(help="A recipe")],
    seed: int = 0,
    epochs: int | None = None,
    start: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    half: Annotated[bool, typer.Option(help="Save 16-bit weights, and test those")] = False,
    note: Annotated[str, typer.Option(help=NOTE)] = "",
    out: Annotated[Path, typer.Option(help=OUT)] = RESULTS.parent / "models",
):
    "Train a recipe, test once, note everything."
    if name not in RECIPE_NAMES:
        raise typer.BadParameter(f"there is no recipe {name!r}: use {', '.join(RECIPE_NAMES)}")
    settings, begun = Settings.read(device=device), time.perf_counter()
    device = best_device(device)
    repeatable_kernels()
    if device == "cpu": keep_memory()
    recipe = find_recipe(name, settings=settings, seed=seed, epochs=epochs, start=start, precision=precision)
    file = out / f"{name}-{seed}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, seconds = checkpoint_path(file), []
    if checkpoint.exists():
        seconds = [row["seconds"] for row in Checkpointer(checkpoint).read()["history"]["rows"]]
    before = sum(seconds)

    def seen(history):
        seconds[:] = history.column("seconds")
        print(f"epoch {len(history)}/{recipe.epochs}: {history.rows[-1]}", flush=True)

    card, report = run_recipe(recipe, file, settings, half=half, on_epoch=seen)
    model = load_model(str(file), settings)[0]
    merge(dict(
        recipe=name, start=card.recipe.get("start", ""), seed=seed,
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=multiply_adds(model, card.input_size), epochs=card.epochs, epochs_planned=recipe.epochs,
        epochs_of_the_recipe=find_recipe(name).epochs, seconds=sum(seconds),
        seconds_with_data_and_tests=before + time.perf_counter() - begun,
        validation_accuracy=card.validation_accuracy, test_accuracy=card.test_accuracy,
        test_accuracy_tta=card.test_accuracy_tta, half=half, device=device,
        precision=card.recipe["precision"], note=note, **conditions(device), choices=card.recipe))
    print(report.table())


if __name__ == "__main__": typer.run(main)
