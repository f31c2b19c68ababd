"Point links at the address in settings.ini, and render README.md and two pages from the notebooks."
import base64
import posixpath
import re
import runpy
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
COLAB = r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/[\w.-]+(?=/nbs/)"
INSTALL = r"(git\+https://github\.com/)[\w.-]+/[\w.-]+"
WORKFLOW = r"(https://github\.com/)[\w.-]+/[\w.-]+(?=/actions/workflows/test\.yml)"


def address():
    "The section of settings.ini that has `user`, `repo` and `branch`."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def relink(text, cfg):
    "Links of ours: Colab badges, installs from the repository, and the workflow's badge."
    here = rf"{cfg['user']}/{cfg['repo']}"
    text = re.sub(COLAB, rf"\g<1>{here}/blob/{cfg['branch']}", text)
    text = re.sub(INSTALL, rf"\g<1>{here}", text)
    return re.sub(WORKFLOW, rf"\g<1>{here}", text)


def shown(cell):
    "What the front page shows of a cell: its text, its tables, its code, or nothing."
    if cell.cell_type == "markdown": return cell
    if "#| hide" in cell.source: return None
    if "#| echo: false" not in cell.source: return cell
    tables = [o["data"]["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]
    if not tables: sys.exit("nbs/index.ipynb has no outputs: run it first, with `make notebooks`")
    return nbformat.v4.new_markdown_cell("\n".join(tables))


def rendered():
    "README.md as it should be: the front page without hidden cells, code and directives."
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    nb.cells = [part for cell in nb.cells if (part := shown(cell))]
    nb.metadata["language_info"] = {"name": "python"}
    body, _ = MarkdownExporter().from_notebook_node(nb)
    # Links as seen from the top folder
    link = r"\]\((?!https?:|#)([^)\s]+)\)"
    body = re.sub(link, lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", body)
    return relink(re.sub(r"\n{3,}", "\n\n", body).strip() + "\n", address())


def save_chart():
    "The last figure of 82_results, for the front page."
    cells = nbformat.read(ROOT / "nbs" / "82_results.ipynb", 4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    figures = [data["image/png"] for data in outputs if "image/png" in data]
    (ROOT / "nbs" / "images" / "recipes.png").write_bytes(base64.b64decode(figures[-1]))


def main():
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if (new := relink(text, address())) != text: path.write_text(new, encoding="utf-8")
    save_chart()
    (ROOT / "README.md").write_text(rendered(), encoding="utf-8")
    for page in ("glossary", "questions"):
        runpy.run_path(str(ROOT / ".github" / f"{page}.py"), run_name="__main__")


if __name__ == "__main__": main()
