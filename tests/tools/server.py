"A server in a process of its own, and what can be seen of it from outside."
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
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

    def lines(self): return (self.folder / "log").read_text(encoding="utf-8").splitlines()

    def records(self): return [json.loads(line) for line in self.lines()[1:]]

    def healthy(self):
        assert self.process.poll() is None, self.lines()[-20:]
        try: return httpx.get(f"{self.url}/health", timeout=30).status_code == 200
        except httpx.TransportError: return False

    def address(self):
        assert self.process.poll() is None, self.lines()[-20:]
        found = re.search(r"page (http\S+)/ ", (self.lines() or [""])[0])
        return found and found[1]

    def left_behind(self):
        "Files in the two folders that were empty; PyTorch makes an empty folder when it is imported."
        return {str(p.relative_to(self.folder)) for name in ("home", "tmp") for p in (self.folder / name).rglob("*") if not p.name.startswith("torchinductor_")}

    def memory(self): return psutil.Process(self.process.pid).memory_info().rss

    def workers(self):
        "Process numbers of those that answer; multiprocessing's resource tracker is a child too."
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if any("spawn_main" in word for word in child.cmdline()): found.append(child.pid)
            except psutil.Error: pass  # it has ended meanwhile
        return sorted(found)

    def stop(self, seconds=60):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def service(folder, *flags, at_address=lambda it: None, **environment):
    "`cifar-nb serve` in empty folders, at a port of its choice; `at_address` is called as soon as it has one."
    for name in ("home", "tmp"): (folder / name).mkdir(parents=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([COMMAND, "serve", "--port", "0", "--backend", "eager", "--max-wait", "60", *flags], cwd=folder / "home", stderr=log, start_new_session=True, env={**os.environ, "TMPDIR": str(folder / "tmp"), **environment})
    it = Service(process, folder)
    try:
        it.url = until(it.address)
        at_address(it)
        until(it.healthy)
        yield it
    finally:
        try: os.killpg(process.pid, signal.SIGKILL)  # its workers too
        except ProcessLookupError: pass
        process.wait()


@contextmanager
def watched(it):
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
