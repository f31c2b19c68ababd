"""The service beside three others, under a real load generator: python benchmarks/serve.py compare | start | soak

Needs wrk (Debian's package of that name) and, for `compare`, `pip install litserve bentoml` beside the package.
Every side serves the bundled model; `compare` starts them in turn, several times round, and reports medians."""
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
import urllib.request
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
from machine import write
from PIL import Image, ImageFilter

BIN = Path(sys.executable).parent
CLIENTS = (1, 8, 64, 256)

FASTAPI = '''
import io, torch
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision.transforms import v2
from cifar_nb.predict import load_model
model, card = load_model("cifar10")
model = model.to(torch.DTYPE)
look = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(card.mean, card.std)])
app = FastAPI()

@app.post("/predict")
def predict(file: UploadFile):
    image = Image.open(io.BytesIO(file.file.read())).convert("RGB")
    with torch.inference_mode(): p = (model(look(image)[None].to(torch.DTYPE)).float() / card.temperature).softmax(1)[0]
    k = int(p.argmax())
    return {"class_name": card.classes[k], "confidence": float(p[k])}
'''

LITSERVE = '''
import io, torch, litserve as ls
from PIL import Image
from torchvision.transforms import v2
from cifar_nb.predict import load_model

class Api(ls.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model, self.card = load_model("cifar10")
        self.model = self.model.to(torch.DTYPE)
        self.look = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.card.mean, self.card.std)])
    def decode_request(self, request): return self.look(Image.open(io.BytesIO(request["file"].file.read())).convert("RGB"))
    def batch(self, inputs): return torch.stack(list(inputs))
    def predict(self, x):
        with torch.inference_mode(): return (self.model(x.to(torch.DTYPE)).float() / self.card.temperature).softmax(1)
    def unbatch(self, output): return list(output)
    def encode_response(self, p): return {"class_name": self.card.classes[int(p.argmax())], "confidence": float(p.max())}

if __name__ == "__main__":
    ls.LitServer(Api(max_batch_size=16, batch_timeout=.01), accelerator="cpu", workers_per_device=2).run(port=PORT, generate_client_file=False)
'''

BENTOML = '''
import io, bentoml, torch
from PIL import Image as Picture
from torchvision.transforms import v2
from cifar_nb.predict import load_model

@bentoml.service(workers=2, traffic={"timeout": 60})
class Service:
    def __init__(self):
        torch.set_num_threads(1)
        self.model, self.card = load_model("cifar10")
        self.model = self.model.to(torch.DTYPE)
        self.look = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.card.mean, self.card.std)])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10000)
    def predict(self, file: list[Picture.Image]) -> list[dict]:
        with torch.inference_mode(): p = (self.model(torch.stack([self.look(f.convert("RGB")) for f in file]).to(torch.DTYPE)).float() / self.card.temperature).softmax(1)
        return [{"class_name": self.card.classes[int(k)], "confidence": float(s)} for s, k in zip(*p.max(1))]
'''


def photograph(size=(400, 300), least=30_000):
    "A JPEG of about 30 kB: smooth colours with some grain."
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
    image = Image.blend(image, grain, .35)
    for quality in range(50, 100):
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        if len(file.getvalue()) >= least: break
    return file.getvalue()


def sides(folder, port):
    "How each side is started: name and command. The others compute as documented, and again in the 16 bits that ours may choose."
    found = {
        "cifar_nb, 1 worker": [BIN / "cifar-nb", "serve", "--port", port],
        "cifar_nb, 2 workers": [BIN / "cifar-nb", "serve", "--port", port, "--workers", 2],
    }
    for dtype, added in (("float32", ""), ("bfloat16", ", bfloat16")):
        for name, text in (("plain", FASTAPI), ("lit", LITSERVE.replace("PORT", str(port))), ("bento", BENTOML)): Path(folder, f"{name}_{dtype}.py").write_text(text.replace("DTYPE", dtype))
        found |= {
            f"FastAPI, as documented{added}": [BIN / "python", "-m", "uvicorn", f"plain_{dtype}:app", "--port", port, "--log-level", "warning"],
            f"FastAPI, 2 workers of 1 thread{added}": ["env", "OMP_NUM_THREADS=1", BIN / "python", "-m", "uvicorn", f"plain_{dtype}:app", "--port", port, "--log-level", "warning", "--workers", 2],
            f"LitServe, batches, 2 workers{added}": [BIN / "python", f"lit_{dtype}.py"],
            f"BentoML, adaptive batches, 2 workers{added}": [BIN / "python", "-m", "bentoml", "serve", f"bento_{dtype}:Service", "--port", port],
        }
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(url, form, kind):
    request = urllib.request.Request(f"{url}/predict", form, {"Content-Type": kind})
    return json.loads(urllib.request.urlopen(request, timeout=30).read())


