"README.md is rendered from nbs/index.ipynb, and shows what results/ and the model cards say."
import base64
import copy
import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from tools.repository import ROOT, SAMPLES, cells, readme_tool

INDEX = ROOT / "nbs" / "index.ipynb"


def blocks(language):
    "The code of the README in one language."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_images_that_the_readme_names_come_with_the_package():
    code = "\n".join(blocks("sh"))
    named = set(re.findall(r"[\w/]+\.(?:jpe?g|png|gif|webp)", code))
    assert named and named <= set(SAMPLES)
    before, _, after = code.partition("cifar-nb samples")
    assert not named & set(re.findall(r"[\w/]+\.jpg", before)), "write them before they are used"


def test_three_lines_of_python_classify_a_photo(tmp_path, monkeypatch):
    lines = blocks("python")[0].splitlines()
    assert len(lines) == 3
    shutil.copy(ROOT / "cifar_nb" / "static" / "samples" / "cat.jpg", tmp_path / "your_photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(lines[:2]), names)
    assert eval(lines[2], names) == "cat"


def test_the_page_begins_with_a_small_animation():
    first = re.search(r"!\[[^]]+\]\((?!https)([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert (ROOT / first).stat().st_size < 1_000_000
    with Image.open(ROOT / first) as image: assert image.n_frames > 10


def tables(notebook):
    shown = [cell.outputs for cell in notebook.cells if "#| echo: false" in cell.source]
    return [output["data"]["text/markdown"] for outputs in shown for output in outputs]


def test_the_readme_is_the_front_page():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme_tool().rendered(), "run `make readme`"


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(INDEX, 4)


def test_the_front_page_shows_what_the_results_say(stored):
    resources = {"metadata": {"path": str(ROOT / "nbs")}}
    fresh = NotebookClient(copy.deepcopy(stored), timeout=300, resources=resources).execute()
    assert tables(stored)
    assert tables(stored) == tables(fresh), "run nbs/index.ipynb, and then `make readme`"


def test_the_chart_is_that_of_the_results_notebook():
    results = cells(ROOT / "nbs" / "82_results.ipynb")
    outputs = [output for cell in results for output in cell.get("outputs", [])]
    figures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    shown = (ROOT / "nbs" / "images" / "recipes.png").read_bytes()
    assert base64.b64decode("".join(figures[-1])) == shown, "run `make readme`"
