"What computes: backends that agree, one for each size of batches, and a choice that the next start reads."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tools.server import COMMAND, service, until

from cifar_nb import choice as choosing
from cifar_nb import export, slot
from cifar_nb.backends import openvino_network, require
from cifar_nb.choice import SIZES
from cifar_nb.core import ConfigError, Settings
from cifar_nb.export import candidates, fastest, random_images, same_answers, with_backend
from cifar_nb.images import normalize
from cifar_nb.predict import Predictor
from cifar_nb.slot import ModelSlot


@pytest.fixture
def predictor(): return Predictor.load("simple")


# Milliseconds for each size; bfloat16 is best for single images, and the last one for all others
FAKE = {
    "eager": dict.fromkeys(SIZES, 9.),
    "bfloat16": dict.fromkeys(SIZES, 8.) | {1: 1.},
    "openvino": dict.fromkeys(SIZES, 2.) | {1: 4.}}
CHOSEN = dict.fromkeys(SIZES, "openvino") | {1: "bfloat16"}


@pytest.fixture
def fakes(monkeypatch):
    "Backends of known speed, and what was done with them: timings, and the sizes of batches."
    done = {"timed": [], "computed": []}

    def network_of(predictor, name, threads):
        def network(x):
            done["computed"].append((name, len(x)))
            return predictor.model(x)
        return network

    def timed(f, x, stopped):
        name = f.__self__.backend
        done["timed"].append(name)
        return FAKE[name]
    monkeypatch.setattr(export, "_network_of", network_of)
    monkeypatch.setattr(export, "time_batches", timed)
    for module in (export, slot): monkeypatch.setattr(module, "candidates", lambda device: tuple(FAKE))
    monkeypatch.setattr(export, "check_backend", lambda backend, device: None)
    return done


def start(folder, predictor, **more):
    "A slot that has begun to serve, as the service would start it."
    it = ModelSlot(Settings(data_dir=folder, **more))
    it.use(predictor)
    it.race()
    return it


def kept(folder):
    found, = (folder / "backends").iterdir()
    return found


# Agreement

@pytest.mark.parametrize("name", ["cifar10", "cifar100", "simple"])
def test_openvino_names_the_same_classes(name):
    pytest.importorskip("openvino")
    predictor = Predictor.load(name)
    size, stats = predictor.card.input_size, predictor.card.stats
    x = normalize(random_images(512, size), stats)
    expected = predictor.logits(x).argmax(1)
    exact = openvino_network(predictor.model, size, 1)
    with torch.inference_mode(): assert torch.equal(exact(x).argmax(1), expected)
    way = with_backend(predictor, "openvino", 1)  # with 16 bits, where the processor has them
    assert torch.equal(way.logits(x).argmax(1), expected) and same_answers(way, predictor)


@pytest.mark.parametrize("n", [1, 3, 8, 33])
def test_openvino_takes_any_number_of_images(predictor, n):
    pytest.importorskip("openvino")
    x = normalize(random_images(n, 32), predictor.card.stats)
    close = with_backend(predictor, "openvino", 1).logits(x) - predictor.logits(x)
    assert close.shape == (n, 10) and close.abs().max() < .5*predictor.card.temperature


def test_threads_of_openvino_are_bound_to_no_core(predictor):
    "Else those of two workers would be bound to the same one."
    pytest.importorskip("openvino")
    code = (
        "import os, sys\n"
        "from cifar_nb.export import *\nfrom cifar_nb.predict import Predictor\n"
        "way = with_backend(Predictor.load('simple'), 'openvino', 2)\n"
        "way.logits(random_images(32, 32).float())\n"
        "cores = os.sched_getaffinity(0)\n"
        "assert {*map(int, os.listdir('/proc/self/task'))} > {os.getpid()}\n"
        "sys.exit(any(os.sched_getaffinity(int(t)) != cores for t in os.listdir('/proc/self/task')))")
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2: pytest.skip("one core")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Without OpenVINO

