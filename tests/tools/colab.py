"A stand-in for the module that only Colab has, and notebook cells that run as they would there."
import sys
import types
from contextlib import contextmanager
from unittest import mock

from tools.repository import ROOT, sources


@contextmanager
def colab():
    "The ports that a notebook asks Colab to show, as `(port, options)`, in the order in which it does."
    shown = []
    output = types.ModuleType("google.colab.output")
    output.serve_kernel_port_as_iframe = lambda port, **options: shown.append((port, options))
    package = types.ModuleType("google.colab")
    package.output = output
    google = types.ModuleType("google")
    google.colab = package
    modules = {"google": google, "google.colab": package, "google.colab.output": output}
    with mock.patch.dict(sys.modules, modules): yield shown


def launch_cells():
    "The code of 99_launch, without the cell that installs the package."
    return [code for code in sources(ROOT / "nbs" / "99_launch.ipynb", "code") if "!pip" not in code]
