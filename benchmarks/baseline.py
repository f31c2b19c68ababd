"""What a change of the code must not change: record it before, compare it after.

    python benchmarks/baseline.py record before.json
    python benchmarks/baseline.py compare before.json      exits with 1, and lists what differs

It asks only the command line and the OpenAPI description, so the same script runs on both sides of a change:
the weights of two seeded short runs on synthetic data (equal byte for byte on one machine with as many
threads, in float32), the predictions of the bundled models for fixed images, the routes with their statuses
and schemas, the help of each command, and the results files.
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from cifar_nb.cli import main; main()"]
RUNS = {
    "simple": ["--recipe", "simple", "--epochs", "2"],
    "speed94": ["--recipe", "speed94", "--epochs", "3", "--batch-size", "100", "--set", "widths=[8,16,16]"],
}
MODELS = ["cifar10", "cifar100", "simple"]
COMMANDS = [[], ["data"], ["train"], ["recipes"], ["evaluate"], ["predict"], ["serve"]]

app = typer.Typer(add_completion=False)


def run(*args, **environment):
    "Standard output of a process that sees nothing of this person's settings."
    ours = {k: v for k, v in os.environ.items() if not k.startswith("CIFAR_NB_")}
    ours |= {"COLUMNS": "200", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(args, env=ours, check=True, capture_output=True, text=True).stdout


def digest(data): return hashlib.sha256(data).hexdigest()[:16]


def weights_of(name, flags, folder):
    "SHA-256 of each tensor after a short run that trains on everything."
    # A file for each run: training does not replace a model by one that may be worse
    out = folder / f"{name}.safetensors"
    fixed = ["--data", "synthetic", "--held-out", "0", "--precision", "float32", "--seed", "3",
             "--device", "cpu", "--fresh"]
    run(*COMMAND, "train", *flags, *fixed, "--out", str(out))
    tensors = load_file(out)
    tensors.pop("trained_on", None)
    return {name: digest(v.tobytes()) for name, v in sorted(tensors.items())}


def draw_images(folder):
    "Fixed images: of the network's size, larger than it, with transparency, grey."
    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = noise.resize((160, 120), Image.Resampling.BICUBIC)
    images = {"small": smooth.resize((32, 32)), "large": smooth, "grey": smooth.convert("L"),
              "clear": smooth.convert("RGBA")}
    images["clear"].putalpha(128)
    for name, image in images.items(): image.save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in images]


def answers_of(model, files):
    lines = run(*COMMAND, "predict", "--model", model, "--device", "cpu", "--json", *files).splitlines()
    found = {}
    for line in lines:
        answer = json.loads(line)
        found[Path(answer["file"]).name] = [round(p, 5) for p in answer["probabilities"].values()]
    return found


def routes():
    "OpenAPI: each operation with its statuses, and the schemas."
    code = "import json; from cifar_nb.serve import create_app; print(json.dumps(create_app().openapi()))"
    api = json.loads(run(sys.executable, "-c", code))
    paths = {}
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            statuses, body = sorted(operation["responses"]), operation.get("requestBody")
            paths[f"{method.upper()} {path}"] = dict(statuses=statuses, body=body)
    schemas = api["components"]["schemas"].items()
    return dict(paths=paths, schemas={name: sorted(schema.get("properties", {})) for name, schema in schemas})


def snapshot():
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        files = draw_images(folder)
        return {
            "weights": {name: weights_of(name, flags, folder) for name, flags in RUNS.items()},
            "answers": {model: answers_of(model, files) for model in MODELS},
            "routes": routes(),
            "help": {" ".join(["cifar-nb", *words]): run(*COMMAND, *words, "--help") for words in COMMANDS},
            "results": {p.name: digest(p.read_bytes()) for p in sorted(ROOT.glob("results/*.json"))},
        }


def differences(old, new, where=""):
    "Each place where two snapshots differ, as a line."
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}): yield from differences(old.get(key), new.get(key), f"{where}/{key}")
    elif old != new: yield f"{where}: {str(old)[:300]} -> {str(new)[:300]}"


@app.command()
def record(file: Annotated[Path, typer.Argument(help="Where to write the snapshot")]):
    "Write down what must not change."
    file.write_text(json.dumps(snapshot(), indent=1) + "\n", encoding="utf-8")


@app.command()
def compare(file: Annotated[Path, typer.Argument(help="A snapshot that `record` wrote", exists=True)]):
    "List what has changed since."
    before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(snapshot()))
    found = list(differences(before, now))
    print(*found, f"{len(found)} differences", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__": app()
