"What `stress` says about a model of one's own, of any size and number of classes, and what it refuses."
import json
import shutil

import pytest
from PIL import Image
from tools.command import run
from tools.files import two_classes

from cifar_nb.stress import CORRUPTIONS, EPSILONS

QUICK = ("--recipe", "simple", "--epochs", "2", "--batch-size", "8", "--precision", "float32",
         "--device", "cpu")


@pytest.fixture(scope="module")
def trees(tmp_path_factory): return two_classes(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def model(trees):
    "It tells dark noise from brighter noise, in images of 48 pixels."
    out = trees.parent / "trees.safetensors"
    code, _, said = run("train", "--data", trees, *QUICK, "--size", "48", "--out", out)
    assert code == 0, said
    return out


def test_the_table_of_ones_own_model(trees, model):
    code, out, said = run("stress", model, "--data", trees)
    assert code == 0 and out.startswith("all ") and " 50.0% by guessing" in out and "sets aside" in said
    _, table, advice = out.split("\n\n")
    (_, *header), *rows = (line.split() for line in table.splitlines()[:12])
    assert header == [*"12345", "cost"] and all(len(row) == 7 for row in rows)
    assert {row[0] for row in rows} == {*CORRUPTIONS, "fgsm"} and rows[-1][0] == "fgsm"
    costs = [float(row[-1]) for row in rows[:-1]]
    assert costs == sorted(costs, reverse=True)
    # The classes differ only in brightness
    assert {row[0] for row in rows[:2]} == {"dark", "fog"} and costs[1] > 10
    assert advice.startswith(f"{rows[0][0]} costs most: on average over the severities")


def test_json_says_the_same(trees, model):
    found = json.loads(run("stress", model, "--data", f"test={trees}", "--images", "30", "--json")[1])
    again = json.loads(run("stress", model, "--data", f"test={trees}", "--images", "30", "--json")[1])
    assert found == again and found["images"] == 30 and found["classes"] == 2 and found["seed"] == 0
    assert list(found["corrupted"]) == list(CORRUPTIONS) and len(found["attacked"]) == len(EPSILONS)
    values = [found["unchanged"], *found["attacked"], *sum(found["corrupted"].values(), [])]
    assert all(0 <= value <= 1 for value in values)
    text = run("stress", model, "--data", f"test={trees}", "--images", "30")[1]
    assert text.startswith("30 of 120 (drawn with seed 0) test images of ")
    assert text.rstrip().endswith(found["advice"])


def test_images_that_the_model_knows_are_counted(trees, model, caplog):
    assert run("stress", model, "--data", f"test={trees}", "--images", "20")[0] == 0
    assert "the model has learned from" in caplog.text


def refused(code, said, *args):
    found, out, error = run("stress", *args)
    assert found == code and not out and said in error and error.count("\n") == 1, error


def test_other_classes_are_refused(trees, model):
    refused(4, "the classes of the model simple (airplane, automobile", "simple", "--data", trees)
    refused(3, "only images of a folder are fitted to a size", model, "--data", "synthetic")
    refused(3, "say where that is now with --data", model)


def test_one_class_is_refused(trees, model, tmp_path):
    shutil.copytree(trees / "oak", tmp_path / "one" / "oak")
    refused(3, "has 1 class folder; at least 2 are needed", model, "--data", tmp_path / "one")
    refused(3, "are of one class", model, "--data", f"test={trees}", "--images", "1")


def test_a_class_without_images_is_left_out(trees, tmp_path, caplog):
    "Three classes in training, two of them among the test images."
    for part in ("train", "test"): shutil.copytree(trees, tmp_path / part)
    for part, n in (("train", 60), ("test", 0)):
        (tmp_path / part / "pine").mkdir()
        for i in range(n): Image.new("RGB", (12, 12), (9, 200, i)).save(tmp_path / part / "pine" / f"{i}.png")
    out = tmp_path / "three.safetensors"
    data = f"train={tmp_path / 'train'},test={tmp_path / 'test'}"
    code, _, said = run("train", "--data", data, *QUICK, "--out", out)
    assert code == 0, said
    code, text, said = run("stress", out, "--data", data)
    assert code == 0 and "the test part has no images of pine" in caplog.text
    assert "classes without images, which are left out: 1" in text and "33.3% by guessing" in text


@pytest.mark.parametrize("code, said, args", [
    (4, "there is no model 'nobody'", ("nobody",)),
    (3, "there is no data set 'nowhere'", ("simple", "--data", "nowhere")),
    (2, "--data is empty", ("simple", "--data", "")),
    (2, "mean the same thing", ("simple", "--model", "simple")),
    (2, "unknown device", ("simple", "--device", "abacus")),
])
def test_wrong_flags_are_one_line(code, said, args): refused(code, said, *args)


def test_no_images_are_too_few():
    code, _, error = run("stress", "simple", "--images", "0")
    assert code == 2 and "Invalid value for '--images'" in error
