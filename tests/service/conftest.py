"One server in a process of its own for all tests that leave it as they found it."
import httpx
import pytest
from tools.server import service


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with service(tmp_path_factory.mktemp("serve"), "--threads", "1") as it: yield it


def faults(it):
    "Answers of 5xx, without those of /health before the model was loaded; and tracebacks in the log."
    broken = it.counted(r'cifar_nb_requests_total\{.*route="(?!/health")[^"]*",status="5')
    return broken + sum("Traceback" in line for line in it.lines())


@pytest.fixture
def server(running):
    before = faults(running)
    yield running
    assert running.get("/health").status_code == 200
    assert running.left_behind() == set()
    assert faults(running) == before


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client: yield client
