"""The service next to three others, under a real load generator.

    python benchmarks/serve.py compare | alike | start | soak

Needs wrk (Debian's package of that name) and, for `compare` and `alike`, `pip install litserve bentoml` as
well. Every side serves the bundled model; both commands start them in turn, several times, and report
medians. The others' servers are in `benchmarks/servers`. In `compare` they compute with PyTorch, as their
documentation shows, and ours chooses its backend at the start, so each row says which it was. In `alike` all
sides compute with one backend and decode with our functions, so only the frameworks differ.
"""
import argparse
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import httpx
import numpy as np
import psutil
from machine import RESULTS, conditions, write
from PIL import Image, ImageFilter

BIN = Path(sys.executable).parent
SERVERS = Path(__file__).resolve().parent / "servers"
CLIENTS = (1, 8, 64, 256)


def photo(size=(400, 300), least=30_000):
    "A JPEG of about 30 kB: smooth colours with some grain."
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    grain = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    smooth = coarse.resize(size, Image.Resampling.BICUBIC)
    image = Image.blend(smooth, grain.filter(ImageFilter.GaussianBlur(1)), .35)
    for quality in range(50, 100):
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        if len(file.getvalue()) >= least: break
    return file.getvalue()


@dataclass
class Side:
    "How a server is started: words of a command, in which PORT stands for the port."
    command: list
    environment: dict


OURS = [str(BIN / "cifar-nb"), "serve", "--port", "PORT"]


def others(added, environment):
    "The sides of the other frameworks; `added` is what their names end with."
    python = str(BIN / "python")
    uvicorn = ["-m", "uvicorn", "plain:app", "--port", "PORT", "--log-level", "warning"]
    return {
        f"FastAPI, as documented{added}": Side([python, *uvicorn], environment),
        f"FastAPI, 2 workers of 1 thread{added}":
            Side([python, *uvicorn, "--workers", "2"], environment | {"OMP_NUM_THREADS": "1"}),
        f"LitServe, batches, 2 workers{added}": Side([python, "lit.py", "PORT"], environment),
        f"BentoML, adaptive batches, 2 workers{added}":
            Side([python, "-m", "bentoml", "serve", "bento:Service", "--port", "PORT"], environment),
    }


def sides():
    """Every side by name.

    The others compute as documented, and again in the 16 bits that ours may choose."""
    found = {
        "cifar_nb, 1 worker": Side(OURS, {}),
        "cifar_nb, 2 workers": Side([*OURS, "--workers", "2"], {}),
    }
    for dtype, added in (("float32", ""), ("bfloat16", ", bfloat16")):
        found |= others(added, {"DTYPE": dtype})
    return found


def alike_sides(backend):
    "Every side with one backend, and again without the processor's units for 16 bits."
    found = {}
    for isa, added in (("", f", {backend}"), ("AVX512_CORE", f", {backend} in float32")):
        shared = {"BACKEND": backend, "CIFAR_NB_BACKEND": backend}
        if isa: shared["ONEDNN_MAX_CPU_ISA"] = isa
        found[f"cifar_nb, 1 worker{added}"] = Side(OURS, shared)
        found[f"cifar_nb, 2 workers{added}"] = Side([*OURS, "--workers", "2"], shared)
        found |= others(added, shared)
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def multipart(image):
    "The image as a form, and its content type."
    request = httpx.Request("POST", "http://test", files={"file": ("photo.jpg", image, "image/jpeg")})
    return request.read(), request.headers["content-type"]


