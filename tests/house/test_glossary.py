"The glossary is what the notebooks set in bold, and the learner's path uses no term before it introduces it."
import re

import pytest
from tools.repository import ROOT, github_tool

TOOL = github_tool("glossary")
STARS = [path for path in sorted(ROOT.glob("nbs/[0-9]*.ipynb")) if path.name[:2] in TOOL.learners_path()]
# Ordinary English in one notebook, a term in a later one
ORDINARY = {("14_batches", "frame"), ("40_evaluate", "frame")}  # a picture frame


def test_the_glossary_is_what_the_notebooks_say():
    assert (ROOT / "nbs" / "GLOSSARY.md").read_text(encoding="utf-8") == TOOL.rendered(), "run `make readme`"


def prose(text):
    "What a reader has to understand: no code, formulas or links, and no announcement of what comes later."
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$", "", text, flags=re.S)
    text = re.sub(r"\*You will be able to\*.*?(\n\n|\Z)", "", text, flags=re.S)
    text = re.sub(r"^(#|> |- Next, |Next, ).*", "", text, flags=re.M)
    return re.sub(r"!?\[([^]]*)\]\([^)]*\)", lambda m: "" if re.match(r"\d\d_|Open in", m[1]) else m[1], text)


def early_uses(cells, terms):
    "The terms that cells (a place and a text each) use before the cell that `terms` names for them."
    words = {name: re.compile(rf"(?<![\w-]){re.escape(name)}(?:s|es)?(?![\w-])", re.I) for name in terms}
    for name, introduction in terms.items():
        longer = [words[other] for other in terms if name in other and name != other]
        for place, text in cells[:introduction]:
            for other in longer: text = other.sub("", text)
            if words[name].search(text) and (place, name) not in ORDINARY: yield place, name


def test_a_use_before_the_introduction_is_found():
    cells = [("10", "Each batch norm."), ("10", "Strides differ."), ("20", "A stride, a norm.")]
    assert list(early_uses(cells, {"stride": 2, "norm": 2, "batch norm": 0})) == [("10", "stride")]
    assert list(early_uses(cells, {"stride": 1})) == []


@pytest.mark.parametrize("text, left", [
    ("The `loss` of $loss$.", "The  of ."), ("# Loss\nText", "\nText"),
    ("See [30_gradients](30_gradients.ipynb).", "See ."), ("A [loss](https://example.org).", "A loss."),
    ("*You will be able to* see the loss.\n\nText", "Text")])
def test_only_what_a_reader_has_to_understand_counts(text, left):
    assert prose(text) == left


def test_the_learners_path_introduces_a_term_before_it_uses_it():
    cells, terms = [], {}
    for path in STARS:
        for name, term in TOOL.introduced(path).items(): terms.setdefault(name, len(cells) + term.cell)
        cells += [(path.stem, prose(text)) for text in TOOL.markdown(path)]
    assert len(terms) > 50
    assert list(early_uses(cells, terms)) == []
