"Downloads from hosts that do everything wrong end in the right file, or in an error that says what to do."
import hashlib
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from torchvision.datasets import CIFAR10

from cifar_nb.core import DatasetUnavailable, Settings
from cifar_nb.datasets import load_cifar
from cifar_nb.download import ARCHIVES, Archive, download, fetch_cifar, md5_of, unpack

random.seed(0)
CONTENT = random.randbytes(400_000)
PAGE = b"<!DOCTYPE html><html><title>Sign in to the network</title></html>" * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


class BadHost(BaseHTTPRequestHandler):
    "The first part of the path says how to behave; `server.content` is what is asked for."
    def log_message(self, *args): pass

    def do_GET(self):
        how, content = self.path.split("/")[1], self.server.content
        asked = self.headers.get("Range")
        self.server.log.append((how, asked))
        start = int(asked[6:-1]) if asked and how != "norange" else 0
        errors = dict(missing=404, broken=500)
        if how in errors: return self.send_error(errors[how])
        if how.startswith("page"): return self.send_page(how)
        n_asked = sum(h == how for h, _ in self.server.log)
        if how == "once" and n_asked > 1: how = "good"
        if how == "wrongonce": how = "wrong" if n_asked == 1 else "good"
        if start >= len(content): return self.send_error(416)
        self.send_response(206 if start else 200)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(content)-1}/{len(content)}")
        body = content[start:]
        if how == "wrong": body = body[:-1] + bytes([body[-1] ^ 1])
        if how == "endless": body = body * 5
        sent = body[:len(body) // 2] if how in ("drop", "once", "truncate") else body
        # "truncate" even lies about the length, and "endless" does not tell it
        length = str(len(sent) if how == "truncate" else len(body))
        if how != "endless": self.send_header("Content-Length", length)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError): self.send_body(how, sent)
        self.close_connection = True

    def send_page(self, how):
        "A web page with the status 200; without its length, and then even under another type."
        self.send_response(200)
        if how == "page": self.send_header("Content-Length", str(len(PAGE)))
        self.send_header("Content-Type", "text/plain" if how == "pagetyped" else "text/html")
        self.end_headers()
        self.wfile.write(PAGE)
        self.close_connection = True

    def send_body(self, how, sent):
        "All of it, or as slowly as `how` says."
        step, pause = dict(trickle=(1, .05), slow=(20_000, .1)).get(how, (len(sent), 0))
        if how == "stall":
            self.wfile.write(sent[:1000])
            self.wfile.flush()
            self.server.stopping.wait(30)
            return
        for i in range(0, len(sent), max(1, step)):
            self.wfile.write(sent[i:i + step])
            self.wfile.flush()
            if pause and self.server.stopping.wait(pause): return


@contextmanager
def bad_host(content=CONTENT):
    server = ThreadingHTTPServer(("127.0.0.1", 0), BadHost)
    server.content = content
    server.log = []
    server.stopping = threading.Event()
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def host():
    with bad_host() as pair: yield pair


def get(host, tmp_path, *how):
    urls = [f"{host[1]}/{h}/file" for h in how]
    stall = .4 if "stall" in how else 10
    if "trickle" in how: stall = 1.5
    return download(urls, tmp_path / "file", MD5, len(CONTENT), stall=stall)


@pytest.mark.parametrize("how", [
    "good", "norange", "once", "slow", "missing good", "broken good", "stall good", "trickle good",
    "drop good", "truncate good", "wrong good", "endless good", "drop norange", "drop wrong good",
    "missing wrong drop stall good"])
def test_ends_in_the_right_file(host, tmp_path, how):
    assert get(host, tmp_path, *how.split()).read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("how, said", [
    ("missing", "HTTP 404"), ("broken", "HTTP 500"), ("stall", "timed out"), ("trickle", "kB/s"),
    ("truncate", "offers 200,000 bytes"), ("wrong", "wrong MD5"), ("endless", "more than the")])
