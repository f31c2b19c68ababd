"What the repository promises about itself."
import re

from tools.repository import ROOT


def test_bundled_models_are_small():
    assert sum(path.stat().st_size for path in ROOT.glob("cifar_nb/weights/*.safetensors")) < 13e6


def test_actions_are_named_by_digests():
    "A tag can be moved by whoever takes over the account."
    workflows = (ROOT / ".github" / "workflows").glob("*.yml")
    lines = [line for path in workflows for line in path.read_text(encoding="utf-8").splitlines()]
    used = [line for line in lines if re.match(r"[ -]*uses: (?!\./)", line)]
    assert used
    for line in used: assert re.fullmatch(r"[ -]*uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


def test_contributing_is_three_pages():
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split()
    assert len(words) < 1700
