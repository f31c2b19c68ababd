"What every response has: headers, an id, one shape for errors; and documentation that needs no network."
import re

import httpx
import pytest
from tools.files import PNG, raw_png

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

KEY = {"X-API-Key": "open sesame"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
BAD_JSON = (b"[" * 10_000, b"\xff<script>", b'{"image_base64": "<script>"}',
            b'{"image_base64": ["<script>"], "<script>": 1}', b'{"image_base64": "\\ud800"}',
            b'{"image_base64": "", "top_k": 1e999}')


@pytest.fixture(scope="module")
def url():
    settings = ServiceSettings(api_key="open sesame", backend="eager")
    with served(create_app(settings, Predictor.load("cifar10"))) as address: yield address


def open_answers(client):
    "Of routes that need no key, and of those that refuse without one."
    for path in ("/", "/static/page.js", "/docs", "/redoc", "/openapi.json", "/live", "/health"):
        yield 200, client.get(path)
    for path in ("/model", "/classes", "/metrics"):
        yield 200, client.get(path, headers=KEY)
        yield 401, client.get(path)
    tag = client.get("/static/page.js").headers["etag"]
    yield 304, client.get("/static/page.js", headers={"If-None-Match": tag})
    for path in ("/swagger", "/swagger/"): yield 307, client.get(path)
    for path in ("/metrics/", "/docs/", "/static"): yield 404, client.get(path)
    for path in ("/nowhere", "/static/nothing.js", "/static/..%2fserve.py", "/<script>alert(1)</script>",
                 "/%3Cscript%3E"):
        yield 404, client.get(path)
    for path in ("/predict", "/model/reload", "/classify/"): yield 405, client.get(path)
    yield 405, client.delete("/model")
    for origin, status in (("http://localhost:3000", 200), ("http://evil.example", 400)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        yield status, client.options("/predict", headers=asked)
    for path in ("/predict", "/predict_base64", "/predict/batch", "/explain", "/classify/", "/classify",
                 "/model/reload"):
        yield 401, client.post(path, headers={"X-API-Key": "<script>"})


def answers_with_a_key(client):
    "Of the routes that take images."
    def post(content, **more): return client.post("/predict", files={"file": ("x.png", content)}, **more)
    megabytes = (part for part in [START] + [bytes(1_000_000)] * 11)
    yield 200, post(PNG)
    yield 200, client.post("/explain", files={"file": PNG})
    yield 400, post(b"")
    yield 413, post(bytes(10_000_001))
    yield 413, client.post("/predict", content=megabytes, headers=FORM)
    yield 413, post(raw_png(b"", (20_000, 20_000), depth=1, colour=0))
    yield 415, post(b"<script>")
    yield 422, post(PNG[:100])
    yield 422, client.post("/predict?top_k=<script>", files={"file": PNG})
    yield 422, post(PNG, data={"top_k": "<script>"})
    for text in BAD_JSON:
        for path in ("/predict", "/predict_base64"):
            yield 422, client.post(path, content=text, headers={"content-type": "application/json"})


def check(status, reply):
    at = (reply.request.method, reply.request.url.path, reply.text[:200])
    policy = reply.headers["content-security-policy"]
    assert reply.status_code == status, at
    assert reply.headers["x-content-type-options"] == "nosniff", at
    assert reply.headers["referrer-policy"] == "no-referrer", at
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy, at
    assert "unsafe" not in policy or reply.request.url.path in ("/docs", "/redoc"), at
    assert re.fullmatch(r"[0-9a-f]{16}", reply.headers["x-request-id"]), at
    assert "server" not in reply.headers, at
    if status >= 400:
        assert set(reply.json()) == {"detail"} and reply.json()["detail"], at
        assert "<" not in reply.text and "nowhere" not in reply.text, at  # nothing is echoed


@pytest.mark.parametrize("answers, headers", [(open_answers, {}), (answers_with_a_key, KEY)])
def test_every_answer_has_the_headers_and_echoes_nothing(url, answers, headers):
    with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
        for status, reply in answers(client): check(status, reply)


def test_request_ids_come_back_unless_they_are_odd(url):
    def ask(number):
        return httpx.get(f"{url}/live", headers=[(b"X-Request-ID", number)]).headers["x-request-id"]
    for number in (b"a-1_b.C", b"x" * 64): assert ask(number) == number.decode()
    odd = (b"<script>", b"x" * 65, b"", b"a b", "ä".encode(), b"\xff", b"a;b", b"%0d%0aSet-Cookie:x")
    for number in odd: assert re.fullmatch("[0-9a-f]{16}", ask(number))


def test_our_own_fault_is_a_500_with_all_headers():
    class Broken(Predictor):
        def answers(self, *args): raise RuntimeError("secret")
    simple = Predictor.load("simple")
    broken = Broken(simple.model, simple.card)
    with served(create_app(ServiceSettings(backend="eager"), broken)) as url:
        sent = {"X-Request-ID": "mine", "Origin": "http://localhost:3000"}
        reply = httpx.post(f"{url}/predict", files={"file": PNG}, headers=sent)
    assert reply.status_code == 500 and "secret" not in reply.text
    assert reply.headers["x-request-id"] == "mine" and reply.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_documentation_needs_no_network(url):
    for path in ("docs", "redoc"):
        page = httpx.get(f"{url}/{path}").text
        needed = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']([^"']+)""", page)
        assert needed and all(n.startswith("/") and not n.startswith("//") for n in needed), needed
        assert all(httpx.get(url + n).status_code == 200 for n in needed)
