"""Training throughput: `BatchLoader` and `train_epoch`, against torchvision's per-image `DataLoader` and a plain loop.

Both train `SimpleCNN` with Adam on CIFAR-10 pictures (6,400 an epoch for the plain side, 25,600 for ours), in turns within one run: the plain side as tutorials have it
(float32, default memory order), ours as `cifar-nb train` does (the faster precision, `channels_last`), and ours in float32. Writes results/loading.json.
"""
import statistics
import time

import torch
import torch.nn.functional as F
from machine import write
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from cifar_nb.core import Settings, seed_everything
from cifar_nb.data import BatchLoader, augment_standard, load_images
from cifar_nb.models import SimpleCNN, create_model
from cifar_nb.train import Amp, best_precision, train_epoch

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


def torchvision_pictures(images, n):
    "The first training pictures of CIFAR-10 as tutorials read them, normalised as `images` are."
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(images.mean, images.std)])
    return Subset(CIFAR10(Settings.read().data_dir, transform=transform), range(n))


def main():
    seed_everything(0)
    images = load_images("cifar10")
    files = torchvision_pictures(images, N_PLAIN)
    loaders = {workers: DataLoader(files, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0) for workers in (0, 2)}
    ours = BatchLoader(images[:N_OURS], BATCH, augment_standard, shuffle=True)
    precision = best_precision()
    sides = {
        "plain": lambda: rate(N_PLAIN, plain_epoch, SimpleCNN(), loaders[0]),
        "plain, 2 workers": lambda: rate(N_PLAIN, plain_epoch, SimpleCNN(), loaders[2]),
        "ours, float32": lambda: rate(N_OURS, train_epoch, create_model("simple_cnn"), ours),
        "ours": lambda: rate(N_OURS, train_epoch, create_model("simple_cnn"), ours, amp=Amp("cpu", precision)),
        "plain, loading only": lambda: only_loading(N_PLAIN, loaders[0]),
        "ours, loading only": lambda: only_loading(N_OURS, ours),
    }
    seen = {name: [] for name in sides}
    for i in range(ROUNDS):
        for name, measure in sides.items(): seen[name].append(measure())
        print(f"round {i + 1}: " + ", ".join(f"{name} {v[-1]:,.0f}" for name, v in seen.items()) + " images/s", flush=True)
    middle = {name: statistics.median(v) for name, v in seen.items()}
    best_plain = max(middle["plain"], middle["plain, 2 workers"])
    result = dict(what="training throughput of SimpleCNN on CIFAR-10, images a second, medians", rounds=ROUNDS, batch_size=BATCH, seed=0, ours=dict(images_per_second=middle["ours"], precision=precision),
                  ours_float32=dict(images_per_second=middle["ours, float32"]), plain=dict(images_per_second=best_plain, precision="float32", workers=0 if best_plain == middle["plain"] else 2),
                  ratio=middle["ours"] / best_plain, ratio_float32=middle["ours, float32"] / best_plain,
                  loading_only=dict(ours=middle["ours, loading only"], plain=middle["plain, loading only"], ratio=middle["ours, loading only"] / middle["plain, loading only"]),
                  every_round={name: [round(r) for r in v] for name, v in seen.items()})
    write("loading", **result)
    print(f"ours in {precision} is {result['ratio']:.2f} times the better plain one; loading alone {result['loading_only']['ratio']:.1f} times")


if __name__ == "__main__": main()
