"The same image in every kind of body that clients send, and the reason where it is not found."
import base64
import io
import time
from contextlib import suppress
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from tools.files import JPEG, PNG

from cifar_nb.core import ImageError
from cifar_nb.predict import Predictor
from cifar_nb.requests import from_base64
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

TEXT = base64.b64encode(JPEG).decode()
LINES = [TEXT[i:i + 76] for i in range(0, len(TEXT), 76)]
URL_SAFE = TEXT.replace("+", "-").replace("/", "_").rstrip("=")
assert "+" in TEXT and "/" in TEXT and "=" in TEXT and len(LINES) > 2
BASE64 = {
    "plain": TEXT,
    "no padding": TEXT.rstrip("="),
    "too little padding": TEXT.rstrip("=") + "=" * (TEXT.count("=") - 1),
    "URL-safe": URL_SAFE + "=" * TEXT.count("="),
    "URL-safe without padding": URL_SAFE,
    "lines": "\n".join(LINES),
    "lines of Windows": "\r\n".join(LINES) + "\r\n",
    "lines joined by spaces": " ".join(LINES),
    "escaped line ends": "\\n".join(LINES),
    "escaped line ends of Windows": "\\r\\n".join(LINES) + "\\n",
    "escaped slashes": TEXT.replace("/", "\\/"),
    "plus as a space": TEXT.replace("+", " "),
    "plus as a space, in lines": "\n".join(LINES).replace("+", " "),
    "percent-encoded": quote(TEXT, safe=""),
    "percent-encoded in small letters": quote(TEXT, safe="").replace("%2B", "%2b").replace("%2F", "%2f"),
    "percent-encoded data URL": quote(f"data:image/jpeg;base64,{TEXT}", safe=""),
    "data URL": f"data:image/jpeg;base64,{TEXT}",
    "data URL in capitals": f"DATA:IMAGE/PNG;BASE64,{TEXT}",
    "data URL of another case": f"Data:image/Png;Base64,{TEXT}",
    "data URL with white space": f" data: image/jpeg; base64, {TEXT}\n",
    "data URL with a long name": f"data:image/jpeg;name={'long%20name' * 50}.jpg;base64,{TEXT}",
    "data URL with a comma in the name": f"data:image/jpeg;name=a,b.jpg;base64,{TEXT}",
    "data URL with a charset": f"data:image/jpeg;charset=utf-8;base64,{TEXT}",
    "data URL without a type": f"data:;base64,{TEXT}",
    "data URL without base64": f"data:image/jpeg,{TEXT}",
    "data URL of bytes": "data:image/jpeg," + quote(JPEG, safe=""),
    "the end of a data URL": f"base64,{TEXT}",
    "more of its end": f"image/jpeg;base64,{TEXT}",
    "Python's bytes": repr(TEXT.encode()),
    "quoted": f'"{TEXT}"',
    "byte order mark": "\ufeff" + TEXT,
    "space without a width": "\u200b" + TEXT + "\u200b",
}
NOT_BASE64 = {
    "a": "not valid", "äöü=": "not valid", "aGVs*G8=": "not valid", "aGVs=bG8": "not valid",
    "%": "not valid", TEXT[:41]: "not valid", TEXT.replace("+", "\u2212"): "not valid",
    JPEG.hex(): "hexadecimal", "0x" + PNG.hex().upper(): "hexadecimal",
    **dict.fromkeys(("https://example.org/cat", "HTTP://a/b.png", "cat.jpg", r"C:\new folder\cat.JPEG",
                     "/home/me/cat.png", "blob:1-2"), "fetches nothing"),
}


@pytest.mark.parametrize("text", BASE64.values(), ids=BASE64)
def test_base64_as_clients_write_it(text): assert from_base64(text) == JPEG


@pytest.mark.parametrize("text, why", NOT_BASE64.items())
def test_what_is_not_base64_is_refused(text, why):
    with pytest.raises(ImageError, match=why): from_base64(text)


