"Runs in MLflow: complete and never twice, whatever happens to training, server, disk or folder."
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient, pyfunc
from mlflow.entities import ViewType
from safetensors.torch import load_file
from tools.command import run
from tools.files import two_classes
from tools.forked import Forked, forked
from tools.server import until

from cifar_nb.checkpoint import flat_choices
from cifar_nb.core import Settings
from cifar_nb.modelfile import read_card
from cifar_nb.recipes import from_toml
from cifar_nb.registry import import_mlflow
from cifar_nb.runs import RunFolder, read_facts, read_history
from cifar_nb.track import tracked as tracked_run

EPOCHS = 60  # Enough to be killed in their middle
NAME, AS_REGISTERED = """a'b "c" %d:e""", "a-b-c-d-e"  # Of the folder with the images
PER_EPOCH = {"epoch", "lr", "seconds", "images_per_second", "train_loss", "train_accuracy", "valid_loss",
             "valid_accuracy"}
FILES = {"recipe.toml", "history.csv", "log.txt", "curves.png", "confusion.png", "report.html",
         "versions.json", "about.json", "measured.json", "model"}
# What a command writes to the error stream, other than this, is a warning
NOTES = re.compile(r"\S+: \d+ epochs? of |\d+ classes |the run is in |the validation images do |Resuming ")


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory):
    "No settings of MLflow but our own, and no runs of the person who tests."
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]: patched.delenv(name)
        patched.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv("CIFAR_NB_TRACK_DIR", str(tmp_path_factory.mktemp("unused")))
        yield


class Server:
    "A server of MLflow that can be killed and started again."
    def __init__(self, place):
        self.place, self.process = place, None
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        "Returns at once; `ready` waits."
        command = [Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1", "--port",
                   str(self.port), "--workers", "1", "--backend-store-uri", f"sqlite:///{self.place}/store.db",
                   "--artifacts-destination", str(self.place / "artifacts")]
        with open(self.place / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.place, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "HOME": str(self.place), "MLFLOW_DISABLE_TELEMETRY": "true",
                     "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})  # seven processes that have no jobs

    def healthy(self):
        assert self.process.poll() is None, (self.place / "log").read_text()
        try: return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError: return False

    def ready(self):
        until(self.healthy)
        return self

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def client(self): return MlflowClient(self.url, self.url)


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory, quiet):
    "It needs a while, so the other tests run meanwhile."
    it = Server(tmp_path_factory.mktemp("server"))
    it.start()
    yield it
    it.kill()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "Two classes, whose names have signs that MLflow does not take."
    root = two_classes(tmp_path_factory.mktemp("data") / NAME)
    (root / "birch").rename(root / "<birch> & co")
    (root / "oak").rename(root / "oak = 100%")
    return root


def words(images, out, *more, epochs=2):
    return ["train", "--data", images, "--recipe", "simple", "--epochs", epochs, "--batch-size", 16,
            "--held-out", .3, "--set", "model.widths=[4,4]", "--precision", "float32", "--device", "cpu",
            "--out", out, *more]


def client_of(track): return MlflowClient(f"sqlite:///{track}/mlflow.db", f"sqlite:///{track}/mlflow.db")


def all_runs(client):
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client.search_runs(experiments, run_view_type=ViewType.ALL)


def runs_called(client, name): return [found for found in all_runs(client) if found.info.run_name == name]


def steps_of(client, found, name="train_loss"):
    return [point.step for point in client.get_metric_history(found.info.run_id, name)]


def folder_of(out, n=1): return out.parent / "runs" / f"{out.stem}-{n:04}"


def warnings_in(said): return [line for line in said.splitlines() if not NOTES.match(line)]


def check_whole(client, found, epochs):
    "A finished run with each epoch once."
    assert found.info.status == "FINISHED"
    for name in PER_EPOCH: assert steps_of(client, found, name) == [*range(1, epochs + 1)], name


def same_weights(*paths):
    first, *others = map(load_file, paths)
    return all(first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)
               for other in others)


