"`make nbdev3`: nbdev 3 exports the same modules as nbdev 2, and the notebooks pass its tests."
import sys

from run_all import ONE_THREAD, ROOT, command, exported_is_current

# Where the documentation is, which nbdev 3 reads elsewhere: the only difference, put back afterwards
INDEX = ROOT / "cifar_nb" / "_modidx.py"

before = INDEX.read_bytes()
try: exported_is_current("nbdev-export", "[!_]*.py")
finally: INDEX.write_bytes(before)
command("nbdev-test", *sys.argv[1:], "--n-workers", "2", "--timing", **ONE_THREAD)()
