"The service as a stranger meets it: a process of its own, real pictures, and hundreds of broken ones."
import io
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from cifar_nb.core import Settings
from cifar_nb.data import synthetic
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

MODES = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "GIF": ["L", "P", "RGB"], "WEBP": ["RGB", "RGBA"], "BMP": ["1", "L", "P", "RGB"]}


def pictures():
    "One file for each format and mode."
    base = Image.fromarray(synthetic("test").pixels[7].permute(1, 2, 0).numpy()).resize((61, 47))
    for kind, modes in MODES.items():
        for mode in modes:
            file = io.BytesIO()
            (base.convert("L").convert("I").point(lambda v: v * 257).convert("I;16") if mode == "I;16" else base.convert(mode)).save(file, kind)
            yield f"{kind} {mode}", file.getvalue()


@pytest.fixture(scope="module")
def url():
    with served(create_app(Settings(max_waiting=8), Predictor.load("cifar10"))) as address: yield address


def post(url, content, name="x.png"):
    return httpx.post(f"{url}/predict", files={"file": (name, content)}, timeout=30)


def test_every_format_and_mode(url):
    for name, content in pictures():
        reply = post(url, content)
        assert reply.status_code == 200, (name, reply.text)
        assert abs(sum(reply.json()["probabilities"].values()) - 1) < 1e-5


def test_hundreds_of_broken_ones(url):
    rng, seen = random.Random(0), set()
    for name, content in pictures():
        broken = [content[:len(content) * i // 10] for i in range(10)]
        for _ in range(20):
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 20)): damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            broken.append(bytes(damaged))
        for data in broken:
            reply = post(url, data)
            assert reply.status_code in (200, 400, 413, 415, 422), (name, reply.status_code, reply.text)
            assert reply.status_code == 200 or reply.json()["detail"]
            seen.add(reply.status_code)
    assert {400, 415, 422} <= seen
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("content", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"%!PS-Adobe", b"II*\0", b"RIFF\x24\0\0\0WAVEfmt ", b"\0\0\0\x18ftypheic", b"PK\x03\x04", b"GIF9000"])
def test_other_files_are_not_pictures(url, content):
    reply = post(url, content + bytes(100), "cat.png")
    assert reply.status_code == 415 and "JPEG, PNG, GIF, WebP or BMP" in reply.json()["detail"]


def test_bombs_are_not_decoded(url):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    assert post(url, file.getvalue()).status_code == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end(url, chunked):
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'

    def stream():
        yield start
        for _ in range(300): yield bytes(100_000)
    headers = {"content-type": "multipart/form-data; boundary=x"} | ({} if chunked else {"content-length": str(30_000_000 + len(start))})
    reply = httpx.post(f"{url}/predict", content=stream(), headers=headers, timeout=30)
    assert reply.status_code == 413 and "10,000,000" in reply.json()["detail"]


def test_a_crowd_gets_answers_or_a_polite_no(url):
    content = dict(pictures())["JPEG RGB"]
    with ThreadPoolExecutor(32) as crowd: replies = list(crowd.map(lambda _: post(url, content), range(200)))
    assert {r.status_code for r in replies} <= {200, 503} and sum(r.status_code == 200 for r in replies) >= 8
    assert all("retry-after" in r.headers for r in replies if r.status_code == 503)


def test_errors_are_json_and_echo_nothing(url):
    for reply in (httpx.get(f"{url}/<script>"), httpx.get(f"{url}/predict"), httpx.post(f"{url}/predict?top_k=<script>", files={"file": b"x"}),
                  httpx.post(f"{url}/predict_base64", content=b"[" * 10_000, headers={"content-type": "application/json"})):
        assert 400 <= reply.status_code < 500 and "<script>" not in reply.json()["detail"]


def test_documentation_needs_no_network(url):
    for path in ("docs", "redoc"):
        needed = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']([^"']+)""", httpx.get(f"{url}/{path}").text)
        assert needed and all(n.startswith("/") and not n.startswith("//") for n in needed), needed
        assert all(httpx.get(url + n).status_code == 200 for n in needed)


def test_the_command_serves_and_stops():
    process = subprocess.Popen([Path(sys.executable).with_name("cifar-nb"), "serve", "--port", "0"], stderr=subprocess.PIPE, text=True, env={**os.environ, "CIFAR_NB_MODEL": "cifar10"})
    try:
        line = process.stderr.readline()
        address = line.split("page ")[1].split("/  ")[0]
        for _ in range(200):
            try: assert httpx.get(f"{address}/health").json()["model"] == "cifar10"; break
            except httpx.ConnectError: pass
        assert post(address, dict(pictures())["PNG RGB"]).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
