"A server in a process of its own, and what can be seen of it from outside."
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

COMMAND = Path(sys.executable).with_name("cifar-nb")


def until(true, seconds=120):
    "Ask until the answer is yes."
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"still not so after {seconds} seconds"
        time.sleep(.1)
    return found


@dataclass
class Service:
    process: subprocess.Popen
    folder: Path  # Has `home`, where the process works, `tmp`, where temporary files go, and its log
    url: str = ""
    headers: dict | None = None  # Sent with each question

    def lines(self): return (self.folder / "log").read_text(encoding="utf-8").splitlines()

    def records(self): return [json.loads(line) for line in self.lines()[1:]]

    def get(self, path, **more):
        "An answer over a new connection, which any of the processes may give."
        headers = {**(self.headers or {}), "Connection": "close"}
        return httpx.get(self.url + path, headers=headers, timeout=60, **more)

    def health(self): return self.get("/health").json()

    def healthy(self):
        assert self.process.poll() is None, self.lines()[-20:]
        try: return self.get("/health").status_code == 200
        except httpx.TransportError: return False

    def address(self):
        assert self.process.poll() is None, self.lines()[-20:]
        found = re.search(r"page (http\S+)/ ", (self.lines() or [""])[0])
        return found and found[1]

    def left_behind(self):
        "Files in the two folders that were empty; PyTorch makes an empty folder when it is imported."
        found = [p for name in ("home", "tmp") for p in (self.folder / name).rglob("*")]
        return {str(p.relative_to(self.folder)) for p in found if not p.name.startswith("torchinductor_")}

    def memory(self):
        "Bytes of all its processes; what they have in common counts several times."
        total, root = 0, psutil.Process(self.process.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error): total += process.memory_info().rss
        return total

    def workers(self):
        "Process numbers of those that answer; multiprocessing's resource tracker is a child too."
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it may end meanwhile
                if any("spawn_main" in word for word in child.cmdline()): found.append(child.pid)
        return sorted(found)

    def fleet(self, n=2, seconds=120):
        "What `/health` says in each of `n` processes, by process number."
        def ask():
            found = {}
            for _ in range(60):
                with suppress(httpx.TransportError, ValueError):
                    said = self.health()
                    found[said["pid"]] = said
                if len(found) == n and all(one["model_loaded"] for one in found.values()): return found
            return None
        return until(ask, seconds)

    def counted(self, pattern):
        "The sum of all metrics whose line matches."
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(pattern, line))

    def stop(self, seconds=60):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def service(folder, *flags, at_address=lambda it: None, headers=None, ready=True, **environment):
    """`cifar-nb serve` in empty folders, at a port of its choice.

    `at_address` is called as soon as it has one; `ready=False` does not wait for a model."""
    for name in ("home", "tmp"): (folder / name).mkdir(parents=True)
    command = [COMMAND, "serve", "--port", "0", "--backend", "eager", "--max-wait", "60", *flags]
    # Most tests have no load balancer to wait for
    places = {"TMPDIR": str(folder / "tmp"), "CIFAR_NB_DRAIN_SECONDS": "0",
              "CIFAR_NB_DATA_DIR": str(folder / "data")}  # where the choice of a backend is kept
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder / "home", stderr=log, start_new_session=True,
                                   env={**os.environ, **places, **environment})
    it = Service(process, folder, headers=headers)
    try:
        it.url = until(it.address)
        at_address(it)
        if ready: until(it.healthy)
        yield it
    finally:
        with suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()


@contextmanager
def watch_memory(it):
    "The growth of a server's memory while the block runs: the last number of the list."
    before, grown, end = it.memory(), [0], threading.Event()

    def watch():
        while not end.wait(.02): grown.append(max(grown[-1], it.memory() - before))
    thread = threading.Thread(target=watch)
    thread.start()
    try: yield grown
    finally:
        end.set()
        thread.join()
