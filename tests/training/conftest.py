"What several tests of trainings use."
import sys
from types import SimpleNamespace

import pytest

from cifar_nb.cli import main


@pytest.fixture
def command(capsys, monkeypatch):
    "Runs the command line in this process."
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cifar-nb", *map(str, words)])
        with pytest.raises(SystemExit) as end: main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=end.value.code, stdout=said.out, stderr=said.err)
    return run
