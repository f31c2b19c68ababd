"Good and hostile clients of a running service, and what is seen of its processes; for attack.py and soak.py."
import asyncio
import base64
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image
from serve import photo

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from tools.files import JPEG, mutate, saved  # noqa: E402
from tools.hostile import HOSTILE  # noqa: E402
from tools.server import service, until  # noqa: E402

MAX_WAIT = 5  # Seconds: the service's own limit, as it starts below


@dataclass(frozen=True)
class Ask:
    kind: str  # Of request
    good: bool  # Whether the answer must be 200
    wire: bytes  # Head and body


@dataclass(frozen=True)
class Reply:
    ask: Ask
    status: int  # 0 where there was no answer
    start: float
    seconds: float
    retry: bool  # Whether it has Retry-After
    text: str = ""  # What an answer other than 200 says


def post(path, body, content_type="application/json", host="127.0.0.1"):
    "A whole request."
    head = (f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    return head.encode() + body


def form(path, *files, field="file"):
    "A whole request with files in a form."
    sent = httpx.Request("POST", "http://test", files=[(field, ("x", data)) for data in files])
    return post(path, sent.read(), sent.headers["content-type"])


def good_requests():
    "What ordinary clients send, with the weights by which they are drawn."
    usual, large = photo(), photo((4000, 3000))
    png = saved(Image.effect_noise((60, 60), 40).convert("RGB"), "PNG")
    encoded = json.dumps({"image_base64": base64.b64encode(usual).decode()}).encode()
    yield 12, Ask("photo", True, form("/predict", usual))
    yield 6, Ask("PNG", True, form("/predict", png))
    yield 4, Ask("JSON", True, post("/predict", encoded))
    yield 1, Ask("large photo", True, form("/predict", large))
    yield 1, Ask("batch of 8", True, form("/predict/batch", *[usual] * 8, field="files"))
    yield 1, Ask("explain", True, form("/explain", usual))


def small_requests():
    "The ordinary ones that take little time each, so that their rate and their wait can be compared."
    return [ask for _, ask in good_requests() if ask.kind in ("photo", "PNG", "JSON")]


def hostile_files(names=None):
    "Each hostile file as a request; small ones also 32 at a time."
    for name in names or HOSTILE:
        data = HOSTILE[name]()
        yield Ask(name, False, form("/predict", data))
        many = form("/predict/batch", *[data] * 32, field="files")
        if len(data) < 200_000: yield Ask(f"32 {name}", False, many)


def hostile_requests():
    "Requests that are hostile, although no image is."
    rng = random.Random(0)
    brackets = b'{"x":[' + b"[]," * 3_200_000 + b"[]]}"
    yield Ask("JSON of brackets", False, post("/predict", brackets))
    yield Ask("not an image", False, form("/predict", b"%PDF-1.4" * 1000))
    yield Ask("too large", False, form("/predict", bytes(11_000_000)))
    yield Ask("large headers", False, post("/predict", b"{}", ";" * 200_000))
    yield Ask("foreign host", False, post("/predict", b"{}", host="evil.example"))
    for i in range(20): yield Ask(f"damaged {i}", False, form("/predict", mutate(rng, JPEG, JPEG)))


class Client:
    "One connection, which is opened again when it is gone."
    def __init__(self, address):
        self.address = address
        self.reader = self.writer = None
        self.waiting = None  # A request without an answer so far, and since when

    async def ask(self, ask, timeout=120):
        start, status, retry, text = time.monotonic(), 0, False, ""
        self.waiting = ask, start
        try:
            async with asyncio.timeout(timeout): status, retry, text = await self.exchange(ask.wire)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError): self.close()
        self.waiting = None
        return Reply(ask, status, start, time.monotonic() - start, retry, text)

    async def exchange(self, wire):
        if self.writer is None: self.reader, self.writer = await asyncio.open_connection(*self.address)
        self.writer.write(wire)  # and listen at once: a refusal may come before the body has gone
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        if fields.get("connection") == "close": self.close()
        status = int(head.split()[1])
        return status, "retry-after" in fields, "" if status == 200 else body[:200].decode(errors="replace")

    def close(self):
        if self.writer: self.writer.close()
        self.writer = None


async def keep_asking(address, draw, replies, end):
    "One client: a request after the other, until the time is over."
    client = Client(address)
    while time.monotonic() < end:
        reply = await client.ask(draw())
        replies.append(reply)
        if reply.status in (0, 503): await asyncio.sleep(.1)  # as a polite client would
    client.close()


async def crowd(address, draws, seconds):
    "One client per function in `draws`; all their replies."
    replies, end = [], time.monotonic() + seconds
    await asyncio.gather(*(keep_asking(address, draw, replies, end) for draw in draws))
    return replies


def percentile(seconds, q):
    return round(float(np.percentile(seconds, q)), 3) if len(seconds) else None


def waits(replies):
    "How long good requests took, in seconds."
    took = [reply.seconds for reply in replies]
    return dict(p50=percentile(took, 50), p99=percentile(took, 99), longest=percentile(took, 100))


def statuses(replies):
    "How many there are of each; 503 without Retry-After apart."
    found = {}
    for reply in replies:
        name = str(reply.status)
        if reply.status == 503 and not reply.retry: name += " without Retry-After"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def refusals(replies):
    "How many answers other than 200 say what; numbers in them are left out."
    said = Counter(re.sub(r"[\d,.]+", "N", f"{reply.status} {reply.text}") for reply in replies
                   if reply.status != 200)
    return dict(said.most_common(10))


def seen(process):
    "Proportional share of memory in MB, open descriptors, and threads, of a process and all that it started."
    memory = descriptors = threads = 0
    root = psutil.Process(process)
    for one in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):  # it may end meanwhile
            memory += one.memory_full_info().pss / 2**20
            descriptors += one.num_fds()
            threads += one.num_threads()
    return dict(memory_mb=round(memory), descriptors=descriptors, threads=threads)


@contextmanager
def watch(process, every=.25):
    "What is seen of a process while the block runs: the list of (time, seen)."
    rows, end = [], threading.Event()

    def look():
        while not end.wait(every):
            with suppress(psutil.Error): rows.append((time.monotonic(), seen(process)))
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try: yield rows
    finally:
        end.set()
        thread.join()


@contextmanager
def started(*flags):
    "The service as a user would start it, once it has chosen its backend and is warm."
    # so that the service ends with us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    flags = ("--max-wait", str(MAX_WAIT), "--backend", "auto", *flags)
    with tempfile.TemporaryDirectory() as folder, service(Path(folder) / "it", *flags) as it:
        until(lambda: not it.health()["racing"])
        it.address = it.url.removeprefix("http://").split(":")
        good = small_requests()
        asyncio.run(crowd(it.address, [lambda: random.choice(good)] * 8, 3))
        yield it


def median(values): return round(statistics.median(values), 2)
