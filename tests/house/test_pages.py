"Two pages next to the notebooks: what is asked in interviews, and what to watch."
import re

from tools.repository import CHAPTERS, ROOT, github_tool, sources

TOOL = github_tool("questions")
WATCH = (ROOT / "nbs" / "WATCH.md").read_text(encoding="utf-8")


def test_the_questions_are_those_of_the_notebooks():
    page = (ROOT / "nbs" / "QUESTIONS.md").read_text(encoding="utf-8")
    assert page == TOOL.rendered(), "run `make readme`"
    asking = [path for path in CHAPTERS if TOOL.ASKED in "".join(sources(path, "markdown"))]
    assert len(asking) > 30 and all(f"]({path.name})" in page for path in asking)


def test_a_question_gets_the_answer_with_its_number():
    text = ("1. An exercise\n\n**Asked in interviews**\n\n2. Why?\n3. When\nnot?\n\n<details><summary>Answers"
            "</summary>\n\n1. Do it.\n2. Since.\n\n   More.\n3. Never.\n\n</details>")
    assert TOOL.asked(text) == [("Why?", "Since.\n\n   More."), ("When\nnot?", "Never.")]
    assert TOOL.asked("1. An exercise") == []


def test_every_metric_is_watched_and_every_watched_one_is_exported():
    source = (ROOT / "cifar_nb" / "observe.py").read_text(encoding="utf-8")
    assert set(re.findall(r"`(cifar_nb_\w+)`", WATCH)) == set(re.findall(r"'(cifar_nb_[a-z_]+)'", source))
