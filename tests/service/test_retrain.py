"A folder grows, a better model goes live without a failed request, and a worse one does not."
import json
import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image
from tools.command import run
from tools.server import service, until

from cifar_nb.core import Settings
from cifar_nb.registry import find_champion, open_store

KEY = "a key for operations"
pytest.importorskip("mlflow")


def deliver(folder, begin, end, wrong=False):
    "Noisy images of two lamps, lit and unlit, some of them in the wrong folder."
    for label, name in enumerate(("lit", "unlit")):
        (folder / (name if not wrong else ("unlit", "lit")[label])).mkdir(parents=True, exist_ok=True)
        for i in range(begin, end):
            rng = np.random.default_rng(2 * i + label)
            pixels = rng.normal(150 - 40 * label, 50, (16, 16, 3)).clip(0, 255).astype("uint8")
            at = folder / (("unlit", "lit") if wrong else ("lit", "unlit"))[label] / f"{label}-{i:04}.png"
            Image.fromarray(pixels).save(at)


@contextmanager
def visitors(url, image):
    "Requests without a pause, from two clients; gives the statuses and the names of the models."
    statuses, names, end = [], [], threading.Event()

    def visit():
        with httpx.Client(base_url=url, timeout=60) as client:
            while not end.is_set():
                answer = client.post("/predict", content=image, headers={"Content-Type": "image/png"})
                statuses.append(answer.status_code)
                names.append(answer.json().get("model"))

    threads = [threading.Thread(target=visit) for _ in range(2)]
    for thread in threads: thread.start()
    try: yield statuses, names
    finally:
        end.set()
        for thread in threads: thread.join()


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A champion that has seen few images."
    for name, folder in (("MODELS_DIR", "models"), ("TRACK_DIR", "store")):
        monkeypatch.setenv(f"CIFAR_NB_{name}", str(tmp_path / folder))
    monkeypatch.setenv("CIFAR_NB_OPERATIONS_KEY", KEY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    deliver(tmp_path / "lamps", 0, 40)
    choices = ("--set", "model.widths=[4,8]", "--set", "model.hidden=16", "--size", 16, "--batch-size", 16)
    code, _, error = run("train", tmp_path / "lamps", "--recipe", "simple", "--epochs", 1, "--held-out", .3,
                         "--precision", "float32", *choices)
    assert code == 0, error
    assert run("promote", "simple-0001")[0] == 0
    return tmp_path


def champion():
    return int(find_champion(open_store(Settings.read()), "lamps").version)


def retrain(place, *more):
    code, out, error = run("retrain", "lamps", "--data", place / "lamps", "--json", *more)
    assert code == 0, error
    return json.loads(out)  # and nothing else


def test_a_better_model_goes_live_and_a_worse_one_does_not(place):
    image = next((place / "lamps" / "lit").glob("*.png")).read_bytes()
    with service(place / "service", "--model", "models:/lamps@champion", "--threads", "1") as it:
        deliver(place / "lamps", 40, 400)
        with visitors(it.url, image) as (statuses, names):
            until(lambda: len(names) > 5)
            better = retrain(place, "--reload", it.url)
            until(lambda: names[-1] == "lamps-2")
        assert better["promoted"] and better["version"] == champion() == 2
        assert better["gain"] > better["error"] > 0
        assert set(statuses) == {200} and [*dict.fromkeys(names)] == ["lamps-1", "lamps-2"]

        deliver(place / "lamps", 400, 600, wrong=True)
        with visitors(it.url, image) as (statuses, names):
            until(lambda: len(names) > 5)
            worse = retrain(place, "--reload", it.url)
        assert not worse["promoted"] and worse["version"] is None and champion() == 2
        assert worse["gain"] <= worse["error"]
        assert set(statuses) == {200} and set(names) == {"lamps-2"}

        # Back to the first one, by the alias alone
        assert run("promote", "simple-0001")[0] == 0 and champion() == 1
        answer = httpx.post(f"{it.url}/model/reload", headers={"X-API-Key": KEY}, timeout=60)
        assert answer.status_code == 200
        answer = httpx.post(f"{it.url}/predict", content=image, headers={"Content-Type": "image/png"})
        assert answer.json()["model"] == "lamps-1"


def test_the_champion_has_not_learned_from_what_it_is_asked_about(place):
    from cifar_nb.datasets import image_keys
    from cifar_nb.experiment import split_data
    from cifar_nb.folders import load_dataset
    from cifar_nb.modelfile import read_card, read_trained_keys
    from cifar_nb.recipes import recipe_of
    first = place / "models" / "runs" / "simple-0001" / "model.safetensors"
    deliver(place / "lamps", 40, 200)
    recipe = recipe_of(read_card(first)).model_copy(update={"data": str(place / "lamps")})
    valid = split_data(recipe, load_dataset(recipe.data, recipe.size))[1]
    known = set(read_trained_keys(first).tolist())
    assert known and not known & set(image_keys(valid).tolist())


def test_what_cannot_be_compared_is_refused_before_the_training(place):
    runs = place / "models" / "runs"
    (place / "lamps" / "lit").rename(place / "lamps" / "on")
    for args, told in (((), "other classes than the champion"), (("--reload", "lamps.example"), "--reload"),
                       (("--data", place / "nowhere"), "nowhere")):
        code, _, error = run("retrain", "lamps", "--data", place / "lamps", *args)
        assert code in (2, 3) and told in error
    assert [folder.name for folder in runs.iterdir()] == ["simple-0001"] and champion() == 1


def test_a_service_that_is_down_is_one_line_and_the_champion_is_there(place):
    deliver(place / "lamps", 40, 400)
    code, _, error = run("retrain", "lamps", "--data", place / "lamps", "--reload", "http://127.0.0.1:9")
    assert code == 2 and "could not be told to reload" in error and champion() == 2
