"""Training throughput: `BatchLoader` and `train_epoch`, against torchvision's `DataLoader` and a plain loop.

    python benchmarks/loading.py    some minutes; writes results/loading.json

Both train `SimpleCNN` with Adam on CIFAR-10 images (6,400 per epoch for the plain side, 25,600 for ours), in
turns within one run: the plain side as tutorials have it (float32, default memory order), ours as
`cifar-nb train` does (the faster precision, `channels_last`), and ours in float32.
"""
import statistics
import time

import torch
import torch.nn.functional as F
import typer
from machine import write
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from cifar_nb.augment import augment_standard
from cifar_nb.batches import BatchLoader
from cifar_nb.convnet import SimpleCNN
from cifar_nb.core import Settings
from cifar_nb.device import Amp, best_precision, seed_everything
from cifar_nb.folders import load_dataset
from cifar_nb.loop import train_epoch
from cifar_nb.models import create_model

ROUNDS, N_PLAIN, N_OURS, BATCH = 5, 6400, 25_600, 64


def plain_epoch(model, dl, opt):
    "The loop of every tutorial."
    model.train()
    for x, y in dl:
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()


def rate(n, epoch, model, dl, **kwargs):
    "Images a second of one epoch, after a few warm-up batches."
    opt = torch.optim.Adam(model.parameters())
    epoch(model, [next(iter(dl))] * 3, opt, **kwargs)
    start = time.perf_counter()
    epoch(model, dl, opt, **kwargs)
    return n / (time.perf_counter() - start)


def only_loading(n, dl):
    start = time.perf_counter()
    for _ in dl: pass
    return n / (time.perf_counter() - start)


def torchvision_images(stats, n):
    "The first training images of CIFAR-10 as tutorials read them, normalised by `stats`."
    transform = v2.Compose([
        v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(*stats)])
    return Subset(CIFAR10(Settings.read().data_dir, transform=transform), range(n))


def plain_loader(files, workers):
    return DataLoader(files, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def report(seen, precision):
    "Medians of all rounds, into the result file."
    middle = {name: statistics.median(v) for name, v in seen.items()}
    plain, several = middle["plain"], middle["plain, 2 workers"]
    best = max(plain, several)
    loading = middle["ours, loading only"], middle["plain, loading only"]
    result = dict(
        what="training throughput of SimpleCNN on CIFAR-10, images a second, medians", rounds=ROUNDS,
        batch_size=BATCH, seed=0, ours=dict(images_per_second=middle["ours"], precision=precision),
        ours_float32=dict(images_per_second=middle["ours, float32"]),
        plain=dict(images_per_second=best, precision="float32", workers=0 if best == plain else 2),
        ratio=middle["ours"] / best, ratio_float32=middle["ours, float32"] / best,
        loading_only=dict(ours=loading[0], plain=loading[1], ratio=loading[0] / loading[1]),
        every_round={name: [round(r) for r in v] for name, v in seen.items()})
    write("loading", **result)
    print(f"ours in {precision} is {result['ratio']:.2f} times the better plain one; "
          f"loading alone {result['loading_only']['ratio']:.1f} times")


def main():
    "Measure all sides in turn."
    seed_everything(0)
    data = load_dataset("cifar10")
    files = torchvision_images(data.stats, N_PLAIN)
    plain = {workers: plain_loader(files, workers) for workers in (0, 2)}
    ours = BatchLoader(data.train[:N_OURS], data.stats, BATCH, augment=augment_standard, shuffle=True)
    precision = best_precision()
    def ours_with(**options): return rate(N_OURS, train_epoch, create_model("simple_cnn"), ours, **options)
    sides = {
        "plain": lambda: rate(N_PLAIN, plain_epoch, SimpleCNN(), plain[0]),
        "plain, 2 workers": lambda: rate(N_PLAIN, plain_epoch, SimpleCNN(), plain[2]),
        "ours, float32": ours_with,
        "ours": lambda: ours_with(amp=Amp("cpu", precision)),
        "plain, loading only": lambda: only_loading(N_PLAIN, plain[0]),
        "ours, loading only": lambda: only_loading(N_OURS, ours),
    }
    seen = {name: [] for name in sides}
    for i in range(ROUNDS):
        for name, measure in sides.items(): seen[name].append(measure())
        print(f"round {i + 1}: " + ", ".join(f"{name} {v[-1]:,.0f}" for name, v in seen.items()), flush=True)
    report(seen, precision)


if __name__ == "__main__": typer.run(main)
