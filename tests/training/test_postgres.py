"""Four processes share a study in PostgreSQL; one is killed and one sleeps. And databases that do not answer.

Each process has a models folder of its own, as on four machines: the database is all that they share."""
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from tools.command import ended, run, start
from tools.files import two_classes
from tools.server import until

from cifar_nb import search
from cifar_nb.core import ConfigError
from cifar_nb.search import import_optuna

PASSWORD = "open {sesame}%/é"
QUOTED = "open%20%7Bsesame%7D%25%2F%C3%A9"
RECIPE = """
epochs = 40
precision = "float32"
model.widths = [4, 4]
batch_size = 20
optimizer.lr = 0.002
"""
OPEN_TRANSACTIONS = "select count(*) from pg_stat_activity where state like 'idle in transaction%%'"


def binaries():
    "The folder of PostgreSQL's programs, or None."
    folders = [os.path.dirname(shutil.which("initdb") or ""), *sorted(glob("/usr/lib/postgresql/*/bin"))]
    return next((folder for folder in folders if os.path.exists(f"{folder}/postgres")), None)


def ordinary_user():
    "What to write before a command, because PostgreSQL refuses to run as root; and the owner of its files."
    if os.geteuid(): return [], os.geteuid()
    from pwd import getpwnam
    user = getpwnam("nobody")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"], user.pw_uid


@pytest.fixture(scope="module")
def database():
    "The URL of an empty PostgreSQL on a free port of this machine, stopped and deleted at the end."
    if not find_spec("psycopg"): pytest.skip('no driver: pip install "psycopg[binary]"')
    if not (programs := binaries()): pytest.skip("no PostgreSQL: apt-get install postgresql")
    before, owner = ordinary_user()
    if before and not shutil.which("setpriv"): pytest.skip("PostgreSQL refuses root, and there is no setpriv")
    import psycopg
    with tempfile.TemporaryDirectory(dir="/tmp") as name, socket.socket() as probe:
        place = Path(name)
        (place / "password").write_text(PASSWORD, encoding="utf-8")
        for path in (place, place / "password"): os.chown(path, owner, -1)
        how = dict(cwd=name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run([*before, f"{programs}/initdb", "-D", place / "data", "-U", "anna", "-E", "UTF8",
                        "--locale=C", "-A", "scram-sha-256", f"--pwfile={place}/password", "--no-sync"],
                       check=True, **how)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = subprocess.Popen(
            [*before, f"{programs}/postgres", "-D", place / "data", "-p", str(port), "-h", "127.0.0.1",
             "-k", "", "-c", "fsync=off"], **how)

        def ready():
            assert server.poll() is None, "PostgreSQL has stopped"
            try: psycopg.connect(host="127.0.0.1", port=port, user="anna", password=PASSWORD,
                                 dbname="postgres").close()
            except psycopg.OperationalError: return False
            return True

        try:
            until(ready, 60)
            yield f"postgresql+psycopg://anna:{QUOTED}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # which closes connections and ends
            server.wait(60)


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with a recipe, a space and images, where models are kept as well."
    monkeypatch.setenv("CIFAR_NB_MODELS_DIR", str(tmp_path))
    two_classes(tmp_path / "leaves")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "space.toml").write_text("optimizer.lr = {low = 1e-4, high = 1e-2, log = true}")
    return tmp_path


def words(place, trials):
    return ["tune", place / "leaves", "--recipe", place / "tiny.toml", "--space", place / "space.toml",
            "--device", "cpu", "--trials", trials]


def machine(place, name, trials, url):
    "A process that shares nothing with others but the database."
    return start(*words(place, trials), log=place / f"{name}.log", grace=5, OMP_NUM_THREADS="1",
                 CIFAR_NB_MODELS_DIR=str(place / name), CIFAR_NB_STORAGE=url)


def told(place, name):
    "Numbers of the trials that a process has run to their end, and of those that it has lost."
    printed = (place / f"{name}.log").read_text()
    printed = re.findall(r"^\d+/\d+  trial (\d+): (failed)?", printed, re.MULTILINE)
    return [int(n) for n, failed in printed if not failed], [int(n) for n, failed in printed if failed]


def test_four_machines_share_a_study(place, database):
    optuna = import_optuna()
    storage = optuna.storages.RDBStorage(database)

    def trials(*states):
        try: study = optuna.load_study(study_name="tiny", storage=storage)
        except KeyError: return []
        return [t for t in study.trials if t.state.name in states or not states]

    def all_run():
        "Stop all four. They stay so if each is in the middle of a trial, but not of a transaction."
        for process in machines: os.kill(process.pid, signal.SIGSTOP)
        with storage.engine.connect() as connection:
            n_open = connection.exec_driver_sql(OPEN_TRANSACTIONS).scalar()
        if len(trials("RUNNING")) == 4 and n_open == 0: return True
        for process in machines: os.kill(process.pid, signal.SIGCONT)

    machines = [machine(place, name, 6, database) for name in "abcd"]
    try:
        until(all_run)
        machines[0].kill()
        for process in machines[2:]: os.kill(process.pid, signal.SIGCONT)
        until(lambda: len(trials("FAIL")) == 2)
        os.kill(machines[1].pid, signal.SIGCONT)
        assert ended(*machines) == [-signal.SIGKILL, 0, 0, 0]
    finally:
        for process in machines: process.kill()
    finished = [t.number for t in trials("COMPLETE", "PRUNED")]
    assert len(finished) == 6 and len(trials()) == 8, "each of the two that failed has one in its place"
    # Each was run by one process, and the sleeper says which one it has lost
    assert sorted(sum((told(place, name)[0] for name in "abcd"), [])) == finished
    assert [len(told(place, name)[1]) for name in "abcd"] == [0, 1, 0, 0]
    # The recipe itself is tried first, and once more if this trial was killed
    of_recipe = [t.state.name for t in trials() if t.params["optimizer.lr"] == .002]
    assert of_recipe in (["COMPLETE"], ["FAIL", "COMPLETE"])

    assert ended(machine(place, "e", 7, database)) == [0]
    assert len(trials("COMPLETE", "PRUNED")) == 7 and len(trials()) == 9
    assert len(told(place, "e")[0]) == 1


