"Folders in which several images show one object, and cross-validation of them from the command line."
import json
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tools.command import run

import cifar_nb.crossval
import cifar_nb.runs
from cifar_nb.core import DatasetError, TrainingDiverged
from cifar_nb.datasets import split_by_hash
from cifar_nb.evaluate import Report
from cifar_nb.folders import load_dataset
from cifar_nb.folds import assign_folds
from cifar_nb.modelfile import read_card, read_model, read_trained_keys
from cifar_nb.threshold import Goal

GROUP = r"(\w+)_\d"
SMALL = ["--recipe", "simple", "--epochs", 2, "--batch-size", 8, "--held-out", .2, "--size", 16,
         "--precision", "float32", "--device", "cpu"]


def train(data, out, *more): return run("train", "--data", data, *SMALL, "--out", out, *more)


def draw(root, counts, *, n_shots=4, seed=0, step=60):
    "Objects of noise, each class brighter by a step, as `class/object03_1.png`; the folder."
    rng = np.random.default_rng(seed)
    for k, (kind, n) in enumerate(counts.items()):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            base = rng.integers(0, 120, (16, 16, 3)) + step * k
            for shot in range(n_shots):
                pixels = base + rng.integers(0, 30, base.shape)
                Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{kind}{i:02}_{shot}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return draw(tmp_path_factory.mktemp("data") / "parts", dict(good=12, bad=6))


