"""`make colab`: does the package fit into Colab's kernel as it is?

Runs in an environment with Colab's versions of all libraries that we touch (`.github/colab.txt`). First four
notebooks run as in Colab: the kernel has loaded its libraries before the install cell, which must replace
none of them, and everything works without a restart. Then all notebooks run, and tests that decode images.

    python tests/colab.py              all of this
    python tests/colab.py 15_photos    the install cells, and the notebooks that are named
    python tests/colab.py renew LIST   newer versions in .github/colab.txt, from the list that Colab publishes
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = ROOT / ".github" / "colab.txt"
LEFT_OUT = (".*", "build", "dist", "*.egg-info", "__pycache__", "data", "models")
IMAGE_TESTS = ("tests/data", "tests/fuzz", "tests/service/test_hostile.py", "tests/service/test_files.py",
               "tests/service/test_notebook.py")
# What Colab's kernel has loaded before the first cell, and the module that only Colab has
BEFORE = f"""
import sys
import matplotlib.pyplot, numpy, PIL.Image, PIL.ImageFont, torch
sys.path.insert(0, {str(ROOT / "tests")!r})
from tools.colab import colab
pretended = colab()
shown = pretended.__enter__()
"""
AFTER = """
import cifar_nb, io
import matplotlib.pyplot as plt
from PIL import Image
from cifar_nb.photos import decode_image
assert 'site-packages' in cifar_nb.__file__, cifar_nb.__file__
for kind in ('WEBP', 'JPEG', 'PNG', 'GIF', 'BMP'):
    file = io.BytesIO()
    Image.new('RGB', (60, 40), 'teal').save(file, kind)
    assert decode_image(file.getvalue()).size == (60, 40), kind
fig, ax = plt.subplots()
ax.set_title('text that is drawn')
fig.canvas.draw()
"""
PAGE_WAS_SHOWN = "assert shown[0][0] == int(url.rpartition(':')[2])"


def versions(text):
    "Versions by name, of lines like `pillow==11.3.0`."
    found = re.findall(r"(?m)^(\S+)==(\S+)$", text)
    return {name.lower().replace("_", "-"): version for name, version in found}


def installed():
    command = [sys.executable, "-m", "pip", "list", "--format=freeze"]
    return versions(subprocess.check_output(command, text=True))


def differences(wanted, found):
    return {name: f"{found.get(name)} instead of {version}"
            for name, version in wanted.items() if found.get(name) != version}


def renew(path):
    "Take the versions of our list from another one."
    theirs, text = versions(Path(path).read_text(encoding="utf-8")), COLAB.read_text(encoding="utf-8")
    lines = [f"{name}=={theirs[name]}" for name in sorted(versions(text)) if name in theirs]
    today = time.strftime("%Y-%m-%d")
    comments = [re.sub(r"\d{4}-\d\d-\d\d", today, line) for line in text.splitlines() if line.startswith("#")]
    COLAB.write_text("\n".join([*comments, *lines, ""]), encoding="utf-8")


def environment():
    "That of a kernel: small scale, no settings of the person who runs this, the `pip` of this environment."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CIFAR_NB_", "PYTHONPATH"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    local = "127.0.0.1,localhost"
    return {**kept, "PATH": path, "IN_TEST": "1", "TQDM_DISABLE": "1", "NO_PROXY": local, "no_proxy": local,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def read(name):
    "A notebook in which what `nbdev_test` skips is marked for nbclient."
    import nbformat
    sys.path.insert(0, str(ROOT))
    from conftest import SKIPPED
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        skipped = SKIPPED.search(cell.source) or "nbdev_export(" in cell.source
        if cell.cell_type == "code" and skipped: cell.metadata["tags"] = ["skip-execution"]
    return notebook


def run(notebook, name):
    "Run the cells in a fresh kernel."
    from nbclient import NotebookClient
    start = time.perf_counter()
    resources = {"metadata": {"path": str(ROOT / "nbs")}}
    client = NotebookClient(notebook, timeout=600, resources=resources, kernel_name="python3")
    client.execute(env=environment())
    print(f"{time.perf_counter() - start:7.1f} s  {name}", flush=True)


def run_as_in_colab(name, *checks):
    "The install cell takes the package from a copy of this checkout instead of the repository."
    from nbformat.v4 import new_code_cell
    notebook = read(name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "cifar_nb"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
        install = next(cell for cell in notebook.cells if "!pip install" in cell.source)
        install.source = re.sub(r"git\+https://[^\s\"]+", source.as_uri(), install.source)
        checks = [new_code_cell(check) for check in (AFTER, *checks)]
        notebook.cells = [new_code_cell(BEFORE), *notebook.cells, *checks]
        run(notebook, f"{name}, as in Colab")


def main(*names):
    wanted, before = versions(COLAB.read_text(encoding="utf-8")), installed()
    if found := differences(wanted, before):
        sys.exit(f"this is not Colab's environment, use `make colab`: {found}")
    print(f"Python {sys.version.split()[0]} (Colab has 3.13), {len(wanted)} packages in Colab's versions")
    run_as_in_colab("99_launch", PAGE_WAS_SHOWN)
    run_as_in_colab("64_export")
    run_as_in_colab("35_search")
    run_as_in_colab("42_explain")
    after = installed()
    if found := differences(before, after): sys.exit(f"an install cell has replaced what Colab has: {found}")
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)
    print(f"the install cells replaced nothing, and added {', '.join(sorted(after.keys() - before.keys()))}")
    for path in sorted(ROOT.glob("nbs/[0-9]*.ipynb")):
        if not names or path.stem in names: run(read(path.stem), path.stem)
    if names: return
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *IMAGE_TESTS]
    sys.exit(subprocess.run(tests, cwd=ROOT, env=environment()).returncode)


if __name__ == "__main__":
    renew(sys.argv[2]) if sys.argv[1:2] == ["renew"] else main(*sys.argv[1:])
