"One pipeline: however an image arrives, the model sees the same pixels and gives the same probabilities."
import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tools.files import P3, ink_profile, rgb_profile

from cifar_nb.core import Settings
from cifar_nb.datasets import content_key
from cifar_nb.folders import load_dataset
from cifar_nb.images import Images, normalize
from cifar_nb.opening import upright
from cifar_nb.photos import image_pixels, to_rgb
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

CLI = Path(sys.executable).with_name("cifar-nb")
SIZE = 32


def noisy(width, height, seed=0, channels=3):
    "Smooth colours under fine noise: with detail to lose, and no symmetry that could hide a flip."
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (6, 8, channels)).astype(np.uint8)
    grown = [Image.fromarray(coarse[:, :, c]).resize((width, height)) for c in range(channels)]
    return (np.stack(grown, 2) + rng.normal(0, 30, (height, width, channels))).clip(0, 255).astype(np.uint8)


def file_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def palette_with_transparency():
    image = Image.fromarray(noisy(90, 70, 5)).quantize(40)
    return file_of(image, "PNG", transparency=image.getpixel((45, 35)))


def fading_in(kind, seed):
    frames = [Image.new("RGB", (64, 48), "white"), Image.fromarray(noisy(64, 48, seed))]
    return file_of(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


MAKERS = {
    "noisy.jpg": lambda: file_of(Image.fromarray(noisy(640, 480)), "JPEG", quality=90),
    "large.jpg": lambda: file_of(Image.fromarray(noisy(4000, 3000, 1)), "JPEG", quality=60),
    "progressive.jpg": lambda: file_of(Image.fromarray(noisy(301, 517, 2)), "JPEG", progressive=True),
    "cmyk.jpg": lambda: file_of(Image.fromarray(noisy(300, 200, 3, channels=4), "CMYK"), "JPEG", quality=90),
    "grey.jpg": lambda: file_of(Image.fromarray(noisy(300, 200, 3, channels=1)[:, :, 0]), "JPEG", quality=90),
    "sixteen.png": lambda: file_of(Image.fromarray(noisy(80, 90, 4)[:, :, 0].astype(np.uint16) * 251), "PNG"),
    "rotated.jpg": lambda: file_of(Image.fromarray(noisy(640, 480, 6)), "JPEG", exif=rotated(6)),
    "mirrored.png": lambda: file_of(Image.fromarray(noisy(64, 48, 6)), "PNG", exif=rotated(5)),
    "palette.png": palette_with_transparency,
    "alpha.webp": lambda: file_of(Image.fromarray(noisy(64, 48, 7, channels=4)), "WEBP", lossless=True),
    "alpha16.png": lambda: file_of(Image.fromarray(noisy(64, 48, 8, channels=2), "LA"), "PNG"),
    "one.gif": lambda: file_of(Image.fromarray(noisy(64, 48, 9)), "GIF"),
    "wide_gamut.jpg": lambda: file_of(
        Image.fromarray(noisy(300, 200, 11)), "JPEG", icc_profile=rgb_profile(2.2, *P3)),
    "inks.jpg": lambda: file_of(
        Image.fromarray(noisy(300, 200, 12, channels=4), "CMYK"), "JPEG", icc_profile=ink_profile()),
    "avif_called.jpg": lambda: file_of(Image.fromarray(noisy(64, 48, 13)), "AVIF", speed=10),
    "tiff_called.png": lambda: file_of(Image.fromarray(noisy(64, 48, 14)), "TIFF", exif=rotated(6)),
    "fades_in.gif": lambda: fading_in("GIF", 15),
    "fades_in.webp": lambda: fading_in("WEBP", 16),
    "no_end.jpg": lambda: file_of(Image.fromarray(noisy(300, 200, 17)), "JPEG")[:-2],
    "exact.bmp": lambda: file_of(Image.fromarray(noisy(SIZE, SIZE, 10)), "BMP"),
}
every_photo = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(scope="module")
def photos(): return {name: make() for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def seen(photos): return {name: image_pixels(data, SIZE) for name, data in photos.items()}


@pytest.fixture(scope="module")
def predictor(): return Predictor.load("cifar10", Settings(device="cpu"))


@pytest.fixture(scope="module")
def expected(predictor, photos): return {name: predictor(data).probabilities for name, data in photos.items()}


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    "The photos as two classes, by turns."
    root = tmp_path_factory.mktemp("folder")
    for i, (name, data) in enumerate(photos.items()):
        path = root / ("even", "odd")[i % 2] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return root


def close(found, expected):
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=0, abs=1e-5)


def opened(data): return Image.open(io.BytesIO(data))


def decoded(data):
    image = opened(data)
    image.load()
    return image


@every_photo
@pytest.mark.parametrize("arrives", [bytes, opened, decoded], ids=["bytes", "opened", "decoded"])
def test_bytes_and_pillow_images_are_the_same(photos, seen, predictor, expected, *, name, arrives):
    if arrives is decoded and name == "no_end.jpg": pytest.skip("Pillow alone does not decode it")
    assert torch.equal(image_pixels(arrives(photos[name]), SIZE), seen[name])
    close(predictor(arrives(photos[name])).probabilities, expected[name])


def test_photos_differ_so_that_a_mixed_up_answer_would_be_noticed(expected):
    rows = torch.tensor([list(p.values()) for p in expected.values()])
    assert torch.pdist(rows, torch.inf).min() > 1e-3


def test_pixels_are_what_pillow_alone_gives(photos, seen):
    "Written once more, step by step."
    upright = opened(photos["rotated.jpg"]).transpose(Image.Transpose.ROTATE_270)
    assert upright.size == (480, 640)
    square = upright.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(0, 80, 480, 560))
    assert np.array_equal(np.asarray(square), seen["rotated.jpg"].permute(1, 2, 0))


