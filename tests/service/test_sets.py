"Prediction sets on request: the same from Python, the shell and the network; refusals that say what to do."
import csv
import json

import httpx
import pytest
from tools.command import run
from tools.repository import ROOT, SAMPLES

from cifar_nb.modelfile import find_model, read_card, replace_card
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

FILES = [ROOT / "cifar_nb" / "static" / "samples" / name for name in SAMPLES[:4]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A bundled model whose sets grow from one class to all of them."
    path, out = find_model("simple"), tmp_path_factory.mktemp("sets") / "sets.safetensors"
    thresholds = tuple((i / 49)**4 for i in range(49, -1, -1))
    replace_card(path, read_card(path).model_copy(update=dict(set_thresholds=thresholds)), out)
    return out


@pytest.fixture(scope="module")
def expected(model):
    "Sets of each file by coverage."
    predictor = Predictor.load(str(model))
    def sets(c): return [predictor(path.read_bytes(), coverage=c).prediction_set for path in FILES]
    return {coverage: sets(coverage) for coverage in (.5, .9, .99)}


@pytest.fixture(scope="module")
def url(model):
    with served(create_app(ServiceSettings(backend="eager", max_wait=60), Predictor.load(str(model)))) as url:
        yield url


def post(url, route, **params):
    field = "files" if route.endswith("batch") else "file"
    return httpx.post(url + route, params=params, files={field: FILES[0].read_bytes()}, timeout=60)


def test_a_larger_coverage_gives_larger_sets(expected):
    sizes = [[len(names) for names in expected[c]] for c in (.5, .9, .99)]
    assert sizes[0] == [1] * 4 and sizes[2] == [10] * 4 and sum(sizes[1]) > 4


@pytest.mark.parametrize("route", ["/predict", "/explain", "/predict/batch"])
def test_each_route_knows_them(url, expected, route):
    for coverage, sets in expected.items():
        answer = post(url, route, coverage=coverage).json()
        answer = answer[0] if isinstance(answer, list) else answer
        assert (answer["prediction_set"], answer["coverage"]) == (sets[0], coverage)
        assert answer["prediction_set"][0] == answer["class_name"]


def test_only_where_asked_for(url):
    answer = post(url, "/predict").json()
    assert answer["prediction_set"] is None and answer["coverage"] is None


@pytest.mark.parametrize("value", ["90", "0", "0.4", "1", "-1", "nan", "inf", "much", ""])
def test_what_is_out_of_range_is_refused(url, value):
    refused = post(url, "/predict", coverage=value)
    assert refused.status_code == 422 and refused.json()["detail"].startswith("coverage: ")


def test_the_documentation_says_what_it_means(url):
    api = httpx.get(f"{url}/openapi.json").json()
    parameters = api["paths"]["/predict"]["post"]["parameters"]
    described = next(p for p in parameters if p["name"] == "coverage")
    assert "on average over all classes" in described["description"]
    assert "prediction_set" in api["components"]["schemas"]["Answer"]["properties"]


def test_an_older_model_says_what_to_do(tmp_path):
    app = create_app(ServiceSettings(backend="eager", max_wait=60), Predictor.load("simple"))
    with served(app) as url:
        refused = post(url, "/predict", coverage=.9)
        assert refused.status_code == 422 and "`cifar-nb calibrate MODEL`" in refused.json()["detail"]
        one, = post(url, "/predict/batch", coverage=.9).json()
        assert one["status"] == 422 and "calibrate" in one["detail"]
        assert post(url, "/predict").status_code == 200
    code, _, error = run("predict", "--model", "simple", "--coverage", ".9", FILES[0])
    assert code == 4 and error.count("\n") == 1 and "`cifar-nb calibrate MODEL`" in error
    assert run("predict", "--model", "simple", FILES[0])[0] == 0


def test_predict_in_the_shell(model, expected, tmp_path):
    ask = "predict", model, *FILES, "--coverage", ".9"
    code, printed, error = run(*ask, "--json")
    assert code == 0, error
    assert [json.loads(line)["prediction_set"] for line in printed.splitlines()] == expected[.9]
    lines = run(*ask)[1].splitlines()
    for line, names in zip(lines, expected[.9], strict=True):
        assert f"(with 90% confidence: {', '.join(names)})" in line
    table = tmp_path / "table.csv"
    assert run(*ask, "--csv", table)[0] == 0
    with open(table, encoding="utf-8") as file: rows = list(csv.DictReader(file))
    assert [row["prediction set"].split("; ") for row in rows] == expected[.9]
    code, _, error = run("predict", model, FILES[0], "--coverage", "90")
    assert code == 2 and "0.99" in error


def test_training_and_calibrate_write_the_thresholds(tmp_path):
    model, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    code, _, error = run("train", "--data", "synthetic", "--epochs", 1, "--held-out", .2, "--set",
                         "widths=[8,8,8]", "--out", model)
    assert code == 0, error
    card = read_card(model)
    assert len(card.set_thresholds) == 50 and card.calibrated_on["data"] == "synthetic"
    old = card.model_copy(update=dict(set_thresholds=None, calibrated_on=None))
    replace_card(model, old)
    assert run("predict", model, FILES[0], "--coverage", ".9")[0] == 4
    code, _, error = run("calibrate", model, "--out", again)
    assert code == 0, error
    found = read_card(again)
    assert found.calibrated_on == card.calibrated_on
    assert found.set_thresholds == pytest.approx(card.set_thresholds, abs=1e-3)
    assert "gives prediction sets" in run("info", again)[1]
    assert run("predict", again, FILES[0], "--coverage", ".9")[0] == 0
