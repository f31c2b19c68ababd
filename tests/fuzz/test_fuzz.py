"Each reader on damaged input, for CIFAR_NB_FUZZ_SECONDS each (20 unless set); fuzz.py runs longer by hand."
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
SECONDS = os.environ.get("CIFAR_NB_FUZZ_SECONDS", "20")  # read now: the tests run without such settings


@pytest.mark.parametrize("target", ["decoder", "request", "model"])
@pytest.mark.timeout(float(SECONDS) + 300)
def test_only_documented_errors_in_bounded_time_and_memory(target):
    command = [sys.executable, FUZZ, target, "--seconds", SECONDS]
    done = subprocess.run(command, capture_output=True, text=True)
    # the output names the files in tests/fuzz/found; a crash leaves the input as NAME-now
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
