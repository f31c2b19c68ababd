"""Which number should choose the epoch that is kept: loss, accuracy, balanced accuracy or macro F1?

    PYTHONPATH=.:tests python benchmarks/monitor.py [N_SEEDS]

Each run is trained once, and all epochs are measured on validation and test images, so the choice of each
number (ties go to the lower loss) is read from the same run. Two kinds of data: a drawn folder of 304 good
and 40 defective parts (recipe `finetune`, another folder for each seed), and 5,000 images of CIFAR-10 (recipe
`simple`). Writes results/monitor.json.
"""
import json
import sys
import tempfile
from pathlib import Path

from tools.parts import parts_folder

from cifar_nb.core import Settings
from cifar_nb.datasets import split_by_hash
from cifar_nb.device import library_versions, source_revision
from cifar_nb.evaluate import Report
from cifar_nb.experiment import measure
from cifar_nb.folders import load_dataset
from cifar_nb.images import channel_stats
from cifar_nb.parts import build_parts
from cifar_nb.recipes import find_recipe

MONITORS = "loss", "accuracy", "balanced_accuracy", "macro_f1"
SETTINGS = Settings.read()


def numbers(report:Report): return {name: getattr(report, name) for name in MONITORS}


def trace(recipe, images, test):
    "Validation and test numbers of each epoch."
    recipe, start = recipe.open_start(SETTINGS)
    train, valid = split_by_hash(images, recipe.held_out, salt="validation")
    stats = recipe.choose_stats(channel_stats(train.pixels), start)
    parts = build_parts(recipe, train, stats, weights=start.weights)
    rows = []

    def validate(model):
        reports = [measure(model, part, stats, device="cpu") for part in (valid, test)]
        rows.append([numbers(report) for report in reports])
        return reports[0]
    parts.train(recipe.epochs, validate=validate)
    return rows


def chosen(rows, monitor):
    "The position of the epoch that a number keeps."
    def score(valid): return (-valid["loss"] if monitor == "loss" else valid[monitor], -valid["loss"])
    return max(range(len(rows)), key=lambda i: score(rows[i][0]))


def main(n_seeds=5):
    found = {}
    for seed in range(n_seeds):
        with tempfile.TemporaryDirectory() as root:
            folder = parts_folder(Path(root), seed=seed, plain=True, size=(96, 96))
            data = load_dataset(str(folder), 32, SETTINGS)
            recipe = find_recipe("finetune", data=str(folder), epochs=10, seed=seed, precision="float32")
            found[f"parts {seed}"] = trace(recipe, data.train, data.test)
        data = load_dataset("cifar10", 32, SETTINGS)
        recipe = find_recipe("simple", epochs=12, seed=seed, precision="float32")
        found[f"cifar10 {seed}"] = trace(recipe, data.train[5000*seed:5000*(seed+1)], data.test[:2000])
        report(found)


def report(found):
    "Print the means so far, and write everything."
    choices = {name: {m: chosen(rows, m) for m in MONITORS} for name, rows in found.items()}
    for kind in ("parts", "cifar10"):
        for monitor in MONITORS:
            tests = [rows[choices[name][monitor]][1] for name, rows in found.items() if name.startswith(kind)]
            means = {m: round(sum(t[m] for t in tests) / len(tests), 4) for m in MONITORS}
            kept = [choices[name][monitor] + 1 for name in found if name.startswith(kind)]
            print(kind, monitor, means, kept, flush=True)
    out = dict(revision=source_revision(), versions=library_versions(), kept=choices, epochs=found)
    Path("results/monitor.json").write_text(json.dumps(out) + "\n", encoding="utf-8")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
