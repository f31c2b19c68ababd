"Clients of five older systems, unchanged."
import base64
import io
import json

import httpx
import pytest
from PIL import Image
from tools.files import JPEG

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def url():
    settings = ServiceSettings(backend="eager")
    with served(create_app(settings, Predictor.load("cifar10"))) as address: yield address


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.jpg"
    path.write_bytes(JPEG)
    return path


def test_a_form_and_class_id(url, image):
    with open(image, "rb") as f: reply = httpx.post(f"{url}/predict", files={"file": f})
    reply.raise_for_status()
    assert reply.json()["class_id"] in range(10)


def test_classify_and_prediction(url, image):
    reply = httpx.post(f"{url}/classify/", files={"image": (image.name, image.read_bytes(), "image/jpeg")})
    assert reply.status_code == 200 and reply.json()["prediction"] in CLASSES


def test_json_to_predict(url, image):
    text = base64.b64encode(image.read_bytes()).decode()
    answer = httpx.post(f"{url}/predict", json={"image_base64": text}).json()
    assert answer["class_name"] == CLASSES[answer["class_index"]] and 0 < answer["confidence"] <= 1


def test_predict_base64_classes_and_health(url, image):
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    names = httpx.get(f"{url}/classes").json()["classes"]
    text = "data:image/jpeg;base64," + base64.encodebytes(image.read_bytes()).decode()
    reply = httpx.post(f"{url}/predict_base64", content=json.dumps({"image_base64": text}),
                       headers={"Content-Type": "application/json; charset=utf-8"})
    assert names == CLASSES and reply.json()["class_name"] in names


def test_image_and_probabilities(url, image):
    answer = httpx.post(f"{url}/predict", files={"image": image.read_bytes()}).json()
    shares = answer["probabilities"]
    assert list(shares) == CLASSES and max(shares, key=shares.get) == answer["class_name"]


def test_all_five_get_the_same_answer(url, image):
    content, text = image.read_bytes(), base64.b64encode(image.read_bytes()).decode()

    def post(path, **body): return httpx.post(url + path, **body).json()
    answers = [
        post("/predict", files={"file": content}),
        post("/predict", files={"image": content}),
        post("/predict", json={"image_base64": text}),
        post("/predict_base64", json={"image_base64": text}),
    ]
    named = post("/classify/", files={"image": content})["prediction"]
    assert {a["class_name"] for a in answers} == {CLASSES[a["class_id"]] for a in answers} == {named}


def test_a_small_answer_is_not_held_back(url):
    with httpx.Client(base_url=url) as client:
        quickest = min(client.get("/live").elapsed.total_seconds() for _ in range(20))
    assert quickest < .03  # 40 ms are TCP waiting for more


def test_the_example_of_the_documentation_works(url):
    operation = httpx.get(f"{url}/openapi.json").json()["paths"]["/predict"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert httpx.post(f"{url}/predict", json=example).status_code == 200
    assert Image.open(io.BytesIO(base64.b64decode(example["image_base64"]))).size == (1, 1)
