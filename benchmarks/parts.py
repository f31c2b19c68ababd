"""From a folder of photos to a model that decides: how many defects does it find among new photos?

    PYTHONPATH=.:tests python benchmarks/parts.py [N_SEEDS [FIRST_SEED]]

Each seed draws another folder of 304 good and 40 defective parts with all that people's folders have: ten
ways of writing an image, names with umlauts and blanks, files of other programs, and three that are no
images. Then come the commands of COMMANDS, as a person would type them, and nothing else is done by hand. The
fresh photos are drawn by other seeds: 500 of each kind, which chose nothing. Writes results/parts.json.
"""
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import write
from tools.parts import parts_folder

from cifar_nb.evaluate import wilson_interval

COMMANDS = (
    "data photos --skip-broken",
    "train photos --skip-broken --folds 5 --false-alarms defect=0.02 --out models/parts.safetensors",
    "predict models/parts.safetensors fresh --csv answers.csv",
)
N_FRESH = 500


def told(rows, kind, column):
    "How many photos of a kind are called defective, with the 95% interval."
    called = [row[column] == "defect" for row in rows if Path(row["path"]).parent.name == kind]
    low, high = wilson_interval(sum(called) / len(called), len(called))
    n = sum(called)
    return dict(called=n, photos=len(called), fraction=n / len(called), interval=[low, high])


def run(seed):
    "The commands in an empty folder, and what they make of the fresh photos."
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        parts_folder(root / "photos", seed=seed, broken=True)
        parts_folder(root / "fresh", ok=N_FRESH, defect=N_FRESH, seed=1000 + seed, plain=True)
        env = dict(os.environ, CIFAR_NB_DATA_DIR=str(root / "data"))
        seconds, said = [], ""
        for command in COMMANDS:
            start = time.perf_counter()
            words = [Path(sys.executable).with_name("cifar-nb"), *command.split()]
            done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
            seconds.append(round(time.perf_counter() - start, 1))
            if done.returncode: raise SystemExit(f"{command}: {done.returncode}\n{done.stderr}")
            said += "".join(line + "\n" for line in done.stderr.splitlines() if line.startswith("chosen:"))
        with open(root / "answers.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    numbers = {column: {kind: told(rows, kind, column) for kind in ("defect", "OK")}
               for column in ("prediction", "decision")}
    return dict(seed=seed, seconds=seconds, said=said.strip(), **numbers)


def main(n_seeds=3, first=0):
    runs = []
    for seed in range(first, first + n_seeds):
        runs.append(run(seed))
        for column in ("prediction", "decision"):
            found, alarms = (runs[-1][column][kind]["fraction"] for kind in ("defect", "OK"))
            print(f"{seed} {column}: {found:.1%} found, {alarms:.1%} false alarms", flush=True)
        write("parts", commands=COMMANDS, fresh=N_FRESH, runs=runs)


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
