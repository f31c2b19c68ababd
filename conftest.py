"Teaches nbval the directives of nbdev: what nbdev_test skips, nbval skips."
import re
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
FLAGS = "|".join(config["DEFAULT"]["tst_flags"].split())
SKIPPED = re.compile(rf"^\s*#\s*\|\s*(eval:\s*false|{FLAGS})\s*$", re.MULTILINE)


def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None: continue
        if SKIPPED.search(cell.source) or "nbdev_export(" in cell.source: item.options["skip"] = True
        # nbdev_clean removes the counts, and nbval takes a cell without one for a cell that never ran
        if cell.outputs and cell.get("execution_count") is None: cell.execution_count = 0
