"Told to stop behind a load balancer: not ready at once, answering for a while, and no request is lost."
import os
import signal
import time
from collections import Counter
from threading import Event, Thread

import httpx
import pytest
from tools.files import PNG
from tools.server import service, until

SECONDS = 3


class Client(Thread):
    "Sends requests one after the other until the port is closed, and counts what comes back."
    def __init__(self, url, keep_alive):
        super().__init__()
        self.url, self.keep_alive = url, keep_alive
        self.seen, self.refused = [], Event()

    def run(self):
        with httpx.Client(timeout=60) as client:
            headers = {} if self.keep_alive else {"Connection": "close"}
            while not self.refused.is_set():
                try:
                    reply = client.post(f"{self.url}/predict", content=PNG, headers=headers)
                    self.seen.append(str(reply.status_code))
                except httpx.ConnectError: self.refused.set()
                except httpx.TransportError as e: self.seen.append(f"{type(e).__name__}: {e}")


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost(tmp_path, workers):
    flags = ("--workers", str(workers), "--drain-seconds", str(SECONDS), "--log-json")
    with service(tmp_path, *flags) as it:
        it.fleet(workers)
        clients = [Client(it.url, keep_alive=i % 2 == 0) for i in range(24)]
        for client in clients: client.start()
        until(lambda: all(len(client.seen) >= 3 for client in clients))
        before = sum(len(client.seen) for client in clients)
        start = time.monotonic()
        it.process.send_signal(signal.SIGTERM)
        time.sleep(.2)
        health = it.get("/health")
        assert health.status_code == 503 and "stopping" in health.json()["detail"]
        assert health.headers["connection"] == "close" and it.get("/live").status_code == 200
        for client in clients: client.join(60)
        took = time.monotonic() - start
        code = it.process.wait(60)
    lost = Counter(seen for client in clients for seen in client.seen if seen != "200")
    assert not lost and code == 0, (lost, code)
    assert sum(len(client.seen) for client in clients) > before + 24
    assert SECONDS - .5 < took < SECONDS + 10
    assert not [record for record in it.records() if "trace" in record]


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_does_not_wait_and_ends_a_drain(tmp_path, workers):
    for first in (None, signal.SIGTERM):
        folder = tmp_path / str(first)
        with service(folder, "--workers", str(workers), "--drain-seconds", "50") as it:
            it.fleet(workers)
            if first is not None:
                it.process.send_signal(first)
                until(lambda: it.get("/health").status_code == 503, 10)
            os.killpg(it.process.pid, signal.SIGINT)  # as a terminal sends it
            assert it.process.wait(20) == 0
            assert not [line for line in it.lines() if "Traceback" in line]


def test_signals_that_come_twice_change_nothing(tmp_path):
    "systemd tells every process of a service to stop, and the supervisor tells its workers too."
    with service(tmp_path, "--workers", "2", "--drain-seconds", "2") as it:
        it.fleet(2)
        start = time.monotonic()
        os.killpg(it.process.pid, signal.SIGTERM)
        time.sleep(1.2)
        assert httpx.post(f"{it.url}/predict", content=PNG, timeout=60).status_code == 200
        assert it.process.wait(30) == 0 and time.monotonic() - start > 1.9
