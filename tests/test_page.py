"The web page in a real browser: each way in, the answer, and the errors."
import base64
import io

import pytest
from browser import page
from PIL import Image
from playwright.sync_api import TimeoutError, expect

from cifar_nb.core import Settings
from cifar_nb.data import synthetic
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served


def png(size=(90, 60)):
    file = io.BytesIO()
    Image.fromarray(synthetic("test").pixels[3].permute(1, 2, 0).numpy()).resize(size).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tab():
    with served(create_app(Settings(), Predictor.load("cifar10"))) as url, page(viewport=dict(width=390, height=800)) as tab:
        tab.url_served, tab.troubles, tab.hosts = url, [], set()
        tab.on("console", lambda m: tab.troubles.append(m.text) if m.type == "error" and "status of 4" not in m.text else None)
        tab.on("pageerror", lambda e: tab.troubles.append(str(e)))
        tab.on("request", lambda r: tab.hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
        yield tab


@pytest.fixture
def fresh(tab):
    tab.goto(tab.url_served)
    yield tab
    assert tab.troubles == [] and tab.hosts == {tab.url_served.split("/")[2]}  # no script error, nothing from elsewhere


def send(tab, event, name, content, kind):
    "Let a file arrive by drop or paste, as the browser would deliver it."
    tab.evaluate("""([event, name, content, kind]) => {
        const files = new DataTransfer(), bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
        files.items.add(new File([bytes], name, {type: kind}));
        const happening = event === "drop" ? new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}) : new ClipboardEvent("paste", {clipboardData: files, bubbles: true});
        document.getElementById("drop").dispatchEvent(happening);
    }""", [event, name, base64.b64encode(content).decode(), kind])


def check_answer(tab):
    tab.wait_for_selector("#result:not([hidden])", timeout=10_000)
    assert tab.locator("#bars tr").count() == 10
    assert tab.locator("#bars tr.first th").inner_text() == tab.locator("#answer").inner_text().split(",")[0]
    assert tab.locator("#bars tr.first td").last.inner_text() in tab.locator("#answer").inner_text()
    for picture, width in (("#seen", 32), ("#sent", 90)):  # not wait_for_function: it polls with eval, which the page's policy forbids
        assert tab.locator(picture).evaluate("image => image.decode().then(() => image.naturalWidth)") == width
    assert not tab.locator("#error").is_visible()


def test_it_says_what_it_knows(fresh):
    expect(fresh.locator("#model")).to_contain_text("airplane")
    assert "right on" in fresh.locator("#model").inner_text()


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_and_paste(fresh, event):
    send(fresh, event, "shape.png", png(), "image/png")
    check_answer(fresh)


def test_choose_with_the_keyboard(fresh):
    fresh.bring_to_front()
    for last in (False, False, True):  # on a loaded machine the first key can come before the window has the focus
        try:
            with fresh.expect_file_chooser(timeout=6000) as chooser: fresh.locator("#choose").press("Enter")
            break
        except TimeoutError:
            if last: raise
    chooser.value.set_files(dict(name="shape.png", mimeType="image/png", buffer=png()))
    check_answer(fresh)
    assert fresh.evaluate("document.documentElement.scrollWidth <= innerWidth")  # a phone's window needs no sideways scrolling


def test_dropped_text_is_no_picture(fresh):
    fresh.evaluate("""() => { const words = new DataTransfer(); words.setData("text/plain", "cat");
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: words, bubbles: true, cancelable: true})); }""")
    assert "no picture" in fresh.locator("#error").inner_text()


@pytest.mark.parametrize("name, content, said", [("notes.txt", b"no picture", "not a picture"), ("half.png", png()[:200], "damaged"), ("empty.png", b"", "empty")])
def test_errors_are_shown(fresh, name, content, said):
    send(fresh, "drop", "shape.png", png(), "image/png")
    fresh.wait_for_selector("#result:not([hidden])")
    send(fresh, "drop", name, content, "text/plain")
    fresh.wait_for_selector("#error:not([hidden])")
    assert name in fresh.locator("#error").inner_text() and said in fresh.locator("#error").inner_text()
    assert not fresh.locator("#result").is_visible()  # the old answer does not stand beside the new error
    send(fresh, "drop", "shape.png", png(), "image/png")
    check_answer(fresh)


def test_the_documentation_page_draws_itself_offline(tab):
    tab.goto(f"{tab.url_served}/docs")
    tab.wait_for_selector("text=/predict_base64", timeout=15_000)
    tab.locator("#operations-default-predict_predict_post button.opblock-summary-control").click()
    tab.locator("button.try-out__btn").click()
    assert tab.locator("input[type=file]").count() == 1
