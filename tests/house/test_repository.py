"What the repository promises about itself."
import configparser
import re
import sys
import tomllib

from packaging.requirements import Requirement
from tools.repository import CHAPTERS, ROOT, sources

from cifar_nb import __version__
from cifar_nb.settings import ServiceSettings


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
    assert len(words) < 1850


def test_security_is_two_pages():
    assert len((ROOT / "SECURITY.md").read_text(encoding="utf-8").split()) < 1200


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


INI = configparser.ConfigParser(delimiters=["="])
INI.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = INI["DEFAULT"]


def test_both_generations_of_nbdev_read_the_same():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    nbdev, project = pyproject["tool"]["nbdev"], pyproject["project"]
    for name in ("nbs_path", "lib_path", "doc_path", "readme_nb", "tst_flags"):
        assert nbdev[name] == SETTINGS[name], name
    assert project["name"] == SETTINGS["lib_name"]
    assert project["requires-python"] == f">={SETTINGS['min_python']}"
    assert __version__ == SETTINGS["version"]


def test_the_requirements_allow_what_colab_has():
    "Or else an install in Colab would replace a library that its kernel has loaded."
    lines = (ROOT / ".github" / "colab.txt").read_text(encoding="utf-8").splitlines()
    colab = dict(line.lower().replace("_", "-").split("==") for line in lines if line and line[0] != "#")
    texts = SETTINGS["requirements"].split() + SETTINGS["colab_requirements"].split()
    wanted = [Requirement(text) for text in texts]
    checked = {one.name for one in wanted if one.name in colab}
    assert {"torch", "pillow", "numpy", "matplotlib", "uvicorn", "fastapi", "fastcore"} <= checked
    for one in wanted: assert one.name not in colab or one.specifier.contains(colab[one.name]), one


def test_what_the_notebooks_import_is_what_the_extra_installs():
    "A notebook runs from top to bottom where only the package and its extra `notebooks` are installed."
    extra = SETTINGS["notebooks_requirements"].replace("cifar_nb[colab,export,mlops,trust]", "")
    texts = [SETTINGS[f"{name}requirements"] for name in ("", "colab_", "export_", "mlops_", "trust_")]
    known = {Requirement(text).name.replace("-", "_") for text in " ".join([*texts, extra]).split()}
    assert {"jupyterlab", "ipywidgets", "onnx", "fastcore"} <= known
    # IPython comes with Jupyter, sklearn with cleanlab; the others are looked for before they are imported
    known |= {"IPython", "PIL", "sklearn", "google", "nbdev", "pillow_heif", "cifar_nb"}
    known |= sys.stdlib_module_names
    for path in CHAPTERS:
        code = "\n".join(sources(path, "code"))
        imported = set(re.findall(r"^ *(?:import|from) (\w+)[ .]", re.sub(r",\s*\n", ",", code), re.M))
        assert imported <= known, f"{path.name} imports {imported - known}"


def test_the_newest_pillow_is_not_required():
    "gradio 6, which Colab has, wants one below 13."
    pillow = next(Requirement(text) for text in SETTINGS["requirements"].split() if text.startswith("pillow"))
    assert all(pillow.specifier.contains(version) for version in ("11.3.0", "12.3.0", "13.0.0"))
