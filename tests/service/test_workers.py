"Several processes behind one port: counted together, killed, told of another model, and stopped, under load."
import base64
import os
import re
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from tools.files import BASE, PNG, saved
from tools.server import service, until

WEIGHTS = Path(str(files("cifar_nb.weights")))
KEY = {"X-API-Key": "open sesame"}


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


@contextmanager
def two_workers(folder, model):
    settings = dict(CIFAR_NB_MODEL=str(model), CIFAR_NB_API_KEY=KEY["X-API-Key"])
    with service(folder, "--workers", "2", "--log-json", headers=KEY, **settings) as it:
        it.fleet()
        yield it


@pytest.fixture(scope="module")
def crew(tmp_path_factory, model):
    with two_workers(tmp_path_factory.mktemp("crew"), model) as it: yield it


def post(it, path="/predict", **body):
    headers = {**KEY, "Connection": "close"}  # each request may meet another process
    return httpx.post(it.url + path, headers=headers, timeout=60, **body)


@contextmanager
def load(it, clients=3):
    "Images one after the other, each over a new connection. Yields what came back: statuses, or what broke."
    seen, end = [], Event()

    def send():
        while not end.is_set():
            try: seen.append(post(it, files={"file": PNG}).status_code)
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


def generations(it): return {pid: said["generation"] for pid, said in it.fleet().items()}


def failed_loads(it): return sum(said["failed_loads"] for said in it.fleet().values())


def architectures(it, asked=60): return {it.get("/model").json()["architecture"] for _ in range(asked)}


def all_grown(it, before, more=1):
    "Whether each process has loaded so many models since, and all together `more` than that at least."
    now = generations(it)
    each = all(now[pid] > before[pid] for pid in before)
    return each and sum(now.values()) >= sum(before.values()) + more


def test_counters_add_up(crew):
    def counted(): return crew.counted(r'cifar_nb_requests_total\{.*route="/live"')
    before = counted()
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda _: crew.get("/live").raise_for_status(), range(40)))
    until(lambda: counted() == before + 40, 10)
    assert {counted() for _ in range(10)} == {before + 40}


def test_every_request_is_answered(crew):
    assert [post(crew, files={"file": PNG}).status_code for _ in range(10)] == [200] * 10
    assert crew.health()["backend"] == "eager"


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_worker_is_replaced_and_the_other_goes_on(crew, which):
    old, before = crew.workers(), generations(crew)
    done = crew.counted("cifar_nb_requests_total")

    def replaced():
        new = crew.workers()
        return len(new) == 2 and old[which] not in new and new
    with load(crew) as seen:
        os.kill(old[which], signal.SIGKILL)
        new = until(replaced)
        crew.process.send_signal(signal.SIGHUP)  # reaches a process that is still importing
        survivor, = set(old) & set(new)
        newcomer, = set(new) - set(old)
        # the newcomer loads one at its start, and one for the signal that it held back
        until(lambda: generations(crew) == {survivor: before[survivor] + 1, newcomer: 2})
    broken = [s for s in seen if s != 200]
    # those that it was answering
    assert set(broken) <= {"ReadError", "RemoteProtocolError", "WriteError"} and len(broken) <= 3, broken
    assert crew.workers() == new and crew.counted("cifar_nb_requests_total") >= done


@pytest.mark.parametrize("how", ["request", "signal"])
def test_another_model_without_a_failed_request(crew, model, how):
    first = (WEIGHTS / "simple.safetensors").read_bytes()
    other = "cifar10" if model.read_bytes() == first else "simple"
    before, count = architectures(crew), generations(crew)
    assert len(before) == 1
    with load(crew) as seen:
        put(model, (WEIGHTS / f"{other}.safetensors").read_bytes())
        if how == "signal": crew.process.send_signal(signal.SIGHUP)
        else: assert post(crew, "/model/reload").raise_for_status().json()["architecture"] not in before
        # the process that was asked reads it once more, with the other
        until(lambda: all_grown(crew, count, 2 if how == "signal" else 3))
    assert set(seen) == {200}
    after = architectures(crew)
    assert len(after) == 1 and not after & before
    assert crew.health()["model"] == "mine"


