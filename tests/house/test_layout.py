"The rules of the house: imports point down, modules stand alone, the README is rendered, outputs are clean."
import ast
import base64
import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {re.search(r"#\| default_exp (\w+)", p.read_text(encoding="utf-8"))[1]: int(p.name[:2]) for p in ROOT.glob("nbs/[0-9]*.ipynb") if "default_exp" in p.read_text(encoding="utf-8")}
NOTEBOOKS = sorted(ROOT.glob("nbs/*.ipynb"))


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def imported(path):
    "Modules of ours that a module imports, also inside functions."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["cifar_nb"] * (node.level > 0) + [node.module]))  # nbdev writes `from .core import …`
            names = [module, *(f"{module}.{a.name}" for a in node.names)]
        yield from {n.split(".")[1] for n in names if n.startswith("cifar_nb.")}


def test_imports_are_seen():
    assert set(imported(ROOT / "cifar_nb" / "predict.py")) & set(FLOORS) == {"core", "data", "models"}


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_imports_point_down(name):
    up = [other for other in imported(ROOT / "cifar_nb" / f"{name}.py") if FLOORS.get(other, -1) >= FLOORS[name]]
    assert not up, f"{name} (floor {FLOORS[name]}) imports {up} from its own floor or above"


def test_every_module_is_a_notebook():
    assert {p.stem for p in ROOT.glob("cifar_nb/*.py")} - {"__init__", "_modidx"} == set(FLOORS)
    assert not [p.name for p in ROOT.glob("cifar_nb/*.py") if re.search(r"^\s*(from|import) (nbdev|fastcore)", p.read_text(encoding="utf-8"), re.M) and p.stem != "_modidx"]


CALLS = dict(core="m.seed_everything(1); m.Settings.read()", data="m.synthetic('test')", models="m.create_model('simple_cnn')", train="m.best_precision('cpu')",
             evaluate="import torch; m.Report(torch.eye(3), torch.arange(3), ('a', 'b', 'c')).table()", predict="m.Predictor.load('cifar10')", speed="m.orthogonalize(__import__('torch').eye(3))", recipes="m.find_recipe('speed94')", export="m.clouds(1, 32)", serve="m.create_app()", cli="m.app")


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_each_module_stands_alone(name):
    subprocess.run([sys.executable, "-c", f"import cifar_nb.{name} as m; {CALLS[name]}"], check=True, cwd=ROOT.parent)


def test_a_prediction_loads_no_more_than_it_needs():
    code = "import sys, cifar_nb.cli, cifar_nb.predict as p; p.load_model(); heavy = {'matplotlib', 'torchmetrics', 'torchvision', 'fastapi', 'uvicorn', 'IPython', 'sympy', 'triton'}; print(*{m.partition('.')[0] for m in sys.modules} & heavy)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_bundled_models_are_small():
    assert sum(p.stat().st_size for p in ROOT.glob("cifar_nb/weights/*.safetensors")) < 12e6


def test_public_functions_are_documented():
    for path in ROOT.glob("cifar_nb/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def readme_tool():
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".github" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_the_front_page():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme_tool().rendered(), "run `make readme`"


def test_the_front_page_shows_what_the_results_say():
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    fresh = NotebookClient(copy.deepcopy(nb), timeout=300, resources={"metadata": {"path": str(ROOT / "nbs")}}).execute()
    tables = [[o["data"]["text/markdown"] for c in book.cells if "#| echo: false" in c.source for o in c.outputs] for book in (nb, fresh)]
    assert tables[0] == tables[1] and len(tables[0]) == 3, "run nbs/index.ipynb, and then `make readme`"
    pictures = [o["data"]["image/png"] for c in cells(ROOT / "nbs" / "07_recipes.ipynb") for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert base64.b64decode("".join(pictures[-1])) == (ROOT / "nbs" / "images" / "recipes.png").read_bytes(), "run `make readme`"


def test_actions_are_named_by_digests():  # a tag can be moved, by whoever takes over the account
    used = [line for path in (ROOT / ".github" / "workflows").glob("*.yml") for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"[ -]*uses: (?!\./)", line)]
    assert used
    for line in used: assert re.fullmatch(r"[ -]*uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


def test_links_lead_to_the_address_in_settings():
    tool = readme_tool()
    for path in [*NOTEBOOKS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert tool.relink(text, tool.address()) == text, f"{path.name}: run `make readme`"


def test_links_between_files_lead_somewhere():
    for path in [*NOTEBOOKS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown") if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text): assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_real_and_clean(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    outputs = json.dumps([c["outputs"] for c in code])
    assert outputs.count("output_type"), "no outputs: run `make notebooks`"
    assert '"error"' not in outputs and "Traceback" not in outputs
    assert not re.search(r"/(root|home|Users|work|tmp)/|it/s\]|\\u2588", outputs), "a path of one machine, or a progress bar"
    shown = {"01_data": "Images: 50,000", "03_train": "of 10,000 validation pictures", "04_evaluate": "Images: 10,000", "05_predict": "CIFAR-100", "06_speed": "Images: 45,000", "07_recipes": "sweet_pepper", "09_export": "of 10,000", "13_launch": "airplane"}  # of the real data only
    assert shown.get(path.stem, "") in outputs
    assert all(c["execution_count"] is None for c in code), "run nbdev_clean"
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"], "a progress bar's memory: run with TQDM_DISABLE=1"
