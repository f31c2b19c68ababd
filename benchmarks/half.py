"""What 16-bit weights cost: tests model files as they are, and with their weights rounded as `--half` stores them.

    python benchmarks/half.py models/enhanced_tuned-1.safetensors models/simple-1.safetensors

Writes results/half.json. Any file of 32-bit weights will do, such as those that benchmarks/recipes.py leaves.
"""
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from machine import write

from cifar_nb.core import best_device
from cifar_nb.data import BatchLoader, load_images
from cifar_nb.evaluate import evaluate
from cifar_nb.predict import load_model
from cifar_nb.speed import SixViews


def main(files: Annotated[list[Path], typer.Argument(help="Model files")], device: str = "auto"):
    "Test each model twice, at one look and with six views."
    device, rows = best_device(device), []
    for file in files:
        model, card = load_model(str(file))
        images = replace(load_images(card.dataset, "test", card.input_size), mean=card.mean, std=card.std)
        dl = BatchLoader(images, 500, device=device)
        def tested(model, dl=dl, images=images): return [evaluate(m, dl, images.classes, device=device) for m in (model.to(device), SixViews(model))]
        full, rounded = tested(model), tested(model.half().float())
        row = dict(model=file.stem, data=card.dataset, architecture=card.architecture, revision=card.revision, answers_changed=int((full[0].predictions != rounded[0].predictions).sum()))
        for bits, (one, six) in ((32, full), (16, rounded)): row |= {f"accuracy_{bits}": one.accuracy, f"accuracy_tta_{bits}": six.accuracy}
        rows.append(row)
        print(row, flush=True)
    write("half", what="test accuracy (shares) with 32-bit weights and with the same rounded to 16 bits, computed with 32 bits; answers that change, at one look", device=device, rows=rows)


if __name__ == "__main__": typer.run(main)
