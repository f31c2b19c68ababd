"Heads that are too long, too slow or broken; foreign hosts and pages; clients that hang up."
import io
import json
import logging
import os
import re
import socket
import struct
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest
from PIL import Image
from tools.files import PNG
from tools.models import Held
from tools.server import until

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served, server_config
from cifar_nb.settings import ServiceSettings

KEY = {"X-API-Key": "open sesame"}
FORM = "multipart/form-data; boundary=x"
START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
BODY = START + PNG + b"\r\n--x--\r\n"
HEAD = b"GET /live HTTP/1.1\r\nHost: x\r\n"
GET, LAST = HEAD + b"\r\n", HEAD + b"Connection: close\r\n\r\n"
JSON = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = JSON + b"Transfer-Encoding: chunked\r\n\r\n"
POST = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(BODY)}\r\n\r\n"
PREDICT = POST.encode() + BODY


@contextmanager
def serving(predictor=None, **changes):
    settings = ServiceSettings(**{"backend": "eager", "max_header_seconds": .6, **changes})
    with served(create_app(settings, predictor or Predictor.load("simple"))) as url: yield url


@pytest.fixture(scope="module")
def url():
    with serving() as url: yield url


@pytest.fixture(scope="module")
def locked():
    with serving(api_key="open sesame") as url: yield url


def connect(url):
    host, port = re.fullmatch(r"http://(.+):(\d+)", url).groups()
    return socket.create_connection((host, int(port)), timeout=30)


def hear(sock):
    "All that is said until the connection is closed."
    heard = b""
    while more := sock.recv(100_000): heard += more
    return heard.decode()


def ask(url, *parts):
    "Send parts, whether or not the server still listens, and hear all answers."
    with connect(url) as sock:
        with suppress(ConnectionError):
            for part in parts: sock.sendall(part)
        return hear(sock)


def statuses(heard): return [int(status) for status in re.findall(r"HTTP/1\.1 (\d+) ", heard)]


def check_refusal(heard, status):
    "One answer in JSON, with the headers of all others."
    assert statuses(heard) == [status], heard
    head, _, body = heard.partition("\r\n\r\n")
    assert set(json.loads(body)) == {"detail"}
    assert re.search(r"\r\nx-request-id: [0-9a-f]{16}\r\n", head)
    assert "content-security-policy: default-src 'none'" in head and "nosniff" in head
    assert "connection: close" in head


def counted(url, status, **more):
    text = httpx.get(f"{url}/metrics", **more).text
    found = re.findall(rf'^cifar_nb_requests_total{{.*status="{status}"}} (.+)$', text, re.M)
    return sum(map(float, found))