OFF = """
import sys
from cifar_nb.shell import run_app
from cifar_nb.cli import app
try: run_app(app, sys.argv[1:])
finally: print("imported:", *(name for name in ("mlflow", "sqlalchemy", "pandas") if name in sys.modules))
"""


@pytest.fixture(scope="module")
def three(images, tmp_path_factory):
    """The same training by the flag, by the variable, and without tracking; all at the same time.

    The two that are tracked share a store that is not there yet."""
    place = tmp_path_factory.mktemp("three")
    outs = {name: place / f"{name}.safetensors" for name in ("flag", "variable", "off")}
    track = {"CIFAR_NB_TRACK_DIR": place / "track"}
    command = [sys.executable, "-c", OFF, *map(str, words(images, outs["off"]))]
    off = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env={**os.environ, "CIFAR_NB_TRACK_DIR": str(place / "nothing")})
    with Forked(*words(images, outs["flag"], "--track"), **track) as flag, \
         Forked(*words(images, outs["variable"]), CIFAR_NB_TRACK="1", **track) as variable:
        said = {"flag": flag.done(), "variable": variable.done(), "off": (*off.communicate(), off.returncode)}
    return place, outs, said


@pytest.fixture(scope="module")
def tracked(three):
    "Client, and the runs by name."
    client = client_of(three[0] / "track")
    return client, {found.info.run_name: found for found in all_runs(client)}


def test_two_trainings_share_a_new_store(three, tracked):
    place, outs, said = three
    client, found = tracked
    for name in ("flag", "variable"):
        code, _, error = said[name]
        assert (code, warnings_in(error)) == (0, []), error
        assert "MLflow" not in error
        check_whole(client, found[f"{name}-0001"], 2)
        assert read_facts(folder_of(outs[name]) / "mlflow.json")["ended"] == "FINISHED"
    assert len(found) == 2
    assert {path.name for path in (place / "track").iterdir()} == {"mlflow.db", "artifacts", ".store.lock"}


def test_without_the_switch_nothing_is_imported_or_written(three):
    place, outs, said = three
    printed, error, code = said["off"]
    assert code == 0, error
    assert printed.splitlines()[-1] == "imported:"
    assert not (place / "nothing").exists()
    assert not (folder_of(outs["off"]) / "mlflow.json").exists()


def test_tracking_does_not_change_the_weights(three, dead):
    assert same_weights(*three[1].values(), dead[0])


def test_a_run_has_the_whole_recipe(three, tracked, images):
    params = tracked[1]["flag-0001"].data.params
    text = (folder_of(three[1]["flag"]) / "recipe.toml").read_text(encoding="utf-8")
    choices = flat_choices(from_toml(text).model_dump(mode="json"))
    network = choices.pop("model")
    assert choices.keys() | {f"model.{name}" for name in network} == params.keys()
    assert params["optimizer.lr"] == "0.001" and params["model.widths"] == "[4, 4]"
    assert params["data"] == NAME  # and not where it is
    assert {name: params[name] for name in choices if name != "data"} == {
        name: str(value) for name, value in choices.items() if name != "data"}


def test_a_run_has_its_curves_and_results(three, tracked):
    client, found = tracked
    for name in ("flag", "variable"):
        folder, it = folder_of(three[1][name]), found[f"{name}-0001"]
        rows, card = read_history(folder), read_card(folder / "model.safetensors")
        for column in rows[0].keys() & PER_EPOCH:
            points = client.get_metric_history(it.info.run_id, column)
            assert [point.value for point in points] == [row[column] for row in rows], column
            assert points[0].timestamp < points[1].timestamp
        metrics, about = it.data.metrics, read_facts(folder / "about.json")
        n = next(iter(about["images"].values()))
        assert metrics["images_per_second"] == pytest.approx(n / rows[-1]["seconds"])
        for field in ("test_accuracy", "validation_accuracy", "temperature"):
            assert metrics[field] == getattr(card, field)
        measured = read_facts(folder / "measured.json")
        recall = [metrics[f"test_recall/{name}"] for name in ("birch-co", "oak-100")]
        assert recall == [*measured["recall"].values()]
        assert it.info.start_time == int(1000 * about["started"]) < it.info.end_time


