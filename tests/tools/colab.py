"A stand-in for the module that only Colab has, and notebook cells that run as they would there."
import sys
import types
from contextlib import contextmanager

from tools.repository import ROOT, sources


@contextmanager
def colab():
    "The ports that a notebook asks Colab to show, as `(port, options)`, in the order in which it does."
    shown = []
    output = types.ModuleType("google.colab.output")
    output.serve_kernel_port_as_iframe = lambda port, **options: shown.append((port, options))
    package = types.ModuleType("google.colab")
    package.output = output
    modules = {"google.colab": package, "google.colab.output": output}
    sys.modules.update(modules)  # not by mock.patch.dict, which would also forget what the cells import
    try: yield shown
    finally:
        for name in modules: del sys.modules[name]


def launch_cells():
    "The code of 99_launch, without the cell that installs the package."
    return [code for code in sources(ROOT / "nbs" / "99_launch.ipynb", "code") if "!pip" not in code]
