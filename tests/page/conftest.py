"One browser, and one service for all tests that leave it as they found it."
import pytest
from tools.browser import page
from tools.webpage import settings, visit

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served


@pytest.fixture(scope="session")
def browser():
    with page() as tab: yield tab.context.browser


@pytest.fixture(scope="session")
def url():
    with served(create_app(settings(), Predictor.load("cifar10"))) as url: yield url


@pytest.fixture
def tab(browser, url):
    with visit(browser, url) as tab: yield tab
