"Which images: the commands that name files, in tables, on sheets and in errors; names that do harm."
import csv
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tools.files import two_classes
from typer.testing import CliRunner

from cifar_nb.cli import app
from cifar_nb.core import CifarNbError, Settings
from cifar_nb.folders import load_dataset
from cifar_nb.images import synthetic
from cifar_nb.modelfile import read_card

FORMULA = ("=", "+", "-", "@")
QUICK = ["--recipe", "simple", "--epochs", "1", "--batch-size", "8", "--precision", "float32",
         "--device", "cpu"]


def run(*args):
    "Exit code, output and error stream; an error of ours as the shell would show it."
    done = CliRunner().invoke(app, list(map(str, args)))
    error = done.exception
    if isinstance(error, CifarNbError): return error.exit_code, done.stdout, str(error)
    if not isinstance(error, SystemExit | None): raise error
    return done.exit_code, done.stdout, done.stderr


def table(path):
    with open(path, encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def file_of(row):
    "The path in a row, without the apostrophe that keeps a spreadsheet from running it."
    return Path(row["path"].replace(";'=", ";="))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    "Two classes with names that a spreadsheet would run, a file that is cut short, and a model of them."
    root = two_classes(tmp_path_factory.mktemp("data") / "trees")
    (root / "birch").rename(root / "=birch")
    for label in ("=birch", "oak"):
        for i in range(0, 60, 2): (root / label / f"{i}.png").rename(root / label / f"@{i};=1+1.png")
    broken = root / "oak" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    model = root.parent / "trees.safetensors"
    code, out, _ = run("train", "--data", root, *QUICK, "--skip-broken", "--out", model)
    assert code == 0 and "left out: 1 files that cannot be read" in out
    return root, model


def test_a_folder_can_be_measured_as_a_whole(trees):
    root, model = trees
    code, out, said = run("evaluate", model, "--data", f"test={root}", "--skip-broken", "--json")
    assert code == 0 and json.loads(out)["images"] == sum(1 for _ in root.rglob("*.png")) - 1
    assert "sets aside" not in said
    code, out, said = run("evaluate", model, "--data", root, "--skip-broken", "--json")
    assert code == 0 and json.loads(out)["images"] < 60 and f"--data test={root} takes all" in said
    other = root.parent / "x.safetensors"
    for command in (["train", "--out", other], ["threshold", model, "--recall", "oak=.9"]):
        code, _, said = run(*command, "--data", f"test={root}")
        assert code == 3 and said.endswith("has no images to train on, or to choose by: add train=DIR")


def test_the_card_counts_what_was_left_out(trees):
    root, model = trees
    assert read_card(model).left_out == 1
    code, _, err = run("train", "--data", root, *QUICK, "--out", model.with_name("other.safetensors"))
    assert code == 3 and "--skip-broken" in err


def test_evaluate_names_every_image(trees, tmp_path, monkeypatch):
    root, model = trees
    monkeypatch.chdir(root.parent)
    common = ["evaluate", "--model", model, "--data", "trees", "--skip-broken", "--json"]
    code, out, err = run(*common, "--csv", tmp_path / "all.csv", "--mistakes", tmp_path / "wrong")
    assert code == 0 and "mistakes in mistakes.csv" in err
    report, rows = json.loads(out), table(tmp_path / "all.csv")
    assert len(rows) == report["images"] and all(file_of(row).exists() for row in rows)
    n_right = sum(row["wrong"] == "no" for row in rows)
    assert abs(n_right / len(rows) - report["top1"]) < 1e-9
    assert all((row["truth"] == row["prediction"]) == (row["wrong"] == "no") for row in rows)
    truths = {"=birch": "'=birch", "oak": "oak"}
    assert all(row["truth"] == truths[Path(row["path"]).parent.name] for row in rows)
    wrong = table(tmp_path / "wrong" / "mistakes.csv")
    assert {row["path"] for row in wrong} == {row["path"] for row in rows if row["wrong"] == "yes"}
    for row in rows:
        parts = [part.strip() for cell in row.values() for part in cell.split(";")]
        assert not any(part.startswith(FORMULA) for part in parts), row


def test_a_report_is_one_page_and_is_written_again(trees, tmp_path, monkeypatch):
    root, model = trees
    monkeypatch.chdir(root.parent)
    for _ in range(2):
        flags = ("--skip-broken", "--report", tmp_path / "r.html")
        code, _, err = run("evaluate", model, "--data", "trees", *flags)
        assert code == 0 and "r.html: the report" in err, err
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    headings = ["Verdict", "Each class", "Most frequent confusions", "Can its confidence be used?"]
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)
    assert "<script" not in page and "=birch" in page and page.count("data:image/png") >= 3
    assert "The other images are drawn: shapes, random pixels" in page


