"""What do good clients notice of an attack?

    python benchmarks/attack.py                    half an hour; writes results/attack_alone.json and so on
    python benchmarks/attack.py --seconds 5 --crowd-seconds 10 --files webp_canvas,png_profiles --part alone

Three parts, each with a service of its own, started as a user would start it:

alone   each hostile request once, next to one good client: its status, its time, that client's longest wait
beside  one client that sends the same hostile request again and again next to eight good ones: how many
        good requests are answered, in proportion to the same clients before
crowd   64 and 256 clients, of whose requests 40% are hostile, and the same clients with good requests only

The memory is the proportional share of all processes. Promised are: no good request fails or waits longer
than `--max-wait` and half a second, no answer is other than 200, 4xx or 503 with Retry-After, and the memory
comes back. What was found is printed next to what was promised, and nothing is asserted.
"""
import asyncio
import random
import time
from typing import Annotated

import typer
from machine import write
from traffic import (
    MAX_WAIT,
    Client,
    crowd,
    hostile_files,
    hostile_requests,
    keep_asking,
    median,
    refusals,
    small_requests,
    started,
    statuses,
    waits,
    watch,
)

SIZES = (64, 256)
HOSTILE_SHARE = .4


def drawing(asks, seed=0):
    "A function that draws one of these requests."
    rng = random.Random(seed)
    return lambda: rng.choice(asks)


async def calm(address, good, seconds=8):
    "Some time with a few good requests, so that what is freed late has been freed."
    client = Client(address)
    for _ in range(seconds * 4):
        await client.ask(good())
        await asyncio.sleep(.25)
    client.close()


def with_memory(it, attack):
    "What `attack` finds, and the memory before, at its peak, and after."
    good = drawing(small_requests())
    # what many good clients need is not the attack's doing
    asyncio.run(crowd(it.address, [good] * 256, 5))
    asyncio.run(calm(it.address, good))
    with watch(it.process.pid) as rows:
        time.sleep(2)
        begin = time.monotonic()
        found = attack(it, good)
        asyncio.run(calm(it.address, good))
        end = time.monotonic()
        time.sleep(2)
    before = median([row["memory_mb"] for at, row in rows if at < begin])
    after = median([row["memory_mb"] for at, row in rows if at > end])
    peak = max(row["memory_mb"] for _, row in rows)
    return dict(memory=dict(before_mb=before, peak_mb=peak, after_mb=after), **found)


async def one_file(address, ask, good):
    "One hostile request, and a good client that is there before and after."
    replies, hostile = [], Client(address)
    client = asyncio.create_task(keep_asking(address, good, replies, time.monotonic() + 1000))
    await asyncio.sleep(.5)
    begin = time.monotonic()
    reply = await hostile.ask(ask)
    await asyncio.sleep(.5)
    waiting = time.monotonic()
    # the good request that still waits counts as well
    while not replies or replies[-1].start < waiting: await asyncio.sleep(.01)
    client.cancel()
    hostile.close()
    beside = [one for one in replies if one.start + one.seconds >= begin]
    return dict(request=ask.kind, bytes=len(ask.wire), status=reply.status, seconds=round(reply.seconds, 2),
                good_longest=waits(beside)["longest"], good_statuses=statuses(beside))


def in_turn(one, asks, **more):
    "An attack of one request after the other; `one` is the coroutine that measures it."
    def attack(it, good):
        rows = []
        for ask in asks:
            rows.append(asyncio.run(one(it.address, ask, good, **more)))
            print(rows[-1], flush=True)
        return dict(rows=rows)
    return attack


def rate(replies, seconds): return round(sum(one.status == 200 for one in replies) / seconds, 1)


