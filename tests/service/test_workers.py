"Several processes behind one port: counted together, killed, told of another model, and stopped, under load."
import base64
import io
import os
import re
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from PIL import Image
from tools.server import service, until

from cifar_nb.data import synthetic

WEIGHTS = Path(str(files("cifar_nb.weights")))
KEY = {"X-API-Key": "open sesame"}


def png(size=(61, 47)):
    Image.fromarray(synthetic("test").pixels[7].permute(1, 2, 0).numpy()).resize(size).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


PNG = png()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A file that the tests replace."
    path = tmp_path_factory.mktemp("model") / "mine.safetensors"
    shutil.copy(WEIGHTS / "cifar10.safetensors", path)
    return path


def put(path, data):
    "Replace a model file in one step, as a careful person would."
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


@pytest.fixture(scope="module")
def crew(tmp_path_factory, model):
    with service(tmp_path_factory.mktemp("crew"), "--workers", "2", "--log-json", CIFAR_NB_MODEL=str(model), CIFAR_NB_API_KEY=KEY["X-API-Key"]) as it:
        until(lambda: len(it.workers()) == 2)
        it.client = httpx.Client(base_url=it.url, timeout=60, headers={**KEY, "Connection": "close"})  # each request may meet another process
        until(lambda: started(it) == loaded(it) == 2)
        yield it
        it.client.close()


@contextmanager
def load(it, clients=3):
    "Pictures one after the other, each over a new connection. Yields what came back: statuses, or what broke."
    seen, end = [], Event()

    def send():
        with httpx.Client(base_url=it.url, timeout=60, headers={**KEY, "Connection": "close"}) as client:
            while not end.is_set():
                try: seen.append(client.post("/predict", files={"file": PNG}).status_code)
                except httpx.TransportError as e: seen.append(type(e).__name__)
    threads = [Thread(target=send) for _ in range(clients)]
    for thread in threads: thread.start()
    try:
        until(lambda: len(seen) > 10)
        yield seen
        before = len(seen)
        until(lambda: len(seen) > before + 10)
    finally:
        end.set()
        for thread in threads: thread.join()


def counted(it, route="/live"): return sum(float(n) for n in re.findall(rf'^cifar_nb_requests_total{{[^}}]*route="{route}"[^}}]*}} (\S+)', it.client.get("/metrics").text, re.M))


def started(it): return sum("Application startup complete" in line for line in it.lines())


def loaded(it): return sum("model mine loaded" in line for line in it.lines())


def networks(it, asked=60): return {it.client.get("/model").json()["architecture"] for _ in range(asked)}


def test_counters_add_up(crew):
    before = counted(crew)
    with ThreadPoolExecutor(4) as crowd: list(crowd.map(lambda _: crew.client.get("/live").raise_for_status(), range(40)))
    until(lambda: counted(crew) == before + 40, 10)
    assert {counted(crew) for _ in range(10)} == {before + 40}


def test_every_request_is_answered(crew):
    assert [crew.client.post("/predict", files={"file": PNG}).status_code for _ in range(10)] == [200] * 10
    assert crew.client.get("/health").json()["backend"] == "eager"


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_worker_is_replaced_and_the_other_goes_on(crew, which):
    old, done, before, models = crew.workers(), counted(crew), started(crew), loaded(crew)

    def replaced():
        new = crew.workers()
        return len(new) == 2 and old[which] not in new and new
    with load(crew) as seen:
        os.kill(old[which], signal.SIGKILL)
        new = until(replaced)
        crew.process.send_signal(signal.SIGHUP)  # reaches a process that is still importing
        until(lambda: started(crew) == before + 1 and loaded(crew) == models + 3)  # at its start, and both for the signal
    broken = [s for s in seen if s != 200]
    assert set(broken) <= {"ReadError", "RemoteProtocolError", "WriteError"} and len(broken) <= 3, broken  # those that it was answering
    assert crew.workers() == new and old[1 - which] in new and counted(crew) >= done


@pytest.mark.parametrize("how", ["request", "signal"])
def test_another_model_without_a_failed_request(crew, model, how):
    name = "cifar10" if model.read_bytes() == (WEIGHTS / "simple.safetensors").read_bytes() else "simple"
    before, models = networks(crew), loaded(crew)
    assert len(before) == 1
    with load(crew) as seen:
        put(model, (WEIGHTS / f"{name}.safetensors").read_bytes())
        if how == "signal": crew.process.send_signal(signal.SIGHUP)
        else: assert crew.client.post("/model/reload").raise_for_status().json()["architecture"] not in before
        until(lambda: loaded(crew) == models + (2 if how == "signal" else 3))  # who was asked reads it once more, with the other
    assert set(seen) == {200}
    after = networks(crew)
    assert len(after) == 1 and not after & before
    assert crew.client.get("/health").json()["model"] == "mine"


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: data[:-1000] + bytes(1000), lambda data: b"", lambda data: b"no model at all"], ids=["cut", "changed", "empty", "text"])
def test_a_damaged_file_leaves_the_old_model_serving(crew, model, damage):
    before, good, workers = networks(crew), model.read_bytes(), crew.workers()
    try:
        with load(crew) as seen:
            put(model, damage(good))
            reply = crew.client.post("/model/reload")
            assert reply.status_code == 409 and "mine.safetensors cannot be used as a model: " in reply.json()["detail"], reply.text
            lines = len(crew.lines())
            crew.process.send_signal(signal.SIGHUP)
            until(lambda: sum("was not reloaded" in line for line in crew.lines()[lines:]) == 2, 30)
    finally: put(model, good)
    assert set(seen) == {200} and networks(crew) == before and crew.workers() == workers


