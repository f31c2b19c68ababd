"Tests never use data or settings of the person who runs them."
import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_environment(tmp_path_factory):
    for name in [n for n in os.environ if n.startswith(("CIFAR_NB_", "MLFLOW_"))]: del os.environ[name]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    for name in ("data", "models", "track"):
        os.environ[f"CIFAR_NB_{name.upper()}_DIR"] = str(tmp_path_factory.mktemp(name))