def test_never_half_a_file_under_the_final_name(host, tmp_path, how, said):
    with pytest.raises(DatasetUnavailable, match=said): get(host, tmp_path, how)
    assert not (tmp_path / "file").exists()


def test_a_dropped_connection_resumes_where_it_stopped(host, tmp_path):
    get(host, tmp_path, "once")
    assert host[0].log == [("once", None), ("once", f"bytes={len(CONTENT)//2}-")]


def test_killed_between_the_last_byte_and_the_name(host, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(host, tmp_path, "good")
    assert (tmp_path / "file").read_bytes() == CONTENT and not host[0].log


def test_nobody_there(tmp_path):
    with pytest.raises(DatasetUnavailable, match="(?i)refused|failed"):
        download(["http://127.0.0.1:9/file"], tmp_path / "file", MD5, len(CONTENT), stall=.4)


def test_killed_half_way_then_resumed(host, tmp_path):
    call = f"download(['{host[1]}/slow/file'], Path('{tmp_path}/file'), '{MD5}', {len(CONTENT)})"
    code = f"from cifar_nb.download import download; from pathlib import Path; {call}"
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "file.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 40_000):
        assert time.monotonic() < deadline
        time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert part.stat().st_size < len(CONTENT) and not (tmp_path / "file").exists()
    get(host, tmp_path, "good")
    assert host[0].log[-1][1].startswith("bytes=") and md5_of(tmp_path / "file") == MD5


def tiny_archive():
    "A CIFAR-10 archive in miniature, and a torchvision class that knows its checksums."
    rng = np.random.default_rng(0)
    labels = [i % 10 for i in range(20)]
    contents = {
        name: dict(data=rng.integers(0, 256, (20, 3072), dtype=np.uint8), labels=labels)
        for name in ("data_batch_1", "test_batch")}
    contents["batches.meta"] = dict(label_names=list("abcdefghij"))
    files = {name: pickle.dumps(content) for name, content in contents.items()}
    sums = {name: hashlib.md5(f).hexdigest() for name, f in files.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, f in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(f)
            tar.addfile(entry, io.BytesIO(f))
    archive = buffer.getvalue()

    class Tiny(CIFAR10):
        url = "http://127.0.0.1:9/official/cifar-10-python.tar.gz"
        tgz_md5 = hashlib.md5(archive).hexdigest()
        train_list = [["data_batch_1", sums["data_batch_1"]]]
        test_list = [["test_batch", sums["test_batch"]]]
        meta = dict(filename="batches.meta", key="label_names", md5=sums["batches.meta"])
    return archive, Tiny, contents["data_batch_1"]["data"]


def official_is(cls, size, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cls)
    monkeypatch.setitem(ARCHIVES, "cifar10", Archive("CIFAR10", size, ()))


def test_load_cifar_downloads_unpacks_and_heals(tmp_path, monkeypatch):
    archive, Tiny, pixels = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)
    with bad_host(archive) as (server, url):
        settings = Settings(data_dir=tmp_path / "data", mirrors=[f"{url}/missing", f"{url}/once"])
        images = load_cifar("cifar10", "train", settings)
        assert (images.pixels.reshape(20, -1).numpy() == pixels).all()
        assert images.classes == tuple("abcdefghij")
        visible = [p.name for p in settings.data_dir.iterdir() if not p.name.startswith(".")]
        assert visible == ["cifar-10-batches-py"]
        (settings.data_dir / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"damaged")
        assert len(load_cifar("cifar10", "train", settings)) == 20
        asked = len(server.log)
        assert len(load_cifar("cifar10", "test", settings)) == 20
        assert len(server.log) == asked  # the files are on disk: no host is asked


def test_two_at_once_download_once(tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)
    with bad_host(archive) as (server, url), ThreadPoolExecutor(3) as pool:
        settings = Settings(data_dir=tmp_path / "data", mirrors=[f"{url}/slow"])
        loaded = list(pool.map(lambda _: load_cifar("cifar10", "train", settings), range(3)))
        assert [len(images) for images in loaded] == [20] * 3
        assert len(server.log) == 1


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)
    with pytest.raises(DatasetUnavailable) as error:
        load_cifar("cifar10", "train", Settings(data_dir=tmp_path))
    by_hand = (str(tmp_path), "cifar-10-python.tar.gz", Tiny.tgz_md5)
    words = (*by_hand, "CIFAR_NB_MIRRORS", "synthetic", "127.0.0.1:9")
    for word in words: assert word in str(error.value)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)  # by hand, as the error says
    assert len(load_cifar("cifar10", "train", Settings(data_dir=tmp_path))) == 20