class Server:
    "A side that runs, and how long it took to its first answer."
    def __init__(self, side, folder, form, kind):
        port, start = free_port(), time.perf_counter()
        self.url = f"http://127.0.0.1:{port}"
        self.log = Path(folder, "log.txt")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CIFAR_NB_")}
        clean |= {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder), **side.environment}
        command = [word.replace("PORT", str(port)) for word in side.command]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=SERVERS, env=clean, stdout=log, stderr=log,
                                            start_new_session=True)
        try: self.wait_for_answer(form, kind, start + 120)
        except BaseException:
            self.stop()
            raise
        self.start = time.perf_counter() - start

    def wait_for_answer(self, form, kind, end):
        "Raises `SystemExit` with the end of the log when the side does not start."
        headers = {"Content-Type": kind}
        while True:
            with suppress(httpx.TransportError):
                reply = httpx.post(f"{self.url}/predict", content=form, headers=headers, timeout=30)
                if reply.status_code == 200: return
            if self.process.poll() is not None or time.perf_counter() > end:
                raise SystemExit(self.log.read_text()[-2000:])
            time.sleep(.02)

    def health(self):
        "What one of our processes says; None for the other sides."
        with suppress(httpx.TransportError, ValueError):
            said = httpx.get(f"{self.url}/health", timeout=10, headers={"Connection": "close"}).json()
            return said if "backend" in said else None

    def settle(self, workers):
        "Wait until each of our processes has chosen its backend. The backend, or None for the other sides."
        time.sleep(2)
        if self.health() is None: return None
        settled, end = {}, time.monotonic() + 60
        while len(settled) < workers and time.monotonic() < end:
            said = self.health()
            if said and not said["racing"]: settled[said["pid"]] = said["backend"]
            time.sleep(.1)
        return " and ".join(sorted(set(settled.values())))

    def family(self):
        "The process and all that it started."
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def memory(self):
        "Proportional share of memory, in MB."
        total = 0
        for process in self.family():
            with suppress(psutil.Error): total += process.memory_full_info().pss
        return round(total / 2**20)

    def cpu(self):
        "Processor time used so far, in seconds."
        total = 0
        for process in self.family():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError): os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired): self.process.wait(30)


LUA = """
wrk.method = "POST"
local f = io.open("%s", "rb"); wrk.body = f:read("*all"); f:close()
wrk.headers["Content-Type"] = "%s"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"requests": %%d, "seconds": %%f, "not_ok": %%d, "broken": %%d, ',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout))
  io.write(string.format('"p50": %%f, "p95": %%f, "p99": %%f}\\n',
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
"""


class Workshop:
    "A folder with the form, its kind, and wrk's script."
    def __init__(self, folder):
        self.folder = folder
        self.form, self.kind = multipart(photo())
        Path(folder, "form").write_bytes(self.form)
        self.script = Path(folder, "post.lua")
        self.script.write_text(LUA % (Path(folder, "form"), self.kind))

    @contextmanager
    def running(self, side):
        server = Server(side, self.folder, self.form, self.kind)
        try: yield server
        finally: server.stop()

    def wrk(self, url, clients, seconds):
        "Start wrk."
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(self.script)]
        return subprocess.Popen([*command, f"{url}/predict"], stdout=subprocess.PIPE, text=True)

    def load(self, url, clients, seconds):
        "What wrk measured."
        return result_of(self.wrk(url, clients, seconds))


def result_of(wrk):
    said, _ = wrk.communicate()
    return json.loads(re.search(r"RESULT (.*)", said)[1])


@contextmanager
def workshop():
    with tempfile.TemporaryDirectory() as folder: yield Workshop(folder)


