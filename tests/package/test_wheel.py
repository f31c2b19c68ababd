"What people install: a wheel with weights, page and licence, which answers outside the checkout."
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

ROOT = Path(__file__).resolve().parents[2]
NEEDED = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "cifar_nb").rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, tmp / "source", ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "data", "models", "nbs"))
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp / "dist"), str(tmp / "source")], capture_output=True, text=True)  # the wheel is built from the sdist
    assert done.returncode == 0, done.stderr[-2000:]
    return tmp / "dist"


def test_both_archives_hold_everything(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    sdist = [name.partition("/")[2] for name in tarfile.open(next(built.glob("*.tar.gz"))).getnames()]
    for name in NEEDED: assert name in wheel and name in sdist
    assert any(name.endswith("licenses/LICENSE") for name in wheel) and "LICENSE" in sdist and "settings.ini" in sdist
    assert not [name for name in wheel if not name.startswith("cifar_nb")]
    assert not [name for name in sdist if name.startswith("tests")]  # they need the notebooks


def test_a_fresh_environment_answers(built, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # the libraries of this environment, but not its editable install
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", next(built.glob("*.whl"))], check=True)
    away = tmp_path / "away"
    away.mkdir()
    Image.new("RGB", (40, 30), "teal").save(away / "teal.png")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CIFAR_NB"))}
    where = subprocess.check_output([python, "-c", "import cifar_nb; print(cifar_nb.__file__)"], cwd=away, env=env, text=True)
    assert Path(where.strip()).is_relative_to(site)
    answer = subprocess.check_output([python.with_name("cifar-nb"), "predict", "teal.png"], cwd=away, env=env, text=True)
    assert answer.startswith("teal.png: ") and answer.count("%") == 3
    version = subprocess.check_output([python, "-c", "from cifar_nb.core import source_revision; print(source_revision())"], cwd=away, env=env, text=True)
    assert version.startswith("cifar_nb ")