def test_an_archive_that_climbs_out_is_refused(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(tarfile.FilterError):
        unpack(tmp_path / "data" / "bad.tar.gz", "folder", tmp_path / "data")
    assert not (tmp_path / "escaped").exists()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["bad.tar.gz"]


@pytest.mark.parametrize("how", [
    "page good", "pagenolength good", "pagetyped good", "page pagenolength norange",
    "pagenolength drop good"])
def test_a_web_page_with_status_200_does_no_harm(host, tmp_path, how):
    assert get(host, tmp_path, *how.split()).read_bytes() == CONTENT
    if how in ("page good", "pagenolength good"): assert host[0].log[1:] == [("good", None)]


def test_a_page_does_not_replace_what_was_begun(host, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    get(host, tmp_path, "page", "good")
    assert host[0].log == [("page", "bytes=1000-"), ("good", "bytes=1000-")]


@pytest.mark.parametrize("begun", [b"", b"<html>garbage", b"x" * len(CONTENT)])
def test_a_wrong_checksum_is_tried_once_more_from_zero(host, tmp_path, begun):
    if begun: (tmp_path / "file.part").write_bytes(begun)
    assert get(host, tmp_path, "wrongonce").read_bytes() == CONTENT
    assert host[0].log[-1] == ("wrongonce", None)


def test_wrong_twice_is_not_asked_again(host, tmp_path):
    with pytest.raises(DatasetUnavailable, match="wrong MD5"): get(host, tmp_path, "wrong")
    assert host[0].log == [("wrong", None)] * 2


def test_a_silent_network_is_named_and_asked_once(tmp_path, monkeypatch, caplog):
    tried = []

    def silent(request, timeout):
        tried.append(request.full_url)
        raise TimeoutError("timed out")
    monkeypatch.setattr("cifar_nb.download.urlopen", silent)
    urls = ["http://one.example/file", "http://two.example/file"]
    with pytest.raises(DatasetUnavailable, match="timed out"): download(urls, tmp_path / "file", MD5, 9)
    assert tried == urls
    assert [host in caplog.text for host in ("one.example", "two.example")] == [True, True]


def test_mirrors_come_before_the_slow_official_host(tmp_path, monkeypatch):
    seen = []

    def note(urls, *args, **options):
        seen.extend(urls)
        raise DatasetUnavailable("none")
    monkeypatch.setattr("cifar_nb.download.download", note)
    with pytest.raises(DatasetUnavailable): fetch_cifar("cifar10", tmp_path, ["http://mine.example/data"])
    assert seen[0] == "http://mine.example/data/cifar-10-python.tar.gz"
    assert "toronto" in seen[-1] and len(seen) == 2 + len(ARCHIVES["cifar10"].mirrors)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_folder_that_may_not_be_written_is_the_fault(tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)

    def denied(*args, **options): raise PermissionError(13, "Permission denied", str(tmp_path / "x.lock"))
    monkeypatch.setattr("cifar_nb.download.FileLock.acquire", denied)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    with pytest.raises(DatasetUnavailable, match=r"Permission denied \(.*x.lock\).*another folder") as error:
        load_cifar("cifar10", "train", Settings(data_dir=tmp_path))
    assert "by hand" not in str(error.value)


@pytest.mark.parametrize("place, remedy", [
    ("file", "move away what is in the way"), ("file/below", "move away what is in the way"),
    ("archive", "move away what is in the way"), ("loop", "choose another folder")])
def test_what_is_in_the_way_is_named(tmp_path, monkeypatch, place, remedy):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)
    (tmp_path / "file").touch()
    (tmp_path / "archive" / Tiny.filename).mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DatasetUnavailable, match=f"cannot be put there: .*{remedy}") as error:
        load_cifar("cifar10", "train", Settings(data_dir=tmp_path / place))
    assert "permissions" not in str(error.value)