def test_evaluate_without_files_gives_positions(tmp_path):
    code, *_ = run("train", "--data", "synthetic", "--epochs", "1", "--out", tmp_path / "m.safetensors",
                   "--precision", "float32", "--batch-size", "500")
    assert code == 0
    code, _, err = run("evaluate", "--model", tmp_path / "m.safetensors", "--csv", tmp_path / "all.csv",
                       "--mistakes", tmp_path / "wrong")
    rows, images = table(tmp_path / "all.csv"), synthetic("test")
    assert code == 0 and [int(row["index"]) for row in rows] == list(range(1000))
    assert all(row["truth"] == images.classes[images.labels[int(row["index"])]] for row in rows[:50])
    n_wrong = sum(row["wrong"] == "yes" for row in rows)
    sheets = sorted(path.name for path in (tmp_path / "wrong").glob("*.png"))
    assert f"{n_wrong:,} mistakes in mistakes.csv" in err and len(sheets) == -(-min(n_wrong, 200) // 40)


@pytest.mark.parametrize(("flag", "place", "problem"), [
    ("--csv", "photo.png", "must end in .csv"),
    ("--csv", "photo.csv", "is there already"),
    ("--csv", "folder.csv", "is not a file"),
    ("--csv", "/dev/null/x.csv", "cannot be written"),
    ("--csv", "x" * 300 + ".csv", "cannot be written"),
    ("--csv", "", "is empty"),
    ("--mistakes", "photo.csv", "is not a folder"),
    ("--mistakes", "theirs", "mistakes-1.png is there already"),
    ("--mistakes", "trees/oak", "is inside the data set"),
    ("--mistakes", "trees/mistakes", "is inside the data set"),
    ("--mistakes", "link", "is inside the data set"),
    ("--mistakes", "", "is empty"),
    ("--report", "photo.png", "must end in .html"),
    ("--report", "photo.html", "is not such a report"),
    ("--report", "", "is empty"),
])
def test_evaluate_overwrites_nothing(trees, tmp_path, monkeypatch, *, flag, place, problem):
    root, model = trees
    (tmp_path / "trees").symlink_to(root)
    (tmp_path / "link").symlink_to(root / "oak")
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.csv", "theirs"): Path(folder).mkdir()
    photo = Image.new("RGB", (9, 9))
    for name in ("photo.png", "photo.csv", "photo.html", "theirs/mistakes-1.png"): photo.save(name, "PNG")
    before = {path: path.read_bytes() for path in tmp_path.glob("**/*") if path.is_file()}
    inside = sorted(path.name for path in root.glob("**/*"))
    code, out, err = run("evaluate", "--model", model, "--data", "trees", "--skip-broken", flag, place)
    assert code == 2 and problem in err and "\n" not in err and not out
    assert {path: path.read_bytes() for path in tmp_path.glob("**/*") if path.is_file()} == before
    assert sorted(path.name for path in root.glob("**/*")) == inside


def test_predict_takes_folders_patterns_and_lists(trees, tmp_path, monkeypatch):
    root, model = trees
    monkeypatch.chdir(root)
    n = len(list(Path("oak").iterdir()))
    code, out, err = run("predict", "--model", model, "oak")
    assert code == 5 and len(out.splitlines()) == n - 1
    assert err.startswith("cifar-nb: oak/1.png: the image is damaged")
    code, out, _ = run("predict", "--model", model, "oak/*1.png", "--json", "--top-k", "1")
    named = {str(path) for path in Path("oak").glob("*1.png")} - {"oak/1.png"}
    assert code == 5 and {json.loads(line)["file"] for line in out.splitlines()} == named
    wanted = tmp_path / "list.txt"
    (root / "oak" / "empty").mkdir()
    wanted.write_text("oak/3.png\r\n\noak/none.png\noak/empty\n=birch\n")
    code, out, err = run("predict", "--model", model, f"@{wanted}")
    (root / "oak" / "empty").rmdir()
    assert code == 5 and out.startswith("oak/3.png: ")
    assert len(out.splitlines()) == 1 + len(os.listdir("=birch"))
    assert "cifar-nb: oak/none.png (line 3 of list.txt): No such file or directory" in err
    assert "cifar-nb: oak/empty (line 4 of list.txt): is a folder without images" in err


def test_predict_writes_a_row_for_every_file(trees, tmp_path, monkeypatch):
    root, model = trees
    monkeypatch.chdir(root / "oak")
    code, out, err = run("predict", "--model", model, ".", "missing.png", "--csv", tmp_path / "all.csv")
    rows = table(tmp_path / "all.csv")
    assert code == 5 and not out and "2 of them without a prediction" in err
    assert len(rows) == len(list(Path().iterdir())) + 1
    failed = {row["path"]: row["error"] for row in rows if row["error"]}
    assert set(failed) == {"1.png", "missing.png"} and "damaged" in failed["1.png"]
    assert all(bool(row["prediction"]) != bool(row["error"]) for row in rows)
    assert all(file_of(row).exists() for row in rows[:-1])
    for row in rows:
        parts = [part.strip() for cell in row.values() for part in cell.split(";")]
        assert not any(part.startswith(FORMULA) for part in parts), row


@pytest.mark.parametrize(("argument", "problem"), [
    ("no*such.png", "no image matches no*such.png"),
    ("@missing.txt", "the list missing.txt cannot be read: No such file"),
    ("@blank.txt", "names no files"),
    ("@photo.png", "leave out the @"),
    ("", "'' names no image"),
])
def test_predict_refuses_what_names_no_image(tmp_path, monkeypatch, argument, problem):
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text("\n\n")
    Image.new("RGB", (9, 9)).save("photo.png")
    code, out, err = run("predict", "photo.png", argument)
    assert code == 2 and problem in err and "\n" not in err and not out


def test_predict_replaces_only_its_own_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), "blue").save("photo.png")
    Path("labels.csv").write_text("path,label\nphoto.png,sea\n")
    code, _, err = run("predict", "photo.png", "--csv", "labels.csv")
    assert code == 2 and "is not such a table" in err and "sea" in Path("labels.csv").read_text()
    for _ in range(2):
        code, *_ = run("predict", "photo.png", "--csv", "new/table.csv")
        assert code == 0 and len(table("new/table.csv")) == 1
    assert os.listdir("new") == ["table.csv"]


