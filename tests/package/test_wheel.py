"What people install: a wheel with weights, recipes, page and licence, which answers outside the checkout."
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tools.repository import ROOT

PACKAGED = [path for path in (ROOT / "cifar_nb").rglob("*") if "__pycache__" not in path.parts]
NEEDED = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGED if path.is_file())
LEFT_OUT = (".*", "build", "dist", "*.egg-info", "__pycache__", "data", "models", "nbs")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist, and the wheel that is built from it."
    tmp = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, tmp / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    folders = ["--outdir", str(tmp / "dist"), str(tmp / "source")]
    build = [sys.executable, "-m", "build", "--no-isolation", *folders]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return tmp / "dist"


def test_both_archives_hold_everything(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive: names = archive.getnames()
    sdist = [name.partition("/")[2] for name in names]
    for name in NEEDED:
        assert name in wheel
        assert name in sdist
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert {"LICENSE", "settings.ini"} <= set(sdist)
    assert not [name for name in wheel if not name.startswith("cifar_nb")]
    # The tests need the notebooks, which are not packaged
    assert not [name for name in sdist if name.startswith("tests")]


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    "The interpreter of a fresh environment with the wheel, and the libraries of this environment."
    env = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(env, with_pip=True)
    python = env / ("Scripts" if os.name == "nt" else "bin") / "python"
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.check_output([python, "-c", asked], text=True).strip())
    # The libraries of this environment, but not its editable install
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", next(built.glob("*.whl"))]
    subprocess.run(install, check=True)
    return python, site


def test_a_fresh_environment_answers(installed, tmp_path):
    python, site = installed
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "teal.png")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CIFAR_NB"))}

    def output(*command): return subprocess.check_output(command, cwd=tmp_path, env=clean, text=True).strip()
    assert Path(output(python, "-c", "import cifar_nb; print(cifar_nb.__file__)")).is_relative_to(site)
    answer = output(python.with_name("cifar-nb"), "predict", "teal.png")
    assert answer.startswith("teal.png: ")
    assert answer.count("%") == 3
    assert "frog.jpg" in output(python.with_name("cifar-nb"), "samples").split()
    assert output(python.with_name("cifar-nb"), "predict", "frog.jpg").startswith("frog.jpg: frog 9")
    assert "speed94" in output(python.with_name("cifar-nb"), "recipes")
    revision = "from cifar_nb.device import source_revision; print(source_revision())"
    assert output(python, "-c", revision).startswith("cifar_nb ")