@pytest.fixture
def without(tmp_path):
    "An environment in which OpenVINO cannot be imported."
    (tmp_path / "hidden" / "openvino").mkdir(parents=True)
    (tmp_path / "hidden/openvino/__init__.py").write_text("raise ImportError('not here')")
    path = filter(None, [str(tmp_path / "hidden"), os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join(path)}


def test_without_openvino_the_others_are_compared(monkeypatch, predictor):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert candidates("cpu") == ("eager", "bfloat16", "onnx")
    with pytest.raises(ConfigError, match=r'openvino is not installed: pip install "cifar_nb\[export\]"'):
        with_backend(predictor, "openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    way, chosen, rows = fastest(predictor, candidates("cpu"), 1)
    assert set(chosen.values()) <= {"eager", "bfloat16"} and "is not installed" in rows[2][-1]


def test_the_command_says_how_to_install_it(without):
    done = subprocess.run([COMMAND, "serve", "--port", "0", "--backend", "openvino"], text=True,
                          capture_output=True, env={**os.environ, **without}, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert 'openvino is not installed: pip install "cifar_nb[export]"' in done.stderr


def test_with_openvino_no_exporter_is_loaded(predictor, tmp_path):
    pytest.importorskip("openvino")
    assert candidates("cpu") == ("eager", "bfloat16", "openvino") and "onnx" in candidates("cuda")
    code = (
        "import sys\nfrom cifar_nb.core import Settings\nfrom cifar_nb.slot import ModelSlot\n"
        "slot = ModelSlot(Settings(model='simple'))\nslot.load()\nslot.race()\n"
        "print(*{name.partition('.')[0] for name in sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env={**os.environ, "CIFAR_NB_DATA_DIR": str(tmp_path)})
    assert not {"onnx", "onnxscript", "sympy", "openvino_telemetry"} & set(done.stdout.split())
    assert require("openvino").__name__ == "openvino"


# One backend for each size

def test_each_batch_is_computed_by_the_backend_for_its_size(fakes, predictor, tmp_path):
    it = start(tmp_path, predictor)
    assert it.predictor.backend == "bfloat16 and openvino" and it.choice == CHOSEN
    fakes["computed"].clear()
    for n in (1, 2, 4, 5, 32, 40): it.predictor.logits(torch.zeros(n, 3, 32, 32))
    assert fakes["computed"] == [("bfloat16", 1), *(("openvino", n) for n in (2, 4, 5, 32, 40))]


def test_one_backend_is_enough_where_a_second_gains_little(fakes, predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(FAKE, "openvino", dict.fromkeys(SIZES, 2.) | {1: 1.2})
    assert start(tmp_path, predictor).predictor.backend == "openvino"


# The second start

def test_the_second_start_does_not_measure(fakes, predictor, tmp_path):
    first = start(tmp_path, predictor)
    assert fakes["timed"] == list(FAKE)
    second = start(tmp_path, Predictor.load("simple"))
    assert fakes["timed"] == list(FAKE)
    assert second.choice == first.choice == CHOSEN and not second.racing
    assert second.predictor.backend == "bfloat16 and openvino"


@pytest.mark.parametrize("change", ["weights", "model", "version", "threads", "processor", "candidates"])
def test_it_measures_again_when_something_is_different(fakes, predictor, tmp_path, monkeypatch, *, change):
    start(tmp_path, predictor, threads=1)
    fakes["timed"].clear()
    if change == "weights":
        with torch.no_grad(): next(predictor.model.parameters())[0] += 1e-3
    if change == "model": predictor = Predictor.load("cifar10")
    if change == "version": monkeypatch.setattr(choosing, "_version", lambda library: f"{library} 9")
    if change == "processor": monkeypatch.setattr(choosing, "_processor", lambda: ["Z80"])
    if change == "candidates": monkeypatch.setattr(slot, "candidates", lambda device: ("eager", "bfloat16"))
    start(tmp_path, predictor, threads=2 if change == "threads" else 1)
    assert "bfloat16" in fakes["timed"]
    assert len(list((tmp_path / "backends").iterdir())) == 2


GOOD = json.dumps(CHOSEN)
FORGED = {
    "empty": "", "cut": GOOD[:-1], "list": "[]", "null": "null", "deep": "[" * 9000,
    "large": GOOD + " " * 20_000,
    "not allowed": GOOD.replace("bfloat16", "compiled"), "unknown": GOOD.replace("bfloat16", "../../bin/sh"),
    "a size too many": GOOD.replace("{", '{"2": "eager", '), "a size too few": GOOD.replace('"1"', '"2"'),
    "not a name": GOOD.replace('"bfloat16"', "[]"), "number": GOOD.replace('"bfloat16"', "1" * 5000),
    "bytes": "\ufeff\x00"}


@pytest.mark.parametrize("kind", FORGED)
def test_a_damaged_or_forged_choice_is_not_followed(fakes, predictor, tmp_path, kind):
    start(tmp_path, predictor)
    fakes["timed"].clear()
    kept(tmp_path).write_text(FORGED[kind], encoding="utf-8")
    assert start(tmp_path, predictor).choice == CHOSEN
    assert fakes["timed"] == list(FAKE)
    assert json.loads(kept(tmp_path).read_text()) == json.loads(GOOD)  # and is repaired


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_not_a_file_is_not_read(fakes, predictor, tmp_path, kind):
    start(tmp_path, predictor)
    fakes["timed"].clear()
    path = kept(tmp_path)
    path.unlink()
    if kind == "pipe": os.mkfifo(path)
    if kind == "folder": path.mkdir()
    if kind == "device": path.symlink_to("/dev/zero")
    if kind == "loop": path.symlink_to(path)
    assert start(tmp_path, predictor).choice == CHOSEN and fakes["timed"] == list(FAKE)


def test_a_folder_that_cannot_be_written_costs_a_race(fakes, predictor, tmp_path, caplog):
    (tmp_path / "backends").write_text("a file")  # root may write to any folder
    caplog.set_level("INFO", "cifar_nb")
    for _ in range(2): assert start(tmp_path, predictor).choice == CHOSEN
    assert fakes["timed"] == [*FAKE, *FAKE] and "cannot be written" in caplog.text


@pytest.mark.parametrize("how", ["raises", "answers otherwise"])
def test_a_choice_that_does_not_work_is_not_followed(fakes, predictor, tmp_path, monkeypatch, *, how):
    start(tmp_path, predictor)
    fakes["timed"].clear()
    whole = export._network_of

    def broken(predictor, name, threads):
        if name != "openvino": return whole(predictor, name, threads)
        if how == "raises": raise ConfigError("openvino is not installed")
        return lambda x: predictor.model(-x if len(x) == 16 else x)
    monkeypatch.setattr(export, "_network_of", broken)
    it = start(tmp_path, predictor)
    assert "openvino" not in it.choice.values() and "eager" in fakes["timed"]
    assert "openvino" not in kept(tmp_path).read_text()


def test_what_was_measured_until_it_was_stopped_is_not_kept(fakes, predictor, tmp_path, monkeypatch):
    it = ModelSlot(Settings(data_dir=tmp_path))
    it.use(predictor)

    def stopped_after_two(f, x, stopped):
        it.closing = f.__self__.backend == "bfloat16"
        return FAKE[f.__self__.backend]
    monkeypatch.setattr(export, "time_batches", stopped_after_two)
    it.race()
    assert "bfloat16" in it.choice.values() and not (tmp_path / "backends").exists()


def test_a_backend_that_is_named_wins(fakes, predictor, tmp_path):
    start(tmp_path, predictor)
    it = ModelSlot(Settings(data_dir=tmp_path), backend="eager")
    it.use(predictor)
    it.race()
    assert it.predictor.backend == "eager" and len(fakes["timed"]) == len(FAKE)


def test_a_new_model_takes_its_own_choice_or_that_of_the_last(fakes, predictor, tmp_path, monkeypatch):
    first = start(tmp_path, predictor)
    first.use(Predictor.load("cifar10"))
    assert first.predictor.backend == "bfloat16 and openvino"  # as the last one
    monkeypatch.setitem(FAKE, "eager", dict.fromkeys(SIZES, .1))
    start(tmp_path, Predictor.load("cifar10"))
    fakes["timed"].clear()
    first.use(Predictor.load("cifar10"))
    assert first.predictor.backend == "eager" and not fakes["timed"]  # as another process has found


def test_two_workers_share_one_race(tmp_path):
    with service(tmp_path, "--workers", "2", "--backend", "auto", CIFAR_NB_MODEL="simple") as it:
        def settled(): return not any(one["racing"] for one in it.fleet().values())
        until(settled)
        said = it.fleet()
        timed = [line for line in it.lines() if "backend eager: " in line]
    assert len({one["backend"] for one in said.values()}) == 1 and len(timed) == 1
    assert len(list(Path(tmp_path, "data", "backends").iterdir())) == 1
