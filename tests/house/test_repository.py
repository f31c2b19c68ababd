"What the repository promises about itself."
import re

from tools.repository import ROOT

from cifar_nb.guard import ServiceSettings


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


def test_security_is_two_pages():
    assert len((ROOT / "SECURITY.md").read_text(encoding="utf-8").split()) < 1130


def test_security_names_the_defaults():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.M)
    limits = {name for name in ServiceSettings.model_fields if name.startswith("max_")}
    assert limits <= {name for name, _ in rows}
    for name, said in rows:
        default = ServiceSettings.model_fields[name].default
        expected = "not set" if default is None else f"{default:,}" if isinstance(default, int) else default
        if isinstance(default, list): expected = ",".join(default)
        # Windows decodes in the service's own process
        if name != "decoders" or default: assert said == str(expected), name