def test_a_run_says_what_made_it(three, tracked):
    client, found = tracked
    it, folder = found["flag-0001"], folder_of(three[1]["flag"])
    tags, versions = it.data.tags, read_facts(folder / "versions.json")
    assert tags["mlflow.source.git.commit"] == versions.pop("revision")
    assert versions and all(tags[f"version.{name}"] == text for name, text in versions.items())
    assert tags["recipe"] == "simple" and tags["device"].startswith("cpu")
    assert client.get_experiment(it.info.experiment_id).name == AS_REGISTERED
    assert {item.path for item in client.list_artifacts(it.info.run_id)} >= FILES
    for name in ("recipe.toml", "history.csv", "report.html", "curves.png"):
        sent = Path(client.download_artifacts(it.info.run_id, name))
        assert sent.read_bytes() == (folder / name).read_bytes()


def test_mlflow_alone_predicts_the_same(three, tracked, images):
    import pandas as pd
    photos = [next((images / name).iterdir()) for name in ("<birch> & co", "oak = 100%")]
    model = pyfunc.load_model(f"{tracked[1]['flag-0001'].info.artifact_uri}/model")
    table = model.predict(pd.DataFrame({"image": [path.read_bytes() for path in photos]}))
    code, printed, _ = run("predict", "--json", "--model", three[1]["flag"], *photos)
    ours = [json.loads(line) for line in printed.splitlines()]
    assert code == 0 and [*table["class_name"]] == [one["class_name"] for one in ours]
    assert [*table["confidence"]] == pytest.approx([one["confidence"] for one in ours], abs=1e-6)


def test_a_thread_is_not_the_first_to_import_ipython(monkeypatch):
    "matplotlib finds it in sys.modules, half imported, and the training would end with an AttributeError."
    imported = []
    monkeypatch.setattr("importlib.import_module", imported.append)
    import_mlflow()
    assert "IPython" in imported


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def dead(images, tmp_path_factory):
    "A training for a server that is not there; its address has a password."
    out = tmp_path_factory.mktemp("dead") / "dead.safetensors"
    url = f"http://ann:s3cr3t%40w0rd@127.0.0.1:{free_port()}"
    return out, forked(*words(images, out, "--track"), MLFLOW_TRACKING_URI=url,
                       MLFLOW_HTTP_REQUEST_MAX_RETRIES=0)


def test_a_dead_server_costs_one_warning(dead):
    out, (code, _, said) = dead
    warning, = warnings_in(said)
    assert code == 0 and out.exists()
    assert warning.startswith("tracking has stopped, the training goes on: the MLflow store http://127.0.0.1:")
    assert warning.endswith(f"`cifar-nb runs {out.parent}/runs --send` sends what is missing")


def test_a_password_is_neither_shown_nor_kept(dead, monkeypatch, tmp_path):
    out, (_, printed, said) = dead
    kept = [path.read_bytes() for path in out.parent.rglob("*") if path.is_file()]
    assert len(kept) > 9
    for text in (printed.encode(), said.encode(), *kept): assert b"s3cr3t" not in text and b"w0rd" not in text
    told = {"s3cr3t": "http://127.0.0.1:", "s3cr3t w0rd": "http://127.0.0.1:", "s3cr3t@w0rd": "%40",
            "s3cr3t/w0rd": "%2F", "s3cr3t@w0rd/": "%2F"}
    for password, wanted in told.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{password}@127.0.0.1:{free_port()}//")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for command in (["runs", "--store"], ["info", "models:/x@champion"], ["promote", "x"]):
            code, printed, error = run(*command)
            assert code in (2, 4) and wanted in error
            assert "s3cr3t" not in error and "w0rd" not in error


