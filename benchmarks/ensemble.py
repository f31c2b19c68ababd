"""How good is an ensemble of `speed94`? Trains members that differ in their seed only, and combines them.

    python benchmarks/ensemble.py                      five trainings, an hour on two cores
    python benchmarks/ensemble.py --folder members     go on with the model files that are there

All official training images are learned from, and the official test images choose nothing. A killed run
goes on where it was. Members may also be made one by one, by `cifar-nb train --recipe speed94 --held-out 0
--seed 30 --out members/s30.safetensors`. Writes results/ensemble.json; the members are not kept in the
repository.
"""
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import RESULTS, write

from cifar_nb.compare import make_ensemble
from cifar_nb.core import Settings
from cifar_nb.device import best_device, keep_memory
from cifar_nb.ensemble import agreement, ensemble_report, scores_by_size
from cifar_nb.evaluate import SixViews
from cifar_nb.experiment import measure, run_recipe
from cifar_nb.folders import load_dataset
from cifar_nb.modelfile import load_model, read_card
from cifar_nb.recipes import find_recipe

WHAT = ("members trained by one recipe with different seeds on all official training images, tested on "
        "the official test images with a single view unless it says six; accuracies, losses and "
        "calibration errors (ece) as fractions; rows for n members are means over cyclic choices of n; "
        "agreement is the mean over pairs; milliseconds per image are medians, one by one and in batches "
        "of 100")
FOLDER = "Where the members are kept, so that a killed run goes on"


def milliseconds(model, images, size):
    "Per image, in batches of a size: the median of nine, after one that is not counted."
    x = torch.randn(size, 3, 32, 32).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(10):
            begin = time.perf_counter()
            for _ in range(images // size): model(x)
            times.append(1000 * (time.perf_counter() - begin) / images)
    return statistics.median(times[1:])


def main(
    first: int = 30,
    members: int = 5,
    folder: Annotated[Path, typer.Option(help=FOLDER)] = RESULTS.parent / "models" / "members",
    note: Annotated[str, typer.Option(help="What else there is to know, such as other work")] = "",
):
    "Train what is missing, combine, and note everything."
    settings = Settings.read()
    device = best_device(settings.device)
    if device == "cpu": keep_memory()
    recipe = find_recipe("speed94", held_out=0)
    paths = [folder / f"s{first + i}.safetensors" for i in range(members)]
    for i, path in enumerate(paths):
        if not path.exists(): run_recipe(recipe.model_copy(update=dict(seed=first + i)), path, settings)
    for path in paths:  # each by the recipe of the repository, and nothing else
        made = read_card(path).recipe
        other = [key for key, value in recipe.model_dump(mode="json").items()
                 if key not in ("seed", "precision") and made.get(key) != value]
        if other: raise SystemExit(f"{path} was made with another {other[0]}")
    test = load_dataset("cifar10", 32, settings).test
    reports, six = [], []
    for path in paths:
        model, card = load_model(str(path), settings)
        model = model.to(device)
        reports.append(measure(model, test, card.stats, device=device))
        six.append(measure(SixViews(model, None), test, card.stats, device=device))
        print(f"{path.name}: {reports[-1].accuracy:.2%}, with six views {six[-1].accuracy:.2%}", flush=True)
    whole, rows = ensemble_report(reports), scores_by_size(reports)
    cost = []
    for n in range(1, members + 1):
        file = paths[0] if n == 1 else folder / f"ensemble{n}.safetensors"
        if n > 1: make_ensemble(paths[:n], file)
        model = load_model(str(file), settings)[0]
        cost.append(dict(members=n, megabytes=file.stat().st_size / 1e6, one=milliseconds(model, 20, 1),
                         batch=milliseconds(model, 500, 100)))
        if n == members:  # the file says what the members say
            said = measure(model.to(device), test, card.stats, device=device)
            assert abs(said.accuracy - whole.accuracy) <= 2 / len(test)
        print(rows[n - 1], cost[-1], flush=True)
    pairs = agreement(reports)
    apart = pairs[~torch.eye(members, dtype=torch.bool)]
    wrong = torch.stack([report.predictions != report.labels for report in reports]).all(0)
    write("ensemble", what=WHAT, device=device, recipe="speed94", held_out=0, note=note,
          seeds=[first + i for i in range(members)], trained_by=[read_card(path).revision for path in paths],
          precision=[read_card(path).recipe["precision"] for path in paths],
          accuracy=[report.accuracy for report in reports], accuracy_six=[report.accuracy for report in six],
          rows=rows, rows_logits=scores_by_size(reports, "logits"), rows_six=scores_by_size(six),
          agreement=apart.mean().item(), agreements=pairs.tolist(), all_wrong=wrong.float().mean().item(),
          cost=cost)


if __name__ == "__main__": typer.run(main)
