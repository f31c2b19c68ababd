"The commands, called in this process."
from typer.testing import CliRunner

from cifar_nb.cli import app
from cifar_nb.core import CifarNbError


def run(*args):
    "Exit code, output, and what went to the error stream, where an error is one line."
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    error = done.exception
    if isinstance(error, CifarNbError):
        assert "\n" not in str(error)
        return error.exit_code, done.stdout, f"{done.stderr}{error}\n"
    if error and not isinstance(error, SystemExit): raise error
    return done.exit_code, done.stdout, done.stderr