def bad_stores(place):
    (place / "file").write_text("text")
    (place / "garbage").mkdir()
    (place / "garbage" / "mlflow.db").write_bytes(b"garbage" * 1000)
    (place / "full").mkdir()
    (place / "full" / "mlflow.db").symlink_to("/dev/full")
    return {"file": "File exists", "/proc/x": "No such file", "garbage": "not a database",
            "full": "full" if Path("/dev/full").exists() else ""}


@pytest.mark.parametrize("kind", ["file", "/proc/x", "garbage", "full", "gopher://x"])
def test_a_store_that_cannot_be_used_costs_one_warning(kind, images, tmp_path):
    told = bad_stores(tmp_path).get(kind, "unsupported URI")
    where = {"MLFLOW_TRACKING_URI": kind} if "://" in kind else {"CIFAR_NB_TRACK_DIR": tmp_path / kind}
    out = tmp_path / "m.safetensors"
    code, _, said = forked(*words(images, out, "--track", epochs=1), **where)
    warning, = warnings_in(said)
    assert code == 0 and out.exists()
    assert warning.startswith("tracking has stopped, the training goes on: the MLflow store ")
    assert told in warning
    assert f"warning: {warning}" in (folder_of(out) / "log.txt").read_text()
    code, printed, said = forked("runs", "--store", **where)
    assert (code, printed, len(said.splitlines())) == (2, "", 1) and told in said
    assert said.startswith("cifar-nb: the MLflow store ")


