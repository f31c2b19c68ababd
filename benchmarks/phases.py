"""Where does the time of a request go? One worker under wrk with 1 and with 64 clients.

    python benchmarks/phases.py                 a minute or two; writes results/phases.json
    python benchmarks/phases.py --seconds 1     a trial, which writes nothing

The service runs in this process, and a clock is put around its parts, which adds some microseconds to each.
`other` is what is left of the time that a client waits: the network stack, uvicorn, and the event loop's
turn. Needs wrk; run it alone.
"""
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import wraps
from typing import Annotated
from unittest.mock import patch

import httpx
import typer
from machine import write
from serve import workshop

from cifar_nb import engine, serve
from cifar_nb.answers import Answer
from cifar_nb.settings import ServiceSettings

PHASES = ("form", "decoding", "queue", "network", "JSON", "middleware", "other")
LEAST = 5  # Seconds, for a result that is worth keeping
spent = defaultdict(float)  # Seconds by name, of all requests together
counted = defaultdict(int)


def note(name, seconds, n=1):
    spent[name] += seconds
    counted[name] += n


def timed(name, f):
    "A coroutine function whose time is counted under a name."
    @wraps(f)
    async def call(*args, **more):
        start = time.perf_counter()
        try: return await f(*args, **more)
        finally: note(name, time.perf_counter() - start)
    return call


def timed_batch(f):
    "Each image of a batch waits for the whole batch."
    @wraps(f)
    def call(jobs, *args):
        jobs, start = list(jobs), time.perf_counter()
        done = f(jobs, *args)
        note("network", (time.perf_counter() - start) * len(jobs), len(jobs))
        return done
    return call


def timed_json(f):
    @wraps(f)
    def call(self, *args, **more):
        start = time.perf_counter()
        text = f(self, *args, **more)
        note("JSON", time.perf_counter() - start)
        return text
    return call


@contextmanager
def clocks():
    "The parts of the service, each with a clock."
    kind = engine.Engine
    with (patch.object(serve, "read_request", timed("form", serve.read_request)),
          patch.object(serve, "_answer", timed("route", serve._answer)),
          patch.object(kind, "_decode", timed("decoding", kind._decode)),
          patch.object(kind, "_wait", timed("waiting", kind._wait)),
          patch.object(engine, "run_batch", timed_batch(engine.run_batch)),
          patch.object(Answer, "model_dump_json", timed_json(Answer.model_dump_json))): yield


class Outermost:
    "The time between uvicorn's call and its return."
    def __init__(self, app): self.app = app

    async def __call__(self, scope, receive, send):
        start = time.perf_counter()
        await self.app(scope, receive, send)
        if scope["type"] == "http" and scope["path"] == "/predict": note("app", time.perf_counter() - start)


def phases(latency):
    "Milliseconds of each phase in a mean request, which took `latency` for its client."
    mean = {name: 1000 * spent[name] / counted[name] for name in spent}
    found = dict(form=mean["form"], decoding=mean["decoding"], queue=mean["waiting"] - mean["network"],
                 network=mean["network"], JSON=mean["JSON"], middleware=mean["app"] - mean["route"])
    return {**found, "other": latency - sum(found.values())}


def settled(url):
    "Wait until the service has chosen its backend."
    while (health := httpx.get(f"{url}/health").json())["racing"] or health["status"] != "ok": time.sleep(.2)
    return health["backend"]


def main(
    seconds: int = 10,
    backend: Annotated[str, typer.Option(help="As in the settings of the service")] = "auto",
):
    "Mean time of each phase."
    settings = ServiceSettings(backend=backend)
    rows = []
    with workshop() as shop, clocks():
        app = serve.create_app(settings)
        app.add_middleware(Outermost)
        with serve.served(app) as url:
            chosen = settled(url)
            shop.load(url, 64, 2)
            for clients in (1, 64):
                time.sleep(2)  # for requests that wrk has given up
                spent.clear()
                counted.clear()
                found = shop.load(url, clients, seconds)
                rate = found["requests"] / found["seconds"]
                rows.append(dict(clients=clients, rate=rate, p99_ms=found["p99"], images=counted["form"],
                                 milliseconds=phases(1000 * clients / rate)))
                print(clients, f"{rate:.0f}/s", {k: round(v, 2) for k, v in rows[-1]["milliseconds"].items()},
                      flush=True)
    if seconds < LEAST: return
    write("phases", what="mean milliseconds of a request by phase; one worker, in one process with a clock "
          "around each part", backend=chosen, seconds=seconds, rows=rows)


if __name__ == "__main__": typer.run(main)
