"The server of a notebook: launched twice, interrupted, on a port that is taken."
import socket
import threading
import time
from contextlib import ExitStack
from unittest import mock

import httpx
import pytest
from tools.colab import launch_cells

from cifar_nb import serve
from cifar_nb.core import ConfigError
from cifar_nb.port import open_port
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served
from cifar_nb.settings import ServiceSettings


@pytest.fixture(scope="module")
def predictor(): return Predictor.load("cifar10")


def settings(): return ServiceSettings(backend="eager", max_wait=60)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock: return sock.getsockname()[1]


def port_of(url): return int(url.rpartition(":")[2])


def servers(): return [thread for thread in threading.enumerate() if "(run)" in thread.name]


def test_the_launch_cell_stops_its_earlier_server(predictor):
    before = servers()
    launch = next(cell for cell in launch_cells() if "enter_context" in cell)
    names = {"predictor": predictor, "IN_COLAB": False}
    for cell in launch_cells():
        if cell.startswith("import base64"): exec(cell, names)
    found = []
    try:
        for _ in range(3):
            exec(launch, names)
            found.append((names["url"], names["stack"]))  # as a notebook's history of outputs might keep it
        assert len(servers()) == len(before) + 1
        assert httpx.get(f"{found[-1][0]}/live").status_code == 200
        for url, _ in found[:-1]: open_port("127.0.0.1", port_of(url)).close()
    finally: names["stack"].close()
    assert servers() == before
    open_port("127.0.0.1", port_of(found[-1][0])).close()


@pytest.mark.parametrize("moment", ["while it starts", "while it serves"])
def test_an_interrupted_cell_leaves_no_server(predictor, moment):
    before, port = servers(), free_port()

    def interrupt(seconds): raise KeyboardInterrupt
    app = create_app(settings(), predictor)
    with pytest.raises(KeyboardInterrupt):
        if moment == "while it serves":
            with served(app, port=port): interrupt(0)
        with mock.patch.object(serve, "time", mock.Mock(sleep=interrupt)), ExitStack() as stack:
            stack.enter_context(served(app, port=port))
    for _ in range(100):
        if servers() == before: break
        time.sleep(.1)
    assert servers() == before
    open_port("127.0.0.1", port).close()


def test_a_taken_port_is_one_sentence_that_helps_in_a_notebook(predictor):
    app = create_app(settings(), predictor)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match="port 0") as found, served(app, port=port): pass
    assert f"port {port}" in str(found.value) and "--" not in str(found.value)