DAMAGE = {
    "cut": lambda data: data[:len(data) // 2],
    "changed": lambda data: data[:-1000] + bytes(1000),
    "empty": lambda data: b"",
    "text": lambda data: b"not a model at all",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_leaves_the_old_model_serving(crew, model, damage):
    before, good, workers = architectures(crew), model.read_bytes(), crew.workers()
    count, failed = generations(crew), failed_loads(crew)
    try:
        with load(crew) as seen:
            put(model, DAMAGE[damage](good))
            reply = post(crew, "/model/reload")
            assert reply.status_code == 409 and "mine.safetensors" in reply.json()["detail"], reply.text
            crew.process.send_signal(signal.SIGHUP)
            until(lambda: failed_loads(crew) == failed + 3, 60)
    finally: put(model, good)
    assert set(seen) == {200} and architectures(crew) == before and crew.workers() == workers
    assert generations(crew) == count


def test_a_missing_file_too(crew, model):
    before, aside = architectures(crew), model.with_suffix(".aside")
    model.rename(aside)
    try: assert post(crew, "/model/reload").status_code == 409
    finally: aside.rename(model)
    count = generations(crew)
    assert architectures(crew) == before and post(crew, "/model/reload").status_code == 200
    until(lambda: all_grown(crew, count, 3))


def test_only_the_key_reloads(crew):
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
        assert httpx.post(f"{crew.url}/model/reload", headers=headers).status_code == 401
    count, bearer = generations(crew), {"Authorization": f"Bearer {KEY['X-API-Key']}"}
    assert httpx.post(f"{crew.url}/model/reload", headers=bearer, timeout=60).status_code == 200
    until(lambda: all_grown(crew, count, 3))


def test_one_line_per_request_and_nothing_of_the_image(crew):
    before = len(crew.lines())
    text = base64.b64encode(PNG).decode()
    asked = [post(crew, files={"file": ("secret-name.png", PNG)}) for _ in range(5)]
    asked += [post(crew, "/predict_base64", json={"image_base64": text}), crew.get("/nowhere"),
              post(crew, files={"file": b"secret-text"})]
    ids = [a.headers["x-request-id"] for a in asked]

    def records(): return [r for r in crew.records() if r.get("id") in ids]
    until(lambda: len(records()) >= len(asked), 10)
    # two workers write these lines after they have answered, so their order varies
    found = sorted(records(), key=lambda r: ids.index(r["id"]))
    expected = [(i, a.status_code, a.request.method) for i, a in zip(ids, asked)]
    assert [(r["id"], r["status"], r["method"]) for r in found] == expected
    assert [r["route"] for r in found] == ["/predict"] * 5 + ["/predict_base64", "other", "/predict"]
    assert all(r["ms"] >= 0 and r["level"] == "INFO" for r in found)
    log = "\n".join(crew.lines()[before:])
    for secret in ("secret", text[:40], "IHDR", KEY["X-API-Key"]): assert secret not in log
    assert not any("trace" in r for r in crew.records())


class HalfSent:
    "An image of which one half has been sent, to a server that has let it in."
    def __init__(self, url, image=PNG):
        host, port = url.removeprefix("http://").split(":")
        request = httpx.Request("POST", url, files={"file": image})
        kind, body = request.headers["content-type"], request.read()
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.rest = body[len(body) // 2:]
        self.answer = self.socket.makefile("rb")
        head = ("POST /predict HTTP/1.1", f"Host: {host}", f"X-API-Key: {KEY['X-API-Key']}",
                "Connection: close", "Expect: 100-continue", f"Content-Type: {kind}",
                f"Content-Length: {len(body)}", "", "")
        self.socket.sendall("\r\n".join(head).encode())
        # sent when the body is first asked for
        assert b" 100 " in self.answer.readline() and self.answer.readline() == b"\r\n"
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


def stop_while_busy(it, images=12):
    """Statuses of requests that had begun when the server was told to stop, and its exit code.

    Meanwhile it takes no new ones."""
    large = saved(BASE.resize((2000, 2000)), "PNG")
    upload, *others = HalfSent(it.url), *(HalfSent(it.url, large) for _ in range(images))
    with ThreadPoolExecutor(images) as clients:
        replies = [clients.submit(other.finish) for other in others]
        # some of the others wait for the model
        until(lambda: upload.drip() or any(reply.done() for reply in replies))
        it.process.send_signal(signal.SIGTERM)
        until(lambda: upload.drip() or refused(it.url), 20)
        assert it.process.poll() is None
        late = upload.finish()
        return [late, *(reply.result() for reply in replies)], it.process.wait(60)


def test_told_to_stop_they_finish_what_has_begun(tmp_path):
    with two_workers(tmp_path, WEIGHTS / "cifar10.safetensors") as it:
        statuses, code = stop_while_busy(it)
        assert (statuses, code) == ([200] * 13, 0)
        with pytest.raises(httpx.ConnectError): httpx.get(f"{it.url}/live")
        assert it.left_behind() == set()
        assert all({"time", "level", "message"} <= set(r) and "trace" not in r for r in it.records())


def test_a_single_process_finishes_too_and_reloads_nothing_without_a_key(tmp_path):
    model = tmp_path / "mine.safetensors"
    put(model, (WEIGHTS / "cifar10.safetensors").read_bytes())

    def hang_up(it): it.process.send_signal(signal.SIGHUP)  # which it survives
    with service(tmp_path / "it", "--backend", "auto", at_address=hang_up, CIFAR_NB_MODEL=str(model)) as it:
        reply = httpx.post(f"{it.url}/model/reload", headers=KEY, timeout=60)
        assert reply.status_code == 403 and "CIFAR_NB_API_KEY" in reply.json()["detail"]
        before = it.get("/model").json()["architecture"]
        put(model, (WEIGHTS / "simple.safetensors").read_bytes())
        hang_up(it)  # while the backends race: the new model waits for the end of that
        until(lambda: it.get("/model").json()["architecture"] != before, 300)
        health = it.health()
        assert not health["racing"] and re.fullmatch("(eager|bfloat16|openvino|and| )+", health["backend"])
        statuses, code = stop_while_busy(it)
        assert (statuses, code) == ([200] * 13, 0)
        assert it.left_behind() == set() and not [line for line in it.lines() if "Traceback" in line]
