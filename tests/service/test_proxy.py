"The service behind a reverse proxy that serves it under /images."
import re
import shutil
import subprocess
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urljoin

import httpx
import pytest
from tools.files import PNG
from tools.server import until

from cifar_nb.guard import ServiceSettings
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

PREFIX = "/images"
NGINX = """daemon off; pid FOLDER/pid; error_log FOLDER/error.log; events {}
http {
  access_log off; client_max_body_size 20m;
  client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/f;
  uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;
  server { listen 127.0.0.1:PORT;
    location /images/ { proxy_pass TARGET/; proxy_set_header Host $http_host; } } }"""


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


@contextmanager
def nginx(target, folder):
    "The same by nginx, at a port that was free a moment ago."
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free: port = free.server_port
    text = NGINX.replace("FOLDER", str(folder)).replace("PORT", str(port)).replace("TARGET", target)
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


def test_behind_nginx_with_a_prefix(url, tmp_path):
    if not shutil.which("nginx"): pytest.skip("nginx is not installed here")
    with nginx(url, tmp_path) as front:
        check_pages(front + PREFIX)
        check_routes(front + PREFIX)


def test_files_of_the_page_are_revalidated(url):
    first = httpx.get(f"{url}/static/page.css").raise_for_status()
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(f"{url}/static/page.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
