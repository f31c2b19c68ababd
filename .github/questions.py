"nbs/QUESTIONS.md: what is asked in interviews, with the answers, from the notebooks that ask it."
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = (
    "# Asked in interviews\n\nThe questions of this kind from all notebooks. Answer first, then open "
    "the answer. The notebook that is linked has the reasons, and the experiment. [WATCH.md](WATCH.md) "
    "has the numbers to look at. `make readme` writes this page.\n")
ASKED = "**Asked in interviews**"


def numbered(text):
    "The items of a numbered list by their numbers; an item may have several paragraphs."
    parts = re.split(r"^(\d+)\. ", text, flags=re.M)[1:]
    return {int(n): item.strip() for n, item in zip(parts[::2], parts[1::2], strict=True)}


def asked(text):
    "Questions and answers of a cell."
    if ASKED not in text: return []
    questions, _, rest = text.partition(ASKED)[2].partition("<details>")
    answers = numbered(rest.partition("</summary>")[2].partition("</details>")[0])
    return [(question, answers[n]) for n, question in numbered(questions).items()]


def chapter(path):
    "The questions of a notebook under its title; nothing when it asks none."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    found = [pair for text in texts for pair in asked(text)]
    if not found: return ""
    lines = [f"\n## {path.name[:2]} {texts[0].splitlines()[0].removeprefix('# ')}\n"]
    for question, answer in found:
        lines.append(f"**Q:** {question}\n\n<details><summary>Answer</summary>\n\n{answer}\n\n"
                     f"([{path.stem}]({path.name}))\n\n</details>\n")
    return "\n".join(lines)


def rendered():
    "QUESTIONS.md as it should be."
    return HEAD + "".join(map(chapter, sorted(ROOT.glob("nbs/[0-9]*.ipynb"))))


if __name__ == "__main__": (ROOT / "nbs" / "QUESTIONS.md").write_text(rendered(), encoding="utf-8")
