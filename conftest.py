"Teaches nbval the directives of nbdev: what nbdev_test skips, nbval skips."
import re
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
SKIPPED = re.compile(r"^\s*#\s*\|\s*(eval:\s*false|" + "|".join(config["DEFAULT"]["tst_flags"].split()) + r")\s*$", re.MULTILINE)


def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None: continue
        if SKIPPED.search(cell.source) or "nbdev_export(" in cell.source: item.options["skip"] = True
        if cell.outputs and cell.get("execution_count") is None: cell.execution_count = 0  # nbdev_clean removes the counts
