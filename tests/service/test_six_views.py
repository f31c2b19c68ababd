"Six views on request: from the shell and over the network the same probabilities, and only where asked for."
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tools.command import run
from tools.repository import ROOT, SAMPLES

from cifar_nb.predict import Predictor

FILES = [ROOT / "cifar_nb" / "static" / "samples" / name for name in SAMPLES[:4]]
CLOSE = 5e-3  # The service may compute with 16 bits


@pytest.fixture(scope="module")
def expected():
    "Probabilities of each file by whether six views were asked for."
    predictor = Predictor.load("cifar10")
    return {tta: {path: [*way(path.read_bytes()).probabilities.values()] for path in FILES}
            for tta, way in ((False, predictor), (True, predictor.six_views))}


def near(p, q): return max(abs(a - b) for a, b in zip(p, q, strict=True)) < CLOSE


def test_they_are_other_answers(expected):
    assert any(not near(expected[True][path], expected[False][path]) for path in FILES)


def test_requests_with_and_without_share_a_batch(client, expected):
    wanted = [(path, tta) for path in FILES for tta in (False, True)] * 4
    def ask(pair):
        path, tta = pair
        return client.post("/predict", params={"tta": tta}, files={"file": path.read_bytes()}).json()
    with ThreadPoolExecutor(16) as pool: answers = list(pool.map(ask, wanted))
    for (path, tta), answer in zip(wanted, answers):
        assert near(answer["probabilities"].values(), expected[tta][path]), (path, tta)


@pytest.mark.parametrize("route", ["/predict", "/explain", "/predict/batch"])
def test_each_route_knows_them(client, expected, route):
    field = "files" if route.endswith("batch") else "file"
    answer = client.post(f"{route}?tta=true", files={field: FILES[0].read_bytes()}).json()
    answer = answer[0] if isinstance(answer, list) else answer
    assert near(answer["probabilities"].values(), expected[True][FILES[0]])


def test_what_is_neither_yes_nor_no_is_refused(client):
    refused = client.post("/predict?tta=perhaps", files={"file": FILES[0].read_bytes()})
    assert refused.status_code == 422 and "tta" in refused.json()["detail"]


def test_predict_in_the_shell(expected):
    for flags, tta in (((), False), (("--tta",), True)):
        code, printed, error = run("predict", "--json", *flags, *FILES)
        assert code == 0, error
        for line, path in zip(printed.splitlines(), FILES, strict=True):
            assert near(json.loads(line)["probabilities"].values(), expected[tta][path])


def test_evaluate_in_the_shell(tmp_path):
    model = tmp_path / "m.safetensors"
    code, _, error = run("train", "--data", "synthetic", "--epochs", 1, "--recipe", "speed94", "--set",
                         "widths=[8,8,8]", "--batch-size", 100, "--out", model)
    assert code == 0, error
    losses = {}
    for flags in ((), ("--tta",)):
        code, printed, error = run("evaluate", model, "--json", *flags)
        assert code == 0, error
        found = json.loads(printed)
        assert found["tta"] == bool(flags)
        losses[flags] = found["loss"]
    assert losses[()] != losses[("--tta",)]
    assert run("evaluate", model, "--tta")[1].startswith("six views")
