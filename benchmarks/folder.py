"""A folder of 10,000 photos of 2 megapixels, read for the first time and for the second.

    python benchmarks/folder.py               some minutes, 4 GB of disk; writes results/folder.json
    python benchmarks/folder.py --photos 300  a trial, which writes nothing

The photos are drawn: coloured blobs under the noise of a sensor, as JPEG of quality 85. Each reading is a
process of its own, as each command is, on two threads and with an empty cache the first time. Its time is
that of listing, hashing and decoding all images at 32 pixels, without the import of PyTorch. `memory_mb` is
the largest resident size of the process. Run it alone: the processor decides, not the disk. Where other work
runs, only `cpu_seconds` means something.
"""
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from machine import write
from PIL import Image

WIDTH, HEIGHT, CLASSES, LIMITS = 1632, 1224, 4, (90, 3)
READ = """
import json, resource, sys, time
from cifar_nb.cache import open_reader
from cifar_nb.core import Settings
from cifar_nb.folders import load_dataset
import torch
torch.set_num_threads(2)
def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
root, data_dir = sys.argv[1:]
settings = Settings(data_dir=data_dir)
before, start, cpu = memory(), time.perf_counter(), time.process_time()
data = load_dataset(root, 32, settings, open_reader(settings))
n, digest = len(data.train) + len(data.test), int(data.train.pixels.sum()) + int(data.test.pixels.sum())
print(json.dumps(dict(photos=n, seconds=time.perf_counter()-start, digest=digest,
                      cpu_seconds=time.process_time()-cpu,
                      memory_mb=memory(), memory_before_mb=before)))
"""


def draw(task):
    "One photo; its number decides everything."
    root, i = task
    rng = np.random.default_rng(i)
    blobs = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    pixels = np.asarray(blobs.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = np.roll(NOISE, tuple(rng.integers(0, 1000, 2)), (0, 1))
    path = Path(root) / f"class{i % CLASSES}" / f"{i:05}.jpg"
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)


NOISE = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 3)).astype(np.int16)


def make_photos(root, n):
    for k in range(CLASSES): (root / f"class{k}").mkdir(parents=True)
    tasks = [(str(root), i) for i in range(n)]
    with ProcessPoolExecutor(2) as pool: list(pool.map(draw, tasks, chunksize=20))


def read(root, data_dir):
    "Seconds and memory of one process that reads the folder."
    answer = subprocess.check_output([sys.executable, "-c", READ, str(root), str(data_dir)], text=True)
    return json.loads(answer)


def main(
    photos: Annotated[int, typer.Option(help="How many; fewer than 10,000 are a trial")] = 10_000,
    folder: Annotated[Path | None, typer.Option(help="Where the photos are put for a while")] = None,
):
    "Make the photos, read them twice, and say what that took."
    with tempfile.TemporaryDirectory(dir=folder) as tmp:
        root, data_dir = Path(tmp) / "photos", Path(tmp) / "data"
        make_photos(root, photos)
        size = sum(path.stat().st_size for path in root.rglob("*.jpg"))
        first, second = read(root, data_dir), read(root, data_dir)
        cache = sum(path.stat().st_size for path in data_dir.iterdir())
    assert first["digest"] == second["digest"] and first["photos"] == second["photos"] == photos
    for name, found, limit in (("first", first, LIMITS[0]), ("second", second, LIMITS[1])):
        print(f"{name}: {found['seconds']:.1f} s (at most {limit} for 10,000), "
              f"{found['cpu_seconds']:.1f} s of processor time, "
              f"{found['memory_mb']:.0f} MB, {found['memory_before_mb']:.0f} before reading")
    result = dict(what=f"a folder of photos of {WIDTH} x {HEIGHT} pixels, read at 32 pixels on two threads",
                  photos=photos, photos_mb=size / 1e6, cache_mb=cache / 1e6, first=first, second=second)
    if photos == 10_000: write("folder", **result)
    else: print(json.dumps(result, indent=1))


if __name__ == "__main__": typer.run(main)