@pytest.mark.parametrize("name", ["noisy.jpg", "large.jpg", "rotated.jpg"])
def test_a_draft_would_change_what_the_model_sees(photos, seen, predictor, expected, *, name):
    "The comparisons of this file notice a second preprocessing, even a good one."
    image = opened(photos[name])
    image.draft("RGB", (2 * SIZE, 2 * SIZE))
    assert not torch.equal(image_pixels(image, SIZE), seen[name])
    probabilities = torch.tensor(list(predictor(image).probabilities.values()))
    assert (probabilities - torch.tensor(list(expected[name].values()))).abs().max() > 1e-5


@every_photo
def test_evaluation_normalises_the_same_pixels(seen, predictor, expected, *, name):
    "The way that `evaluate` goes: stored pixels, normalised with the card's statistics."
    with torch.inference_mode():
        logits = predictor.model(normalize(seen[name][None], predictor.card.stats))
    probabilities = (logits / predictor.card.temperature).softmax(1)[0].tolist()
    close(dict(zip(predictor.card.classes, probabilities, strict=True)), expected[name])


def test_a_batch_gives_what_single_images_give(photos, predictor, expected):
    for answer, name in zip(predictor.predict_batch(list(photos.values())), photos, strict=True):
        close(answer.probabilities, expected[name])


def test_training_on_a_folder_sees_the_same_pixels(folder, photos, seen):
    data = load_dataset(str(folder), SIZE)
    by_key = {}
    for images in (data.train, data.test):
        assert isinstance(images, Images) and len(images)
        by_key |= dict(zip(images.file_keys.tolist(), images.pixels, strict=True))
    assert len(by_key) == len(photos)
    for name, content in photos.items(): assert torch.equal(by_key[content_key(content)], seen[name]), name


def test_the_command_line_gives_the_same(folder, photos, expected, predictor):
    files = sorted(folder.rglob("*.*"))
    command = [CLI, "predict", "--json", "--model", "cifar10", "--device", "cpu", *files]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(files) == len(photos)
    for path, line in zip(files, lines, strict=True):
        answer = json.loads(line)
        assert answer["file"] == str(path)
        close(answer["probabilities"], expected[path.name])


@pytest.fixture(scope="module")
def url(predictor):
    settings = ServiceSettings(device="cpu", backend="eager", model="cifar10")
    with served(create_app(settings, predictor)) as address: yield address


def pixels_of_view(url):
    "The PNG of a data URL, as a client would decode it."
    image = opened(base64.b64decode(url.removeprefix("data:image/png;base64,")))
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@every_photo
def test_the_service_gives_the_same_and_shows_the_same_pixels(photos, seen, expected, url, *, name):
    answer = httpx.post(f"{url}/predict?view=true", files={"file": (name, photos[name])}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert torch.equal(pixels_of_view(answer.json()["view"]), seen[name])
    close(answer.json()["probabilities"], expected[name])


@pytest.mark.parametrize("name", ["noisy.jpg", "palette.png"])
def test_every_kind_of_request_gives_the_same(photos, seen, expected, url, *, name):
    text = base64.b64encode(photos[name]).decode()
    answer = httpx.post(f"{url}/predict?view=true", json={"image_base64": text}, timeout=60).json()
    assert torch.equal(pixels_of_view(answer["view"]), seen[name])
    close(answer["probabilities"], expected[name])
    several = [("files", (n, photos[n])) for n in (name, "sixteen.png")]
    answers = httpx.post(f"{url}/predict/batch", files=several, timeout=60).json()
    close(answers[0]["probabilities"], expected[name])
    close(answers[1]["probabilities"], expected["sixteen.png"])


def test_what_the_service_shows_can_be_sent_again(photos, expected, url):
    "The view of an image is an image of the right size, so nothing changes a second time."
    send = f"{url}/predict?view=true"
    first = httpx.post(send, files={"file": photos["noisy.jpg"]}, timeout=60).json()
    again = httpx.post(send, json={"image_base64": first["view"]}, timeout=60).json()
    assert torch.equal(pixels_of_view(again["view"]), pixels_of_view(first["view"]))
    close(again["probabilities"], expected["noisy.jpg"])


def test_onnx_runtime_gives_the_same(photos, predictor, expected):
    pytest.importorskip("onnxruntime")
    from cifar_nb.export import with_backend
    fast = with_backend(predictor, "onnx")
    assert fast.backend == "onnx"
    for name, data in photos.items(): close(fast(data).probabilities, expected[name])


def test_openvino_gives_the_same(photos, predictor, expected):
    "With 32 bits: what 16 bits change is the subject of tests/service/test_backends.py."
    pytest.importorskip("openvino")
    from cifar_nb.backends import openvino_network
    network = openvino_network(predictor.model, SIZE, 1)
    fast = Predictor(predictor.model, predictor.card, network=network)
    for name, data in photos.items(): close(fast(data).probabilities, expected[name])


def test_an_upright_rgb_image_is_neither_copied_nor_changed():
    image = Image.fromarray(noisy(64, 48))
    before = image.tobytes()
    assert to_rgb(upright(image)) is image
    image_pixels(image, SIZE)
    assert image.tobytes() == before and image.size == (64, 48)


def test_heic_needs_a_package_of_its_own():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    data = file_of(Image.fromarray(noisy(64, 48)), "HEIF", quality=95)
    assert (image_pixels(data, SIZE) - image_pixels(decoded(data), SIZE).int()).abs().max() <= 2
    with served(create_app(ServiceSettings(formats=["PNG", "HEIF"]), Predictor.load("cifar10"))) as address:
        assert httpx.post(f"{address}/predict", files={"file": data}, timeout=60).status_code == 200
