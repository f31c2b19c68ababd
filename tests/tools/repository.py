"The repository as files: notebooks, modules, and the tool that renders the front page."
import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("nbs/*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[0].isdigit()]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def sources(path, kind):
    "The text of each code or markdown cell."
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == kind]


def exported_module(path):
    "The module that a notebook exports, or None."
    found = re.search(r"^#\| default_exp (\w+)", "\n".join(sources(path, "code")), re.M)
    return found and found[1]


SAMPLES = sorted(path.name for path in (ROOT / "cifar_nb" / "static" / "samples").glob("*.jpg"))
MODULES = {exported_module(path): int(path.name[:2]) for path in CHAPTERS if exported_module(path)}


def github_tool(name):
    "A script in `.github/` as a module."
    spec = importlib.util.spec_from_file_location(name, ROOT / ".github" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def readme_tool(): return github_tool("readme")
