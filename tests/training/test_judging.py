"What train, evaluate and threshold say about a model of a folder, and that every number is right."
import json
import re

import numpy as np
import pytest
import torch
from tools.parts import parts_folder
from typer.testing import CliRunner

from cifar_nb.cli import app
from cifar_nb.core import CifarNbError
from cifar_nb.modelfile import read_card
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

QUICK = "--recipe", "simple", "--batch-size", "32", "--precision", "float32", "--device", "cpu"


def run(*args):
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return parts_folder(tmp_path_factory.mktemp("parts"), plain=True, size=(40, 40))


@pytest.fixture(scope="module")
def lazy(folder, tmp_path_factory):
    "A model that has learned to say OK, and what `train` printed."
    out = tmp_path_factory.mktemp("models") / "lazy.safetensors"
    return out, run("train", "--data", folder, "--epochs", 2, "--lr", 1e-5, *QUICK, "--out", out)


@pytest.fixture(scope="module")
def measured(lazy, folder):
    "What `evaluate` says in JSON."
    return json.loads(run("evaluate", "--model", lazy[0], "--data", folder, "--json"))


def test_training_calls_a_model_useless_that_never_says_defect(lazy):
    _, said = lazy
    assert "verdict: it says 'OK' for every image, so it is useless" in said
    assert "not better than that of always saying 'OK'" in said
    assert "balanced accuracy 50.0% and 50.0%" in said
    assert re.search(r"too few images to know the recall of 'defect'", said)


def test_training_says_which_epoch_was_kept_and_why(lazy):
    out, said = lazy
    card = read_card(out)
    assert card.kept_by == "highest validation accuracy"  # the choice of the recipe `simple`
    assert said.rstrip().endswith(f"weights of epoch {card.kept_epoch} of 2 ({card.kept_by})")


def test_train_and_evaluate_print_the_same(lazy, folder):
    out, said = lazy
    again = run("evaluate", "--model", out, "--data", folder)
    table = again[again.index("measure"):].strip()
    assert table in said, (table, said)


def test_every_number_is_right(measured, lazy, folder):
    from cifar_nb.folders import load_dataset
    predictor = Predictor.load(str(lazy[0]))
    test = load_dataset(str(folder), 32).test
    answers = predictor.answers(test.pixels, [1] * len(test))
    p, truth = np.array([list(a.probabilities.values()) for a in answers]), test.labels.numpy()
    said = p.argmax(1)
    matrix = np.array([[((truth == i) & (said == j)).sum() for j in (0, 1)] for i in (0, 1)])
    recall = matrix.diagonal() / matrix.sum(1)
    f1 = 2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1))
    assert measured["confusion"] == matrix.tolist()
    assert measured["most_frequent"] == "OK" and measured["baseline"] == pytest.approx((truth == 0).mean())
    expected = dict(loss=-np.log(p[range(len(truth)), truth]).mean(), top1=(said == truth).mean(),
                    balanced_accuracy=recall.mean(), macro_f1=f1.mean())
    for name, value in expected.items(): assert measured[name] == pytest.approx(value, abs=1e-5), name
    assert list(measured["per_class"].values()) == pytest.approx(recall.tolist())


@pytest.fixture(scope="module")
def pointed(lazy, folder, tmp_path_factory):
    "The same model with an operating point, and what `threshold` printed."
    out = tmp_path_factory.mktemp("pointed") / "parts.safetensors"
    said = run("threshold", lazy[0], "--recall", "defect=0.75", "--data", folder, "--out", out)
    return out, said


def test_a_threshold_says_its_price_and_that_images_are_few(pointed):
    out, said = pointed
    point = read_card(out).operating_point
    assert point.class_name == "defect" and point.recall.value >= .75
    assert str(point) in said and "the most probable class alone: finds 0.0%" in said
    assert f"only {point.recall.images} validation images of 'defect'" in said


def test_the_threshold_gives_what_it_promised_on_the_validation_images(pointed, folder):
    from cifar_nb.datasets import split_by_hash
    from cifar_nb.folders import load_dataset
    out, _ = pointed
    point = read_card(out).operating_point
    _, valid = split_by_hash(load_dataset(str(folder), 32).train, .2, salt="validation")
    answers = Predictor.load(str(out)).answers(valid.pixels, [1] * len(valid))
    decided = np.array([a.decision == "defect" for a in answers])
    defective = valid.labels.numpy() == 1
    assert point.recall.images == defective.sum() and point.false_alarms.images == (~defective).sum()
    assert point.recall.value == pytest.approx(decided[defective].mean())
    assert point.false_alarms.value == pytest.approx(decided[~defective].mean())


def test_the_decision_reaches_predict_evaluate_and_the_service(pointed, folder):
    import httpx
    out, _ = pointed
    files = sorted((folder / "defect").glob("*.png"))[:8]
    printed = run("predict", *files, "--model", out)
    parsed = [json.loads(line) for line in run("predict", *files, "--model", out, "--json").splitlines()]
    decisions = [answer["decision"] for answer in parsed]
    assert set(decisions) <= {"OK", "defect"} and all(answer["class_name"] == "OK" for answer in parsed)
    assert [line.split("-> ")[1].split()[0] for line in printed.splitlines()] == decisions
    assert "on these images: finds" in run("evaluate", "--model", out, "--data", folder)
    predictor = Predictor.load(str(out))
    with served(create_app(ServiceSettings(backend="eager"), predictor)) as url:
        answers = [httpx.post(f"{url}/predict", files={"file": file.read_bytes()}).json() for file in files]
        assert [answer["decision"] for answer in answers] == decisions
        point = httpx.get(f"{url}/model").json()["operating_point"]
        assert point == predictor.card.operating_point.model_dump(mode="json")
        schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
        assert "operating point" in schemas["Answer"]["properties"]["decision"]["description"]


def test_a_threshold_needs_validation_images(folder, tmp_path):
    out = tmp_path / "all.safetensors"
    run("train", "--data", folder, "--epochs", 1, "--held-out", 0, *QUICK, "--out", out)
    with pytest.raises(CifarNbError, match="train it with --held-out") as caught:
        run("threshold", out, "--recall", "defect=0.99", "--data", folder)
    assert "\n" not in str(caught.value)


def test_a_folder_somewhere_else_is_asked_for(lazy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args in (("evaluate", "--model"), ("threshold", "--recall", "defect=0.9")):
        with pytest.raises(CifarNbError, match="say where that is now with --data"): run(*args, lazy[0])


def test_cards_without_the_new_fields_can_be_read():
    predictor = Predictor.load("cifar10")
    card = predictor.card
    new = "operating_point", "kept_by"
    old = {k: v for k, v in card.model_dump(mode="json").items() if k not in new}
    assert type(card).model_validate(old) == card
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert predictor.answers(black, [1])[0].decision is None
