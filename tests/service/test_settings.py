"`create_app` and `run` follow every setting, also with a predictor that is given: one test per field."
import inspect
import io
import json
import re
import shutil
import signal
import socket
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files

import httpx
import psutil
import pytest
import torch
from PIL import Image
from tools.files import JPEG, PNG, saved
from tools.models import Held
from tools.server import service, until

from cifar_nb.core import ConfigError
from cifar_nb.export import BACKENDS
from cifar_nb.images import synthetic
from cifar_nb.modelfile import ModelCard, save_model
from cifar_nb.models import ARCHITECTURES, create_model
from cifar_nb.own import load_architecture
from cifar_nb.port import open_port
from cifar_nb.predict import Predictor
from cifar_nb.registry import open_store, promote_run
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings
from cifar_nb.source import OWN_SOURCES

WEIGHTS = files("cifar_nb.weights")
KEY = {"X-API-Key": "open sesame"}
ABOUT_TRAINING = {"cache_mb", "mirrors", "skip_broken", "track"}  # which no service reads


@pytest.fixture(scope="module")
def predictor(): return Predictor.load("cifar10")


@contextmanager
def running(predictor, **changes):
    "A client of a service with other settings than usual."
    app = create_app(ServiceSettings(**{"backend": "eager", **changes}), predictor)
    with served(app) as url, httpx.Client(base_url=url, timeout=60) as client: yield client


def post(client, content=PNG): return client.post("/predict", files={"file": ("x.png", content)})


def test_every_setting_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(ServiceSettings.model_fields) - ABOUT_TRAINING <= tested


def test_model(predictor):
    with running(predictor, model="simple", api_key="open sesame") as client:
        before = client.get("/model", headers=KEY).json()["architecture"]
        after = client.post("/model/reload", headers=KEY).json()["architecture"]
    assert (before, after) == (predictor.card.architecture, Predictor.load("simple").card.architecture)


def test_models_dir(predictor, tmp_path):
    shutil.copy(str(WEIGHTS / "simple.safetensors"), tmp_path / "mine.safetensors")
    with running(predictor, model="mine", models_dir=tmp_path, api_key="open sesame") as client:
        client.post("/model/reload", headers=KEY).raise_for_status()
        assert client.get("/health").json()["model"] == "mine"


def test_track_dir(predictor, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = open_store(ServiceSettings(track_dir=tmp_path))
    run_id = store.client.create_run(store.client.create_experiment("toys", store.artifacts)).info.run_id
    (tmp_path / "model.safetensors").write_bytes((WEIGHTS / "simple.safetensors").read_bytes())
    store.client.log_artifact(run_id, str(tmp_path / "model.safetensors"), "model/data")
    promote_run(store, "toys", run_id)
    where = dict(track_dir=tmp_path, api_key="open sesame")
    with running(predictor, model="models:/toys@champion", **where) as client:
        client.post("/model/reload", headers=KEY).raise_for_status()
        assert client.get("/health").json()["model"] == "toys-1"
    with running(predictor, model="models:/boats@champion", **where) as client:
        answer = client.post("/model/reload", headers=KEY)
        assert answer.status_code == 409 and "no boats@champion" in answer.json()["detail"]
        assert client.get("/health").status_code == 200  # the old one serves


def test_formats(predictor):
    image = Image.new("RGB", (40, 30))
    avif, tiff = saved(image, "AVIF", speed=10), saved(image, "TIFF")
    with running(predictor) as client:
        assert [post(client, data).status_code for data in (PNG, avif, tiff)] == [200, 200, 200]
    with running(predictor, formats=["PNG", "AVIF"]) as client:
        assert client.get("/model").json()["limits"]["formats"] == ["PNG", "AVIF"]
        assert [post(client, data).status_code for data in (PNG, avif, tiff)] == [200, 200, 415]
        said = post(client, tiff).json()["detail"]
        assert said == "the file is TIFF: save it as JPEG or PNG; send PNG or AVIF"


def test_device(predictor):
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ConfigError): create_app(ServiceSettings(device=missing), predictor)
    with running(predictor, device="cpu") as client: assert client.get("/health").json()["device"] == "cpu"
    if not torch.cuda.is_available(): return
    with running(predictor, device="cuda") as client:
        assert client.get("/health").json()["device"].startswith("cuda") and post(client).status_code == 200
    assert next(predictor.model.parameters()).device.type == "cpu"  # the caller's own stays where it is


