"The commands, called in this process or in another one."
import os
import sys

from tools.forked import CONTEXT
from typer.testing import CliRunner

from cifar_nb.cli import app
from cifar_nb.core import CifarNbError
from cifar_nb.shell import run_app


def run(*args):
    "Exit code, output, and what went to the error stream, where an error is one line."
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    error = done.exception
    if isinstance(error, CifarNbError):
        assert "\n" not in str(error)
        return error.exit_code, done.stdout, f"{done.stderr}{error}\n"
    if error and not isinstance(error, SystemExit): raise error
    return done.exit_code, done.stdout, done.stderr


def _work(args, log, environment, grace):
    from cifar_nb import search
    os.environ.clear()
    os.environ.update(environment)
    search._GRACE = grace
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        run_app(app, [str(arg) for arg in args])


def start(*args, log, grace=60, **environment):
    "A command in a process of its own, which writes all that it says to the file `log`."
    everything = (args, log, os.environ | environment, grace)
    process = CONTEXT.Process(target=_work, args=everything, daemon=True)
    process.start()
    return process


def ended(*processes, seconds=100):
    "Their exit codes; one that was killed has the signal below zero."
    for process in processes: process.join(seconds)
    return [process.exitcode for process in processes]
