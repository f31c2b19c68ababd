"What a result was measured on, and how it is written."
import json
import statistics
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from cifar_nb.convs import SmallConv2d
from cifar_nb.core import atomic_path
from cifar_nb.device import library_versions, source_revision

REVISION = source_revision()  # of the source that was loaded, whatever changes during a long run
RESULTS = Path(__file__).resolve().parent.parent / "results"
# Student's t, 97.5%, for 1 to 30 degrees of freedom
T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
     2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def processor():
    "The processor's name as the system gives it; where rented machines hide the generation, its numbers."
    try: lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError: lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name", sys.platform)
    if "cpu family" not in told: return name, ""
    return name, f"family {told['cpu family']}, model {told['model']}"


def arithmetic():
    "The widest vector units of the processor that PyTorch uses, and whether it multiplies with 16 bits."
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # new in PyTorch 2.11
    bf16 = any(there for name, there in capabilities.items() if "bf16" in name)
    return torch.backends.cpu.get_cpu_capability() + (" and bf16" if bf16 else "")


def conditions(device="cpu"):
    "What a result depends on besides the code."
    name, generation = processor()
    kind = "; ".join(part for part in (generation, arithmetic()) if part)
    machine = f"{name} ({kind}), {torch.get_num_threads()} threads"
    if device.startswith("cuda"): machine += f", {torch.cuda.get_device_name(device)}"
    return dict(machine=machine, revision=REVISION, versions=library_versions())


def write(name, folder=RESULTS, **result):
    "results/NAME.json: the result after the conditions that it was measured under."
    text = json.dumps({**conditions(result.get("device", "cpu")), **result}, indent=1)
    with atomic_path(folder / f"{name}.json") as part: part.write_text(text + "\n", encoding="utf-8")


def summary(values):
    "Mean, standard deviation, and the half-width of the mean's 95% confidence interval."
    n = len(values)
    if n == 1: return dict(mean=values[0], sd=None, ci95=None)
    sd = statistics.stdev(values)
    return dict(mean=statistics.mean(values), sd=sd, ci95=T[min(n, 31) - 2] * sd / n**.5)


@contextmanager
def counted_work(model):
    "Counts the multiplications and additions inside; images are not packed, for zeros are no work."
    packing = [module for module in model.modules() if isinstance(module, SmallConv2d) and module.packs]
    for module in packing: module.packs = False
    try:
        with FlopCounterMode(display=False) as counter: yield counter
    finally:
        for module in packing: module.packs = True