def test_threads(predictor):
    class Counting(Predictor):
        def answers(self, *args):
            seen.append(torch.get_num_threads())
            return super().answers(*args)
    seen, ours = [], torch.get_num_threads()
    for n in (ours + 1, ours + 2):
        with running(Counting(predictor.model, predictor.card), threads=n) as client: post(client)
    assert seen == [ours + 1, ours + 2] and torch.get_num_threads() == ours


@pytest.mark.parametrize("backend", ["eager", "bfloat16", "onnx", "openvino"])
def test_backend(predictor, backend):
    with running(predictor, backend=backend) as client:
        health = client.get("/health").json()
        assert (health["backend"], health["racing"]) == (backend, False) and post(client).status_code == 200


def test_backend_auto(predictor):
    with running(predictor, backend="auto") as client:
        assert client.get("/health").json()["status"] == "ok"  # it answers while the backends race
        until(lambda: not client.get("/health").json()["racing"])
        chosen = client.get("/health").json()["backend"].split(" and ")
        assert {*chosen} <= {*BACKENDS} and post(client).status_code == 200


def test_data_dir(predictor, tmp_path):
    with running(predictor, backend="auto", data_dir=tmp_path) as client:
        until(lambda: not client.get("/health").json()["racing"])
    assert len(list((tmp_path / "backends").iterdir())) == 1  # the choice, for the next start


def test_architecture(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Flat(nn.Module):\n"
        "    def __init__(self, n_classes=10):\n        super().__init__()\n"
        "        self.head = nn.Linear(3, n_classes)\n\n"
        "    def forward(self, x): return self.head(x.mean((2, 3)))\n")
    text = f"{tmp_path}/net.py:Flat"
    name, images = load_architecture(text), synthetic("test")
    model = create_model(name)
    path = save_model(model, ModelCard.for_images(images, model), tmp_path / "flat.safetensors")
    unload(name)
    for architecture, status in ((None, 503), (text, 200)):
        with running(None, model=str(path), architecture=architecture, api_key="open sesame") as client:
            until(lambda client=client: "being loaded" not in str(client.get("/health").json()["detail"]))
            assert client.get("/health").status_code == status
            card = client.get("/model", headers=KEY)
            assert card.status_code == status
            if status == 200: assert card.json()["provenance"] is None  # the source is not for visitors
    unload(name)


def unload(name): del ARCHITECTURES[name], OWN_SOURCES[name]


def test_corrections(predictor, tmp_path):
    with running(predictor, corrections=tmp_path) as client:
        assert client.post("/corrections?class_name=cat", content=PNG).status_code == 201
    assert len(list(tmp_path.glob("cat/*.png"))) == 1


def test_max_corrections(predictor, tmp_path):
    with running(predictor, corrections=tmp_path, max_corrections=1) as client:
        sent = [client.post("/corrections?class_name=cat", content=data).status_code for data in (PNG, JPEG)]
    assert sent == [201, 507]


def test_max_corrections_bytes(predictor, tmp_path):
    with running(predictor, corrections=tmp_path, max_corrections_bytes=len(PNG)) as client:
        sent = [client.post("/corrections?class_name=cat", content=data).status_code for data in (PNG, JPEG)]
    assert sent == [201, 507]


def test_max_body_bytes(predictor):
    with running(predictor, max_body_bytes=2000) as client:
        assert [post(client, bytes(n)).status_code for n in (1000, 2001)] == [415, 413]
        assert client.get("/model").json()["limits"]["max_body_bytes"] == 2000


def test_max_held_bytes(predictor):
    with running(predictor, max_held_bytes=2000) as client:
        assert [post(client, bytes(n)).status_code for n in (1000, 2001, 1000)] == [415, 503, 415]


def test_max_pixels(predictor):
    with running(predictor, max_pixels=100) as client:
        for size, status in (((10, 10), 200), ((10, 11), 413)):
            Image.new("RGB", size).save(file := io.BytesIO(), "PNG")
            assert post(client, file.getvalue()).status_code == status


def decoding_processes():
    "Those that this process has started, without the workers that they fork."
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    return sum("cifar_nb.sandbox" in command for command in commands)


def test_decoders(predictor):
    others = decoding_processes()  # of servers that serve several tests
    for decoders, processes in ((0, 0), (1, 2), (2, 3)):
        with running(predictor, decoders=decoders) as client:
            assert decoding_processes() == others + processes and post(client).status_code == 200
        assert decoding_processes() == others


