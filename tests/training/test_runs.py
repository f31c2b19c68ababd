"What a training leaves behind, and what happens to what was there before."
import csv
import errno
import html
import json
import multiprocessing
import re
from html.parser import HTMLParser

import pytest
import torch
from tools.command import run
from tools.files import two_classes

import cifar_nb.runs
from cifar_nb.judge import paired_test
from cifar_nb.modelfile import read_card, read_model
from cifar_nb.recipes import find_recipe, from_toml
from cifar_nb.runs import make_numbered

SMALL = ["--set", "architecture=speed_net", "--set", "model.widths=[8,8]", "--batch-size", 16,
         "--held-out", .2, "--precision", "float32", "--device", "cpu"]


def train(data, out, *more, epochs=1):
    return run("train", "--data", data, "--epochs", epochs, *SMALL, "--out", out, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two classes; the name of one would be a program in a page that does not escape it."
    root = two_classes(tmp_path_factory.mktemp("data") / "leaves & more")
    (root / "oak").rename(root / "<img src=x onerror=alert(1)>")
    return root


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "first.safetensors"
    return out, train(folder, out, epochs=2)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data): self.text.append(data)


def rows_of(place):
    with open(place / "history.csv", encoding="utf-8") as file: return list(csv.DictReader(file))


def test_a_run_leaves_everything_in_its_folder(finished, folder):
    out, (code, printed, said) = finished
    place = out.parent / "runs" / "first-0001"
    assert code == 0 and f"the run is in {place}" in said
    names = {"model.safetensors", "model.ckpt", "recipe.toml", "history.csv", "log.txt", "curves.png",
             "confusion.png", "report.html", "measured.json", "about.json", "versions.json"}
    assert {path.name for path in place.iterdir()} == names
    assert (place / "model.safetensors").read_bytes() == out.read_bytes()
    recipe = from_toml((place / "recipe.toml").read_text(encoding="utf-8"))
    assert (recipe.epochs, recipe.data, recipe.batch_size) == (2, str(folder), 16)
    rows = rows_of(place)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    best = float(rows[read_card(out).kept_epoch - 1]["valid_accuracy"])
    assert best == pytest.approx(read_card(out).validation_accuracy)
    assert json.loads((place / "versions.json").read_text())["torch"] == torch.__version__
    log = (place / "log.txt").read_text(encoding="utf-8")
    for line in filter(None, printed.splitlines()): assert line in log
    assert re.search(r"epoch +1/2 .* about \d+ (s|min) left", printed)
    assert not re.search(r"epoch +2/2 .* left", printed)