@pytest.fixture(scope="module")
def folded(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "parts.safetensors"
    return out, train(folder, out, "--folds", 3, "--group", GROUP)


def groups_of(images): return {path.name.rpartition("_")[0] for path in images.paths}


def test_a_run_of_folds_gives_one_model_of_all_images(folded):
    out, (code, printed, said) = folded
    assert code == 0, said
    card = read_card(out)
    assert card.test_accuracy is None and len(read_trained_keys(out)) == 72
    assert (card.folds.images, card.folds.objects, len(card.folds.accuracies)) == (72, 18, 3)
    assert card.validation_accuracy == pytest.approx(sum(card.folds.accuracies) / 3, abs=.05)
    assert card.kept_by == "median of the epochs that 3 folds kept" and card.kept_epoch == card.epochs <= 2
    assert card.group == GROUP and "groups 18" in said
    for i in (1, 2, 3): assert re.search(rf"fold {i} of 3: accuracy .*about \d+ s left", printed)
    assert "not independent" in printed and "accuracy in 3 folds" in printed.splitlines()[-1]
    place = out.parent / "runs" / "parts-0001"
    names = {"model.safetensors", "recipe.toml", "history.csv", "log.txt", "curves.png", "report.html",
             "confusion.png", "measured.json", "about.json", "versions.json", "folds.json"}
    assert {path.name for path in place.iterdir()} == names
    found = json.loads((place / "folds.json").read_text())
    assert [fold["accuracy"] for fold in found["folds"]] == list(card.folds.accuracies)
    assert found["accuracy"] == card.folds.accuracy._asdict()
    assert "predicted by a fold that did not learn from it" in (place / "report.html").read_text()
    assert "cross-validation" in run("info", out)[1]


def test_measuring_such_a_model_on_its_own_images_is_noticed(folded, folder, caplog):
    with caplog.at_level(logging.WARNING, "cifar_nb"):
        code, _, _ = run("evaluate", "--model", folded[0], "--data", folder)
    assert code == 0 and "has learned from" in caplog.text


def test_no_split_separates_a_group(folder):
    data = load_dataset(str(folder), 16, group=GROUP)
    learned, valid = split_by_hash(data.train, .2, salt="validation")
    parts = [groups_of(images) for images in (learned, valid, data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 18
    plain = load_dataset(str(folder), 16)
    assert groups_of(plain.train) & groups_of(plain.test)


def test_a_group_keeps_its_side_when_the_folder_grows(tmp_path):
    root = draw(tmp_path / "a", dict(good=12, bad=8), n_shots=2)
    before = groups_of(load_dataset(str(root), 16, group=GROUP).test)
    draw(root, dict(good=16, bad=12), n_shots=5, seed=1)
    after = load_dataset(str(root), 16, group=GROUP)
    assert before <= groups_of(after.test) and not before & groups_of(after.train)


def test_copies_under_other_names_join_their_groups(tmp_path):
    root = draw(tmp_path / "a", dict(good=10, bad=10), n_shots=2)
    for i in range(9):  # a chain through all groups of a class
        data = (root / "good" / f"good{i + 1:02}_0.png").read_bytes()
        (root / "good" / f"good{i:02}_9.png").write_bytes(data)
    with pytest.raises(DatasetError, match="class 'good' has 1 group: too few"):
        _ = load_dataset(str(root), 16, group=GROUP).train


def test_evaluate_divides_as_training_did(folder, tmp_path):
    out = tmp_path / "m.safetensors"
    assert train(folder, out, "--group", GROUP)[0] == 0
    card = read_card(out)
    same = json.loads(run("evaluate", "--model", out, "--data", folder, "--json")[1])
    other = json.loads(run("evaluate", "--model", out, "--data", folder, "--group", "", "--json")[1])
    n = len(load_dataset(str(folder), 16, group=GROUP).test)
    assert same["images"] == n and same["top1"] == pytest.approx(card.test_accuracy)
    assert other["images"] == len(load_dataset(str(folder), 16).test) != n
    elsewhere = tmp_path / "other"
    for kind in ("good", "bad"):
        (elsewhere / kind).mkdir(parents=True)
        for i, path in enumerate((folder / kind).iterdir()):
            (elsewhere / kind / f"{i}.png").write_bytes(path.read_bytes())
    code, _, said = run("evaluate", "--model", out, "--data", elsewhere)
    assert code == 3 and "finds nothing in any of the 72 file names" in said and "--group ''" in said
    assert run("evaluate", "--model", out, "--data", elsewhere, "--group", "")[0] == 0


def stop_at(monkeypatch, start):
    "Interrupt a run when it says something that begins with a text."
    say = cifar_nb.runs.RunFolder.say

    def stop(self, text, file=None):
        say(self, text, file)
        if text.startswith(start): raise KeyboardInterrupt
    monkeypatch.setattr(cifar_nb.runs.RunFolder, "say", stop)


def test_a_stopped_run_goes_on_in_its_fold(folded, folder, tmp_path, monkeypatch):
    out, options = tmp_path / "m.safetensors", ["--folds", 3, "--group", GROUP]
    for start in ("fold 2 of 3  epoch   1", "final model  epoch   1"):
        with monkeypatch.context() as patched:
            stop_at(patched, start)
            train(folder, out, *options)
        assert not out.exists()
        for changed, word in ((["--folds", 4, "--group", GROUP], "folds was 3, is now 4"),
                              (["--folds", 3, "--group", "good|bad"], "group was"),
                              (["--group", GROUP], "start over with --fresh")):
            code, _, said = train(folder, out, *changed)
            assert code == 2 and word in said and "--fresh" in said
    code, printed, said = train(folder, out, *options)
    assert code == 0 and "Resuming" in said and "fold 1" not in printed and "fold 2" not in printed
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["m-0001"]
    whole, again = read_model(folded[0])[0].state_dict(), read_model(out)[0].state_dict()
    for name, value in whole.items(): assert torch.equal(value, again[name]), name
    assert read_card(out).folds == read_card(folded[0]).folds


def test_a_plain_run_notices_another_group(folder, tmp_path, monkeypatch):
    out = tmp_path / "m.safetensors"
    with monkeypatch.context() as patched:
        stop_at(patched, "epoch   1")
        train(folder, out, "--group", GROUP)
    code, _, said = train(folder, out)
    assert code == 2 and "group was" in said and "is now ''" in said


def test_a_test_part_is_measured_once(folder, tmp_path, caplog):
    own = draw(tmp_path / "own", dict(good=4, bad=4), seed=9)
    out = tmp_path / "m.safetensors"
    with caplog.at_level(logging.WARNING, "cifar_nb"):
        code, _, said = train(f"train={folder},test={own}", out, "--folds", 2, "--group", GROUP)
    assert code == 0, said
    card = read_card(out)
    assert card.test_accuracy is not None and card.folds.images == 72
    # The names of both begin with the same numbers, so these may be the same objects
    assert "8 of the groups are in the training part and in the test part" in caplog.text


@pytest.mark.parametrize("options, said", [
    (["--group", "(["], "unterminated character set at position 1"),
    (["--group", "x" * 201], "at most 200"),
    (["--group", "zebra"], "finds nothing in any of the 72 file names, such as 'bad/bad00_0.png'"),
    (["--group", "png"], "class 'bad' has 1 group: too few to hold out 20%"),
    (["--group", "good|bad"], "class 'bad' has 1 group"),
    (["--group", "good|bad", "--folds", 3], "class 'bad' has 1 group, and each of 3 folds needs one: add"),
    (["--group", "png", "--folds", 2], "class 'bad' has 1 group, and each of 2 folds"),
    (["--group", GROUP, "--folds", 7], "'bad' has 6 groups, and each of 7 folds needs one: use --folds 6"),
    (["--folds", 1], "use 2 to 20"), (["--folds", -1], "use 2 to 20"), (["--folds", 21], "use 2 to 20"),
    (["--folds", 2, "--batch-size", 500], "batch_size = 500"),
    (["--folds", 2, "--lr", 100, "--set", "optimizer.name=sgd"], "fold 1 of 2: "),
])
def test_what_cannot_be_done_is_one_line(folder, tmp_path, options, said):
    code, printed, error = train(folder, tmp_path / "m.safetensors", *options)
    assert code and said in error
    assert "fold 2" not in printed and not (tmp_path / "m.safetensors").exists()


def test_long_photos_are_reported_in_tiles(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "data"
    for kind in ("a", "b"):  # which nothing tells apart, so there are mistakes to show
        (root / kind).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (16, (16, 40)[i % 2], 3), np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{i}.png")
    code, _, said = train(root, tmp_path / "m.safetensors", "--fit", "tiles", "--folds", 2, "--batch-size", 4)
    assert code == 0, said
    page = (tmp_path / "runs" / "m-0001" / "report.html").read_text()
    assert re.search(r"[1-9]\d* of 16 images are wrong", page) and page.count("<figure>") >= 1


def test_a_final_model_that_diverges_costs_no_fold(folded, folder, tmp_path, monkeypatch):
    out, trained = tmp_path / "m.safetensors", cifar_nb.crossval.train_to_best

    def diverge(train, best, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 4: raise TrainingDiverged("epoch 1, step 2: the loss is nan")
        return trained(train, best)
    with monkeypatch.context() as patched:
        patched.setattr(cifar_nb.crossval, "train_to_best", diverge)
        code, _, said = train(folder, out, "--folds", 3, "--group", GROUP)
    assert code and "the final model: epoch 1, step 2" in said and not out.exists()
    code, printed, _ = train(folder, out, "--folds", 3, "--group", GROUP)
    assert code == 0 and "fold 3" not in printed and read_card(out).folds == read_card(folded[0]).folds


def test_a_fold_that_diverges_counts_with_its_best_epoch(folder, tmp_path, monkeypatch, caplog):
    trained = cifar_nb.crossval.train_to_best

    def diverge(train, best, calls=[]):  # noqa: B006
        calls.append(1)
        n, kept, error = trained(train, best)
        return n, kept, TrainingDiverged("epoch 3: the loss is nan") if len(calls) == 2 else error
    monkeypatch.setattr(cifar_nb.crossval, "train_to_best", diverge)
    with caplog.at_level(logging.WARNING, "cifar_nb"):
        code, _, _ = train(folder, tmp_path / "m.safetensors", "--folds", 2, "--group", GROUP)
    assert code == 0 and re.search(r"fold 2 of 2: epoch 3: the loss is nan; its best epoch, \d", caplog.text)


def test_a_class_with_three_images(tmp_path):
    root = draw(tmp_path / "data", dict(good=20, bad=3), n_shots=1)
    code, _, said = train(root, tmp_path / "m.safetensors", "--folds", 5)
    assert code == 3 and "class 'bad' has 3 different images" in said and "use --folds 3, or add" in said
    assert train(root, tmp_path / "m.safetensors", "--folds", 3)[0] == 0
    (root / "bad" / "bad02_0.png").unlink()
    code, _, said = train(root, tmp_path / "n.safetensors", "--folds", 2)
    assert code == 3 and "fold 1 of 2: class 'bad' has 1 different image" in said and "--held-out 0" in said
    assert train(root, tmp_path / "n.safetensors", "--folds", 2, "--held-out", 0)[0] == 0


def test_names_without_a_match_are_counted(folder, caplog):
    with caplog.at_level(logging.WARNING, "cifar_nb"):
        code, printed, _ = run("data", folder, "--group", r"(good\d+)")
    assert code == 0 and "groups: 12 by name, the largest of 4 images" in printed
    assert "24 of 72 file names have no match" in caplog.text


def test_drawn_and_official_images_have_no_names():
    with pytest.raises(DatasetError, match="have no file names"): load_dataset("synthetic", group="x")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=2, max_size=120),
       st.integers(2, 6), st.integers(0, 5))
def test_folds_are_whole_groups_in_any_order(pairs, k, seed):
    labels, groups = torch.tensor(pairs).unbind(1)
    classes = tuple("abcd")
    n_groups = [len(groups[labels == label].unique()) for label in range(4)]
    if min(n_groups) < k:
        with pytest.raises(DatasetError, match=f"has {min(n_groups)} group"):
            assign_folds(labels, groups, k, classes=classes, seed=seed)
        return
    folds = assign_folds(labels, groups, k, classes=classes, seed=seed)
    assert 0 <= folds.min() and folds.max() < k
    for group in groups.unique(): assert len(folds[groups == group].unique()) == 1
    # Nothing to learn from would be left of a class that is in one fold only
    for label in range(4): assert len(folds[labels == label].unique()) > 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    again = assign_folds(labels[order], groups[order], k, classes=classes, seed=seed)
    assert torch.equal(again, folds[order])
    single = assign_folds(labels, torch.arange(len(labels)), k, classes=classes, seed=seed)
    for label in range(4):
        counts = torch.bincount(single[labels == label], minlength=k)
        assert counts.max() - counts.min() <= 1


def test_an_operating_point_is_chosen_by_all_images(folder, tmp_path):
    "A threshold from folds counts every image of the class, also the few that a part would hold out."
    out = tmp_path / "m.safetensors"
    code, printed, said = train(folder, out, "--folds", 3, "--group", GROUP, "--recall", "bad=0.9")
    assert code == 0, said
    point = read_card(out).operating_point
    assert (point.recall.images, point.false_alarms.images) == (24, 48) and point.recall.value >= .9
    assert str(point) in printed
    assert run("threshold", out)[1].strip() == str(point)


def test_training_chooses_the_point_that_threshold_would(folder, tmp_path):
    out, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    code, printed, said = run("train", folder, *SMALL, "--out", out, "--false-alarms", "bad=10%")
    assert code == 0, said
    code, _, said = run("threshold", out, "--false-alarms", "bad=0.1", "--data", folder, "--out", other)
    assert code == 0, said
    chosen, again = (read_card(path).operating_point for path in (out, other))
    assert chosen == again and str(chosen) in printed


def test_training_and_evaluation_say_the_same_of_a_point(tmp_path):
    "With images that are hard to tell apart, so that the temperature is not 1."
    folder = draw(tmp_path / "hard", dict(good=40, bad=40), n_shots=2, step=4)
    out = tmp_path / "m.safetensors"
    code, printed, said = run("train", folder, *SMALL, "--out", out, "--recall", "bad=0.7")
    assert code == 0 and read_card(out).temperature != 1, said
    (trained,) = re.findall(r"on the test images: (.+)", printed)
    (evaluated,) = re.findall(r"on these images: (.+)", run("evaluate", out, "--data", folder)[1])
    assert trained == evaluated


@pytest.mark.parametrize(("flags", "expected"), [
    (["--recall", "bda=0.9"], "no class 'bda': did you mean 'bad'?"),
    (["--recall", "bad"], "write CLASS=FRACTION, such as --recall defect=0.99"),
    (["--recall", "bad=1.5"], "use a number above 0, at most 1"),
    (["--false-alarms", "bad=1"], "use a number from 0 to below 1"),
    (["--recall", "bad=.9", "--false-alarms", "bad=.1"], "two wishes: give one of them"),
    (["--recall", "bad=.9", "--held-out", 0], "needs validation images: use --held-out 0.2, or --folds 5"),
])
def test_a_goal_that_cannot_be_reached_stops_before_training(folder, tmp_path, flags, expected):
    out = tmp_path / "m.safetensors"
    code, printed, said = train(folder, out, *flags)
    assert code == 2 and expected in said.splitlines()[-1] and "epoch" not in printed and not out.exists()


def test_a_point_that_cannot_be_chosen_costs_only_a_warning(caplog):
    "At the end of a training, when the model is worth saving in any case."
    sure = Report(torch.tensor([[0., 400.], [0., 1.]]), torch.tensor([0, 1]), ("a", "b"))
    assert Goal("b", "false_alarms", 0.).choose_at_end(sure) is None
    assert "no operating point was chosen: 1 of the 1 other images" in caplog.text
    assert Goal("b", "recall", 1.).choose_at_end(sure).recall.value == 1


def test_data_is_named_once(folder, tmp_path):
    code, _, said = run("train", folder, "--data", folder, "--out", tmp_path / "m.safetensors")
    assert code == 2 and "mean the same thing" in said


def test_a_folder_gives_its_name_to_the_model(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_NB_MODELS_DIR", str(tmp_path / "models"))
    few = ["--epochs", 1, "--size", 16, "--start", "cifar10", "--batch-size", 8, "--device", "cpu"]
    code, _, said = run("train", folder, *few)
    assert code == 0 and (tmp_path / "models" / "parts.safetensors").exists(), said
    assert "cifar10 had learned from" in run("info", tmp_path / "models" / "parts.safetensors")[1]
    code, _, said = run("train", tmp_path / "nowhere", *few)
    assert code == 3 and "nowhere" in said.splitlines()[-1]
