"Files that cost more than they should: nobody else waits for them, and no process is worse off afterwards."
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from tools.files import PNG
from tools.hostile import HOSTILE
from tools.server import service, until

KEY = "open sesame"
MAX_WAIT = 5


@pytest.fixture(scope="module")
def it(tmp_path_factory):
    flags = ("--threads", "1", "--max-wait", str(MAX_WAIT))
    with service(tmp_path_factory.mktemp("hostile"), *flags, CIFAR_NB_API_KEY=KEY) as found: yield found


@pytest.fixture
def client(it):
    with httpx.Client(base_url=it.url, timeout=60, headers={"X-API-Key": KEY}) as client: yield client


def post(client, content, path="/predict"): return client.post(path, files={"file": content})


def guards(it):
    "The decoding processes that the service has started itself, by process number."
    found = {}
    for child in psutil.Process(it.process.pid).children():
        with suppress(psutil.Error):
            if any("cifar_nb.sandbox" in word for word in child.cmdline()): found[child.pid] = child
    return found


def test_nobody_waits_for_a_hostile_file(it, client):
    post(client, PNG)
    before = it.memory()
    with ThreadPoolExecutor(1) as attacker:
        for name, make in HOSTILE.items():
            attack = attacker.submit(post, client, make())
            while not attack.done():
                start = time.monotonic()
                assert post(client, PNG).status_code == 200, name
                assert time.monotonic() - start < MAX_WAIT + .5, name
            reply = attack.result()
            assert reply.status_code in {200, 413, 415, 422} or "retry-after" in reply.headers, (name, reply)
    assert it.get("/health").status_code == 200
    until(lambda: it.memory() < 1.1 * before, 20)
    assert not any("Traceback" in line for line in it.lines())


def test_a_killed_image_costs_only_itself(tmp_path):
    "With a limit that every large image exceeds, so that each of them is killed."
    with service(tmp_path, "--threads", "1", "--max-decode-seconds", ".05") as it:
        with httpx.Client(base_url=it.url, timeout=60) as client, ThreadPoolExecutor(4) as attackers:
            large = HOSTILE["jpeg_progressive"]()
            attacks = [attackers.submit(post, client, large) for _ in range(12)]
            assert all(post(client, PNG).status_code == 200 for _ in range(30))
            replies = [attack.result() for attack in attacks]
            assert {reply.status_code for reply in replies} == {413}
            assert "0.05 seconds" in replies[0].json()["detail"]
            assert post(client, large, "/explain").status_code == 413
        assert not any('"ERROR"' in line or "Traceback" in line for line in it.lines())


def test_processes_that_decode_are_replaced_when_they_die(it, client):
    before = guards(it)
    assert len(before) == 2
    for guard in before.values(): guard.send_signal(signal.SIGKILL)
    until(lambda: len(guards(it)) == 2 and not guards(it).keys() & before.keys())
    assert post(client, PNG).status_code == 200
    # and so are the workers that they fork
    for guard in guards(it).values():
        for worker in guard.children(): worker.kill()
    assert all(post(client, PNG).status_code == 200 for _ in range(5))


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the system does not show environments")
def test_a_process_that_decodes_knows_no_secret(it):
    for pid in guards(it): assert KEY not in Path(f"/proc/{pid}/environ").read_text()


def test_processes_that_decode_end_with_the_service(tmp_path):
    with service(tmp_path, "--threads", "1") as it:
        def family(): return [each for guard in guards(it).values() for each in (guard, *guard.children())]
        until(lambda: len(family()) == 4)  # each guard forks its worker in its own time
        processes = family()
        it.process.kill()
        until(lambda: not any(process.is_running() for process in processes), 20)
