"Many clients at once: a full queue, and a wait that is too long. The model computes when it is told to."
import base64
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
from tools.files import JPEG
from tools.models import Held
from tools.server import until

from cifar_nb.core import ModelError
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings


def send(url): return httpx.post(f"{url}/predict", files={"file": JPEG}, timeout=60)


def test_many_clients_get_answers_or_a_polite_no():
    settings, held = ServiceSettings(max_waiting=8, max_wait=60, backend="eager"), Held()
    with served(create_app(settings, held)) as url, ThreadPoolExecutor(20) as clients:
        coming = [clients.submit(send, url) for _ in range(20)]
        try: until(lambda: sum(reply.done() for reply in coming) >= 12, 30)
        finally: held.go.set()
        replies = [reply.result() for reply in coming]
    assert sorted(r.status_code for r in replies) == [200] * 8 + [503] * 12
    assert all("retry-after" in r.headers for r in replies if r.status_code == 503)


def test_a_batch_waits_no_longer_than_promised():
    settings, held = ServiceSettings(max_wait=.5, backend="eager"), Held()
    with served(create_app(settings, held)) as url, ThreadPoolExecutor(2) as clients:
        first = clients.submit(send, url)
        try:
            assert held.begun.wait(30)
            second = send(url)
            assert second.status_code == 503 and "0.5 seconds" in second.text and not first.done()
        finally: held.go.set()
        assert first.result().status_code == 200  # its turn had come


def test_the_health_check_does_not_wait_for_the_model():
    held = Held()
    with served(create_app(ServiceSettings(backend="eager"), held)) as url, ThreadPoolExecutor(1) as clients:
        first = clients.submit(send, url)
        try:
            assert held.begun.wait(30)
            assert httpx.get(f"{url}/health", timeout=10).status_code == 200 and not first.done()
            assert "cifar_nb_waiting_images 1.0" in httpx.get(f"{url}/metrics").text.splitlines()
        finally: held.go.set()
        assert first.result().status_code == 200
        assert "cifar_nb_waiting_images 0.0" in httpx.get(f"{url}/metrics").text.splitlines()


def test_a_storm_of_reloads_is_two_and_delays_nobody():
    app = create_app(ServiceSettings(backend="eager", api_key="open sesame"), Predictor.load("simple"))
    slot, go, begun, asked = app.state.engine.slot, Event(), [], []
    read, ask = slot._read, slot.reload

    def slowly():
        begun.append(1)
        assert go.wait(60)
        if len(begun) == 3: raise ModelError("the third file is damaged")
        return read()
    slot._read, slot.reload = slowly, lambda: asked.append(1) or ask()
    key, encoded = {"X-API-Key": "open sesame"}, base64.b64encode(JPEG).decode()
    with served(app) as url, ThreadPoolExecutor(40) as clients:
        def reload(_): return httpx.post(f"{url}/model/reload", headers=key, timeout=60).status_code
        storm = [clients.submit(reload, i) for i in range(40)]
        try:
            until(lambda: begun and len(asked) == 40, 30)
            reply = httpx.post(f"{url}/predict", json={"image_base64": encoded}, headers=key, timeout=20)
            assert reply.status_code == 200
            assert httpx.get(f"{url}/metrics", headers=key, timeout=20).status_code == 200
        finally: go.set()
        assert [one.result() for one in storm] == [200] * 40
        assert len(begun) == slot.generation - 1 == 2
        assert reload(0) == 409 and slot.predictor is not None


def test_the_health_check_notices_a_model_that_is_stuck():
    held, settings = Held(), ServiceSettings(backend="eager", max_wait=.5)
    with served(create_app(settings, held)) as url, ThreadPoolExecutor(1) as clients:
        def health(): return httpx.get(f"{url}/health", timeout=10)
        first = clients.submit(send, url)
        try:
            assert held.begun.wait(30)
            until(lambda: health().status_code == 503, 10)
            assert "one batch" in health().json()["detail"]
        finally: held.go.set()
        assert first.result().status_code == 200
        until(lambda: health().status_code == 200, 10)


class Quits(Held):
    "A network of one's own whose code ends the process."
    def answers(self, *args, **options): raise SystemExit


def test_a_network_that_calls_exit_fails_its_images_and_not_the_service():
    quits = Quits()
    with served(create_app(ServiceSettings(backend="eager"), quits)) as url:
        assert [send(url).status_code for _ in range(3)] == [500] * 3
        assert "failed on the last 3 batches" in httpx.get(f"{url}/health", timeout=10).json()["detail"]