def test_a_missing_file_too(crew, model):
    before, aside = networks(crew), model.with_suffix(".aside")
    model.rename(aside)
    try: assert crew.client.post("/model/reload").status_code == 409
    finally: aside.rename(model)
    assert networks(crew) == before and crew.client.post("/model/reload").status_code == 200


def test_only_the_key_reloads(crew):
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}): assert httpx.post(f"{crew.url}/model/reload", headers=headers).status_code == 401
    assert httpx.post(f"{crew.url}/model/reload", headers={"Authorization": f"Bearer {KEY['X-API-Key']}"}, timeout=60).status_code == 200


def test_one_line_a_request_and_nothing_of_the_picture(crew):
    time.sleep(.5)
    lines = len(crew.lines())
    asked = [crew.client.post("/predict", files={"file": ("secret-name.png", PNG)}) for _ in range(5)] + [crew.client.post("/predict_base64", json={"image_base64": base64.b64encode(PNG).decode()}), crew.client.get("/nowhere"), crew.client.post("/predict", files={"file": b"secret-text"})]
    ids = [a.headers["x-request-id"] for a in asked]
    requests = lambda: [r for r in crew.records() if r.get("id") in ids]
    until(lambda: len(requests()) >= len(asked), 10)
    time.sleep(.3)
    records, text = sorted(requests(), key=lambda r: ids.index(r["id"])), "\n".join(crew.lines()[lines:])  # two workers write these lines after they have answered, so their order varies
    assert [(r["id"], r["status"], r["method"]) for r in records] == [(i, a.status_code, a.request.method) for i, a in zip(ids, asked)]
    assert [r["route"] for r in records] == ["/predict"] * 5 + ["/predict_base64", "other", "/predict"]
    assert all(r["ms"] >= 0 and r["level"] == "INFO" for r in records)
    assert "secret" not in text and base64.b64encode(PNG)[:40].decode() not in text and "IHDR" not in text and KEY["X-API-Key"] not in text
    assert not any("trace" in r for r in crew.records())


class HalfSent:
    "A picture of which one half has been sent, to a server that has let it in."
    def __init__(self, url, picture=PNG):
        host, port = url.removeprefix("http://").split(":")
        request = httpx.Request("POST", url, files={"file": picture})
        kind, body = request.headers["content-type"], request.read()
        self.socket, self.rest = socket.create_connection((host, int(port)), timeout=60), body[len(body) // 2:]
        self.answer = self.socket.makefile("rb")
        self.socket.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {KEY['X-API-Key']}\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        assert b" 100 " in self.answer.readline() and self.answer.readline() == b"\r\n"  # sent when the body is first asked for
        self.socket.sendall(body[:len(body) // 2])

    def drip(self):
        "Send one more byte, so that the body does not stall."
        self.socket.sendall(self.rest[:1])
        self.rest = self.rest[1:]

    def finish(self):
        "Send what is left. The status of the answer."
        with self.socket:
            self.socket.sendall(self.rest)
            return int(self.answer.readline().split()[1])


def refused(url):
    "Whether a new connection is refused."
    try: httpx.get(f"{url}/live", timeout=1)
    except httpx.ConnectError: return True
    except httpx.TransportError: pass
    return False


def stopped_while_busy(it, pictures=12):
    "Statuses of requests that had begun when the server was told to stop, and its exit code. Meanwhile it takes no new ones."
    large = png((2000, 2000))
    upload, *others = HalfSent(it.url), *(HalfSent(it.url, large) for _ in range(pictures))
    with ThreadPoolExecutor(pictures) as crowd:
        replies = [crowd.submit(other.finish) for other in others]
        until(lambda: upload.drip() or any(reply.done() for reply in replies))  # some of the others wait for the model
        it.process.send_signal(signal.SIGTERM)
        until(lambda: upload.drip() or refused(it.url), 20)
        assert it.process.poll() is None
        late = upload.finish()
        return [late, *(reply.result() for reply in replies)], it.process.wait(60)


def test_told_to_stop_they_finish_what_has_begun(crew):
    statuses, code = stopped_while_busy(crew)
    assert (statuses, code) == ([200] * 13, 0)
    with pytest.raises(httpx.ConnectError): httpx.get(f"{crew.url}/live")
    assert crew.left_behind() == set() and all({"time", "level", "message"} <= set(r) for r in crew.records())
    assert not any("trace" in r for r in crew.records())


def test_a_single_process_finishes_too_and_reloads_nothing_without_a_key(tmp_path, model):
    put(model, (WEIGHTS / "cifar10.safetensors").read_bytes())
    with service(tmp_path, "--backend", "auto", at_address=lambda it: it.process.send_signal(signal.SIGHUP), CIFAR_NB_MODEL=str(model)) as it:  # which it survives
        reply = httpx.post(f"{it.url}/model/reload", headers=KEY, timeout=60)
        assert reply.status_code == 403 and "CIFAR_NB_API_KEY" in reply.json()["detail"]
        before = httpx.get(f"{it.url}/model", timeout=60).json()["architecture"]
        put(model, (WEIGHTS / "simple.safetensors").read_bytes())
        it.process.send_signal(signal.SIGHUP)  # while the back ends race: the new model waits for the end of that
        until(lambda: httpx.get(f"{it.url}/model", timeout=60).json()["architecture"] != before, 300)
        raced = until(lambda: [line for line in it.lines() if "computing with" in line])
        assert len(raced) == 1 and httpx.get(f"{it.url}/health").json()["backend"] == raced[0].split()[-1]
        statuses, code = stopped_while_busy(it)
        assert (statuses, code) == ([200] * 13, 0)
        assert it.left_behind() == set() and not [line for line in it.lines() if "Traceback" in line]
