"""How long does `cifar-nb predict` take from a cold start, and how much of that is ours?

    python benchmarks/startup.py    some minutes; writes results/startup.json

Each side is a fresh Python process. The sides take turns, after one unmeasured round to fill the file cache.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer
from machine import write
from PIL import Image

ROUNDS = 7
SIDES = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, torchvision": [sys.executable, "-c", "import torch, torchvision"],
    "import torch, torchvision and what a prediction imports of ours": [
        sys.executable, "-c", "import torch, torchvision, cifar_nb.cli, cifar_nb.predict"],
    "cifar-nb predict": [str(Path(sys.executable).with_name("cifar-nb")), "predict", "teal.png"],
}


def seconds(command, folder):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - start


def main():
    "Measure all sides in turn."
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (400, 300), "teal").save(Path(folder) / "teal.png")
        rounds = []
        for _ in range(ROUNDS + 1):
            rounds.append({name: seconds(command, folder) for name, command in SIDES.items()})
    rounds = rounds[1:]
    median = {name: statistics.median(r[name] for r in rounds) for name in SIDES}
    _, libraries, ours, whole = median.values()
    write("startup", what="seconds from a cold start, medians of fresh processes in turn", rounds=ROUNDS,
          median_seconds=median, package_adds_seconds=ours - libraries, predict_seconds=whole)
    print({k: round(v, 2) for k, v in median.items()})
    print("the package adds to torch and torchvision", round(ours - libraries, 2))


if __name__ == "__main__": typer.run(main)
