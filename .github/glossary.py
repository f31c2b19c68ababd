"""nbs/GLOSSARY.md: each term that a notebook sets in bold, with the sentence that introduces it.

In the notebooks, bold means: this is a term, and here is what it means. Other emphasis is in italics."""
import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = (
    "# Glossary\n\nEach term with the sentence that introduces it, from the notebook that is linked. ★ marks "
    "the learner's path. `make readme` writes this page from what the notebooks set in bold.\n")
FRAME = {
    "predict first", "asked in interviews", "quick questions", "question", "questions", "exercise",
    "exercises"}
MOST_WORDS = 4
BOLD = r"\*\*([^*]+)\*\*"
NOTEBOOK = r"\[\d\d_\w+\]\(\d\d_\w+\.ipynb\)"
# A sentence that begins so says little without the one before it
POINTS_BACK = (
    r"(This|That|These|Those|It|They|Both|So|Then|Such|Its|Their|Each|The (result|word|other|stretches)"
    r"|We call|Pillow calls|One number|In between|Repeat)")


@dataclass
class Term:
    "A term, and the cell of a notebook that introduces it."
    name:str
    notebook:str   # Without the suffix
    cell:int       # Which markdown cell
    sentence:str   # In plain text


def key(name):
    "The same for one and for many, at the beginning of a sentence and within it."
    name = name.lower()
    return name[:-1] if name.endswith("s") and not name.endswith(("ss", "us")) else name


def markdown(path):
    "The text of each markdown cell."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def learners_path():
    "The numbers of the notebooks in the learner's path, as the front page has them."
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    listed = re.search(r"^PATH = \(([^)]+)\)", "\n".join("".join(cell["source"]) for cell in cells), re.M)[1]
    return re.findall(r"\d\d", listed)


def sentences(text):
    "Each sentence of a cell, as it is and with the one before it where it needs that; no code, no answers."
    text = re.sub(r"```.*?```|<details>.*", "", text, flags=re.S)
    before = ""
    for block in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. |\|)", text):
        block = re.sub(r"^(- |\d+\. )", "", " ".join(block.split()))
        if block.startswith("#"): before = block = ""
        for sentence in re.split(r"(?:(?<=[.?!])|(?<=[.?!]\*\*))(?<! al\.)\s+(?=[A-Z*`\"(\[])", block):
            needs = re.match(POINTS_BACK, sentence.replace("*", "")) or len(sentence.split()) < 5
            yield sentence, f"{before} {sentence}".strip() if needs else sentence
            before = sentence


def plain(sentence):
    "A sentence without bold, links and what was in brackets only to say where to read on."
    sentence = re.sub(rf" \({NOTEBOOK}[^()]*\)", "", sentence).replace("**", "")
    sentence = re.sub(r"\[([^]]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1", sentence).strip(" :;,·")
    if sentence[0] == "(" and sentence[-1] == ")": sentence = sentence[1:-1]
    return sentence[0].upper() + sentence[1:] + ("" if sentence[-1] in ".?!)" else ".")


def is_term(name):
    return (name[-1] not in ".:?!" and name.lower() not in FRAME
            and len(name.split()) <= MOST_WORDS)


def introduced(path):
    "The terms that a notebook sets in bold, each where it is first."
    found = {}
    for i, text in enumerate(markdown(path)):
        for sentence, whole in sentences(text):
            for name in filter(is_term, re.findall(BOLD, sentence)):
                found.setdefault(key(name), Term(name, path.stem, i, plain(whole)))
    return found


def glossary():
    "All terms by their keys; where several notebooks introduce one, that of the learner's path."
    stars = learners_path()
    found = {}
    for path in sorted(ROOT.glob("nbs/[0-9]*.ipynb"), key=lambda path: (path.name[:2] not in stars, path)):
        found = introduced(path) | found
    return found


def rendered():
    "GLOSSARY.md as it should be."
    stars = learners_path()
    lines, letter = [HEAD], ""
    for _, term in sorted(glossary().items()):
        name = term.name[0].upper() + term.name[1:] if term.name.islower() else term.name
        if name[0].upper() != letter and name[0].isalpha():
            letter = name[0].upper()
            lines.append(f"\n## {letter}\n")
        star = " ★" if term.notebook[:2] in stars else ""
        lines.append(f"- **{name}**{star} ([{term.notebook}]({term.notebook}.ipynb)): {term.sentence}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__": (ROOT / "nbs" / "GLOSSARY.md").write_text(rendered(), encoding="utf-8")
