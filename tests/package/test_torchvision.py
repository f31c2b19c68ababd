"A torchvision that was built for another PyTorch: one line that says what to do."
import os
import subprocess
import sys

import pytest
from tools.repository import ROOT
from tools.server import COMMAND

FAILURES = {
    "another build": "raise RuntimeError('operator torchvision::nms does not exist')",
    "another version": "raise AttributeError(\"module 'torchvision' has no attribute 'extension'\")",
    "another CUDA": "raise ImportError('libcudart.so.13: cannot open shared object file')",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_torchvision_that_does_not_fit_is_one_line(tmp_path, failure):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(FAILURES[failure])
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([COMMAND, "data", "cifar10", "--data-dir", tmp_path / "data"], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": path, "CIFAR_NB_MIRRORS": ""})
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "does not work with PyTorch" in line and "pip install torch torchvision" in line


def test_a_torchvision_that_cannot_be_read_is_not_blamed_on_its_version(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise PermissionError(13, 'Permission denied', '/opt/vision.so')")
    command = [sys.executable, "-c", "from cifar_nb.device import check_torchvision; check_torchvision()"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    said = done.stderr.splitlines()[-1]
    assert said.endswith("torchvision cannot be read: [Errno 13] Permission denied: '/opt/vision.so'")
