"The command `audit`: planted errors in drawn textures are found, and bad input is one line."
import csv
import json
import sys

import pytest
from PIL import Image
from tools.command import run

from cifar_nb.images import synthetic

KINDS = "rows", "columns", "diagonals"
PLANTED = {5, 105, 205, 305, 405, 505, 605, 705, 805, 905}  # rows that are called columns


def save(image, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, **how)


def table(path):
    with open(path, encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "With a file whose name is a formula, and an image of the training part that is in the test part again."
    root, images = tmp_path_factory.mktemp("audit") / "textures", synthetic("test")
    for i in range(1000):
        kind = images.classes[images.labels[i]]
        if kind not in KINDS: continue
        name = "=1+1.png" if i == 15 else f"{i}.png"
        part = "test" if i % 4 == 3 else "train"
        save(images.pixels[i], root / part / ("columns" if i in PLANTED else kind) / name)
    darker = (.9 * images.pixels[6]).byte()
    save(darker, root / "test" / "columns" / "copy of 6.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def audited(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "audit.csv"
    return out, run("audit", folder, "--csv", out, "--json")


def test_planted_errors_are_found(audited):
    out, (code, said, err) = audited
    found, rows = json.loads(said), table(out)
    assert code == 0 and f"{len(rows):,} rows" in err and found["images"] == len(rows) == 301
    suspects = [row for row in rows if row["looks_wrong"] == "yes"]
    assert suspects == rows[:len(suspects)] and len(suspects) == len(found["suspects"])
    planted = [row for row in suspects if any(row["path"].endswith(f"/{i}.png") for i in PLANTED)]
    assert len(planted) >= 7, "of ten"
    assert len(planted) >= .6 * len(suspects)
    assert all((row["given"], row["suggested"]) == ("columns", "rows") for row in planted)


def test_a_near_duplicate_in_two_parts_is_found_and_those_come_first(audited):
    _, (_, said, _) = audited
    pairs = json.loads(said)["near_duplicates"]
    ours = [pair for pair in pairs if pair["name"].endswith("copy of 6.jpg")]
    assert len(ours) == 1 and ours[0]["nearest"].endswith("/train/columns/6.png")
    inside = [pair["part"] == pair["nearest_part"] for pair in pairs]
    assert inside == sorted(inside)


def test_names_cannot_act_as_formulas_and_no_other_file_is_replaced(audited, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, _ = run("audit", ".", "--csv", tmp_path / "a.csv", "--folds", 2)
    cells = [cell for row in table(tmp_path / "a.csv") for cell in row.values()]
    assert code == 0 and not any(cell.startswith(("=", "+", "@")) for cell in cells)
    (tmp_path / "mine.csv").write_text("my,notes\n")
    code, _, err = run("audit", folder, "--csv", tmp_path / "mine.csv")
    assert code == 2 and "is there already" in err


def test_the_summary_is_in_words(folder):
    code, said, _ = run("audit", folder)
    assert code == 0 and "of 301 labels look wrong; look at the first ones: " in said
    assert "nearly the same" in said and "in two parts" in said


def test_a_network_that_has_learned_from_the_images_is_reported(tmp_path, caplog):
    made = tmp_path / "m.safetensors"
    code, *_ = run("train", "--data", "synthetic", "--epochs", 1, "--out", made, "--precision", "float32",
                   "--batch-size", 500)
    assert code == 0
    code, said, _ = run("audit", "synthetic", "--model", made, "--folds", 2, "--csv", tmp_path / "a.csv")
    assert code == 0 and "has learned from" in caplog.text and "it hides wrong labels" in caplog.text
    rows = table(tmp_path / "a.csv")
    assert len(rows) == 6000 and "6,000 images of 10 classes, by the features of" in said
    assert {row["part"] for row in rows} == {"train", "test"}
    assert sorted(int(row["index"]) for row in rows if row["part"] == "test") == list(range(1000))


@pytest.mark.parametrize(("classes", "flags", "code", "problem"), [
    ({"a": 9}, (), 3, "has 1 class folder"),
    ({}, (), 3, "has 0 class folders"),
    ({"a": 9, "b": 9}, ("--folds", 12), 3, "and each of 12 folds needs one"),
    ({"a": 9, "b": 9}, ("--folds", 1), 2, "use 2 to 20"),
    ({"a": 9, "b": 9}, ("--model", "nobody"), 4, "there is no model"),
    ({"a": 9, "b": 9}, ("--model", ""), 2, "is empty"),
    ({"a": 9, "b": 9}, ("--csv", "x.txt"), 2, "must end in .csv"),
    ({"a": 9, "b": 9}, ("--model", "imagenet"), 4, "the ImageNet weights are not on this machine"),
])
def test_bad_input_is_one_line(classes, flags, code, problem, *, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    root, images = tmp_path / "few", synthetic()
    root.mkdir()
    for label, (name, n) in enumerate(classes.items()):
        for i in range(n): save(images.pixels[10 * i + label], root / name / f"{i}.png")
    got, _, err = run("audit", root, *flags)
    assert got == code and problem in err, err


def test_without_cleanlab_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    code, _, err = run("audit", folder)
    assert code == 2 and 'pip install "cifar_nb[trust]"' in err
