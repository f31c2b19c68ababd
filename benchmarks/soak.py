"""An hour of good and hostile traffic: does the service stay as it was?

    python benchmarks/soak.py --minutes 60     writes results/soak.json, results/soak.csv and results/soak.png
    python benchmarks/soak.py --minutes 1

Eight clients send what ordinary clients send, and four send that with hostile files and requests in between.
Others hang up half-way, send bodies or headers a byte at a time, or stop in the middle. The CSV has a row
every five seconds: memory (the proportional share of all processes), descriptors and threads, percentiles of
the good requests' latency, their longest wait (also of those that failed or still wait), and all replies by
status. Every minute the three files are written anew, each in one step, so a run that is killed leaves what
it has measured. A good request that is not answered with 200 is counted as failed.
"""
import asyncio
import csv
import io
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Annotated

import matplotlib
import typer
from machine import RESULTS, write
from traffic import (
    MAX_WAIT,
    Client,
    good_requests,
    hostile_files,
    hostile_requests,
    percentile,
    seen,
    started,
    statuses,
)

from cifar_nb.core import atomic_path

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

GOOD_CLIENTS, MIXED_CLIENTS, RUDE_CLIENTS = 8, 4, 3
INTERVAL = 5  # Seconds of one row
REST = 20  # Seconds without traffic before the last row
KINDS = ("200", "4xx", "503", "5xx", "lost")  # Of replies
COLUMNS = ("seconds", "memory_mb", "descriptors", "threads", "good", "failed", "p50", "p99", "longest",
           *KINDS)


