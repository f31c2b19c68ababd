"""What 16-bit weights cost: tests model files as they are, and with their weights rounded as by `--half`.

    python benchmarks/half.py models/enhanced_tuned-1.safetensors models/simple-1.safetensors

Writes results/half.json. Any file of 32-bit weights will do, such as those that benchmarks/recipes.py leaves.
"""
from pathlib import Path
from typing import Annotated

import typer
from machine import write

from cifar_nb.device import best_device
from cifar_nb.evaluate import SixViews
from cifar_nb.experiment import measure
from cifar_nb.folders import load_dataset
from cifar_nb.modelfile import load_model

WHAT = ("test accuracy with 32-bit weights and with the same weights rounded to 16 bits, computed with 32 "
        "bits, with a single view and with six; and how many predictions change with a single view")


def main(files: Annotated[list[Path], typer.Argument(help="Model files")], device: str = "auto"):
    "Test each model twice, with a single view and with six."
    device, rows = best_device(device), []
    for file in files:
        model, card = load_model(str(file))
        images = load_dataset(card.dataset, card.input_size).test

        def tested(model, images=images, stats=card.stats):
            model = model.to(device)
            return [measure(m, images, stats, device=device) for m in (model, SixViews(model))]

        full, rounded = tested(model), tested(model.half().float())
        changed = int((full[0].predictions != rounded[0].predictions).sum())
        row = dict(model=file.stem, data=card.dataset, architecture=card.architecture, revision=card.revision,
                   answers_changed=changed)
        for bits, (one, six) in ((32, full), (16, rounded)):
            row |= {f"accuracy_{bits}": one.accuracy, f"accuracy_tta_{bits}": six.accuracy}
        rows.append(row)
        print(row, flush=True)
    write("half", what=WHAT, device=device, rows=rows)


if __name__ == "__main__": typer.run(main)