def test_predict_escapes_names_for_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), "blue").save("a\x1b[2Jb\n.png")
    Path("bad\x1b.png").write_text("no image")
    code, out, err = run("predict", ".")
    assert code == 5 and "\x1b" not in out + err and len(out.splitlines()) == 1 and r"\x1b[2J" in out


def test_predict_reads_a_pipe(tmp_path):
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "photo.png")
    script = f"{Path(sys.executable).with_name('cifar-nb')} predict <(cat {tmp_path}/photo.png)"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stderr


def test_data_check_lists_every_file(trees, monkeypatch):
    root, _ = trees
    monkeypatch.chdir(root.parent)
    for i in range(7): (root / "oak" / f"copy {i}.png").write_bytes((root / "oak" / "3.png").read_bytes())
    try:
        code, out, err = run("data", "trees", "--check")
        found = json.loads(run("data", "trees", "--json")[1])["findings"]
    finally:
        for path in (root / "oak").glob("copy*"): path.unlink()
    lines = out.splitlines()
    assert code == 3 and len(lines) == 9 == len(found) and "9 files worth a look" in err
    assert sum("identical image" in line for line in lines) == 8
    assert any(line.startswith("trees/oak/1.png: cannot be read") for line in lines)


def test_images_of_a_folder_know_their_files(trees):
    root, _ = trees
    images = load_dataset(str(root), settings=Settings(skip_broken=True)).train
    assert len(images.paths) == len(images)
    for path, label in zip(images[::7].paths, images[::7].labels, strict=True):
        assert path.parent.name == images.classes[label] and path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder_is_named_before_the_work(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    Image.new("RGB", (9, 9)).save("photo.png")
    code, _, err = run("predict", "photo.png", "--csv", tmp_path / "x.csv")
    assert code == 2 and "cannot be written: Permission denied" in err


def test_a_model_may_stand_before_the_images(trees, monkeypatch):
    root, model = trees
    monkeypatch.chdir(root)
    flagged = run("predict", "--model", model, "oak/3.png", "oak/5.png")
    assert run("predict", model, "oak/3.png", "oak/5.png") == flagged and flagged[0] == 0
    assert run("predict", "simple", "oak/3.png") == run("predict", "--model", "simple", "oak/3.png")
    code, _, said = run("predict", model, "--model", "simple", "oak/3.png")
    assert code == 2 and "mean the same thing: give one of them" in said


def test_a_guessed_command_says_which_one_it_is():
    code, _, said = run("finetune", "photos", "--epochs", "3")
    assert code == 2 and said == "there is no command 'finetune': type cifar-nb train FOLDER"
    assert "finetune" not in run("--help")[1]
