"""What each idea of the fast recipe is worth: one more a rung, three seeds each, judged on held-out training pictures.

    python benchmarks/ladder.py        some seven minutes on two cores that multiply with 16 bits; writes results/ladder.json after each rung
"""
import statistics
import time
from dataclasses import asdict, replace

from machine import write

from cifar_nb.core import best_device
from cifar_nb.data import BatchLoader, load_images, train_val_split
from cifar_nb.evaluate import evaluate
from cifar_nb.recipes import find_recipe, train_by
from cifar_nb.speed import SixViews, SpeedRecipe, speedrun
from cifar_nb.train import Amp, best_precision

SEEDS, N_TRAIN, N_VALID, EPOCHS = 3, 20_000, 5000, 4
device = best_device()
precision = best_precision(device)
whole = ()  # pictures in every epoch
bottom = SpeedRecipe(widths=(16, 64, 64), epochs=EPOCHS, batch_size=250, lr=.15, precision=precision, zoom=whole, smoothing=0, whiten=False, identity=False, orthogonal=False, by_turns=False)
RUNGS = {
    "SpeedNet, SGD": {},
    "+ whitened first layer": dict(whiten=True),
    "+ identity at the start": dict(identity=True),
    "+ Muon": dict(orthogonal=True),
    "+ mirrored by turns": dict(by_turns=True),
    "+ smoothed labels": dict(smoothing=SpeedRecipe().smoothing),
    "(three epochs instead of four)": dict(epochs=3),
    "+ first 20, then 26 pixels": dict(epochs=EPOCHS, zoom=((.625, .34), (.8125, .33))),
    "first 24, then 28 pixels instead": dict(zoom=SpeedRecipe().zoom),
}


def main():
    images = load_images("cifar10")
    rest, valid = train_val_split(images, N_VALID)
    train = rest[:N_TRAIN]
    rungs = []

    def judge(model): return evaluate(model, BatchLoader(valid, 500, device=device), valid.classes, device=device, amp=Amp(device, precision))

    def add(rung, runs, recipe):
        accuracies, seconds = zip(*runs)
        rungs.append(dict(rung=rung, mean=statistics.mean(accuracies), sd=statistics.stdev(accuracies), seconds=statistics.mean(seconds), accuracies=accuracies, recipe=asdict(recipe)))
        write("ladder", what=f"top-1 on {N_VALID:,} held-out training pictures after {EPOCHS} epochs of {N_TRAIN:,} others; seconds of training", seeds=list(range(SEEDS)), epochs=EPOCHS, widths=bottom.widths,
              batch_size=bottom.batch_size, precision=precision, rungs=rungs)
        print(f"{rung}: {rungs[-1]['mean']:.2%} ± {rungs[-1]['sd']:.2%}, {rungs[-1]['seconds']:.0f} s", flush=True)

    def timed(train_one, *args):
        start = time.perf_counter()
        model = train_one(*args)[0]
        return model, time.perf_counter() - start

    runs = []
    for seed in range(SEEDS):
        recipe = find_recipe("simple", held_out=0, epochs=EPOCHS, precision=precision, seed=seed)
        model, seconds = timed(train_by, recipe, train, None, device)  # the last epoch counts, as on every rung
        runs.append((judge(model).accuracy, seconds))
    add("simple: SimpleCNN, Adam", runs, recipe)
    recipe = bottom
    for rung, changes in RUNGS.items():
        recipe, runs, again = replace(recipe, **changes), [], []
        for seed in range(SEEDS):
            model, seconds = timed(speedrun, replace(recipe, seed=seed), train, device)
            runs.append((judge(model).accuracy, seconds))
            if rung == list(RUNGS)[-1]: again.append((judge(SixViews(model)).accuracy, seconds))
        add(rung, runs, recipe)
    add("+ six looks when in doubt", again, recipe)


if __name__ == "__main__": main()
