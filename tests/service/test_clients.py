"Clients of five older systems, unchanged, and the service behind a reverse proxy."
import base64
import io
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urljoin

import httpx
import pytest
from PIL import Image
from tools.server import until

from cifar_nb.core import Settings
from cifar_nb.data import synthetic
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def predictor(): return Predictor.load("cifar10")


@pytest.fixture(scope="module")
def url(predictor):
    with served(create_app(Settings(), predictor)) as address: yield address


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.jpg"
    Image.fromarray(synthetic("test").pixels[7].permute(1, 2, 0).numpy()).resize((61, 47)).save(path)
    return path


def test_a_form_and_class_id(url, picture):
    with open(picture, "rb") as f: reply = httpx.post(f"{url}/predict", files={"file": f})
    reply.raise_for_status()
    assert reply.json()["class_id"] in range(10)


def test_classify_and_prediction(url, picture):
    reply = httpx.post(f"{url}/classify/", files={"image": (picture.name, picture.read_bytes(), "image/jpeg")})
    assert reply.status_code == 200 and reply.json()["prediction"] in CLASSES


def test_json_to_predict(url, picture):
    reply = httpx.post(f"{url}/predict", json={"image_base64": base64.b64encode(picture.read_bytes()).decode()})
    answer = reply.json()
    assert answer["class_name"] == CLASSES[answer["class_index"]] and 0 < answer["confidence"] <= 1


def test_predict_base64_classes_and_health(url, picture):
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    names = httpx.get(f"{url}/classes").json()["classes"]
    text = "data:image/jpeg;base64," + base64.encodebytes(picture.read_bytes()).decode()
    reply = httpx.post(f"{url}/predict_base64", content=json.dumps({"image_base64": text}), headers={"Content-Type": "application/json; charset=utf-8"})
    assert names == CLASSES and reply.json()["class_name"] in names


def test_image_and_probabilities(url, picture):
    answer = httpx.post(f"{url}/predict", files={"image": picture.read_bytes()}).json()
    assert list(answer["probabilities"]) == CLASSES and max(answer["probabilities"], key=answer["probabilities"].get) == answer["class_name"]


def test_all_five_get_the_same_answer(url, picture):
    content, text = picture.read_bytes(), base64.b64encode(picture.read_bytes()).decode()
    post = lambda path, **body: httpx.post(url + path, **body).json()
    named = [post("/predict", files={"file": content}), post("/predict", files={"image": content}), post("/predict", json={"image_base64": text}), post("/predict_base64", json={"image_base64": text})]
    assert {a["class_name"] for a in named} == {CLASSES[a["class_id"]] for a in named} == {post("/classify/", files={"image": content})["prediction"]}


@contextmanager
def proxy(target):
    "A reverse proxy that serves `target` under /pictures and cuts the prefix off."
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.path.startswith("/pictures/"): return self.send_error(404)
            reply = httpx.request(self.command, target + self.path.removeprefix("/pictures"), content=body, headers=dict(self.headers), timeout=60)
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name not in ("content-encoding", "transfer-encoding", "content-length", "connection"): self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)
        do_GET = do_POST = pass_on

        def log_message(self, *args): pass
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{server.server_port}"
        finally: server.shutdown()


@contextmanager
def nginx(target, folder):
    "The same by nginx, at a port that was free a moment ago."
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free: port = free.server_port
    (folder / "nginx.conf").write_text(f"""daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}
        http {{ access_log off; client_max_body_size 20m; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{ listen 127.0.0.1:{port}; location /pictures/ {{ proxy_pass {target}/; proxy_set_header Host $http_host; }} }} }}""")
    process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])

    def up():
        try: return httpx.get(f"http://127.0.0.1:{port}/")
        except httpx.TransportError: assert process.poll() is None
    try:
        until(up, 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def check_behind(front, picture):
    needed = lambda page: [urljoin(page, n) for n in re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["'](?!data:)([^"']+)""", httpx.get(page).raise_for_status().text)]
    for page in ("/pictures/", "/pictures/docs", "/pictures/redoc"):
        parts = needed(front + page)
        assert parts and all(part.startswith(f"{front}/pictures/") for part in parts), parts
        for part in parts: assert httpx.get(part).raise_for_status().content, part
    schema = re.search(r"""url: ['"]([^'"]+)""", httpx.get(f"{front}/pictures/docs").text)[1]
    assert httpx.get(urljoin(f"{front}/pictures/docs", schema)).raise_for_status().json()["servers"] == [{"url": "/pictures"}]
    assert "script-src 'self';" in httpx.get(f"{front}/pictures/").headers["content-security-policy"] and "unsafe" in httpx.get(f"{front}/pictures/docs").headers["content-security-policy"]
    assert httpx.get(f"{front}/pictures/model").json()["classes"] == CLASSES
    assert httpx.get(f"{front}/pictures/swagger/", follow_redirects=True).raise_for_status().url == f"{front}/pictures/docs"
    for path in ("/predict", "/predict?view=true", "/explain", "/classify/"): httpx.post(f"{front}/pictures{path}", files={"image": picture.read_bytes()}, timeout=60).raise_for_status()
    again = httpx.post(f"{front}/pictures/classify", files={"image": picture.read_bytes()}, follow_redirects=True, timeout=60)  # without its slash
    assert again.status_code == 200 and again.url == f"{front}/pictures/classify/"
    assert httpx.post(f"{front}/pictures/predict", files={"file": b"no picture"}).status_code == 415
    assert httpx.get(f"{front}/pictures/nowhere").status_code == httpx.get(f"{front}/pictures/static/nothing").status_code == 404


def test_behind_a_proxy_with_a_prefix(predictor, picture):
    with served(create_app(Settings(root_path="/pictures"), predictor)) as url, proxy(url) as front: check_behind(front, picture)


def test_behind_nginx_with_a_prefix(predictor, picture, tmp_path):
    if not shutil.which("nginx"): pytest.skip("nginx is not installed here")
    with served(create_app(Settings(root_path="/pictures"), predictor)) as url, nginx(url, tmp_path) as front: check_behind(front, picture)


def test_files_of_the_page_are_revalidated_with_a_prefix_too(predictor):
    with served(create_app(Settings(root_path="/pictures"), predictor)) as url:
        first = httpx.get(f"{url}/static/page.css").raise_for_status()
        assert first.headers["cache-control"] == "no-cache"
        assert httpx.get(f"{url}/static/page.css", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_a_small_answer_is_not_held_back(url):
    with httpx.Client(base_url=url) as client: assert min(client.get("/live").elapsed.total_seconds() for _ in range(20)) < .03  # 40 ms are TCP waiting for more


def test_the_example_of_the_documentation_works(url):
    example = httpx.get(f"{url}/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert httpx.post(f"{url}/predict", json=example).status_code == 200
    assert Image.open(io.BytesIO(base64.b64decode(example["image_base64"]))).size == (1, 1)
