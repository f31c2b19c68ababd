"A network of one's own on the command line: from a file to an answer, and what can be wrong with it."
import json
import os
import subprocess

import pytest
from tools.files import PNG
from tools.server import COMMAND

from cifar_nb.modelfile import _seal, load_model, read_card

NET = """
from torch import nn

class Base(nn.Module):
    pass

class Mean(Base):
    "Scores from the mean colour."
    def __init__(self, num_classes=10, width=3):
        super().__init__()
        self.wide = nn.Linear(3, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x): return self.head(self.wide(x.mean((2, 3))))

class Seven(Base):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 7)

    def forward(self, x): return self.head(x.mean((2, 3)))

class Needs(Base):
    def __init__(self, n_classes, width):
        super().__init__()

    def forward(self, x): return x

class Fails(Seven):
    def forward(self, x): raise KeyError("nothing")

def make(): return Mean()
"""


def run(folder, *words):
    "Exit code, what was printed, and what was complained about."
    places = {**os.environ, "CIFAR_NB_MODELS_DIR": "models"}
    done = subprocess.run(
        [COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=300, env=places)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(NET)
    (folder / "broken.py").write_text(NET + "\nclass Half(:\n")
    (folder / "x.png").write_bytes(PNG)
    code, said, _ = run(folder, "train", "--architecture", "net.py:Mean", "--set", "model.width=5",
                        "--data", "synthetic", "--epochs", "1", "--batch-size", "500")
    assert code == 0 and "saved models/Mean.safetensors" in said
    return folder


def test_from_a_file_to_an_answer(folder):
    card = read_card(folder / "models/Mean.safetensors")
    assert (card.architecture, card.arguments) == ("Mean", {"num_classes": 10, "width": 5})
    assert card.provenance.file == "net.py" and "class Base" in card.provenance.source
    assert "Seven" not in card.provenance.source
    mine = ["--model", "Mean", "--architecture", "net.py:Mean"]
    code, said, _ = run(folder, "predict", "x.png", "--json", *mine)
    assert code == 0 and json.loads(said)["model"] == "Mean"
    assert run(folder, "evaluate", *mine)[0] == 0


def test_without_the_class_it_says_what_to_give(folder):
    code, _, said = run(folder, "predict", "x.png", "--model", "Mean")
    assert code == 4 and len(said) == 1 and "give --architecture net.py:Mean" in said[0]


def test_a_changed_class_is_noticed(folder):
    (folder / "changed.py").write_text(NET.replace("self.head(self.wide(", "-self.head(self.wide("))
    code, _, said = run(folder, "predict", "x.png", "--model", "Mean", "--architecture", "changed.py:Mean")
    assert code == 4 and len(said) == 1 and "not the one that it was saved with" in said[0]


WRONG = {
    "other.py:Mean": "there is no file other.py",
    "net.py:Maen": "net.py has no class Maen: did you mean 'Mean'?",
    "net.py:make": "make is not a class that inherits from nn.Module",
    "net.py": "write FILE.py:CLASS",
    "net.py:Needs": "missing 1 required positional argument: 'width'",
    "net.py:Seven": "7 scores",
    "net.py:Fails": "KeyError: 'nothing'",
    "broken.py:Half": f"broken.py, line {NET.count(chr(10)) + 2}: invalid syntax",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_in_one_line(folder, text):
    code, _, said = run(folder, "train", "--architecture", text, "--data", "synthetic", "--epochs", "1")
    problems = [line for line in said if line.startswith("cifar-nb: ")]
    assert code == 2 and len(problems) == 1 and said[-1] == problems[0] and WRONG[text] in problems[0]


@pytest.mark.parametrize("name", ["Evil", "evil.py:Evil", "Mean", "os.system"])
def test_a_malicious_card_runs_nothing(folder, name):
    (folder / "evil.py").write_text("open('trace', 'w')\nclass Evil: pass\n")
    model, card = load_model("simple")
    told = read_card(folder / "models/Mean.safetensors").provenance
    told = told.model_copy(update={"file": "evil.py", "source": "open('trace', 'w')"})
    forged = card.model_copy(update={"architecture": name, "provenance": told, "recipe": {
        "kind": "standard", "architecture": "evil.py:Evil", "data": "synthetic"}})
    (folder / "evil.safetensors").write_bytes(_seal(model.state_dict(), forged))
    assert run(folder, "predict", "x.png", "--model", "evil.safetensors")[0] == 4
    assert run(folder, "train", "--from-card", "evil.safetensors")[0] == 2
    assert not (folder / "trace").exists()
