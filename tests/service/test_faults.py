"Several processes on a machine in trouble: a killed supervisor, a full disk, no descriptors."
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psutil
import pytest
from tools.files import PNG
from tools.server import service, until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux changes the limits of another process")


def processes(it): return [it.process.pid, *it.workers()]


def requests(it): return it.counted(r'cifar_nb_requests_total\{.*route="/live",status="200"')


def ask(it, times):
    for _ in range(times): it.get("/live").raise_for_status()


def predict(it):
    headers = {"Connection": "close"}
    return httpx.post(f"{it.url}/predict", files={"file": PNG}, headers=headers, timeout=60).status_code


def ended(pid):
    try: return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return True


def refused(it):
    "Whether nobody listens at the port."
    host, port = it.url.removeprefix("http://").split(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1): return False
    return True


def test_workers_end_with_a_supervisor_that_is_killed(tmp_path):
    with service(tmp_path, "--workers", "2") as it:
        it.fleet()
        workers = it.workers()
        assert any(name.startswith("tmp/cifar_nb_") for name in it.left_behind())
        it.process.kill()
        until(lambda: all(map(ended, workers)) and refused(it), 30)
        assert it.left_behind() == set()
        port = it.url.rpartition(":")[2]
        with service(tmp_path / "next", "--port", port) as new: assert predict(new) == 200


@contextmanager
def full_tmpfs(it):
    "The temporary folder is a small file system of its own, and full."
    with open(it.folder / "small" / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)): pass
    yield
    (it.folder / "small" / "filler").unlink()


@contextmanager
def no_more_bytes(it):
    "No process can make a file longer than a byte, its log included; new workers inherit that."
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in processes(it)}
    for pid, (_, hard) in before.items(): resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    yield
    for pid in processes(it): resource.prlimit(pid, resource.RLIMIT_FSIZE, before[it.process.pid])


@contextmanager
def mounted(folder):
    "A small file system at `folder`, where that is allowed."
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    try: done = subprocess.run(command, capture_output=True)
    except FileNotFoundError: pytest.skip("there is no `mount`")
    if done.returncode: pytest.skip("this user may not mount a file system")
    try: yield
    finally: subprocess.run(["umount", "-l", folder], check=True)


@LINUX
@pytest.mark.parametrize("how", [full_tmpfs, no_more_bytes])
def test_counters_and_workers_survive_a_full_disk(tmp_path, how):
    with ExitStack() as stack:
        places = {}
        if how is full_tmpfs:
            stack.enter_context(mounted(tmp_path / "small"))
            places["TMPDIR"] = str(tmp_path / "small")
        it = stack.enter_context(service(tmp_path, "--workers", "2", **places))
        it.fleet()
        ask(it, 20)
        until(lambda: requests(it) == 20, 10)
        old = it.workers()
        with how(it):
            ask(it, 10)
            assert {predict(it) for _ in range(10)} == {200}  # classes and routes that have no number yet
            assert it.workers() == old  # nobody died of it
            os.kill(old[0], signal.SIGKILL)  # what it has counted before stays
            new = until(lambda: len(it.workers()) == 2 and it.workers() != old and it.workers())
            until(lambda: set(it.fleet()) == set(new))
            assert {predict(it) for _ in range(10)} == {200}
            sofar = requests(it)
            assert sofar >= 20
            ask(it, 10)
        ask(it, 40)  # each process writes what it could not write
        until(lambda: requests(it) >= 70, 20)
        assert it.workers() == new and requests(it) <= 80
        assert it.stop() == 0
        assert not [line for line in it.lines() if "Traceback" in line]


@LINUX
def test_no_descriptors_left(tmp_path):
    with service(tmp_path, "--workers", "2") as it:
        it.fleet()
        workers = it.workers()
        assert {predict(it) for _ in range(20)} == {200}  # Pillow imports its readers with the first image
        for pid in workers:
            hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds() + 10, hard))
        host, port = it.url.removeprefix("http://").split(":")
        with httpx.Client(base_url=it.url) as early:
            early.get("/live")
            idle = [socket.create_connection((host, int(port))) for _ in range(100)]
            reply = early.post("/predict", files={"file": PNG})
            assert reply.status_code == 200, reply.text
            assert early.get("/metrics").status_code in (200, 503)
            busy = [psutil.Process(pid).cpu_percent(1) for pid in workers]
            assert max(busy) < 50, busy  # they do not spin
        for each in idle: each.close()
        until(lambda: predict(it) == 200, 10)
        assert it.workers() == workers and len(it.fleet()) == 2
        assert not [line for line in it.lines() if "Traceback" in line]
