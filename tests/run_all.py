"`make test`: every step in order, stopping at the first that fails, then a table of where the time went."
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = {
    "IN_TEST": "1",
    "TQDM_DISABLE": "1",
    "MPLBACKEND": "agg",
    "PYTHONWARNINGS": "ignore::DeprecationWarning",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def exported_is_current(export="nbdev_export", files="*.py"):
    "Exporting must leave the package as it is."
    def texts():
        paths = [*ROOT.glob(f"cifar_nb/{files}"), ROOT / "pyproject.toml"]
        return {path: path.read_bytes() for path in paths}
    before = texts()
    subprocess.run([export], cwd=ROOT, check=True)
    after = texts()
    changed = sorted(str(p.relative_to(ROOT)) for p in {*before, *after} if before.get(p) != after.get(p))
    if changed: sys.exit(f"{export} changed {', '.join(changed)}: edit notebooks, commit what it writes")


def command(*args, **more):
    return side_by_side(args, **more)


def side_by_side(*commands, **more):
    "Commands that run at the same time, without the settings of the person who runs them."
    def run():
        ours = {k: v for k, v in os.environ.items() if not k.startswith("CIFAR_NB_")}
        running = [subprocess.Popen(args, cwd=ROOT, env={**ours, **OFFLINE, **more}) for args in commands]
        codes = [process.wait() for process in running]
        if any(codes): sys.exit(1)
    return run


PYTEST = (sys.executable, "-m", "pytest", "-q")
NBVAL = (*PYTEST, "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider")
BOOKS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("nbs/*.ipynb"))
COVERAGE = ("--cov=cifar_nb", "--cov-report=term:skip-covered")
# Two processes of two threads each would wait for one another
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

STEPS = {
    "nbdev_export leaves no diff": exported_is_current,
    "ruff": command("ruff", "check", "--quiet", "."),
    "mypy": command("mypy"),
    "nbdev_test": command("nbdev_test", "--path", "nbs", "--n_workers", "2", "--timing", **ONE_THREAD),
    "nbval": side_by_side((*NBVAL, *BOOKS[::2]), (*NBVAL, *BOOKS[1::2]), **ONE_THREAD),
    "pytest": command(*PYTEST, "--durations=8", *COVERAGE, "tests"),
}


if __name__ == "__main__":
    times = {}
    for name, step in STEPS.items():
        print(f"\n=== {name}", flush=True)
        start = time.perf_counter()
        step()
        times[name] = time.perf_counter() - start
    print("\nwhere the time went")
    for name, seconds in {**times, "all": sum(times.values())}.items(): print(f"{seconds:7.1f} s  {name}")