def test_a_machine_that_sleeps_in_its_turn_loses_it(place, database, monkeypatch):
    monkeypatch.setattr("cifar_nb.search._GRACE", 1)
    entered = []
    with pytest.raises(SQLAlchemyError), search._turn(place, database):
        with search._turn(place, database): entered.append(2)
        entered.append(1)
    assert entered == [2, 1]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_process_may_be_killed_before_its_first_heartbeat(place, database):
    study = search.open_study(place / "early", {}, maximize=True, url=database)
    study.ask()
    search.run_study(study, lambda trial: .5, 1, folder=place / "early", url=database)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]


def test_a_connection_may_be_dropped_during_a_trial(place, database):
    import psycopg
    others = "from pg_stat_activity where datname is not null and pid <> pg_backend_pid()"

    def long(trial):
        with psycopg.connect(database.replace("+psycopg", "")) as connection:
            assert connection.execute(f"select pg_terminate_backend(pid) {others}").rowcount
        trial.report(.5, 1)
        return .5

    study = search.open_study(place / "dropped", {}, maximize=True, url=database)
    search.run_study(study, long, 2, folder=place / "dropped", url=database)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]


def test_a_database_that_is_lost_is_one_line(place, database):
    def lost(trial): raise OperationalError("insert", {}, OSError(f"gone with {PASSWORD}"))
    study = search.open_study(place / "lost", {}, maximize=True, url=database)
    with pytest.raises(ConfigError, match="was lost: .*the same command goes on") as error:
        search.run_study(study, lost, 1, folder=place / "lost", url=database)
    assert PASSWORD not in str(error.value) and "gone with ***" in str(error.value)


REFUSED = "is not the URL of a database for a study: write postgresql+psycopg://USER:PASSWORD@HOST/NAME"


@pytest.mark.parametrize("url, said", [
    ("postgresql+psycopg://anna:s3same@127.0.0.1:1/x", "port 1 failed: Connection refused"),
    ("postgresql://anna:s3same@127.0.0.1:1/x", "port 1 failed: Connection refused"),
    ("postgresql+psycopg://anna@127.0.0.1:1/x?password=s3same", "port 1 failed: Connection refused"),
    ("postgresql+psycopg://anna@127.0.0.1:1/x?s3same=1", 'invalid connection option "s3same"'),
    ("postgresql+psycopg://anna:s3same@no.such.host.invalid/x", "check host, port, user, password and name"),
    ("postgresql+psycopg://anna:p@s3same@127.0.0.1/x", REFUSED),
    ("postgresql+psycopg://anna:p@h:s3same@127.0.0.1/x", REFUSED),
    ("postgresql+psycopg2://anna:s3same@127.0.0.1/x", REFUSED), ("mysql://anna:s3same@127.0.0.1/x", REFUSED),
    ("postgres://anna:s3same@127.0.0.1/x", REFUSED), ("anna:s3same@127.0.0.1/x", REFUSED), ("", REFUSED),
    ("sqlite:////nowhere/s3same.db", "unable to open database file")])
def test_a_database_that_does_not_answer_is_one_line(url, said, *, place):
    if url.startswith("postgresql"): pytest.importorskip("psycopg")
    code, printed, error = run(*words(place, 2), "--storage", url)
    assert code == 2 and said in error
    assert "s3same" not in printed + error.replace('option "s3same"', "")


@pytest.mark.parametrize("old, new, said", [
    (QUOTED, "wr0ng", "password authentication failed"), ("anna", "bert", "password authentication failed"),
    ("/postgres", "/other", 'database "other" does not exist')])
def test_what_a_database_refuses_is_one_line(old, new, said, *, place, database):
    url = database.replace(old, new, 1) if old != "/postgres" else database.removesuffix(old) + new
    code, printed, error = run(*words(place, 2), "--storage", url)
    assert code == 2 and said in error and "check host, port, user, password and name" in error
    for secret in (PASSWORD, QUOTED, "wr0ng"): assert secret not in printed + error


def test_a_missing_driver_is_named(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = run(*words(place, 2), "--storage", "postgresql://anna:s3same@127.0.0.1/x")
    assert code == 2 and 'pip install "psycopg[binary]"' in error and "s3same" not in error
    assert not (place / "studies").exists()