def multipart(picture):
    "The picture as a form, and its content type."
    edge = "edge-of-the-form"
    return b"".join([f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode(), picture, f"\r\n--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"


def family(pid):
    "A process and all that it started."
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try: todo += [int(p) for task in os.listdir(f"/proc/{pid}/task") for p in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError: pass
    return found


def memory(pids):
    "Proportional share of memory, in MB."
    total = 0
    for pid in pids:
        try: total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError): pass
    return round(total / 1024)


def cpu(pids):
    "Processor time used so far, in seconds."
    total = 0
    for pid in pids:
        try: total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        except OSError: pass
    return total / os.sysconf("SC_CLK_TCK")


class Server:
    "A side that runs, and how long it took to its first answer."
    def __init__(self, command, folder, port, form, kind):
        self.url, start = f"http://127.0.0.1:{port}", time.perf_counter()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CIFAR_NB_")}
        clean |= dict(BENTOML_DO_NOT_TRACK="true", BENTOML_HOME=str(folder))
        self.log = open(Path(folder, "log.txt"), "w+")
        self.process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=self.log, stderr=subprocess.STDOUT, env=clean, start_new_session=True)
        while True:
            try:
                self.first = post(self.url, form, kind)
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - start > 120:
                    self.stop()
                    raise SystemExit(Path(folder, "log.txt").read_text()[-2000:]) from None
                time.sleep(.02)
        self.start = time.perf_counter() - start

    def settle(self):
        "Until a back end has been chosen, where there is a choice."
        time.sleep(2)
        if b"backend" not in (health := self.health()): return None
        seen, end = 0, time.time() + 60
        while seen < self.workers() and time.time() < end:
            time.sleep(1)
            seen = Path(self.log.name).read_text().count("computing with")
        return json.loads(self.health() or health)["backend"]

    def workers(self): return max(1, Path(self.log.name).read_text().count("Started server process"))

    def health(self):
        try: return urllib.request.urlopen(f"{self.url}/health", timeout=10).read()
        except OSError: return b""

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(self.process.pid, number)
            except ProcessLookupError: pass
            try: self.process.wait(30)
            except subprocess.TimeoutExpired: pass


LUA = '''
wrk.method = "POST"
local f = io.open("%s", "rb"); wrk.body = f:read("*all"); f:close()
wrk.headers["Content-Type"] = "%s"
done = function(summary, latency, requests)
  io.write(string.format('RESULT {"requests": %%d, "seconds": %%f, "p50": %%f, "p95": %%f, "p99": %%f, "not_ok": %%d, "broken": %%d}\\n', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
'''


def load(url, clients, seconds, script):
    "What wrk measured."
    said = subprocess.run(["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", script, f"{url}/predict"], capture_output=True, text=True, check=True).stdout
    return json.loads(re.search(r"RESULT (.*)", said)[1])


def prepared(folder):
    "The form, its kind, and wrk's script."
    form, kind = multipart(photograph())
    Path(folder, "form").write_bytes(form)
    Path(folder, "post.lua").write_text(LUA % (Path(folder, "form"), kind))
    return form, kind, Path(folder, "post.lua")


def compare(args):
    runs, chosen = {}, set()
    with tempfile.TemporaryDirectory() as folder:
        form, kind, script = prepared(folder)
        for turn in range(args.rounds):
            for name in sides(folder, 0):
                if "bfloat16" in name and "bfloat16" not in chosen: continue  # we compute in 32 bits here, as they do
                port = free_port()
                server = Server(sides(folder, port)[name], folder, port, form, kind)
                try:
                    backend = server.settle()
                    chosen.add(backend)
                    load(server.url, 64, 2, script)
                    for clients in CLIENTS:
                        before, pids = cpu(family(server.process.pid)), family(server.process.pid)
                        row = load(server.url, clients, max(args.seconds, clients // 25), script)  # long enough for the slowest of a crowd
                        row |= dict(rate=(row["requests"] - row["not_ok"]) / row["seconds"], cpu=(cpu(pids) - before) / row["seconds"], memory=memory(pids), start=server.start, backend=backend)
                        runs.setdefault(name, {}).setdefault(clients, []).append(row)
                        print(f'{turn + 1} {name}, {clients} clients: {row["rate"]:.0f}/s  p50 {row["p50"]:.1f}  p99 {row["p99"]:.1f} ms  not 2xx {row["not_ok"]}  broken {row["broken"]}  {backend or ""}', flush=True)
                finally: server.stop()
    middle = lambda rows, key, digits=1: round(statistics.median(r[key] for r in rows), digits)
    table = [dict(side=name, clients=clients, backend=rows[-1]["backend"], rate=middle(rows, "rate"), p50_ms=middle(rows, "p50"), p95_ms=middle(rows, "p95"), p99_ms=middle(rows, "p99"), not_ok=sum(r["not_ok"] for r in rows), broken=sum(r["broken"] for r in rows),
                  cores=middle(rows, "cpu", 2), memory_mb=middle(rows, "memory", 0), rates=[round(r["rate"]) for r in rows]) for name, of in runs.items() for clients, rows in of.items()]
    keep("compare", dict(rounds=args.rounds, seconds=args.seconds, picture_bytes=len(photograph()), note=args.note, rows=table))


def start(args):
    with tempfile.TemporaryDirectory() as folder:
        form, kind, _ = prepared(folder)
        times = []
        for _ in range(args.rounds):
            port = free_port()
            server = Server(sides(folder, port)["cifar_nb, 1 worker"], folder, port, form, kind)
            times.append(round(server.start, 2))
            server.stop()
            print(times[-1], flush=True)
    keep("start", dict(seconds_to_first_answer=times, note=args.note))


def soak(args):
    with tempfile.TemporaryDirectory() as folder:
        form, kind, script = prepared(folder)
        port = free_port()
        server = Server(sides(folder, port)["cifar_nb, 2 workers"], folder, port, form, kind)
        try:
            backend = server.settle()
            wrk = subprocess.Popen(["wrk", "-t1", "-c256", f"-d{args.seconds}s", "--timeout", "30s", "-s", script, f"{server.url}/predict"], stdout=subprocess.PIPE, text=True)
            time.sleep(10)
            early = late = memory(family(server.process.pid))
            while wrk.poll() is None:
                late = memory(family(server.process.pid))
                time.sleep(2)
            row = json.loads(re.search(r"RESULT (.*)", wrk.stdout.read())[1])
        finally: server.stop()
    keep("soak", dict(clients=256, backend=backend, memory_mb_after_10_s=early, memory_mb_at_the_end=late, note=args.note, **row))


def keep(name, result):
    "Into results/serve.json, beside what the other commands measured."
    from machine import RESULTS, conditions
    path = RESULTS / "serve.json"
    other = json.loads(path.read_text()) if path.exists() else {}
    there = {name: version(name) for name in ("fastapi", "uvicorn", "onnxruntime", "litserve", "bentoml") if find_spec(name)}
    if which("wrk"): there["wrk"] = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.partition(" Copyright")[0]
    result = dict(result, servers=there)
    parts = {k: v for k, v in other.items() if k in ("compare", "start", "soak")} | {name: {**conditions(), **result}}
    write("serve", **parts)
    print(json.dumps(result, indent=1)[:2000])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function, rounds, seconds, said in (("compare", compare, 5, 4, "all sides in turn at 1, 8, 64 and 256 clients"), ("start", start, 5, 0, "seconds from the command to the first answer"), ("soak", soak, 1, 120, "256 clients on two workers")):
        command = commands.add_parser(name, help=said)
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--seconds", type=int, default=seconds)
        command.add_argument("--note", default="", help="What the reader of the result should know, such as what else ran")
        command.set_defaults(run=function)
    args = parser.parse_args()
    args.run(args)