def test_the_report_is_one_file_without_a_program(finished):
    out, _ = finished
    page = Page((out.parent / "runs" / "first-0001" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and "link" not in page.tags
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    text = " ".join(page.text)
    card = read_card(out)
    accuracy, name = f"{card.test_accuracy:.2%}", "<img src=x onerror=alert(1)>"
    for wanted in (accuracy, name, "[model]", "Confusion matrix", "Verdict"): assert wanted in text
    wrong = int(re.search(r"(\d+) of \d+ images are wrong", text)[1])
    figures = page.tags.count("figure")
    assert wrong < figures <= wrong + 5 * 5  # the mistakes, and five examples of five confusions
    assert page.tags.count("img") == figures + 4  # curves, reliability, risk, confidence on other images


def test_more_epochs_are_the_same_run_with_a_constant_rate(finished, folder, tmp_path):
    out, _ = finished
    grown = tmp_path / "grown.safetensors"
    assert train(folder, grown)[0] == 0
    code, printed, said = train(folder, grown, epochs=2)
    assert code == 0 and "Adding 1 epochs to the 1 of" in said and "--fresh" in said
    assert "epoch   1/2" not in printed and "epoch   2/2" in printed
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["grown-0001"]
    assert len(rows_of(tmp_path / "runs" / "grown-0001")) == 2
    (mine, card), (theirs, whole) = read_model(grown), read_model(out)
    for name, value in theirs.state_dict().items(): assert torch.equal(mine.state_dict()[name], value), name
    assert (card.epochs_planned, whole.epochs_planned) == ((1, 2), None)
    assert "planned were 1, then 2" in run("info", grown)[1]
    assert train(folder, grown, epochs=2)[0] == 0  # all epochs are there, so this is another run
    assert (tmp_path / "runs" / "grown-0002").is_dir()
    assert not (tmp_path / "runs" / "grown-0001" / "model.ckpt").exists()


def test_a_stopped_run_goes_on_in_its_folder(folder, tmp_path, monkeypatch):
    out, record = tmp_path / "m.safetensors", cifar_nb.runs.RunFolder.record

    def stop(self, rows):
        record(self, rows)
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(cifar_nb.runs.RunFolder, "record", stop)
        train(folder, out, epochs=3)
    place = tmp_path / "runs" / "m-0001"
    assert len(rows_of(place)) == 1 and not out.exists()
    code, _, said = train(folder, out, "--lr", .5, epochs=3)
    assert code == 2 and "lr was 0.001, is now 0.5" in said and "start over with --fresh" in said
    assert "Resuming" not in said  # nothing is announced that is then refused
    (place / "history.csv").unlink()
    code, _, said = train(folder, out, epochs=2)  # fewer than were planned, not fewer than there are
    assert code == 0 and f"Resuming {place} after epoch 1; --fresh starts over" in said
    assert len(rows_of(place)) == 2 and read_card(out).epochs_planned == (3, 2)
    assert [path.name for path in place.parent.iterdir()] == ["m-0001"]


def test_fresh_begins_a_new_folder_and_keeps_the_old_one(folder, tmp_path):
    out = tmp_path / "m.safetensors"
    for _ in range(2): assert train(folder, out, "--fresh")[0] == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"m-0001", "m-0002"}


def test_a_better_model_stays_unless_told_otherwise(folder, tmp_path):
    out = tmp_path / "m.safetensors"
    assert train(folder, out, "--lr", .02, epochs=6)[0] == 0
    before, good = out.read_bytes(), read_card(out).validation_accuracy
    worse = ["--lr", 1e-7, "--seed", 5]
    code, _, said = train(folder, out, *worse)
    bad = read_card(tmp_path / "runs" / "m-0002" / "model.safetensors").validation_accuracy
    assert bad < good
    assert code == 2 and f"{good:.2%} before, {bad:.2%} now" in said and "--replace" in said
    assert str(tmp_path / "runs" / "m-0002" / "model.safetensors") in said
    assert out.read_bytes() == before
    assert train(folder, out, *worse, "--replace")[0] == 0
    assert read_card(out).validation_accuracy == bad
    assert (tmp_path / "runs" / "m-0001" / "model.safetensors").read_bytes() == before


def test_a_model_of_other_data_is_found_before_training(finished, tmp_path):
    out = tmp_path / "m.safetensors"
    out.write_bytes(finished[0].read_bytes())
    code, printed, said = run("train", "--data", "synthetic", *SMALL, "--out", out)
    assert code == 2 and "is a model of leaves & more, not of synthetic" in said and not printed
    out.write_bytes(b"notes")
    code, _, said = run("train", "--data", "synthetic", *SMALL, "--out", out)
    assert code == 2 and "not a model of ours" in said and out.read_bytes() == b"notes"
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_said_once_and_training_goes_on(folder, tmp_path, monkeypatch, caplog):
    out, full, real = tmp_path / "m.safetensors", OSError(errno.ENOSPC, "No space left on device"), open

    def no_room(file, mode="r", *args, **options):
        "Room for models only: they are written by another way."
        if set(mode) & set("wa") and "runs" in str(file) and "model" not in str(file): raise full
        return real(file, mode, *args, **options)
    monkeypatch.setattr(cifar_nb.runs, "open", no_room, raising=False)
    monkeypatch.setattr(cifar_nb.runs.Path, "write_bytes",
                        lambda self, data: no_room(self, "wb").write(data))
    assert train(folder, out, epochs=2)[0] == 0
    assert sum("No space left" in line for line in caplog.messages) == 1
    place = tmp_path / "runs" / "m-0001"
    assert read_card(out).epochs == 2 and not (place / "history.csv").exists()


def test_a_run_folder_that_cannot_be_made_is_one_line(folder, tmp_path):
    (tmp_path / "runs").write_text("a file")
    code, printed, said = train(folder, tmp_path / "m.safetensors")
    assert code == 2 and "no folder for this run" in said and "use another --out" in said and not printed


def test_an_error_before_the_first_epoch_leaves_no_folder(tmp_path):
    code, _, _ = train(tmp_path / "nowhere", tmp_path / "m.safetensors")
    assert code == 3 and not (tmp_path / "runs").exists()


def numbers(args):
    parent, n = args
    return [make_numbered(parent, "x").name for _ in range(n)]


def test_processes_never_share_a_number(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = sum(pool.map(numbers, [(tmp_path, 25)] * 4), [])
    assert sorted(made) == [f"x-{i:04}" for i in range(1, 101)]


def test_compare_recomputed(finished, folder, tmp_path):
    out, _ = finished
    other = tmp_path / "other.safetensors"
    assert train(folder, other, "--lr", .01, "--seed", 3, epochs=2)[0] == 0
    said = json.loads(run("compare", out, other, "--data", folder, "--json")[1])
    right = []
    for path in (out, other):
        read = json.loads(run("evaluate", "--model", path, "--data", folder, "--json")[1])
        assert read["images"] == said["images"]
        right.append(read["top1"])
    assert said["accuracy"] == pytest.approx(right)
    a, b = said["only_a_count"], said["only_b_count"]
    assert (a - b) / said["images"] == pytest.approx(right[0] - right[1])
    coin = paired_test(torch.tensor([True] * a + [False] * b), torch.tensor([False] * a + [True] * b))
    assert said["p_value"] == pytest.approx(coin.p_value)
    assert len(said["only_a"]) == a and len(said["only_b"]) == b
    text = run("compare", out, other, "--data", folder, "--report", tmp_path / "both.html")[1]
    assert "only A" in text and said["verdict"] in text
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert html.escape(said["verdict"]) in page and "Only A is right" in page and "Only B is right" in page
    assert page.count("<figure>") == min(a, 24) + min(b, 24)


def test_models_that_cannot_be_compared(finished, folder):
    out, _ = finished
    code, _, said = run("compare", out, "cifar10", "--data", folder)
    assert code == 4 and "different classes" in said
    code, _, said = run("compare", out, out, "--data", "synthetic")
    assert code == 4 and "not those of synthetic" in said


def test_a_recipe_of_a_run_trains_the_same_model(finished, tmp_path):
    out, _ = finished
    place = out.parent / "runs" / "first-0001"
    again = tmp_path / "again.safetensors"
    assert run("train", "--recipe", place / "recipe.toml", "--device", "cpu", "--out", again)[0] == 0
    assert find_recipe(str(place / "recipe.toml")).epochs == read_card(again).epochs
    for name, value in read_model(out)[0].state_dict().items():
        assert torch.equal(read_model(again)[0].state_dict()[name], value)