def of_a_bit(width, height):
    "A PNG of few bytes and many pixels."
    Image.new("1", (width, height)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_max_decode_seconds(predictor):
    for seconds, status in ((.01, 413), (20, 200)):
        with running(predictor, max_decode_seconds=seconds, max_wait=60) as client:
            assert post(client, of_a_bit(4000, 4000)).status_code == status


def test_max_decode_bytes(predictor):
    Image.new("RGB", (4000, 4000)).save(large := io.BytesIO(), "PNG")
    for most, status in ((50_000_000, 413), (400_000_000, 200)):
        with running(predictor, max_decode_bytes=most, max_wait=60) as client:
            assert post(client, large.getvalue()).status_code == status
            assert post(client).status_code == 200


def test_max_waiting(predictor):
    held = Held()
    with running(held, max_waiting=1, max_wait=60) as client, ThreadPoolExecutor(1) as crowd:
        first = crowd.submit(post, client)
        try:
            assert held.begun.wait(30)
            assert post(client).status_code == 503
        finally: held.go.set()
        assert first.result().status_code == 200


def test_max_per_client():
    held = Held()
    with running(held, max_per_client=1, max_wait=60) as client, ThreadPoolExecutor(1) as others:
        first = others.submit(post, client)
        try:
            assert held.begun.wait(30)
            refused = post(client)
            assert refused.status_code == 503 and "of yours" in refused.text
        finally: held.go.set()
        assert first.result().status_code == 200


def test_max_wait(predictor):
    with running(predictor, max_wait=1e-9) as client: assert post(client).status_code == 503


def test_max_batch(predictor):
    with running(predictor, max_batch=2) as client, ThreadPoolExecutor(8) as crowd:
        statuses = [client.post("/predict/batch", files=[("files", PNG)] * n).status_code for n in (2, 3)]
        list(crowd.map(lambda _: post(client), range(40)))
        counts = [line for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
        schema = client.get("/openapi.json").json()["paths"]["/predict/batch"]["post"]["requestBody"]
    sizes = {line.partition(" ")[0]: float(line.rpartition(" ")[2]) for line in counts}
    assert statuses == [200, 400] and '"maxItems": 2' in json.dumps(schema)
    assert sizes['cifar_nb_batch_size_bucket{le="2.0"}'] == sizes["cifar_nb_batch_size_count"]


def test_api_key(predictor):
    with running(predictor, api_key="open sesame") as client:
        keys = ({}, {"X-API-Key": "open sesamf"}, {"Authorization": "Bearer x"})
        assert [client.get("/classes", headers=key).status_code for key in keys] == [401] * 3
        keys = (KEY, {"Authorization": "Bearer open sesame"})
        assert [client.get("/classes", headers=key).status_code for key in keys] == [200] * 2
    with running(predictor) as client:
        assert client.get("/classes").status_code == 200 and client.post("/model/reload").status_code == 403


def test_operations_key(predictor):
    ours = {"X-API-Key": "close sesame"}
    bearer = {"Authorization": "Bearer close sesame"}
    with running(predictor, operations_key="close sesame", api_key="open sesame") as client:
        def reload(headers): return client.post("/model/reload", headers=headers).status_code
        assert [reload(headers) for headers in ({}, KEY, ours, bearer)] == [401, 401, 200, 200]
        assert [client.get("/metrics", headers=headers).status_code for headers in (KEY, ours)] == [200, 401]
    with running(predictor, operations_key="close sesame") as client:
        replies = [client.post("/model/reload", headers=headers) for headers in ({}, ours)]
        assert [reply.status_code for reply in replies] == [401, 200]
        assert post(client).status_code == 200  # predictions need no key
    with running(predictor) as client:
        refused = client.post("/model/reload", headers=ours)
        assert refused.status_code == 403 and "CIFAR_NB_OPERATIONS_KEY" in refused.json()["detail"]


def test_root_path(predictor):
    for path in ("/images", "images", "/images/"):
        with running(predictor, root_path=path) as client:
            assert client.get("/openapi.json").json()["servers"] == [{"url": "/images"}]
            assert '"/images/' in client.get("/docs").text
            assert client.get("/static/page.js").status_code == 200


def test_drain_seconds(tmp_path):
    with service(tmp_path, CIFAR_NB_DRAIN_SECONDS="1.5") as it:
        it.process.send_signal(signal.SIGTERM)
        until(lambda: it.get("/health").status_code == 503, 10)
        assert it.get("/live").status_code == 200 and it.process.wait(20) == 0


def test_cors_origins(predictor):
    with running(predictor, cors_origins=["https://a.example"]) as client:
        def allowed(origin):
            reply = client.get("/live", headers={"Origin": origin})
            return reply.headers.get("access-control-allow-origin")
        assert (allowed("https://a.example"), allowed("http://localhost:3000")) == ("https://a.example", None)


def test_frame_origins(predictor):
    def frames(**changes):
        with running(predictor, **changes) as client:
            replies = [client.get(path) for path in ("/", "/docs", "/live", "/x")]
        policies = {reply.headers["content-security-policy"] for reply in replies}
        return {re.search(r"frame-ancestors ([^;]+)", policy)[1] for policy in policies}
    assert frames() == {"'none'"}
    two = ["https://a.example", "https://*.b.example:8443"]
    assert frames(frame_origins=two) == {" ".join(two)}
    as_text = ServiceSettings.read(frame_origins=", ".join(two))
    assert as_text.frame_origins == two == ServiceSettings(**dict(as_text)).frame_origins


@pytest.mark.parametrize("wrong", [
    "*", "https://*", "a.example", "'self'", "https://a.example; script-src *", "https://a.example/path",
    "https://a.example\r\nX: y", "https://a.*.example", "data:"])
def test_what_may_frame_the_page_must_be_an_origin(wrong):
    with pytest.raises(ConfigError, match="--frame-origins"):
        ServiceSettings.read(frame_origins=wrong)


def test_allowed_hosts(predictor):
    def answered(host): return client.get("/live", headers={"Host": host}).status_code == 200
    names = ("a.example", "b.a.example", "evil.example", "127.0.0.1", "localhost:80")
    rules = {
        (): [False, False, False, True, True],
        ("a.example",): [True, False, False, True, True],
        ("*.A.example",): [False, True, False, True, True],
        ("*",): [True] * 5,
    }
    for hosts, expected in rules.items():
        with running(predictor, allowed_hosts=list(hosts) or None) as client:
            assert [answered(name) for name in names] == expected
    with running(predictor, host="0.0.0.0") as client: assert all(answered(name) for name in names)


def test_max_header_bytes(predictor):
    with running(predictor, max_header_bytes=2000) as client:
        assert [client.get("/live", headers={"x": "a" * n}).status_code for n in (1000, 2000)] == [200, 431]


def test_max_header_seconds(predictor):
    with running(predictor, max_header_seconds=.1) as client:
        address = client.base_url.host, client.base_url.port
        sock = socket.create_connection(address, timeout=10)
        sock.sendall(b"GET /")
        assert sock.recv(1000).startswith(b"HTTP/1.1 408")
        sock.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    with open_port("127.0.0.1", 0) as free: port = free.getsockname()[1]
    flags = ("--host", "localhost", "--port", str(port), "--workers", "2", "--log-json")
    with service(tmp_path_factory.mktemp("process"), *flags) as it: yield it, port


def test_host(process): assert process[0].url.startswith("http://127.0.0.1:")


def test_port(process): assert process[0].url.endswith(f":{process[1]}")


def test_workers(process): assert sorted(process[0].fleet(2)) == process[0].workers()


def test_log_json(process):
    it, _ = process
    it.get("/live")
    until(lambda: any(record.get("route") == "/live" for record in it.records()), 10)
    assert all({"time", "level", "message"} <= set(record) for record in it.records())


def test_a_rejected_key_is_not_repeated():
    "Not even in a traceback, which ends in a log or in a notebook."
    key = "ü" * 9
    with pytest.raises(ConfigError) as caught: ServiceSettings.read(api_key=key)
    printed = "".join(traceback.format_exception(caught.value))
    assert "--api-key" in printed or "CIFAR_NB_API_KEY" in printed
    assert key not in printed


def test_dependencies_need_no_thread():
    "FastAPI runs plain functions in a pool of threads, for which a request would wait."
    pending = [route.dependant for route in create_app().routes if hasattr(route, "dependant")]
    for dependant in pending:
        for needed in dependant.dependencies:
            pending.append(needed)
            ours = getattr(needed.call, "__module__", "").startswith("cifar_nb")
            assert not ours or inspect.iscoroutinefunction(needed.call), needed.call
