"The service behind a reverse proxy that serves it under /images: one in Python, and nginx as in the README."
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urljoin

import httpx
import pytest
from starlette.requests import Request
from tools.files import PNG, noise
from tools.repository import ROOT
from tools.server import until

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings

PREFIX = "/images"
# What the README leaves to nginx.conf; one process, which may write into our folder
NGINX = """daemon off; master_process off; pid FOLDER/pid; error_log FOLDER/error.log; events {}
http {
  access_log off; client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy;
  fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;
  SITE
}"""
needs_nginx = pytest.mark.skipif(
    not shutil.which("nginx"), reason="nginx is not installed; on Debian: apt-get install nginx-light")


@pytest.fixture(scope="module")
def url():
    settings = ServiceSettings(root_path=PREFIX, backend="eager")
    with served(create_app(settings, Predictor.load("cifar10"))) as address: yield address


@contextmanager
def proxy(target):
    "A reverse proxy that serves `target` under the prefix and cuts the prefix off."
    hop_by_hop = ("content-encoding", "transfer-encoding", "content-length", "connection")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.path.startswith(PREFIX + "/"): return self.send_error(404)
            reply = httpx.request(self.command, target + self.path.removeprefix(PREFIX), content=body,
                                  headers=dict(self.headers), timeout=60)
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name not in hop_by_hop: self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)
        do_GET = do_POST = pass_on

        def log_message(self, *args): pass
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{server.server_port}"
        finally: server.shutdown()


def site(port, target, **changes):
    "The README's configuration, for this port and this service; further `changes` are values of directives."
    text = re.search(r"```nginx\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    places = {"listen 80": f"listen 127.0.0.1:{port}", "server_name example.org": "server_name 127.0.0.1",
              "http://127.0.0.1:8000": target}
    for old, new in places.items():
        assert old in text
        text = text.replace(old, new)
    for name, value in changes.items():
        text, n = re.subn(rf"(?<={name} )[^;]+", value, text)
        assert n == 1, name
    return text


@contextmanager
def nginx(target, folder, **changes):
    "nginx as the README sets it up, at a port that was free a moment ago."
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free: port = free.server_port
    text = NGINX.replace("FOLDER", str(folder)).replace("SITE", site(port, target, **changes))
    (folder / "nginx.conf").write_text(text)
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


def needed_by(page):
    "What a page loads, as whole addresses."
    html = httpx.get(page).raise_for_status().text
    found = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["'](?!data:)([^"']+)""", html)
    return [urljoin(page, name) for name in found]


def check_pages(front):
    for page in ("/", "/docs", "/redoc"):
        parts = needed_by(front + page)
        assert parts and all(part.startswith(front + "/") for part in parts), parts
        for part in parts: assert httpx.get(part).raise_for_status().content, part
    docs = httpx.get(f"{front}/docs")
    schema = re.search(r"""url: ['"]([^'"]+)""", docs.text)[1]
    described = httpx.get(urljoin(f"{front}/docs", schema)).raise_for_status().json()
    assert described["servers"] == [{"url": PREFIX}]
    assert "script-src 'self';" in httpx.get(f"{front}/").headers["content-security-policy"]
    assert "unsafe" in docs.headers["content-security-policy"]


def check_routes(front):
    assert len(httpx.get(f"{front}/model").json()["classes"]) == 10
    for path in ("/swagger", "/swagger/"):
        moved = httpx.get(front + path, follow_redirects=True).raise_for_status()
        assert moved.url == f"{front}/docs"
    for path in ("/predict", "/predict?view=true", "/explain", "/classify", "/classify/"):
        httpx.post(front + path, files={"image": PNG}, timeout=60).raise_for_status()
    assert httpx.post(f"{front}/predict", files={"file": b"not an image"}).status_code == 415
    for path in ("/nowhere", "/static/nothing"): assert httpx.get(front + path).status_code == 404


def test_behind_a_proxy_with_a_prefix(url):
    with proxy(url) as front:
        check_pages(front + PREFIX)
        check_routes(front + PREFIX)


def test_behind_a_proxy_that_keeps_the_prefix(url):
    check_pages(url + PREFIX)
    check_routes(url + PREFIX)
    moved = httpx.get(url + PREFIX)
    assert moved.status_code == 307 and moved.headers["location"] == PREFIX + "/"
    assert moved.headers["x-request-id"]


@needs_nginx
@pytest.mark.parametrize("prefix", ["cut", "kept"])
def test_behind_nginx_with_a_prefix(url, tmp_path, prefix):
    changes = {} if prefix == "cut" else {"proxy_pass": url}
    with nginx(url, tmp_path, **changes) as front:
        check_pages(front + PREFIX)
        check_routes(front + PREFIX)
        assert httpx.get(front + PREFIX, follow_redirects=True).url == f"{front}{PREFIX}/"


OPERATIONS = ("/metrics", "/metrics/", "/model/reload", "/model/reload/", "/model/reload?x=1",
              "//model/reload", "/model/./reload", "/docs/../model/reload", "/%6dodel/reload",
              "/model%2freload", "/%6detrics")


@needs_nginx
@pytest.mark.parametrize("prefix", ["cut", "kept"])
def test_nginx_hides_the_operations(url, tmp_path, prefix):
    changes = {} if prefix == "cut" else {"proxy_pass": url}
    with nginx(url, tmp_path, **changes) as front:
        for path in OPERATIONS:
            for send in (httpx.get, httpx.post):
                reply = send(front + PREFIX + path)
                assert reply.status_code == 404 and "nginx" in reply.text, (path, reply.text)
        for path in ("/metrics", "/model/reload"): assert httpx.post(front + path).status_code == 404
        assert httpx.get(f"{front}{PREFIX}/model").status_code == 200


@needs_nginx
def test_nginx_refuses_large_headers_and_foreign_hosts(url, tmp_path):
    with nginx(url, tmp_path) as front:
        live = f"{front}{PREFIX}/live"
        assert httpx.get(live, headers={"X-Long": "x" * 6000}).status_code == 200
        assert httpx.get(live, headers={"X-Long": "x" * 100_000}).status_code == 400
        assert httpx.get(live, headers={f"X-{i}": "x" * 1000 for i in range(100)}).status_code == 400
        assert httpx.get(f"{live}?{'x' * 20_000}").status_code == 414
        kind = {"Content-Type": ";" * 100_000}
        assert httpx.post(f"{front}{PREFIX}/predict", headers=kind, content=PNG).status_code == 400
        with pytest.raises(httpx.RemoteProtocolError): httpx.get(live, headers={"Host": "evil.example"})


def seconds_until_closed(front, *parts):
    "How long a connection lasts over which these parts come, one every tenth of a second, again and again."
    host, port = front.removeprefix("http://").split(":")
    since = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=.1) as sock:
        sock.sendall(parts[0])
        while time.monotonic() < since + 20:
            try:
                if not sock.recv(1000): break
            except TimeoutError:
                with suppress(ConnectionError): sock.sendall(parts[-1])
            except ConnectionError: break
    return time.monotonic() - since


