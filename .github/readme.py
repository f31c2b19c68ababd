"Point every link of ours at the address in settings.ini, and render README.md from nbs/index.ipynb."
import base64
import posixpath
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def address():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def relink(text, cfg):
    "Links of ours: Colab badges, installs from the repository, and the workflow's badge."
    here = rf"{cfg['user']}/{cfg['repo']}"
    text = re.sub(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/[\w.-]+(?=/nbs/)", rf"\g<1>{here}/blob/{cfg['branch']}", text)
    text = re.sub(r"(git\+https://github\.com/)[\w.-]+/[\w.-]+", rf"\g<1>{here}", text)
    return re.sub(r"(https://github\.com/)[\w.-]+/[\w.-]+(?=/actions/workflows/test\.yml)", rf"\g<1>{here}", text)


def rendered():
    "README.md as it should be: the front page without hidden cells, code and directives."
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "markdown": cells.append(cell)
        elif "#| echo: false" in cell.source:
            tables = [o["data"]["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]
            if not tables: sys.exit("nbs/index.ipynb has no outputs: run it first, with `make notebooks`")
            cells.append(nbformat.v4.new_markdown_cell("\n".join(tables)))
        elif "#| hide" not in cell.source: cells.append(cell)
    nb.cells = cells
    nb.metadata["language_info"] = {"name": "python"}
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", body)  # seen from the top folder
    return relink(re.sub(r"\n{3,}", "\n\n", body).strip() + "\n", address())


def picture():
    "What the recipes cost and reach: the last picture of 07_recipes, for the front page."
    cells = nbformat.read(ROOT / "nbs" / "07_recipes.ipynb", 4).cells
    pictures = [o["data"]["image/png"] for cell in cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    (ROOT / "nbs" / "images" / "recipes.png").write_bytes(base64.b64decode(pictures[-1]))


def main():
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if (new := relink(text, address())) != text: path.write_text(new, encoding="utf-8")
    picture()
    (ROOT / "README.md").write_text(rendered(), encoding="utf-8")


if __name__ == "__main__": main()
