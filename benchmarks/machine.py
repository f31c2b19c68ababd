"What a result was measured on, and how it is written."
import json
import statistics
import sys
from pathlib import Path

import torch

from cifar_nb.core import atomic_path, source_revision
from cifar_nb.predict import library_versions

REVISION = source_revision()  # of the source that was loaded, whatever changes during a long run
RESULTS = Path(__file__).resolve().parent.parent / "results"
# Student's t, 97.5%, for 1 to 30 degrees of freedom
T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
     2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def processor():
    "The processor's name as the system gives it, and where rented machines leave the generation out, the numbers that tell it."
    try: told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())}
    except OSError: told = {}
    name = told.get("model name", sys.platform)
    return (name, f"family {told['cpu family']}, model {told['model']}") if "cpu family" in told else (name, "")


def arithmetic():
    "The widest vector units of the processor that PyTorch uses, and whether it multiplies with 16 bits."
    bf16 = any(there for name, there in getattr(torch.cpu, "get_capabilities", dict)().items() if "bf16" in name)  # new in PyTorch 2.11
    return torch.backends.cpu.get_cpu_capability() + (" and bf16" if bf16 else "")


def conditions(device="cpu"):
    "What a result depends on beside itself."
    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    name, generation = processor()
    return dict(machine=f"{name} ({'; '.join(filter(None, (generation, arithmetic())))}), {torch.get_num_threads()} threads{gpu}", revision=REVISION, versions=library_versions())


def write(name, **result):
    "results/NAME.json: the result after the conditions that it was measured under."
    with atomic_path(RESULTS / f"{name}.json") as part:
        part.write_text(json.dumps({**conditions(result.get("device", "cpu")), **result}, indent=1) + "\n", encoding="utf-8")


def summary(values):
    "Mean, standard deviation, and the half-width of the mean's 95% confidence interval."
    n = len(values)
    if n == 1: return dict(mean=values[0], sd=None, ci95=None)
    sd = statistics.stdev(values)
    return dict(mean=statistics.mean(values), sd=sd, ci95=T[min(n, 31) - 2] * sd / n**.5)
