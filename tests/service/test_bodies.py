"Bodies that are too large, too slow, broken off, or in a strange charset."
import re
import socket
import struct
import time
from contextlib import suppress
from threading import Thread

import httpx
import pytest
from tools.files import JPEG, PNG
from tools.server import until, watch_memory

STALL = 8
# Of a form with the boundary x
START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
FORM = "multipart/form-data; boundary=x"


def connect(server):
    host, port = re.fullmatch(r"http://(.+):(\d+)", server.url).groups()
    return socket.create_connection((host, int(port)), timeout=30)


def reset_on_close(sock): sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/predict_base64", "/metrics", "/nowhere"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_200_megabytes(server, path, chunked):
    headers = {"content-type": "application/json" if path == "/predict_base64" else FORM}
    if not chunked: headers["content-length"] = str(200_000_000 + len(START))

    def stream():
        yield START
        for _ in range(200): yield bytes(1_000_000)
    with watch_memory(server) as grown:
        reply = httpx.post(server.url + path, content=stream(), headers=headers, timeout=10)
    if chunked and path in ("/metrics", "/nowhere"): assert reply.status_code in (404, 405)
    else: assert reply.status_code == 413 and "10,000,000" in reply.json()["detail"]
    assert grown[-1] < 300_000_000


def half_a_request(server, rest=100_000, chunked=False, path="/predict"):
    "An open connection over which the head and half of a body have come."
    sock = connect(server)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {rest + 100_000}"
    start = START + PNG + bytes(50_000)
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n{length}\r\n\r\n".encode())
    sock.sendall(b"%x\r\n%b\r\n" % (len(start), start) if chunked else start)
    return sock


def hear(sock):
    "The head and the body of the answer."
    heard = b""
    while b"}" not in heard and (more := sock.recv(10_000)): heard += more
    return heard.decode()


def test_slow_clients_hinder_nobody_and_stalled_ones_are_told(server, client):
    kinds = [(path, chunked) for path in ("/predict", "/predict/batch") for chunked in (False, True)]
    since, took, said = time.monotonic(), {}, {}
    slow = [half_a_request(server) for _ in range(20)]
    stalled = {kind: half_a_request(server, path=kind[0], chunked=kind[1]) for kind in kinds}

    def listen(kind, sock):
        said[kind] = hear(sock)
        took[kind] = time.monotonic() - since
    ears = [Thread(target=listen, args=item) for item in stalled.items()]
    for ear in ears: ear.start()
    answered = 0
    while any(ear.is_alive() for ear in ears):
        for sock in slow: sock.sendall(b"\0")
        answered += client.post("/predict", files={"file": PNG}).status_code == 200
        time.sleep(1)
    assert answered > 2
    assert said.keys() == stalled.keys()  # each got an answer
    assert all(" 408 " in text and f"{STALL} seconds" in text for text in said.values()), said
    assert all(seconds > STALL - 1 for seconds in took.values()), took
    for sock in [*slow, *stalled.values()]: sock.close()


def test_clients_that_hang_up(server, client):
    before = server.counted("cifar_nb_requests_total")
    for reset in (False, True):
        for chunked in (False, True):
            for path in ("/predict", "/predict/batch", "/nowhere", "/classify/"):
                sock = half_a_request(server, chunked=chunked, path=path)
                if reset: reset_on_close(sock)
                time.sleep(.02)
                sock.close()
    whole = START + PNG + b"\r\n--x--\r\n"
    length = f"Content-Length: {len(whole)}"
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n{length}\r\n\r\n"
    for _ in range(20):  # the image has come, and the client does not wait for the answer
        with connect(server) as sock:
            sock.sendall(head.encode() + whole)
            reset_on_close(sock)
    assert client.post("/predict", files={"file": PNG}).status_code == 200
    until(lambda: server.counted("cifar_nb_requests_total") >= before + 16)  # the fixture looks for faults


CHARSETS = {"utf-8": 200, '"UTF-8"': 200, "punycode": 400, '"punycode"': 400, "utf-8; charset=idna": 400,
            "utf-16": 400}


@pytest.mark.parametrize("charset, status", CHARSETS.items())
def test_forms_are_utf8(server, charset, status):
    note = b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nxn--a-\r\n--x--\r\n'
    headers = {"Content-Type": f"{FORM}; charset={charset}"}
    for route in ("predict", "predict/batch"):
        reply = httpx.post(f"{server.url}/{route}", content=START + JPEG + b"\r\n" + note, headers=headers)
        assert reply.status_code == status, reply.text


def test_a_wrong_content_length_hurts_only_its_sender(server, client):
    with connect(server) as sock:
        sock.sendall(b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n0123456789\r\n\r\n")
        with suppress(ConnectionError): sock.recv(10_000)
    assert client.post("/predict", files={"file": PNG}).status_code == 200