LONG = [
    letters * (10_000_000 // len(letters))
    for letters in (
        "A", "A ", "%", "%2", "%2B", "%41", "\\", "\\n", "=", " ", "\n", "\n ", '"', "b'", ",", ";base64,",
        "data:", "data:,%", "-", "é", "\u200b", "a://", "a.", ".png", "0x", "A" * 76 + " ")]


@pytest.mark.parametrize("text", LONG, ids=[text[:8].strip() or "white space" for text in LONG])
def test_ten_megabytes_of_anything_take_no_second(text):
    start = time.process_time()
    with suppress(ImageError): from_base64(text)
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def url():
    app = create_app(ServiceSettings(backend="eager"), Predictor.load("cifar10"))
    with served(app) as address: yield address


@pytest.fixture(scope="module")
def right(url): return httpx.post(f"{url}/predict", files={"file": JPEG}, timeout=60).json()["probabilities"]


KINDS = ("image/jpeg", "IMAGE/JPEG; x=1", "image/png", "image/*", "application/octet-stream",
         "binary/octet-stream", "application/x-www-form-urlencoded", "text/plain", "nonsense", "", None)


def typed(kind): return {} if kind is None else {"Content-Type": kind}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", [
    "POST /predict", "PUT /predict", "POST /explain", "PUT /explain", "POST /classify/",
    "POST /predict_base64"])
def test_the_image_as_the_whole_body(url, right, kind, route):
    method, path = route.split()
    reply = httpx.request(method, url + path, content=JPEG, headers=typed(kind), timeout=60)
    assert reply.status_code == 200, reply.text
    if "class" not in path: assert reply.json()["probabilities"] == pytest.approx(right, abs=1e-5)


def animation(kind, *shades):
    "Frames of one shade each, the last one with a gradient."
    last = Image.linear_gradient("L").resize((40, 40))
    frames = [*(Image.new("L", (40, 40), shade) for shade in shades), last]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=50)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("shades", [(255,), (255, 0), ()], ids=len)
def test_the_answer_says_which_frame_it_is_about(url, kind, shades):
    data = animation(kind, *shades)
    frame = len(shades) + 1 if shades else None
    for path in ("predict", "explain"):
        reply = httpx.post(f"{url}/{path}", content=data, timeout=60)
        assert reply.json()["frame"] == frame, reply.text
    both = httpx.post(f"{url}/predict/batch", files=[("files", data), ("files", JPEG)], timeout=60).json()
    assert [answer["frame"] for answer in both] == [frame, None]
    assert Predictor.load("cifar10")(data).frame == frame