def measure(shop, server, clients, seconds):
    "One row: what wrk says, and what the server used meanwhile."
    before = server.cpu()
    # long enough for the slowest of a crowd
    row = shop.load(server.url, clients, max(seconds, clients // 25))
    row["rate"] = (row["requests"] - row["not_ok"]) / row["seconds"]
    row["cpu"] = (server.cpu() - before) / row["seconds"]
    row["memory"] = server.memory()
    return row


def rows_of(shop, name, side, seconds):
    "One row per number of clients."
    with shop.running(side) as server:
        backend = server.settle(2 if "2 workers" in name else 1)
        shop.load(server.url, 64, 2)
        for clients in CLIENTS:
            row = measure(shop, server, clients, seconds) | dict(start=server.start, backend=backend)
            print(f'{name}, {clients} clients: {row["rate"]:.0f}/s  p50 {row["p50"]:.1f}  '
                  f'p99 {row["p99"]:.1f} ms  not 2xx {row["not_ok"]}  broken {row["broken"]}',
                  backend or "", flush=True)
            yield clients, row


def median(rows, key, digits=1): return round(statistics.median(row[key] for row in rows), digits)


def summary(name, clients, rows):
    "The medians of all rounds."
    return dict(
        side=name, clients=clients, backend=rows[-1]["backend"], rate=median(rows, "rate"),
        p50_ms=median(rows, "p50"), p95_ms=median(rows, "p95"), p99_ms=median(rows, "p99"),
        not_ok=sum(row["not_ok"] for row in rows), broken=sum(row["broken"] for row in rows),
        cores=median(rows, "cpu", 2), memory_mb=median(rows, "memory", 0),
        rates=[round(row["rate"]) for row in rows])


def skipped(name, chosen):
    "Where ours computes in 32 bits, the others do too."
    return "bfloat16" in name and "bfloat16" not in chosen


def table_of(found, args):
    "One row per side and number of clients, with the medians of all rounds."
    runs, chosen = {}, set()
    with workshop() as shop:
        for _ in range(args.rounds):
            for name, side in found.items():
                if skipped(name, chosen): continue
                for clients, row in rows_of(shop, name, side, args.seconds):
                    runs.setdefault((name, clients), []).append(row)
                    chosen.add(row["backend"])
    table = [summary(name, clients, rows) for (name, clients), rows in runs.items()]
    return dict(rounds=args.rounds, seconds=args.seconds, picture_bytes=len(photo()), note=args.note,
                rows=table)


def compare(args): keep("compare", table_of(sides(), args))


def alike(args): keep("alike", table_of(alike_sides(args.backend), args))


def start(args):
    times = []
    with workshop() as shop:
        for _ in range(args.rounds):
            with shop.running(sides()["cifar_nb, 1 worker"]) as server: times.append(round(server.start, 2))
            print(times[-1], flush=True)
    keep("start", dict(seconds_to_first_answer=times, note=args.note))


def soak(args):
    with workshop() as shop, shop.running(sides()["cifar_nb, 2 workers"]) as server:
        backend = server.settle(2)
        wrk = shop.wrk(server.url, 256, args.seconds)
        time.sleep(10)
        early = late = server.memory()
        while wrk.poll() is None:
            late = server.memory()
            time.sleep(2)
        row = result_of(wrk)
    memory = dict(memory_mb_after_10_s=early, memory_mb_at_the_end=late)
    keep("soak", dict(clients=256, backend=backend, note=args.note, **memory, **row))


def keep(name, result):
    "Into results/serve.json, next to what the other commands measured."
    path = RESULTS / "serve.json"
    other = json.loads(path.read_text()) if path.exists() else {}
    names = ("fastapi", "uvicorn", "onnxruntime", "litserve", "bentoml")
    versions = {name: version(name) for name in names if find_spec(name)}
    if which("wrk"):
        said = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout
        versions["wrk"] = said.partition(" Copyright")[0]
    result = dict(result, servers=versions)
    parts = {k: v for k, v in other.items() if k in ("compare", "alike", "start", "soak")}
    write("serve", **parts | {name: {**conditions(), **result}})
    print(json.dumps(result, indent=1)[:2000])


def main():
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    commands = parser.add_subparsers(required=True)
    for function, rounds, seconds, said in (
            (compare, 5, 4, "all sides in turn at 1, 8, 64 and 256 clients"),
            (alike, 5, 2, "the same sides with one backend and one decoder"),
            (start, 5, 0, "seconds from the command to the first answer"),
            (soak, 1, 120, "256 clients on two workers")):
        command = commands.add_parser(function.__name__, help=said)
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--seconds", type=int, default=seconds)
        if function is alike: command.add_argument("--backend", default="openvino")
        command.add_argument("--note", default="", help="what else there is to know about this measurement")
        command.set_defaults(function=function)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__": main()
