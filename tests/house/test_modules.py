"Each module is a notebook's, imports only from lower numbers, and stands alone."
import ast
import re
import subprocess
import sys

import pytest
from tools.repository import MODULES, ROOT

PACKAGE = ROOT / "cifar_nb"
MOST_NAMES, MOST_LINES = 20, 260
# Longer ones, with at most 450 lines; CONTRIBUTING.md says why
LONGER = {
    "check", "cli", "compare", "crossval", "datasets", "download", "engine", "examine", "folders", "guard",
    "imagefile", "importing", "modelfile", "models", "observe", "photos", "records", "retrain", "runs",
    "search", "serve", "track", "training", "tune"}
HEAVY = {"matplotlib", "torchmetrics", "torchvision", "fastapi", "uvicorn", "IPython", "sympy", "triton",
         "optuna", "mlflow"}
ALONE = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split('.')[0] == 'cifar_nb']: del sys.modules[loaded]
    module = importlib.import_module(f'cifar_nb.{name}')
    for public in module.__all__: getattr(module, public)
"""


def parsed(name):
    return ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def imported(tree):
    "Modules of ours that a module imports, also inside functions."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # nbdev writes `from .core import …`
            module = ".".join(filter(None, ["cifar_nb"] * (node.level > 0) + [node.module]))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else: continue
        yield from {name.split(".")[1] for name in names if name.startswith("cifar_nb.")}


def test_an_import_is_seen_wherever_it_is_written():
    code = "from .core import Table\ndef f():\n    import cifar_nb.images\n    from cifar_nb import draw\n"
    assert {"core", "images", "draw"} <= set(imported(ast.parse(code)))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    up = [other for other in imported(parsed(name)) if MODULES.get(other, -1) >= MODULES[name]]
    assert not up, f"{name} ({MODULES[name]:02}) imports {up}, which have its own number or a higher one"


def test_every_module_is_a_notebook():
    assert {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "_modidx"} == set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_needs_the_tools_of_development(name):
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (nbdev|fastcore)", text, re.M)


def test_each_module_imports_alone():
    subprocess.run([sys.executable, "-c", ALONE, *sorted(MODULES)], check=True, cwd=ROOT.parent)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_answers_one_question(name):
    public = next(ast.literal_eval(node.value) for node in parsed(name).body
                  if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert len(public) <= MOST_NAMES, f"{name} exports {len(public)} names"
    lines = len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines())
    assert lines <= (450 if name in LONGER else MOST_LINES), f"{name} has {lines} lines"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_public_definitions_are_documented(name):
    for node in parsed(name).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef): continue
        assert node.name[0] == "_" or ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def test_a_prediction_loads_no_more_than_it_needs():
    code = (
        "import sys, cifar_nb.cli, cifar_nb.predict, cifar_nb.modelfile as m; m.load_model()\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded & HEAVY


def test_a_training_and_its_first_accuracy_do_not_wait_for_torchmetrics():
    code = ("import sys, torch, cifar_nb.experiment, cifar_nb.operate\n"
            "from cifar_nb.evaluate import Report\n"
            "logits, labels = torch.eye(2)[[0, 0, 1, 0]], torch.tensor([0, 1, 1, 0])\n"
            "report = Report(logits, labels, ('a', 'b'))\n"
            "assert report.accuracy == .75\n"
            "assert 'torchmetrics' not in sys.modules\n"
            "assert report.top_k(1) == .75\n")
    subprocess.run([sys.executable, "-c", code], check=True)