async def one_beside_eight(address, ask, good, *, seconds):
    eight, found = [good] * 8, {}
    before = await crowd(address, eight, seconds)
    replies = await crowd(address, [*eight, lambda: ask], seconds)
    during = [one for one in replies if one.ask.good]
    attacks = [one for one in replies if not one.ask.good]
    found |= dict(request=ask.kind, rate_before=rate(before, seconds), rate_during=rate(during, seconds))
    found["ratio"] = round(found["rate_during"] / max(found["rate_before"], .1), 2)
    return dict(found, good=waits(during), good_statuses=statuses(during), attacks=statuses(attacks))


async def one_crowd(address, n, good, *, hostile, seconds):
    rng = random.Random(n)
    before = await crowd(address, [good] * n, seconds)
    def mixed(): return hostile() if rng.random() < HOSTILE_SHARE else good()
    replies = await crowd(address, [mixed] * n, seconds)
    during = [one for one in replies if one.ask.good]
    attacks = [one for one in replies if not one.ask.good]
    slower = round(waits(during)["p99"] / waits(before)["p99"], 2) if during and before else None
    seen = dict(waits(during), statuses=statuses(during), refusals=refusals(during))
    return dict(clients=n, undisturbed=dict(waits(before), statuses=statuses(before)), good=seen,
                p99_ratio=slower,
                attacks=dict(waits(attacks), statuses=statuses(attacks)))


def memory_found(found):
    parts = [part["memory"] for part in found.values()]
    yield "memory after the attack / before (at most 1.1)", max(
        round(one["after_mb"] / one["before_mb"], 2) for one in parts)
    yield "peak of the memory in MB", max(one["peak_mb"] for one in parts)


def crowd_found(row):
    n, failed = row["clients"], sum(row["good"]["statuses"].values()) - row["good"]["statuses"].get("200", 0)
    yield f"failed good requests of {n} clients (none)", failed
    yield f"p99 of {n} clients / undisturbed (at most 3)", row["p99_ratio"]


def summary(found):
    "The worst that was found, by what was promised."
    said = dict(memory_found(found))
    if "alone" in found:
        longest = max(row["good_longest"] for row in found["alone"]["rows"])
        said[f"longest wait next to one hostile request (at most {MAX_WAIT + .5} s)"] = longest
    if "beside" in found:
        ratio = min(row["ratio"] for row in found["beside"]["rows"])
        said["rate next to one hostile client / before (at least 0.7)"] = ratio
    for row in found.get("crowd", {}).get("rows", ()): said |= crowd_found(row)
    return said


def main(
    *,
    seconds: Annotated[float, typer.Option(help="Next to eight good clients, before and during")] = 10,
    crowd_seconds: Annotated[float, typer.Option(help="Of each crowd, before and during")] = 60,
    files: Annotated[str, typer.Option(help="Only these of tests/tools/hostile.py, with commas")] = "",
    part: Annotated[list[str] | None, typer.Option(help="alone, beside or crowd; all unless given")] = None,
    workers: Annotated[int, typer.Option(help="Processes of the service")] = 1,
    note: Annotated[str, typer.Option(help="What else there is to know about this measurement")] = "",
):
    "Attack the service, and write what its good clients saw."
    asks = list(hostile_files(files.split(","))) if files else [*hostile_files(), *hostile_requests()]
    different = [ask for ask in asks if not ask.kind.startswith("damaged")]
    more = dict(hostile=drawing(asks, 1), seconds=crowd_seconds)
    parts = dict(alone=in_turn(one_file, asks), beside=in_turn(one_beside_eight, different, seconds=seconds),
                 crowd=in_turn(one_crowd, SIZES, **more))
    found = {}
    for name in part or parts:
        with started("--workers", str(workers)) as it: found[name] = with_memory(it, parts[name])
        part_found = found[name]
        write(f"attack_{name}", note=note, workers=workers, max_wait=MAX_WAIT, seconds=seconds,
              crowd_seconds=crowd_seconds, summary=summary({name: part_found}), **part_found)
    for what, value in summary(found).items(): print(f"{what}: {value}")


if __name__ == "__main__": typer.run(main)
