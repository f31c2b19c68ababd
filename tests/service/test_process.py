"The command `cifar-nb serve` in a process of its own: starts, stops, and starts without a model."
import signal
import struct
import subprocess
import time
from importlib.resources import files

import httpx
import pytest
from PIL import Image
from tools.files import BASE, JPEG, PNG, chunk, saved
from tools.server import COMMAND, service, until

from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

SIMPLE = (files("cifar_nb.weights") / "simple.safetensors").read_bytes()


def put(path, data):
    "Write a file in one step."
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.rename(path)


def post(url, content=PNG): return httpx.post(f"{url}/predict", files={"file": content}, timeout=60)


def test_the_command_serves_and_stops(tmp_path):
    with service(tmp_path, CIFAR_NB_MODEL="simple") as it:
        assert it.health()["model"] == "simple"
        assert post(it.url).status_code == 200
        assert it.stop() == 0
        assert it.left_behind() == set()


@pytest.mark.parametrize("seconds", [.3, 1.5])
def test_told_to_stop_while_it_starts(seconds):
    with subprocess.Popen([COMMAND, "serve", "--port", "0"], stderr=subprocess.PIPE) as process:
        time.sleep(seconds)  # any moment will do: it imports PyTorch, or has just begun to serve
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0 and "terminate called" not in said and "Traceback" not in said, said


@pytest.mark.parametrize("moment", ["address", "healthy", "reloading", "reloaded"])
def test_told_to_stop_at_any_moment(tmp_path, moment):
    "A thread that is inside C++ when Python ends would abort the process."
    with service(tmp_path, "--backend", "auto", ready=moment != "address") as it:
        if moment.startswith("reload"):
            until(lambda: not it.health()["racing"])
            for _ in range(20): it.process.send_signal(signal.SIGHUP)
        if moment == "reloaded": until(lambda: it.health()["generation"] >= 2)
        if moment == "healthy": assert it.health()["racing"]
        assert it.stop() == 0
        assert not [line for line in it.lines() if "terminate called" in line or "Traceback" in line]


def test_a_folder_for_the_counters_of_others_is_not_ours(tmp_path):
    with service(tmp_path, PROMETHEUS_MULTIPROC_DIR="/nowhere") as it:
        assert "cifar_nb_requests_total" in it.get("/metrics").text and it.left_behind() == set()


def test_it_starts_without_a_model_and_recovers(tmp_path):
    late = tmp_path / "late.safetensors"
    with service(tmp_path / "it", ready=False, CIFAR_NB_MODEL=str(late)) as it:
        def failed():
            try: return it.health()["failed_loads"]
            except httpx.TransportError: return 0  # it does not listen yet
        until(failed)
        health, refused = it.get("/health"), post(it.url)
        assert health.status_code == 503 and "the log says why" in health.json()["detail"]
        said = [health.text, refused.text, it.get("/classes").text, it.get("/model").text]
        assert not any("late" in text or str(tmp_path) in text for text in said), said  # they are public
        assert sum("late.safetensors" in line for line in it.lines()[1:]) == 1
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert [it.get(path).status_code for path in ("/live", "/model", "/classes")] == [200, 503, 503]
        put(late, SIMPLE)
        until(it.healthy)
        assert post(it.url).status_code == 200 and it.health()["generation"] == 1


def test_a_model_that_is_repaired_is_found(tmp_path):
    path = tmp_path / "late.safetensors"
    path.write_bytes(SIMPLE[:1000])
    with served(create_app(ServiceSettings(model=str(path), backend="eager"))) as url:
        until(lambda: httpx.get(f"{url}/health").json()["failed_loads"])
        assert httpx.get(f"{url}/health").status_code == 503
        put(path, SIMPLE)
        until(lambda: httpx.get(f"{url}/health").status_code == 200)
        assert post(url).status_code == 200


def test_the_log_is_json_whatever_comes(tmp_path):
    exif = PNG[:33] + chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x05garbage") + PNG[33:]
    palette = saved(BASE.quantize(8), "PNG", transparency=bytes(8))
    # each claims another size, of which Pillow warns
    odd = [saved(BASE, "GIF") for _ in range(20)]
    odd = [gif[:6] + struct.pack("<HH", 10_000 + i, 10_000) + gif[10:] for i, gif in enumerate(odd)]
    with service(tmp_path, "--log-json", "--threads", "1") as it:
        for content in odd: assert post(it.url, content).status_code == 413
        for content in (saved(Image.new("1", (10_000, 10_000)), "PNG"), exif, palette, JPEG[:-100], b""):
            post(it.url, content)
        assert it.stop() == 0
        assert all({"time", "level", "message"} <= set(record) for record in it.records())
        assert sum(record.get("route") == "/predict" for record in it.records()) == 25
        assert sum("pixels" in record["message"] for record in it.records()) <= 1