JSON_KINDS = (
    "application/json", "application/json; charset=utf-8", "application/vnd.api+json", "text/json",
    "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "application/octet-stream", "", None)


@pytest.mark.parametrize("kind", JSON_KINDS)
@pytest.mark.parametrize("start", ["", "\ufeff", " \r\n"])
def test_json_under_any_type(url, right, kind, start):
    content = f'{start}{{"image_base64": "{TEXT}", "top_k": 2}}'.encode()
    for path in ("/predict", "/predict_base64"):
        reply = httpx.post(url + path, content=content, headers=typed(kind), timeout=60)
        assert reply.status_code == 200 and len(reply.json()["top"]) == 2, reply.text


@pytest.mark.parametrize("key", ["image_base64", "image", "file"])
def test_the_key_in_json(url, key):
    assert httpx.post(f"{url}/predict", json={key: TEXT}, timeout=60).status_code == 200


@pytest.mark.parametrize("key", ["data", "instances", "Image", "img"])
def test_another_key_is_told_the_right_one(url, key):
    reply = httpx.post(f"{url}/predict", json={key: TEXT}, timeout=60)
    assert reply.status_code == 422 and reply.json()["detail"] == "image_base64: Field required"


FORMS = {
    **{name: dict(files={name: JPEG})
       for name in ("file", "image", "img", "files", "file[]", "File", "photo", "")},
    "with an empty number": dict(files={"file": JPEG}, data={"top_k": ""}),
    "with other fields": dict(files={"photo": JPEG}, data={"file": "cat.jpg", "csrf": "x"}),
    "without a file name": dict(files={"file": (None, JPEG)}),
    "without a file name, another field": dict(files={"photo": (None, JPEG, "image/jpeg")}),
    "with a file that was not chosen": dict(files=[("a", ("", b"")), ("b", JPEG)]),
    "base64 in a text field": dict(files={"image": (None, TEXT)}),
    "a data URL in a text field of another case": dict(
        files={"Image_Base64": (None, "data:image/jpeg;base64," + TEXT)}),
    "a long text field": dict(files={"file": (None, base64.b64encode(JPEG + bytes(2_000_000)))}),
    "urlencoded": dict(data={"image_base64": TEXT, "top_k": "5"}),
    "urlencoded, plus not encoded": dict(
        content=f"top_k=&image={TEXT}", headers=typed("application/x-www-form-urlencoded")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(url, right, form):
    for path in ("/predict", "/explain", "/predict_base64"):
        reply = httpx.post(url + path, timeout=60, **form)
        assert reply.status_code == 200, reply.text
        assert reply.json()["probabilities"] == pytest.approx(right, abs=1e-5)
        assert len(reply.json()["top"]) == 5


NOT_CHOSEN = b'--x\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--x--\r\n'
REFUSED = {
    "nothing": (422, "no image", {}),
    "nothing, but a type": (422, "no image", dict(headers=typed("image/jpeg"))),
    "two files": (422, "more than one image", dict(files=[("file", JPEG), ("file", PNG)])),
    "two fields with files": (422, "more than one image", dict(files={"image": JPEG, "mask": PNG})),
    "two texts": (422, "more than one image", dict(data={"file": TEXT, "image": TEXT})),
    "another text field": (422, "no image", dict(data={"name": "cat"})),
    "no file chosen": (422, "no image", dict(
        content=NOT_CHOSEN, headers=typed("multipart/form-data; boundary=x"))),
    "an empty text field": (422, "no image", dict(data={"file": ""})),
    "not base64": (422, "base64", dict(data={"file": "hello!"})),
    "a bad number": (422, "top_k", dict(data={"image": TEXT, "top_k": "0"})),
    "another multipart": (422, "multipart/form-data", dict(
        content=b"--x--", headers=typed("multipart/mixed; boundary=x"))),
    "no boundary": (400, "boundary", dict(content=b"--x--", headers=typed("multipart/form-data"))),
    "gzip": (415, "Content-Encoding", dict(content=JPEG, headers={"Content-Encoding": "gzip"})),
    "gzip in a form": (415, "Content-Encoding", dict(
        files={"file": JPEG}, headers={"Content-Encoding": "br"})),
    "text": (415, "", dict(content=b"hello", headers=typed("text/plain"))),
}


@pytest.mark.parametrize("status, why, sent", REFUSED.values(), ids=REFUSED)
def test_refusals_say_why(url, status, why, sent):
    reply = httpx.post(f"{url}/predict", timeout=60, **sent)
    assert reply.status_code == status and why in reply.json()["detail"], reply.text


def test_a_batch_has_no_more_files_than_it_may(url):
    unnamed = [("files", (None, PNG))]
    both = httpx.post(f"{url}/predict/batch", files=unnamed * 2, timeout=60).json()
    assert len(both) == 2 and all("class_name" in one for one in both)
    reply = httpx.post(f"{url}/predict/batch", files=unnamed * 33, timeout=60)
    assert reply.status_code == 400 and "32" in reply.json()["detail"]
    packed = httpx.post(f"{url}/predict/batch", files=unnamed, headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415


def test_a_page_of_another_site_may_send_none_of_these(url):
    "Browsers send these types to any site without asking first."
    foreign = ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Origin": "null"})
    for headers in foreign:
        for kind in (*KINDS, "multipart/form-data; boundary=x"):
            for method in ("POST", "PUT"):
                reply = httpx.request(method, f"{url}/predict", content=JPEG, headers=headers | typed(kind))
                assert reply.status_code == 403, (method, kind, headers)


def test_a_page_that_may_call_may_also_put(url):
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "PUT"}
    assert httpx.options(f"{url}/predict", headers=asked).status_code == 200
    reply = httpx.put(f"{url}/predict", content=JPEG, headers={"Origin": "http://localhost:3000"}, timeout=60)
    assert reply.status_code == 200 and reply.headers["access-control-allow-origin"]
    assert 'method="PUT",route="/predict",status="200"' in httpx.get(f"{url}/metrics").text
