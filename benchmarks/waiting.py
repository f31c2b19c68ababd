"""How long does a user wait: for an import, for the start of each command, for work that takes seconds?

    python benchmarks/waiting.py                  about 5 minutes; writes results/waiting.json
    python benchmarks/waiting.py --before ../old  next to an older checkout, in turns
    python benchmarks/waiting.py --rounds 1 --photos 20    a trial, which writes nothing

Each side is a fresh process. The sides take turns, after a short round that fills the system's file cache and
is not counted. The result is written after each round, so an interrupted run keeps its rounds. `first epoch`
ends when the command says what the first epoch reached. `Pillow alone` decodes the same photos in as many
threads and does nothing else. The photos are those of folder.py: JPEG, two megapixels. Run it alone, with
CIFAR-10 in the data folder. Where other work runs, only the processor time means something.
"""
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from folder import make_photos
from machine import write

from cifar_nb.core import Settings

ROOT = Path(__file__).resolve().parent.parent
MAIN = "from cifar_nb.cli import main; main()"
COMMANDS = ("data", "recipes", "train", "import", "evaluate", "calibrate", "predict", "samples", "serve",
            "threshold", "info", "compare", "ensemble", "tune", "runs", "promote", "retrain")
PLENTY = 1000  # Photos, of which a result is worth keeping
DECODE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
def decode(path):
    with Image.open(path) as image: image.load()
with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(decode, Path(sys.argv[1]).rglob("*.jpg")))
"""
# Variables that a user does not have: settings, and one that has our modules compiled at each start
LEFT_OUT = ("CIFAR_NB_", "PYTHONDONTWRITEBYTECODE")


def sides(photos):
    "Words of each command by name. `CACHE` is a new empty folder, `OUT` a new file."
    one = str(next(photos.rglob("*.jpg")))
    def command(*words): return ["-c", MAIN, *words]
    found = {
        "import torch": ["-c", "import torch"],
        "import torch, torchvision": ["-c", "import torch, torchvision"],
        "import cifar_nb": ["-c", "import cifar_nb"],
        "import cifar_nb.cli": ["-c", "import cifar_nb.cli"],
        "import torch and all that predicts": ["-c", "import torch, cifar_nb.cli, cifar_nb.predict"],
    }
    found |= {f"cifar-nb {name} --help": command(name, "--help") for name in COMMANDS}
    n = len([*photos.rglob("*.jpg")])
    found[f"Pillow alone, {n:,} photos"] = ["-c", DECODE, str(photos)]
    return found | {
        "cifar-nb info cifar10": command("info", "cifar10"),
        "cifar-nb predict, one photo": command("predict", one),
        f"cifar-nb predict, {n:,} photos": command("predict", str(photos), "--csv", "OUT.csv"),
        f"cifar-nb data, {n:,} photos for the first time": command("data", str(photos)),
        f"cifar-nb data, {n:,} photos again": command("data", str(photos)),
        "cifar-nb evaluate cifar10": command("evaluate", "cifar10"),
        "cifar-nb train, first epoch of simple": command("train", "--out", "OUT.safetensors"),
    }


def processor_seconds():
    "Of all processes that have ended, with those that they had started."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait(words, tree, place):
    "Seconds until a process ends, or has said what its first epoch reached; and those of the processor."
    env = {k: v for k, v in os.environ.items() if not k.startswith(LEFT_OUT)}
    env |= {"PYTHONPATH": str(tree), "CIFAR_NB_DATA_DIR": str(place / "data"), "TQDM_DISABLE": "1"}
    before, start = processor_seconds(), time.perf_counter()
    with subprocess.Popen([sys.executable, *words], env=env, cwd=place, text=True, stderr=subprocess.STDOUT,
                          stdout=subprocess.PIPE) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("epoch   1/"): process.kill()
        seconds = time.perf_counter() - start
    if process.returncode > 0: sys.exit(f"{words}: {''.join(said)[-1000:]}")
    return seconds, processor_seconds() - before


def one_round(commands, trees, place):
    "Seconds of each side in each tree, by turns, and those of the processor."
    found = {}
    for name, words in commands.items():
        for label, tree in trees.items():
            own = place / label
            if "first" in name:  # an empty cache, and no checkpoint
                for path in (*(own / "data").glob("decoded*"), *own.glob("OUT*"), own / "runs"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            found[name, label] = wait(words, tree, own)
    return found


def medians(seen, names, label, which):
    "Of all rounds, by name: of the seconds (0), or of those of the processor (1)."
    return {name: statistics.median(r[name, label][which] for r in seen) for name in names}


def keep(seen, names, trees, photos):
    "Write what the rounds so far say."
    found = {label: [medians(seen, names, label, which) for which in (0, 1)] for label in trees}
    write("waiting", what="seconds that a user waits, medians of fresh processes in turn", rounds=len(seen),
          photos=photos, median_seconds=found["now"][0], processor_seconds=found["now"][1],
          before_seconds=found["before"][0] if "before" in found else None,
          every_round=[{f"{name}, {label}": s for (name, label), (s, _) in r.items()} for r in seen])


def main(
    rounds: int = 4,
    photos: int = PLENTY,
    before: Annotated[Path | None, typer.Option(exists=True, file_okay=False)] = None,
):
    "Measure all sides in turn."
    trees = {"now": ROOT} | ({"before": before.resolve()} if before else {})
    data = Settings.read().data_dir
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for label in trees:
            (place / label / "data").mkdir(parents=True)
            for path in Path(data).glob("cifar-10*"): (place / label / "data" / path.name).symlink_to(path)
        make_photos(place / "photos", photos)
        commands = sides(place / "photos")
        quick = {name: words for name, words in commands.items()
                 if "photos" not in name and "train" not in name and "--help" not in name}
        one_round(quick, trees, place)
        seen = []
        for _ in range(rounds):
            seen.append(one_round(commands, trees, place))
            if photos >= PLENTY: keep(seen, commands, trees, photos)
    for name in commands:
        columns = (f"{label} {medians(seen, [name], label, 0)[name]:7.2f} s, "
                   f"processor {medians(seen, [name], label, 1)[name]:6.2f}" for label in trees)
        print(f"{name:50}", *columns)


if __name__ == "__main__": typer.run(main)