@needs_nginx
def test_nginx_cuts_off_a_client_with_slow_headers(url, tmp_path):
    with nginx(url, tmp_path, client_header_timeout="1s") as front:
        half = f"GET {PREFIX}/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ".encode()
        assert .5 < seconds_until_closed(front, half, b"x") < 10
        assert .5 < seconds_until_closed(front, b"GE", b"") < 10
        assert httpx.get(f"{front}{PREFIX}/live").status_code == 200


@needs_nginx
def test_nginx_passes_a_request_on_when_it_is_complete(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(.5)
        with nginx(f"http://127.0.0.1:{service.getsockname()[1]}", tmp_path) as front:
            host, port = front.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as client:
                head = f"POST {PREFIX}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3000000\r\n"
                client.sendall(head.encode() + b"X-Forwarded-For: 6.6.6.6\r\n\r\n" + bytes(2_999_999))
                with pytest.raises(TimeoutError): service.accept()
                client.sendall(b"\0")
                asked, _ = service.accept()
                with asked: heard = asked.recv(1000).decode("latin1").lower()
    assert "post /predict http/1.1" in heard
    assert "x-forwarded-for: 127.0.0.1" in heard and "6.6.6.6" not in heard


async def say_address(request: Request): return request.client.host


@needs_nginx
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a second loopback address without set-up")
def test_the_service_knows_the_address_of_a_client_behind_nginx(tmp_path):
    app = create_app(ServiceSettings(root_path=PREFIX, backend="eager"), Predictor.load("cifar10"))
    app.add_api_route("/address", say_address)
    elsewhere = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
    with served(app) as url, nginx(url, tmp_path) as front, elsewhere as client:
        claimed = {"X-Forwarded-For": "6.6.6.6"}
        assert client.get(f"{front}{PREFIX}/address", headers=claimed).json() == "127.0.0.2"


@needs_nginx
def test_nginx_passes_on_large_bodies_up_to_the_limit(url, tmp_path):
    with nginx(url, tmp_path) as front:
        def post(content):
            return httpx.post(f"{front}{PREFIX}/predict", files={"file": content}, timeout=60).status_code
        assert post(noise(1500)) == 200  # some 7 MB
        assert post(bytes(10_200_000)) == 413  # refused by the service
        assert post(bytes(12_000_000)) == 413  # refused by nginx


@needs_nginx
def test_a_refusal_before_the_body_reaches_the_client_of_nginx(tmp_path):
    "Not as a 502, which nginx sends when the service hangs up while nginx still sends."
    settings = ServiceSettings(root_path=PREFIX, backend="eager", api_key="open sesame")
    with served(create_app(settings, Predictor.load("cifar10"))) as url, nginx(url, tmp_path) as front:
        for _ in range(20):
            reply = httpx.post(f"{front}{PREFIX}/predict", content=bytes(9_000_000), timeout=60)
            assert reply.status_code == 401


@needs_nginx
def test_nginx_limits_the_rate_of_one_address(url, tmp_path):
    with nginx(url, tmp_path, proxy_read_timeout="60s") as front, httpx.Client(timeout=60) as client:
        send = client.post, client.put
        # several at a time, since the service lets each refusal wait
        with ThreadPoolExecutor(8) as clients:
            replies = [*clients.map(lambda i: send[i % 2](f"{front}{PREFIX}/nowhere"), range(200))]
        asked = [(reply.request.method, reply.status_code) for reply in replies]
        assert set(asked) == {(method, status) for method in ("POST", "PUT") for status in (404, 429)}
        assert sum(status == 404 for _, status in asked) >= 40
        assert {client.get(f"{front}{PREFIX}/live").status_code for _ in range(100)} == {200}


def test_the_limits_of_nginx_fit_those_of_the_service():
    "A whole request of the service fits through; nginx waits longer than the service does."
    text, service = site(80, "http://x"), ServiceSettings()
    assert int(re.search(r"client_max_body_size (\d+)m", text)[1]) * 2**20 >= service.max_body_bytes
    assert int(re.search(r"client_header_timeout (\d+)s", text)[1]) <= service.max_header_seconds
    assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > 2 * service.max_wait


def test_files_of_the_page_are_revalidated(url):
    first = httpx.get(f"{url}/static/page.css").raise_for_status()
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(f"{url}/static/page.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
