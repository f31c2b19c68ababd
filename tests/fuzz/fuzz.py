"""Feed damaged input to a reader until the time is over.

    python tests/fuzz/fuzz.py decoder --seconds 3600        or request, or model
    python tests/fuzz/fuzz.py decoder --file FILE           one saved input again

An input is made from one or two others by a seeded generator: numbers at the edge of their range, parts of a
file repeated, swapped, left out or taken from another file, with lengths and checksums that fit again. An
input with an outcome that was not seen before joins the corpus. What must hold: only the documented
exceptions, and a bounded processor time and memory per input. An input that breaks this is saved in
tests/fuzz/found/, and the exit code is 1. The input that is being read lies there too, so a crash of the
interpreter leaves it behind.

Why not a fuzzer that is guided by coverage, such as atheris: the decoders are C libraries inside wheels, into
which it could see only if Pillow and its libraries were built anew with instrumentation, and it has no wheels
for many of the systems on which these tests run.
"""
import argparse
import faulthandler
import hashlib
import logging
import os
import random
import re
import sys
import time
import traceback
import warnings
from pathlib import Path

FOUND = Path(__file__).resolve().parent / "found"
sys.path[:0] = [str(FOUND.parents[1]), str(FOUND.parent)]

from targets import TARGETS  # noqa: E402

HANGS = 120  # Seconds after which one input ends the whole process


class Memory:
    "Memory of this process in megabytes, now and at most; 0 where the system does not say. Files stay open."
    def __init__(self):
        self.linux = sys.platform == "linux"
        if not self.linux: return
        self.status = os.open("/proc/self/status", os.O_RDONLY)
        self.forget = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def read(self, field):
        if not self.linux: return 0
        return int(re.search(rb"%b:\s+(\d+) kB" % field, os.pread(self.status, 4096, 0))[1]) / 1024

    def start(self):
        "The memory now; forgets what was the most so far."
        if self.linux: os.write(self.forget, b"5")
        return self.read(b"VmRSS")

    def most(self): return self.read(b"VmHWM")


MEMORY = Memory()


def outcome(target, data):
    "What reading an input comes to, in words. Raises `AssertionError` for what must not be."
    before, since = MEMORY.start(), time.process_time()
    try: said = repr(target.read(data))
    except target.allowed as e: said = f"{type(e).__name__} {e} {e.__cause__!r}"
    seconds, used = time.process_time() - since, MEMORY.most() - before
    assert seconds <= target.seconds, f"{seconds:.1f} s of processor time; {target.seconds} are allowed"
    assert used <= target.megabytes, f"{used:.0f} MB of memory; {target.megabytes} are allowed"
    return re.sub(r"0x[0-9a-f]+|\d+", "", said)  # neither addresses nor numbers


def kind_of(error):
    "Two findings are the same if they have the same type and come from the same line."
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error).__name__, last.filename, last.lineno


class Fuzzer:
    def __init__(self, name, seed):
        self.name, self.target = name, TARGETS[name]
        self.rng = random.Random(seed)
        self.corpus = list(self.target.seeds())
        self.outcomes, self.found, self.n = set(), {}, 0
        FOUND.mkdir(exist_ok=True)
        self.now = FOUND / f"{name}-now"
        self.file = os.open(self.now, os.O_WRONLY | os.O_CREAT)
        self.armed = -HANGS

    def note(self, data):
        "What is being read now, for the case that nobody can tell it afterwards."
        os.pwrite(self.file, data, 0)
        os.ftruncate(self.file, len(data))
        if time.monotonic() < self.armed + 10: return
        faulthandler.dump_traceback_later(HANGS, exit=True)
        self.armed = time.monotonic()

    def attempt(self, data):
        "Read one input; keep it if its outcome is new, save it if it breaks a rule."
        self.n += 1
        self.note(data)
        try: said = outcome(self.target, data)
        except Exception as e: self.save(data, e)
        else:
            if said not in self.outcomes and len(self.corpus) < 5000: self.corpus.append(data)
            self.outcomes.add(said)

    def save(self, data, error):
        "Once for each kind of finding."
        if kind_of(error) in self.found: return
        path = FOUND / f"{self.name}-{hashlib.sha256(data).hexdigest()[:10]}"
        path.write_bytes(data)
        self.found[kind_of(error)] = path
        traceback.print_exception(error)
        print(f"{path}: {len(data):,} bytes, input number {self.n:,}", flush=True)

    def run(self, seconds):
        end = time.monotonic() + seconds
        for data in list(self.corpus): self.attempt(data)
        while time.monotonic() < end:
            data, other = self.rng.choice(self.corpus), self.rng.choice(self.corpus)
            self.attempt(self.target.damage(self.rng, data, other))
        faulthandler.cancel_dump_traceback_later()
        os.close(self.file)
        self.now.unlink()
        print(f"{self.name}: {self.n:,} inputs, {len(self.outcomes)} outcomes, {len(self.found)} findings")
        return bool(self.found)


def main():
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="read this saved input, and nothing else")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    faulthandler.enable()
    if args.file: print(outcome(TARGETS[args.target], args.file.read_bytes()))
    else: sys.exit(Fuzzer(args.target, args.seed).run(args.seconds))


if __name__ == "__main__": main()