class Soak:
    "The traffic, and the rows that were measured."
    def __init__(self, it, names, seed=0):
        self.it, self.rng = it, random.Random(seed)
        weights, self.good = zip(*good_requests())
        self.weights = weights
        self.hostile = [*hostile_files(names), *hostile_requests()]
        self.replies, self.rows, self.clients = [], [], []
        self.rude, self.failures = Counter(), Counter()

    def draw_good(self): return self.rng.choices(self.good, self.weights)[0]

    def draw_mixed(self): return self.rng.choice(self.hostile) if self.rng.random() < .4 else self.draw_good()

    async def client(self, draw, pause):
        client = Client(self.it.address)
        self.clients.append(client)
        while True:
            reply = await client.ask(draw())
            self.replies.append(reply)  # `look` may have begun another list meanwhile
            await asyncio.sleep(self.rng.uniform(0, 2 * pause))

    async def rude_client(self):
        "Connections that do not get as far as a whole request."
        ways = (self.hang_up, self.slow_body, self.slow_headers, self.half_request)
        while True:
            way = self.rng.choice(ways)
            self.rude[way.__name__] += 1
            with suppress(OSError, EOFError, TimeoutError):
                reader, writer = await asyncio.open_connection(*self.it.address)
                try: await way(reader, writer)
                finally: writer.close()

    async def hang_up(self, reader, writer):
        wire = self.draw_mixed().wire
        writer.write(wire[:self.rng.randrange(len(wire))])
        await asyncio.sleep(self.rng.uniform(0, .5))
        writer.transport.abort()

    async def trickle(self, reader, writer, seconds=20):
        "A byte a second, until the service has had enough."
        for _ in range(seconds):
            writer.write(b"x")
            with suppress(TimeoutError): return await asyncio.wait_for(reader.read(1000), 1)

    async def slow_body(self, reader, writer):
        writer.write(self.good[0].wire[:2000])
        await self.trickle(reader, writer)

    async def slow_headers(self, reader, writer):
        writer.write(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        await self.trickle(reader, writer)

    async def half_request(self, reader, writer):
        writer.write(self.good[0].wire[:self.rng.choice((3, 40, 5000))])
        await asyncio.wait_for(reader.read(1000), 15)

    def longest_wait(self, good):
        "Of all good requests, also of those that failed or still wait."
        waiting = [client.waiting for client in self.clients if client.waiting]
        waits = [time.monotonic() - since for ask, since in waiting if ask.good]
        return percentile([reply.seconds for reply in good] + waits, 100)

    def look(self, start):
        "One row, from the replies since the last one."
        replies, self.replies = self.replies, []
        good = [reply for reply in replies if reply.ask.good]
        took = [reply.seconds for reply in good if reply.status == 200]
        failed = [reply for reply in good if reply.status != 200]
        for reply in failed:
            self.failures.update(f"{reply.ask.kind}: {status}" for status in statuses([reply]))
        kinds = Counter(kind_of(reply.status) for reply in replies)
        self.rows.append(dict(
            seconds=round(time.monotonic() - start), good=len(good), failed=len(failed),
            p50=percentile(took, 50), p99=percentile(took, 99), longest=self.longest_wait(good),
            **seen(self.it.process.pid), **{kind: kinds[kind] for kind in KINDS}))

    async def run(self, minutes, keep):
        "Traffic and rows; `keep` is called every minute and at the end. The first and last row are quiet."
        start = kept = time.monotonic()
        self.look(start)
        tasks = [self.client(self.draw_good, .2) for _ in range(GOOD_CLIENTS)]
        tasks += [self.client(self.draw_mixed, .5) for _ in range(MIXED_CLIENTS)]
        tasks += [self.rude_client() for _ in range(RUDE_CLIENTS)]
        tasks = [asyncio.create_task(task) for task in tasks]
        while time.monotonic() < start + 60 * minutes:
            await asyncio.sleep(INTERVAL)
            await asyncio.to_thread(self.look, start)
            for task in tasks:
                if task.done(): task.result()  # a mistake of this script
            if time.monotonic() > kept + 60:
                kept = time.monotonic()
                await asyncio.to_thread(keep, self)
        for task in tasks: task.cancel()
        self.clients.clear()
        await asyncio.sleep(REST)
        self.look(start)
        keep(self)


def kind_of(status):
    if status in (0, 200, 503): return {0: "lost"}.get(status, str(status))
    return "4xx" if 400 <= status < 500 else "5xx"


def total(rows, name): return sum(row[name] for row in rows)


def largest(rows, name): return max((row[name] or 0 for row in rows), default=0)


def course(rows, name): return dict(start=rows[0][name], most=largest(rows, name), end=rows[-1][name])


def results_of(soak):
    "The whole run in a few numbers."
    rows = soak.rows
    return dict(
        minutes=round(rows[-1]["seconds"] / 60, 1), good_requests=total(rows, "good"),
        failed_good_requests=total(rows, "failed"), failures=dict(soak.failures),
        longest_wait=largest(rows, "longest"), replies={kind: total(rows, kind) for kind in KINDS},
        rude_connections=dict(soak.rude),
        **{name: course(rows, name) for name in ("memory_mb", "descriptors", "threads")})


def plot(rows):
    "Memory, latency and replies by time."
    minutes = [row["seconds"] / 60 for row in rows]
    fig, (memory, latency, replies) = plt.subplots(3, figsize=(7, 6), sharex=True, layout="constrained")
    memory.plot(minutes, [row["memory_mb"] for row in rows])
    memory.set(ylabel="memory (MB)", ylim=(0, None))
    for name in ("p99", "p50"): latency.plot(minutes, [row[name] for row in rows], label=name, linewidth=1)
    latency.axhline(MAX_WAIT, color="grey", linestyle=":", label="longest allowed wait for the model")
    latency.set(ylabel="good requests,\nlatency (s)", yscale="log")
    for name in KINDS:
        rate = [row[name] / INTERVAL for row in rows]
        if any(rate): replies.plot(minutes, rate, label=name, linewidth=1)
    replies.set(ylabel="replies per second", xlabel="minutes", yscale="symlog", ylim=(0, None))
    for ax in (latency, replies): ax.legend(fontsize=7, ncols=5, loc="upper left", framealpha=.5)
    fig.savefig(file := io.BytesIO(), dpi=80)
    plt.close(fig)
    return file.getvalue()


def main(
    minutes: Annotated[float, typer.Option(help="How long the traffic lasts")] = 60,
    files: Annotated[str, typer.Option(help="Only these of tests/tools/hostile.py, with commas")] = "",
    workers: Annotated[int, typer.Option(help="Processes of the service")] = 1,
    note: Annotated[str, typer.Option(help="What else there is to know about this measurement")] = "",
):
    "Send the traffic, and write what was seen."
    def keep(soak):
        with atomic_path(RESULTS / "soak.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(soak.rows)
        with atomic_path(RESULTS / "soak.png") as part: part.write_bytes(plot(soak.rows))
        result = results_of(soak)
        write("soak", note=note, workers=workers, max_wait=MAX_WAIT, **result)
        print(result, flush=True)

    with started("--workers", str(workers)) as it:
        soak = Soak(it, files.split(",") if files else None)
        asyncio.run(soak.run(minutes, keep))


if __name__ == "__main__": typer.run(main)