def test_an_archive_that_may_not_be_removed_is_no_failure(tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)
    (tmp_path / Tiny.filename).write_bytes(archive)

    def denied(self, **options): raise PermissionError(1, "Operation not permitted", str(self))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", denied)
        assert len(load_cifar("cifar10", "train", Settings(data_dir=tmp_path))) == 20


def test_a_limit_for_the_size_of_a_file_is_named(host, tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)

    def too_large(*args, **options): raise OSError(27, "File too large")
    monkeypatch.setattr("cifar_nb.download.fetch_part", too_large)
    with pytest.raises(DatasetUnavailable, match="File too large.*ulimit -f"):
        load_cifar("cifar10", "train", Settings(data_dir=tmp_path))


def test_a_full_disk_is_the_fault_and_the_part_goes(tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)

    def full(*args, **options): raise OSError(28, "No space left on device")
    monkeypatch.setattr("cifar_nb.download.fetch_part", full)
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(archive[:100])
    with pytest.raises(DatasetUnavailable, match="No space left on device.* MB are free") as error:
        load_cifar("cifar10", "train", Settings(data_dir=tmp_path))
    assert "by hand" not in str(error.value)
    assert not (tmp_path / "cifar-10-python.tar.gz.part").exists()


def test_what_lies_there_is_named(tmp_path, monkeypatch):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)

    def said(root=tmp_path):
        settings = Settings(data_dir=root)
        with pytest.raises(DatasetUnavailable) as error: load_cifar("cifar10", "train", settings)
        return str(error.value)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive[:-9])
    assert "has another MD5" in said() and f"{len(archive) - 9:,} of {len(archive):,} bytes" in said()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    load_cifar("cifar10", "train", Settings(data_dir=tmp_path))
    folder = tmp_path / "cifar-10-batches-py"
    assert f"but in {tmp_path}: use --data-dir {tmp_path}" in said(folder)
    (folder / "test_batch").write_bytes(b"damaged")
    assert "test_batch in cifar-10-batches-py damaged" in said()
    assert "is cifar-10-batches-py itself: name the folder above it" in said(folder)
    (folder / "data_batch_1").unlink()
    assert "data_batch_1 missing from cifar-10-batches-py" in said()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cifar-10-python (1).tar.gz").write_bytes(archive)
    assert "there is cifar-10-python (1).tar.gz, and what is needed is" in said(tmp_path / "new")


def test_who_waits_says_so(tmp_path, monkeypatch, caplog):
    archive, Tiny, _ = tiny_archive()
    official_is(Tiny, len(archive), monkeypatch)
    with bad_host(archive) as (_, url), ThreadPoolExecutor(2) as pool:
        settings = Settings(data_dir=tmp_path / "data", mirrors=[f"{url}/slow"])
        list(pool.map(lambda _: load_cifar("cifar10", "train", settings), range(2)))
    assert caplog.text.count("another process is downloading it; waiting") == 1


def test_a_certificate_of_ones_own_is_a_hint(tmp_path, monkeypatch):
    def untrusted(*args, **options):
        raise URLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")
    monkeypatch.setattr("cifar_nb.download.urlopen", untrusted)
    with pytest.raises(DatasetUnavailable, match="set SSL_CERT_FILE"): fetch_cifar("cifar10", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", "nowhere.pem")  # OpenSSL does not say so
    with pytest.raises(DatasetUnavailable, match="nowhere.pem, which is not a file"):
        fetch_cifar("cifar10", tmp_path)
