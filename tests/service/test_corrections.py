"""Somebody says what is really in an image: it is kept where a folder is set, and nothing else.

What the folder accepts is tested in 59_corrections."""
import base64
import hashlib
from contextlib import contextmanager

import httpx
import pytest
from tools.files import BASE, PNG, saved

from cifar_nb.folders import load_dataset
from cifar_nb.imagefile import WEB_FORMATS
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

KEY = {"X-API-Key": "open sesame"}


@pytest.fixture(scope="module")
def predictor(): return Predictor.load("simple")


@contextmanager
def serving(predictor, **changes):
    app = create_app(ServiceSettings(**{"backend": "eager", "max_wait": 60, **changes}), predictor)
    with served(app) as url, httpx.Client(base_url=url, timeout=60) as client: yield client


def correct(client, name="frog", content=PNG, **more):
    return client.post("/corrections", params={"class_name": name}, content=content, **more)


def kept(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                  if path.is_file() and path.name != ".lock")


def test_off_by_default(predictor):
    with serving(predictor) as client:
        answer = correct(client)
        assert answer.status_code == 403 and "CIFAR_NB_CORRECTIONS" in answer.json()["detail"]
        assert client.get("/model").json()["limits"]["corrections"] is False


def test_the_bytes_are_kept_under_their_hash_and_nothing_else(predictor, tmp_path):
    folder = tmp_path / "corrections"
    with serving(predictor, corrections=folder) as client:
        assert client.get("/model").json()["limits"]["corrections"] is True
        form = {"file": ("../../my name.exe", PNG, "text/html")}
        sent = [
            correct(client),
            client.post("/corrections?class_name=frog", files=form),
            client.post("/corrections?class_name=frog",
                        json={"image_base64": base64.b64encode(PNG).decode(), "top_k": 3})]
        assert [answer.status_code for answer in sent] == [201] * 3
        name = f"frog/{hashlib.sha256(PNG).hexdigest()[:32]}.png"
        assert [answer.json() for answer in sent] == [{"class_name": "frog", "file": name}] * 3
        assert kept(folder) == [name] and (folder / name).read_bytes() == PNG
        assert correct(client, "cat").status_code == 201
        assert kept(folder) == [name.replace("frog", "cat")]
        lines = client.get("/metrics").text.splitlines()
        assert 'cifar_nb_corrections_total{class_name="frog"} 3.0' in lines
        assert 'cifar_nb_corrections_total{class_name="cat"} 1.0' in lines


def test_every_format_gets_its_suffix_and_is_read_by_training(predictor, tmp_path):
    with serving(predictor, corrections=tmp_path) as client:
        for i, kind in enumerate(WEB_FORMATS * 3):
            data = saved(BASE.resize((40 + i, 40)), kind)
            assert correct(client, ("cat", "dog")[i % 2], data).status_code == 201, kind
    suffixes = {name.rpartition(".")[2] for name in kept(tmp_path)}
    assert suffixes == {"jpg", "png", "gif", "webp", "bmp", "avif", "tif"}
    data = load_dataset(str(tmp_path))
    assert len(data.train) + len(data.test) == 3 * len(WEB_FORMATS)


@pytest.mark.parametrize("name", ["unicorn", "../frog", "Frog", "", "frog/x"])
def test_only_a_class_of_the_model(predictor, tmp_path, name):
    with serving(predictor, corrections=tmp_path) as client:
        assert correct(client, name).status_code == 422
        assert client.post("/corrections", content=PNG).status_code == 422
    assert kept(tmp_path) == []


def test_a_class_that_is_a_path_is_refused(predictor, tmp_path):
    "A model file can name its classes as it likes."
    classes = ("../../outside", *predictor.card.classes[1:])
    card = predictor.card.model_copy(update={"classes": classes})
    with serving(Predictor(predictor.model, card), corrections=tmp_path / "inside") as client:
        assert correct(client, classes[0]).status_code == 507
    assert kept(tmp_path) == []


@pytest.mark.parametrize("content, status", [(b"", 422), (b"not an image", 415), (PNG[:60], 422)])
def test_only_an_image(predictor, tmp_path, content, status):
    with serving(predictor, corrections=tmp_path) as client:
        assert correct(client, content=content).status_code == status
    assert kept(tmp_path) == []


def test_other_sites_and_other_people_may_not(predictor, tmp_path):
    with serving(predictor, corrections=tmp_path, api_key="open sesame") as client:
        assert correct(client).status_code == 401
        evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", **KEY}
        assert correct(client, headers=evil).status_code == 403
        assert kept(tmp_path) == []
        assert correct(client, headers=KEY).status_code == 201


def test_a_full_folder(predictor, tmp_path):
    with serving(predictor, corrections=tmp_path, max_corrections=1) as client:
        assert correct(client).status_code == 201
        answer = correct(client, content=saved(BASE, "BMP"))
        assert answer.status_code == 507 and "is full" in answer.json()["detail"]
        assert len(kept(tmp_path)) == 1


def test_it_is_documented(predictor):
    with serving(predictor) as client:
        route = client.get("/openapi.json").json()["paths"]["/corrections"]["post"]
    assert {"201", "401", "403", "413", "415", "422", "503", "507"} <= set(route["responses"])
    assert [one["name"] for one in route["parameters"] if one["required"]] == ["class_name"]
