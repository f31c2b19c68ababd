"The launch notebook in Colab: its page in a frame of Colab's pages, and in no other frame."
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect
from tools.colab import colab, launch_cells
from tools.files import BASE, saved
from tools.webpage import settings

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

NOTEBOOK = "https://colab.research.google.com/"  # shows
OUTPUT = "https://abc-496ff2e9c6d22116-0-colab.googleusercontent.com/outputframe.html"  # which shows
PROXY = "https://8000-m-s-abc.us-west1-0.prod.colab.dev/"  # which is our port
ELSEWHERE = "https://evil.example/"


def frame(address):
    return f"<!doctype html><iframe src='{address}' allow='camera' width=800 height=800></iframe>"



def answer_with(body):
    return lambda route: route.fulfill(body=body, content_type="text/html")


@contextmanager
def framed(browser, url, *outside):
    "Our page at Colab's address of the port, in frames of the pages at `outside`; and what the console said."
    said = []
    window = browser.new_context()
    try:
        for at, inside in zip(outside, [*outside[1:], PROXY]):
            window.route(at, answer_with(frame(inside)))

        def forward(route):
            at = urlsplit(route.request.url)
            here = f"{url}{at.path}?{at.query}".removesuffix("?")
            # the browser adds this one later than we see the request
            headers = {**route.request.all_headers(), "sec-fetch-site": "same-origin"}
            route.fulfill(response=route.fetch(url=here, headers=headers))
        window.route(f"{PROXY}**", forward)
        tab = window.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(outside[0])
        inner = tab.frame_locator("iframe")
        for _ in outside[1:]: inner = inner.frame_locator("iframe")
        yield tab, inner, said
    finally: window.close()


@pytest.fixture(scope="module")
def launched():
    "The address of the service after the cells of the notebook, and what Colab was asked to show."
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch, colab() as shown:
        patch.setenv("IN_TEST", "1")
        for cell in launch_cells():
            exec(cell, names)
            if "serve_kernel_port_as_iframe" in cell: break
        try: yield names["url"], shown
        finally: names["stack"].close()


def test_the_notebook_shows_its_port(launched):
    url, [(port, options)] = launched
    assert url.endswith(f":{port}") and int(options["height"]) >= 600
    sent = {"Host": urlsplit(PROXY).netloc, "Sec-Fetch-Site": "same-origin", "Origin": PROXY[:-1]}
    assert httpx.post(f"{url}/predict", files={"file": saved(BASE, "PNG")}, headers=sent).status_code == 200


def test_the_page_answers_in_a_frame_of_colab(browser, launched):
    with framed(browser, launched[0], NOTEBOOK, OUTPUT) as (tab, page, said):
        image = dict(name="x.png", mimeType="image/png", buffer=saved(BASE, "PNG"))
        page.locator("#file").set_input_files(image)
        expect(page.locator("#results > li .bars tr")).to_have_count(10)
        assert not [line for line in said if "frame-ancestors" in line or "Content Security Policy" in line]


def test_other_pages_may_not_frame_it_even_then(browser, launched):
    with framed(browser, launched[0], ELSEWHERE) as (tab, page, said):
        tab.wait_for_timeout(1000)
        assert any("frame-ancestors" in line for line in said)
        assert page.locator("#file").count() == 0


def test_colab_may_not_frame_other_services(browser):
    app = create_app(settings(allowed_hosts="*"), Predictor.load("cifar10"))
    with served(app) as url, framed(browser, url, NOTEBOOK, OUTPUT) as (tab, page, said):
        tab.wait_for_timeout(1000)
        assert any("frame-ancestors" in line for line in said)
        assert page.locator("#file").count() == 0
