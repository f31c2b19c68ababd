"""What each recipe reaches: trains one at full length and adds a row to results/recipes.json.

    python benchmarks/recipes.py enhanced                       by the recipe; killed, it resumes
    python benchmarks/recipes.py enhanced --seed 1 --out DIR    another seed; model file and checkpoint in DIR instead of models/
    python benchmarks/recipes.py resnet18 --epochs 10           shorter than the recipe: the row says so

Choices are made on held-out training pictures; the official test set is looked at once, at the end.
"""
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from machine import RESULTS, conditions, summary, write

from cifar_nb.core import Settings, best_device
from cifar_nb.models import multiply_adds
from cifar_nb.predict import load_model
from cifar_nb.recipes import RECIPES, find_recipe, run_recipe
from cifar_nb.train import Checkpointer

# What the published system says of itself; none where it says nothing
SOURCES = {"simple": "60-70%, a few epochs", "enhanced": "84.09%, 61 epochs", "resnet50": "77.99%, 28 epochs", "resnet18": "\"90%+\"", "resnet34": "\"90%+\""}


# What the runs of one entry have in common, beside their choices
COMMON = ("recipe", "start", "parameters", "multiply_adds", "epochs_planned", "epochs_of_the_recipe", "source")


def by_recipe(rows):
    "One entry for the runs that differ in their seeds, and in where they ran: means and deviations, of seconds by place."
    groups = {}
    for row in rows:
        choices = {k: v for k, v in row["choices"].items() if k not in ("seed", "precision")}
        groups.setdefault(json.dumps([[row[k] for k in COMMON], row.get("half", False), choices]), []).append(row)
    entries = []
    for runs in groups.values():
        def over_seeds(key, runs=runs): return None if runs[0][key] is None else summary([run[key] for run in runs])
        places = {}
        for run in runs: places.setdefault(f"{run['machine'].split(', ')[-1]} in {run['precision']}", []).append(run["seconds"])  # the GPU, or the number of threads
        entries.append(dict({k: runs[0][k] for k in COMMON}, seeds=[run["seed"] for run in runs], epochs=over_seeds("epochs")["mean"],
                            **{key: over_seeds(key) for key in ("validation_accuracy", "test_accuracy", "test_accuracy_tta")},
                            seconds_on={place: summary(seconds) for place, seconds in sorted(places.items())}, notes=[run["note"] for run in runs if run["note"]], choices=runs[0]["choices"]))
    return entries


def main(name: Annotated[str, typer.Argument(help="A recipe")], seed: int = 0, epochs: int | None = None, start: str | None = None, device: str = "auto", precision: str = "auto",
         half: Annotated[bool, typer.Option(help="Save 16-bit weights, and test those")] = False,
         note: Annotated[str, typer.Option(help="What else there is to know, such as other work on the machine")] = "",
         out: Annotated[Path, typer.Option(help="A folder for the model file, and for the checkpoint from which a killed run goes on")] = RESULTS.parent / "models"):
    "Train a recipe, test once, note everything."
    if name not in RECIPES: raise typer.BadParameter(f"there is no recipe {name!r}: use {', '.join(RECIPES)}")
    path, settings, begun = RESULTS / "recipes.json", Settings.read(device=device), time.perf_counter()
    recipe = find_recipe(name, seed=seed, epochs=epochs, start=start, precision=precision)
    file = out / f"{name}-{seed}.safetensors"
    checkpoint = file.with_suffix(".ckpt")
    seconds = [row["seconds"] for row in Checkpointer(checkpoint).read()["history"]["rows"]] if checkpoint.exists() else []
    before = sum(seconds)
    out.mkdir(parents=True, exist_ok=True)
    def seen(history):
        seconds[:] = history.column("seconds")
        print(f"epoch {len(history)}/{recipe.epochs}: {history.rows[-1]}", flush=True)
    card, report = run_recipe(recipe, file, settings, half=half, on_epoch=seen)
    model = load_model(str(file), settings)[0]
    row = dict(recipe=name, start=card.recipe.get("start", ""), seed=seed, parameters=sum(p.numel() for p in model.parameters()), multiply_adds=multiply_adds(model, card.input_size), epochs=card.epochs, epochs_planned=recipe.epochs, epochs_of_the_recipe=RECIPES[name].epochs,
               seconds=sum(seconds), seconds_with_data_and_tests=before + time.perf_counter() - begun, validation_accuracy=card.validation_accuracy, test_accuracy=card.test_accuracy,
               test_accuracy_tta=card.test_accuracy_tta, source=SOURCES.get(name, "-"), half=half, device=best_device(device), precision=card.recipe["precision"], note=note, **conditions(best_device(device)), choices=card.recipe)
    rows = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    same = ("recipe", "start", "seed", "epochs_planned", "half", "device")
    rows = [r for r in rows if [r.get(k, False) for k in same] != [row[k] for k in same]] + [row]
    order = list(RECIPES)
    rows = sorted(rows, key=lambda r: (order.index(r["recipe"]), r["seed"], r["epochs"]))
    write("recipes", what="recipes trained at full length: accuracies as shares, seconds of training; the test set was looked at once a run", recipes=by_recipe(rows), runs=rows)
    print(report.table())


if __name__ == "__main__": typer.run(main)
