"The command in a process of its own, which is a copy of one that has imported everything."
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

# Importing takes longer than a tiny training. The libraries of macOS do not allow such copies
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PRELOADED = ["cifar_nb.cli", "cifar_nb.experiment", "cifar_nb.training", "cifar_nb.messages",
             "cifar_nb.track", "matplotlib.pyplot", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store",
             "optuna"]
CONTEXT.set_forkserver_preload(PRELOADED)


def _main(words, environment, files):
    os.environ.clear()
    os.environ.update(environment)
    for fd, path in zip((1, 2), files): os.dup2(os.open(path, os.O_WRONLY), fd)
    sys.argv = ["cifar-nb", *words]
    import torch

    from cifar_nb.cli import main
    # torch has counted them when the copied process imported it, perhaps in another environment
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count())))
    main()


class Forked:
    "A command that runs. The context manager kills it at its end, if it has not ended by itself."
    def __init__(self, *words, **environment):
        self._place = tempfile.TemporaryDirectory()
        self._files = [Path(self._place.name, name) for name in ("printed", "said")]
        for path in self._files: path.touch()
        environment = {name: str(value) for name, value in {**os.environ, **environment}.items()}
        self._process = CONTEXT.Process(target=_main, args=([*map(str, words)], environment, self._files))
        self._process.start()

    def signal(self, number): os.kill(self._process.pid, number)

    def running(self): return self._process.is_alive()

    def done(self, seconds=100):
        "Exit code, output, and what went to the error stream."
        self._process.join(seconds)
        found = self._process.exitcode, *[path.read_text(encoding="utf-8") for path in self._files]
        assert found[0] is not None, f"still running after {seconds} seconds: {found}"
        return found

    def __enter__(self): return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.join()
        self._place.cleanup()


def forked(*words, **environment):
    "A command to its end: exit code, output, and what went to the error stream."
    with Forked(*words, **environment) as it: return it.done()