def test_without_mlflow_the_training_does_not_begin(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    out = tmp_path / "models" / "m.safetensors"
    code, printed, said = run(*words(images, out, "--track"))
    assert (code, printed) == (2, "")
    assert said == ('tracking and the model registry need MLflow: pip install "cifar_nb[mlops]"\n')
    assert not [path for path in out.parent.iterdir() if path.name[0] != "."]
    for command in (["runs", "--store"], ["runs", tmp_path, "--send"], ["promote", "x"],
                    ["info", "models:/x@y"]):
        code, printed, told = run(*command)
        assert (code, printed, told) == (2, "", said)


def test_a_run_that_goes_on_knows_its_images_at_once(tmp_path):
    "Rows may be sent before the images are read again, and images per second follow from both."
    RunFolder(tmp_path).tell(images={"train": 5}, started=1)
    RunFolder(tmp_path).tell(started=2)
    assert read_facts(tmp_path / "about.json") == {"images": {"train": 5}, "started": 2}


def test_a_server_that_never_answers_is_left(images, tmp_path):
    out = tmp_path / "m.safetensors"
    with socket.create_server(("127.0.0.1", 0), backlog=50) as mute:
        began = time.monotonic()
        code, _, said = forked(
            *words(images, out, "--track"), MLFLOW_TRACKING_URI=f"http://127.0.0.1:{mute.getsockname()[1]}",
            MLFLOW_HTTP_REQUEST_TIMEOUT=1, MLFLOW_HTTP_REQUEST_MAX_RETRIES=0)
    assert code == 0 and out.exists() and time.monotonic() - began < 30
    warning, = warnings_in(said)
    assert "timed out" in warning


def sent_rows(out): return read_facts(folder_of(out) / "mlflow.json").get("rows", 0)


def test_a_killed_training_goes_on_with_its_run(images, three, tmp_path):
    shutil.copytree(three[0] / "track", tmp_path / "track")  # with tables, so the first row is soon there
    out, track = tmp_path / "m.safetensors", {"CIFAR_NB_TRACK_DIR": tmp_path / "track"}
    command = words(images, out, "--track", epochs=EPOCHS)
    with Forked(*command, **track) as first:
        until(lambda: sent_rows(out))
        first.signal(signal.SIGKILL)
        assert first.done()[0] == -signal.SIGKILL
    client = client_of(tmp_path / "track")
    before, = runs_called(client, "m-0001")
    had = len(read_history(folder_of(out)))
    assert before.info.status == "RUNNING" and not out.exists() and 0 < had < EPOCHS
    # As if it had been killed a moment earlier, before it noted what was sent
    facts = read_facts(folder_of(out) / "mlflow.json")
    (folder_of(out) / "mlflow.json").write_text(json.dumps(facts | dict(rows=0)))
    code, _, said = forked(*command, **track)
    assert code == 0 and f"Resuming {folder_of(out)} after epoch" in said and not warnings_in(said)
    after, = runs_called(client, "m-0001")
    assert after.info.run_id == before.info.run_id
    check_whole(client, after, EPOCHS)


@pytest.fixture(scope="module")
def interrupted(images, tmp_path_factory, server):
    "A training whose server is killed; the server is starting again."
    out, url = tmp_path_factory.mktemp("killed") / "m.safetensors", server.ready().url
    with Forked(*words(images, out, "--track", epochs=EPOCHS), MLFLOW_TRACKING_URI=url,
                MLFLOW_HTTP_REQUEST_MAX_RETRIES=0) as training:
        until(lambda: sent_rows(out))
        training.signal(signal.SIGSTOP)
        server.kill()
        training.signal(signal.SIGCONT)
        result = training.done()
    server.start()
    return out, result, sent_rows(out)


def test_a_training_survives_its_server(interrupted):
    out, (code, _, said), sent = interrupted
    warning, = warnings_in(said)
    assert code == 0 and out.exists() and warning.startswith("tracking has stopped, the training goes on")
    assert 0 < sent < EPOCHS and read_card(out).epochs == EPOCHS


@pytest.fixture
def many(three, tmp_path, monkeypatch):
    "A finished run among folders whose records are something else."
    runs = tmp_path / "runs"
    whole = folder_of(three[1]["flag"])
    kinds = ("whole", "empty", "binary", "lists", "folder", "texts", "infinite", "lost")
    for name in kinds: shutil.copytree(whole, runs / f"{name}-0001")
    (runs / "empty-0001" / "history.csv").write_bytes(b"")
    for path in (runs / "binary-0001").iterdir(): path.write_bytes(os.urandom(500))
    for name in ("about.json", "measured.json", "versions.json", "mlflow.json"):
        (runs / "lists-0001" / name).write_text("[1, 2]")
    (runs / "folder-0001" / "history.csv").unlink()
    (runs / "folder-0001" / "history.csv").mkdir()
    (runs / "texts-0001" / "about.json").write_text('{"started": "now", "images": [1], "recipe": {}}')
    (runs / "texts-0001" / "measured.json").write_text('{"recall": [1]}')
    (runs / "texts-0001" / "recipe.toml").write_text("model = 3")
    (runs / "infinite-0001" / "history.csv").write_text("epoch,seconds,valid_accuracy\n1,inf,nan\n")
    (runs / "lost-0001" / "model.safetensors").unlink()
    (runs / "no-run").mkdir()
    monkeypatch.setenv("CIFAR_NB_MODELS_DIR", str(tmp_path))
    return runs


def test_damaged_folders_do_not_end_the_list(many):
    code, printed, said = run("runs")
    assert (code, said) == (0, "")
    head, *lines = printed.splitlines()
    assert head.split() == ["run", "recipe", "data", "epochs", "validation", "test", "minutes", "state"]
    states = {line.split()[0].removesuffix("-0001"): line.split("  ")[-1].strip() for line in lines}
    assert len(lines) == 8 and {line.split("  ")[0] for line in lines} >= {"whole-0001", "binary-0001"}
    assert states["whole"] == "finished" and states["lost"] == states["binary"] == "not finished"
    assert states["texts"] == states["infinite"] == "damaged"
    rows = json.loads(run("runs", "--json")[1], parse_constant=pytest.fail)
    assert len(rows) == 8 and {row["data"] for row in rows if row["run"] == "whole-0001"} == {NAME}
    for column in ("run", "recipe", "data", "epochs", "validation", "test", "minutes", "state"):
        for more in ([], ["--json"]): assert run("runs", "--sort", column, *more)[0] == 0, column
    assert run("runs", "--recipe", "enhanced")[1].split() == head.split()
    code, _, said = run("runs", "--sort", "colour")
    assert code == 2 and "use one of run, recipe" in said


def test_damaged_folders_are_not_sent_and_the_others_are(many, store, monkeypatch):
    for path in many.glob("*/mlflow.json"): path.unlink()
    bad = {f"{name}-0001: is damaged, and was not sent" for name in ("texts", "infinite")}
    code, printed, _ = run("runs", many, "--send")
    good = {f"{name}-0001: sent, 2 epochs" for name in ("whole", "lists", "lost")}
    assert code == 0 and {*printed.splitlines()} == good | bad
    assert {*run("runs", many, "--send")[1].splitlines()} == bad
    check_whole(store, *runs_called(store, "whole-0001"), 2)
    assert [found.info.status for found in runs_called(store, "lost-0001")] == ["KILLED"]
    (many / "whole-0001" / "mlflow.json").write_text('{"store": "sqlite:///", "run": 3}')
    monkeypatch.chdir(many)
    with FileLock(many.parent / ".whole.safetensors.lock"):
        assert "whole-0001: is being trained now" in run("runs", ".", "--send")[1]


def test_after_ctrl_c_nobody_waits_long(tmp_path, monkeypatch):
    closed = []

    class Slow:
        def __init__(self, *_): pass
        def wake(self): pass
        def close(self, *how): closed.append(how)
    monkeypatch.setattr("cifar_nb.track.Sender", Slow)
    with pytest.raises(KeyboardInterrupt), tracked_run(RunFolder(tmp_path), Settings.read(track=True)):
        raise KeyboardInterrupt
    assert closed == [("KILLED", 3)]


def test_the_list_is_sorted(three, monkeypatch):
    place = three[0]
    code, printed, _ = run("runs", place / "runs", "--sort", "validation", "--json")
    values = [row["validation"] for row in json.loads(printed)]
    assert code == 0 and len(values) == 3 and values == sorted(values, reverse=True)
    monkeypatch.setenv("CIFAR_NB_TRACK_DIR", str(place / "track"))
    of_store = json.loads(run("runs", "--store", "--json")[1])
    of_folders = {row["run"]: row for row in json.loads(printed)}
    assert {row["run"] for row in of_store} == {"flag-0001", "variable-0001"}
    for row in of_store:
        mine = of_folders[row["run"]]
        assert row["data"] == AS_REGISTERED and row["state"] == "finished"
        for name in ("recipe", "epochs", "validation", "test"): assert row[name] == mine[name]
        assert row["minutes"] == pytest.approx(mine["minutes"], abs=1e-3)


@pytest.fixture
def store(three, tmp_path, monkeypatch):
    "A copy of a store with two finished runs; its client."
    shutil.copytree(three[0] / "track", tmp_path / "track")
    monkeypatch.setenv("CIFAR_NB_TRACK_DIR", str(tmp_path / "track"))
    monkeypatch.setenv("CIFAR_NB_MODELS_DIR", str(tmp_path))
    return client_of(tmp_path / "track")


def begin(store, name, *, started=None, ended=None, seen="x", **metrics):
    experiment = store.get_experiment_by_name(AS_REGISTERED).experiment_id
    run_id = store.create_run(experiment, started, {"validation_images": seen}, name).info.run_id
    for key, value in metrics.items(): store.log_metric(run_id, key, value)
    if ended: store.set_terminated(run_id, ended)
    return run_id


def test_only_a_run_with_a_model_is_promoted(store, three, many):
    running, failed = begin(store, "running"), begin(store, "failed", ended="FAILED")
    foreign = [begin(store, "foreign", ended="FINISHED") for _ in range(2)]
    for name, told in (
            ("nothing", "there is no run 'nothing'"), ("running", "is running, so it has no model"),
            (running, "is running, so it has no model"), (failed, "is failed, so it has no model"),
            ("foreign", f"2 runs are called foreign: give one of the ids {foreign[1]}, {foreign[0]}"),
            (foreign[0], "has no model file"), ("lost-0001", "is not finished"),
            (many / "folder-0001", "lost its history"),
            ("empty-0001", "lost its history"), ("x" * 300, "there is no run")):
        code, printed, said = run("promote", name)
        assert code == 2 and told in said and not printed, (name, said)
    assert not store.search_registered_models()
    code, printed, _ = run("promote", "flag-0001", "--name", "mine")
    assert code == 0 and printed.startswith("models:/mine@champion is version 1, ")
    code, _, said = run("promote", "flag-0001", "--name", "it's/mine")
    assert code == 2 and "use it-s-mine" in said


def test_the_best_run_is_one_that_can_be_compared(store, three):
    ids = {found.info.run_name: found for found in all_runs(store)}
    newest = max(ids.values(), key=lambda found: found.info.start_time)
    seen = newest.data.tags["validation_images"]
    begin(store, "other images", started=1, ended="FINISHED", validation_accuracy=1.)
    begin(store, "not ended", started=2, seen=seen, validation_accuracy=1.)
    code, printed, _ = run("promote", "--best", AS_REGISTERED)
    assert code == 0 and any(found.info.run_id in printed for found in ids.values())
    best = begin(store, "better", started=3, ended="FINISHED", seen=seen, validation_accuracy=1.)
    code, _, said = run("promote", "--best", AS_REGISTERED)
    assert code == 2 and best in said and "has no model file" in said
    code, _, said = run("promote", "--best", "boats")
    assert code == 2 and "no finished run of boats" in said


def test_the_server_gets_the_rest_later(interrupted, server):
    out, there = interrupted[0], {"MLFLOW_TRACKING_URI": server.ready().url}
    run_id = read_facts(folder_of(out) / "mlflow.json")["run"]
    assert server.client().get_run(run_id).info.status == "RUNNING"
    send = ["runs", out.parent / "runs", "--send"]
    assert forked(*send, **there) == (0, f"m-0001: sent, {EPOCHS} epochs\n", "")
    found, = runs_called(server.client(), "m-0001")
    assert found.info.run_id == run_id
    check_whole(server.client(), found, EPOCHS)
    assert forked(*send, **there) == (0, "", "")


def test_a_champion_on_a_server_is_a_model_for_every_command(images, tmp_path, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.ready().url)
    monkeypatch.setenv("CIFAR_NB_TRACK_DIR", str(tmp_path / "here"))
    monkeypatch.setenv("CIFAR_NB_MODELS_DIR", str(tmp_path))
    out = tmp_path / "served.safetensors"
    code, printed, said = forked(*words(images, out, "--track"))
    assert (code, warnings_in(said)) == (0, []) and "View run" not in printed
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"served.safetensors", "runs"}
    address = f"models:/{AS_REGISTERED}@champion"
    code, printed, _ = run("promote", "served-0001")
    assert code == 0 and printed.startswith(f"{address} is version 1, from the run ")
    photo = next((images / "oak = 100%").iterdir())
    own = json.loads(run("predict", "--json", "--model", out, photo)[1])
    for name in (address, f"models:/{AS_REGISTERED}/1"):
        code, printed, _ = run("predict", "--json", name, photo)
        answer = json.loads(printed)
        assert code == 0
        assert (answer["class_name"], answer["confidence"]) == (own["class_name"], own["confidence"])
    code, printed, _ = run("info", address)
    assert code == 0 and "<birch> & co, oak = 100%" in printed
    assert len([*(tmp_path / "here" / "fetched").iterdir()]) == 1
    code, _, said = run("predict", "--model", out, address, photo)
    assert code == 2 and "give one of them" in said


def test_a_class_may_be_called_like_a_column():
    import pandas as pd

    from cifar_nb.track import _AsTable
    answer = SimpleNamespace(class_name="decision", confidence=.75, decision=None,
                             probabilities={"rust": .25, "decision": .75})
    model = _AsTable(SimpleNamespace(predict_batch=lambda images, top_k: [answer] * len(images)))
    table = model.predict(pd.DataFrame({"image": [b"x"]}))
    assert [*table] == ["class_name", "confidence", "decision", "rust"]
    assert table["class_name"][0] == "decision" and table["rust"][0] == .25