LONG = {
    "a header": (431, [HEAD, b"x: " + b"a" * 70_000 + b"\r\n\r\n"]),
    "a header without an end": (431, [HEAD, b"x: ", *[b"a" * 100_000] * 30]),
    "a name without an end": (431, [HEAD, *[b"a" * 100_000] * 30]),
    "many headers": (431, [HEAD, b"a:b\r\n" * 1_000_000, b"\r\n"]),
    "many short headers": (431, [HEAD, b"a:b\r\n" * 3000, b"\r\n"]),
    "an address": (414, [b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n"]),
    "a query": (414, [b"GET /live?" + b"a&" * 4500 + b" HTTP/1.1\r\nHost: x\r\n\r\n"]),
    "line ends before a request": (431, [b"\r\n" * 50_000] * 30),
    "trailers": (431, [CHUNKED, b"1\r\na\r\n0\r\n", b"a:b\r\n" * 1_000_000, b"\r\n"]),
    "a trailer without an end": (431, [CHUNKED, b"1\r\na\r\n0\r\nx: ", *[b"a" * 100_000] * 30]),
    "a chunk extension": (431, [CHUNKED, b"1;", *[b"a" * 100_000] * 30]),
}


@pytest.mark.parametrize("status, parts", LONG.values(), ids=LONG)
def test_too_much_before_or_after_a_body(url, status, parts):
    before = counted(url, status)
    check_refusal(ask(url, *parts), status)
    until(lambda: counted(url, status) == before + 1, 10)


def test_heads_just_below_the_limit_pass_on_one_connection(url):
    large = HEAD + b"x: " + b"a" * 60_000 + b"\r\n\r\n"
    body = CHUNKED + b"1;note=a\r\na\r\n" * 20_000 + b"0\r\nafter: b\r\n\r\n"
    assert statuses(ask(url, large * 5 + body + large, LAST)) == [200] * 5 + [422] + [200] * 2


SLOW = {
    "nothing": ([], []),
    "line ends": ([b"\r\n"] * 3, []),
    "half a request line": ([b"GET /li"], [408]),
    "a header, letter by letter": ([HEAD, *[b"a"] * 5], [408]),
    "after an answer, line ends": ([GET, b"\r\n"], [200]),
    "after an answer, half a request": ([GET, b"G"], [200, 408]),
    "a body after its answer": ([CHUNKED.replace(b"predict", b"nowhere"), *[b""] * 6, b"1\r\na\r\n"], [404]),
}


@pytest.mark.parametrize("parts, expected", SLOW.values(), ids=SLOW)
def test_too_slow_before_a_body(url, parts, expected):
    with connect(url) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(.2)
        heard = hear(sock)
    assert statuses(heard) == expected
    if expected == [408]: check_refusal(heard, 408)


def test_a_head_may_wait_for_an_earlier_answer():
    with serving(held := Held()) as url, connect(url) as sock:
        sock.sendall(PREDICT + HEAD)
        assert held.begun.wait(30)
        time.sleep(1)  # more than the head may take
        held.go.set()
        sock.sendall(b"Connection: close\r\n\r\n")
        assert statuses(hear(sock)) == [200, 200]


BROKEN = {
    "words": b"hello\r\n\r\n",
    "zeros": bytes(100),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 in the request line": b"GET /live HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /live\r\n\r\n",
    "HTTP/3.7": b"GET /live HTTP/3.7\r\nHost: x\r\n\r\n",
    "no host": b"GET /live HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two hosts": HEAD + b"Connection: close\r\nHost: y\r\n\r\n",
    "no colon": HEAD + b"x\r\n\r\n",
    "a bad length": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
    "length and chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\na"),
    "an address without a path": b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad chunk": CHUNKED + b"1\r\na\r\nhello\r\n",
    "a bad chunk for a route without a body": CHUNKED.replace(b"predict", b"classify") + b"hello\r\n",
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_broken_requests(url, sent, caplog):
    caplog.set_level(logging.INFO)
    heard = ask(url, sent)
    assert statuses(heard) == [400], heard
    assert set(json.loads(heard.partition("\r\n\r\n")[2].strip("0\r\n"))) == {"detail"}
    assert "x-request-id: " in heard and "nosniff" in heard and "hello" not in heard
    until(lambda: re.search(r" 400 \d", caplog.text), 10)
    assert "Traceback" not in caplog.text


def test_the_log_says_why_a_request_is_broken(url, caplog):
    caplog.set_level(logging.INFO)
    check_refusal(ask(url, b"hello\r\n\r\n"), 400)
    until(lambda: "HttpParserInvalidMethodError" in caplog.text, 10)


def test_a_broken_request_does_not_overtake_an_answer(url):
    assert statuses(ask(url, PREDICT + GET + b"hello\r\n\r\n")) == [200, 200, 400]


def test_pipelined_requests_and_kept_connections(url):
    assert statuses(ask(url, PREDICT * 3 + GET * 3 + LAST)) == [200] * 7
    with connect(url) as sock:
        for _ in range(3):
            sock.sendall(PREDICT)
            assert statuses(sock.recv(100_000).decode()) == [200]
        sock.sendall(LAST)
        assert statuses(hear(sock)) == [200]


def test_a_websocket_is_answered_like_any_other_request(url, caplog):
    caplog.set_level(logging.INFO)
    upgrade = (b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
               b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    with connect(url) as sock:
        sock.sendall(HEAD.replace(b"/live", b"/nowhere?secret") + upgrade)
        assert statuses(sock.recv(10_000).decode()) == [404]
        sock.sendall(LAST)
        assert statuses(hear(sock)) == [200]
    until(lambda: "GET /nowhere 404" in caplog.text, 10)
    ours = [record.getMessage() for record in caplog.records if record.name in ("cifar_nb", "uvicorn.error")]
    assert not any("secret" in said or "websockets" in said for said in ours), ours
    assert server_config(create_app()).ws == "none"  # also where a library for them is installed


def test_a_length_of_many_zeros(url):
    sent = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + b"0" * 5000
    assert statuses(ask(url, sent + b"\r\n\r\n")) == [422]


REFUSED = {
    "a wrong key": (401, "/predict", {"X-API-Key": "open sesamf"}),
    "a foreign page": (403, "/predict", {**KEY, "Origin": "https://evil.example"}),
    "a foreign host": (421, "/predict", {**KEY, "Host": "evil.example"}),
    "a route that is not there": (404, "/nowhere", KEY),
    "a route for GET": (405, "/metrics", KEY),
    "another content type": (415, "/predict", {**KEY, "Content-Type": "text/plain"}),
    "two boundaries": (400, "/predict", {**KEY, "Content-Type": f"{FORM};{'a' * 300}"}),
}


@pytest.mark.parametrize("status, path, headers", REFUSED.values(), ids=REFUSED)
def test_a_client_that_sends_first_and_reads_then_hears_a_refusal(locked, status, path, headers):
    "Python's urllib sends the whole body, asks for the connection to be closed, and then reads."
    for _ in range(3):
        request = urllib.request.Request(locked + path, bytes(9_000_000), headers)
        with pytest.raises(urllib.error.HTTPError) as answer: urllib.request.urlopen(request, timeout=30)
        assert answer.value.code == status and "detail" in json.load(answer.value)


def test_a_refusal_does_not_wait_for_the_body(locked):
    with connect(locked) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        heard = sock.recv(10_000).decode()
        assert statuses(heard) == [401] and heard.endswith("}")
        sock.sendall(bytes(1000) + LAST)  # the connection lives on
        assert statuses(hear(sock)) == [200]
    assert counted(locked, 401, headers=KEY) >= 1 and counted(locked, 499, headers=KEY) == 0


def test_a_hang_up_during_pipelined_requests(caplog):
    caplog.set_level(logging.INFO)
    held = Held()
    with serving(held) as url:
        with connect(url) as sock:
            sock.sendall(PREDICT * 2)
            assert held.begun.wait(30)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(.2)
        held.go.set()
        until(lambda: counted(url, 499) == 1, 10)
        lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "/predict" in line]
        assert not any('status="200"' in line for line in lines)
    assert "Traceback" not in caplog.text and "POST /predict 499" in caplog.text


def test_a_good_image_needs_no_disk(url, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    Image.frombytes("RGB", (1200, 1200), os.urandom(4_320_000)).save(file := io.BytesIO(), "BMP")
    for path, field in (("/predict", "file"), ("/predict/batch", "files")):
        reply = httpx.post(url + path, files={field: file.getvalue()}, timeout=60)
        assert reply.status_code == 200 and "prob" in reply.text, reply.text


def test_json_of_many_small_values_is_not_parsed(url):
    content, kind = b'{"x":[' + b"[]," * 3_200_000 + b"[]]}", {"Content-Type": "application/json"}
    for path in ("/predict", "/predict_base64"):
        reply = httpx.post(url + path, content=content, headers=kind, timeout=60)
        assert reply.status_code == 422 and "1,000 commas and brackets" in reply.json()["detail"]


def test_cookies_are_not_read(url):
    "Python's own rule for quoted values needs nine seconds for these."
    cookie = 'a="' + '\\"' * 30_000 + '"'
    with ThreadPoolExecutor(1) as other:
        slow = other.submit(httpx.get, f"{url}/health", headers={"Cookie": cookie}, timeout=60)
        assert httpx.get(f"{url}/live", timeout=4).status_code == 200
        assert slow.result(4).status_code == 200


OURS = {"Host": "127.0.0.1:8000"}
CALLERS = [
    (200, {}),
    (200, OURS | {"Origin": "http://127.0.0.1:8000"}),
    (200, OURS | {"Sec-Fetch-Site": "same-origin"}),
    (200, OURS | {"Sec-Fetch-Site": "none", "Origin": "null"}),
    (200, OURS | {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:3000"}),
    (200, {"Host": "testserver"}),
    (200, {"Host": "LOCALHOST:80"}),
    (200, {"Host": "a.localhost"}),
    (200, {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}),
    (403, OURS | {"Origin": "http://127.0.0.1.evil.example"}),
    (403, OURS | {"Origin": "https://evil.example"}),
    (403, OURS | {"Origin": "null"}),
    (403, OURS | {"Origin": ""}),
    (403, OURS | {"Sec-Fetch-Site": "cross-site"}),
    (403, OURS | {"Sec-Fetch-Site": "same-site", "Origin": "http://a.localhost:3000"}),
    (403, OURS | {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:3000.evil.example"}),
    (421, {"Host": "evil.example"}),
    (421, {"Host": "evil.example:8000", "Sec-Fetch-Site": "same-origin"}),
    (421, {"Host": "127.0.0.1.evil.example"}),
    (421, {"Host": "localhost."}),
    (421, {"Host": ""}),
]


@pytest.mark.parametrize("status, headers", CALLERS)
def test_who_may_send(url, status, headers):
    reply = httpx.post(f"{url}/predict", files={"file": PNG}, headers=headers)
    assert reply.status_code == status, reply.text
    if status != 200: assert set(reply.json()) == {"detail"} and "evil" not in reply.text
    read = httpx.get(f"{url}/live", headers=headers).status_code
    assert read == (421 if status == 421 else 200)


def test_no_answer_leads_to_a_foreign_host():
    with serving(allowed_hosts=["*"]) as url:
        for path in ("/metrics/", "/static", "/docs/", "/swagger", "/swagger/", "/classify", "/model/"):
            reply = httpx.get(url + path, headers={"Host": "evil.example"})
            assert "evil" not in reply.headers.get("location", "") + reply.text, path


ROUTES = ("/", "/live", "/health", "/classes", "/model", "/metrics", "/docs", "/redoc", "/openapi.json",
          "/static/page.js", "/swagger/")


@pytest.mark.parametrize("path", ROUTES)
def test_head_is_get_without_a_body(url, path):
    got, head = httpx.get(url + path), httpx.head(url + path)
    assert head.status_code == got.status_code and head.content == b""
    for name in ("content-type", "content-security-policy", "location", "etag"):
        assert head.headers.get(name) == got.headers.get(name)
    if path != "/metrics": assert head.headers["content-length"] == got.headers["content-length"]
    assert httpx.head(f"{url}/predict").status_code == 405
    if path == "/live": assert 'method="HEAD",route="/live"' in httpx.get(f"{url}/metrics").text
