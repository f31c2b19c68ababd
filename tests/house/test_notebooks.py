"Notebooks: the same frame for each, links that lead somewhere, outputs that are real and clean."
import json
import re
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
from tools.repository import CHAPTERS, NOTEBOOKS, ROOT, cells, exported_module, readme_tool, sources

# What only a run on the real data shows
REAL = {
    "11_datasets": "Images: 50,000",
    "40_evaluate": "Images: 10,000",
    "41_trust": "CIFAR-100",
    "64_export": "of 10,000",
    "99_launch": "airplane",
}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_notebook_begins_with_its_question(path):
    title, frame, *_ = sources(path, "markdown")
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+\?\n\n\[!\[[^\n]+", title)
    assert exported_module(path) in (None, path.stem[3:])
    for part in ("You will be able to", "You need", "Read "):
        assert part in frame, f"{path.name} lacks {part!r}"


def test_only_one_place_asks_for_the_scale():
    "The others ask `scale` and `at_scale` of 01_device."
    asking = {path.stem for path in CHAPTERS
              if re.search(r"environ\S*(IN_TEST|CIFAR_NB_SCALE)", "\n".join(sources(path, "code")))}
    assert asking == {"01_device"}


INSTALL = """\
# Colab gets the package here. Elsewhere it is installed already, and this cell does nothing.
import sys

if 'google.colab' in sys.modules:
    !pip install -q "cifar_nb[EXTRAS] @ git+https://github.com/cifar-nb/cifar_nb"\
"""
LAST = """\
#| hide
from importlib.util import find_spec
from pathlib import Path

if find_spec('nbdev') and Path('../settings.ini').exists():  # a checkout with the tools to change it
    import nbdev

    nbdev.nbdev_export()
    print('Exported: cifar_nb/ is now what the saved notebooks say; `git diff cifar_nb` shows what changed.')
else: print('Nothing was exported: only a checkout with nbdev changes the package.')\
"""


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_notebook_installs_only_in_colab_and_exports_only_with_nbdev(path):
    install = next(code for code in sources(path, "code") if "pip install" in code)
    address = readme_tool().address()
    theirs = install.replace("{user}/{repo}".format(**address), "cifar-nb/cifar_nb")
    assert re.sub(r"\[colab(,export|,mlops|,trust)?\]", "[EXTRAS]", theirs) == INSTALL
    assert sources(path, "code")[-1] == LAST


@pytest.mark.parametrize("checkout, tools, said", [
    (True, True, "Exported: "), (True, False, "Nothing was exported"), (False, True, "Nothing was exported")])
def test_the_last_cell_says_whether_it_exports(checkout, tools, said, *, tmp_path, monkeypatch, capsys):
    calls, nbdev = [], types.ModuleType("nbdev")
    nbdev.nbdev_export, nbdev.__spec__ = lambda: calls.append("export"), ModuleSpec("nbdev", None)
    monkeypatch.setitem(sys.modules, "nbdev", nbdev)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: nbdev.__spec__ if tools else None)
    (tmp_path / "nbs").mkdir()
    if checkout: (tmp_path / "settings.ini").touch()
    monkeypatch.chdir(tmp_path / "nbs")
    exec(LAST, {})
    assert capsys.readouterr().out.startswith(said)
    assert calls == ["export"]*(checkout and tools)


def test_links_lead_to_the_address_in_settings():
    tool = readme_tool()
    for path in [*NOTEBOOKS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert tool.relink(text, tool.address()) == text, f"{path.name}: run `make readme`"


PAGES = [*NOTEBOOKS, *ROOT.glob("*.md"), *ROOT.glob("results/*.md"),
         *ROOT.glob("nbs/*.md"), *ROOT.glob("deploy/*.md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_between_files_lead_somewhere(path):
    notebook = path.suffix == ".ipynb"
    text = "\n".join(sources(path, "markdown")) if notebook else path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)[^)\s]*\)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_real_and_clean(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    outputs = json.dumps([cell["outputs"] for cell in code], ensure_ascii=False)
    # An image in base64 may contain any word
    words = re.sub(r'"image/png": (?:"[^"]*"|\[[^]]*\])', "", outputs)
    assert "output_type" in outputs, "no outputs: run `make notebooks`"
    assert '"error"' not in outputs and "Traceback" not in outputs
    debris = re.search(r"/(root|home|Users|work|tmp)/|it/s\]|\u2588", words)
    assert not debris, "a path of one machine, or a progress bar"
    assert REAL.get(path.stem, "") in outputs
    assert all(cell["execution_count"] is None for cell in code), "run nbdev_clean"
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert "widgets" not in metadata, "a progress bar's memory: run with TQDM_DISABLE=1"


def test_some_outputs_are_compared():
    code = {path.stem: "\n".join(sources(path, "code")) for path in CHAPTERS}
    marked = [name for name, source in code.items() if "# NBVAL_CHECK_OUTPUT" in source]
    assert len(marked) >= 25, f"only {len(marked)} notebooks have a cell whose output nbval compares"
