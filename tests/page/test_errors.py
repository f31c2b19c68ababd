"What the page says when there is no answer: a key, a bad file, a service that cannot answer now."
import base64
import re

import pytest
from playwright.sync_api import expect
from tools.webpage import LOOK, button, cards, check_answer, drop, png, send, settings, status, visit

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

KEY = "open sesame!"


@pytest.fixture(scope="module")
def locked():
    with served(create_app(settings(api_key=KEY), Predictor.load("cifar10"))) as url: yield url


def test_a_wrong_key(browser, locked):
    with visit(browser, locked) as tab:
        field = tab.get_by_label("API key")
        expect(field).to_be_visible()
        expect(field).to_have_attribute("type", "password")
        expect(tab.locator("#key-said")).to_contain_text("needs an API key")
        field.dispatch_event("paste", dict(bubbles=True))
        field.fill("open barley!")
        button(tab, "use this key").click()
        expect(tab.locator("#key-said")).to_contain_text("not accepted")
        expect(field).to_be_focused()
        field.fill("ключ")
        field.press("Enter")
        expect(tab.locator("#key-said")).to_contain_text("cannot have such characters")


def test_the_right_key(browser, locked):
    with visit(browser, locked) as tab:
        field = tab.get_by_label("API key")
        expect(field).to_be_visible()
        drop(tab, one=png(), two=b"not an image")
        field.fill(KEY)
        field.press("Enter")
        expect(status(tab)).to_have_text("1 of 2 images answered.")  # they were sent again
        check_answer(cards(tab).nth(0))
        expect(cards(tab).nth(1).locator(".problem")).to_contain_text("was not accepted")
        expect(tab.locator("#model")).to_contain_text("airplane")
        expect(field).to_be_hidden()
        button(cards(tab).nth(0), LOOK).click()
        expect(cards(tab).nth(0).locator(".overlay")).to_be_visible(timeout=60_000)
        drop(tab, three=png())
        check_answer(cards(tab))
        assert tab.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        tab.reload()
        expect(field).to_be_visible()  # it was kept nowhere


def test_dropped_text_is_not_an_image_and_spoils_none(tab):
    drop(tab, shape=png())
    check_answer(cards(tab))
    tab.evaluate("""() => { const words = new DataTransfer(); words.setData("text/plain", "cat");
        const how = {dataTransfer: words, bubbles: true, cancelable: true};
        document.body.dispatchEvent(new DragEvent("drop", how)); }""")
    expect(tab.locator("#error")).to_contain_text("no image")
    expect(button(tab, "try again")).to_be_hidden()
    check_answer(cards(tab))


BAD = {"notes.txt": (b"not an image", "WebP"), "half.png": (png()[:200], "damaged"),
       "empty.png": (b"", "empty")}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_shown(tab, name):
    content, said = BAD[name]
    drop(tab, shape=png())
    check_answer(cards(tab))
    send(tab, "drop", (name, content, "text/plain"))
    expect(cards(tab).get_by_role("alert")).to_have_text(re.compile(f"{name} was not accepted.*{said}"))
    expect(cards(tab)).to_have_count(1)  # the old answer does not stay next to the new error
    expect(cards(tab).locator(".details")).to_be_hidden()
    drop(tab, shape=png())
    check_answer(cards(tab))


def test_a_folder_spoils_nothing(tab):
    tab.evaluate("""content => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
        const folder = new File([], "folder"), image = new File([bytes], "shape.png");
        folder.slice = () => ({arrayBuffer: () => Promise.reject(new DOMException("", "NotReadableError"))});
        take([folder, image]); }""", base64.b64encode(png()).decode())
    expect(status(tab)).to_have_text("1 of 2 images answered.")
    expect(cards(tab).nth(0).get_by_role("alert")).to_contain_text("is it a folder?")
    check_answer(cards(tab).nth(1))


def lose_model(engine): engine.slot.predictor, engine.slot.why = None, "it is being loaded"


def test_a_service_that_cannot_answer_now(browser):
    app = create_app(settings(), predictor := Predictor.load("cifar10"))
    engine = app.state.engine
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#model")).to_contain_text("airplane")
        lose_model(engine)
        drop(tab, one=png(), two=png())
        expected = re.compile("no answer for 2 images yet: .*it is being loaded.*Please try again")
        expect(tab.locator("#error")).to_have_text(expected)
        engine.slot.predictor = predictor
        button(tab, "try again").click()
        expect(status(tab)).to_have_text("2 of 2 images answered.")
        for card in cards(tab).all(): check_answer(card)
        expect(tab.locator("#trouble")).to_be_hidden()


REPLIES = {
    "no part has come. Please try again": dict(status=408, json=dict(detail="no part has come")),
    "502": dict(status=502, body="<html>"),
    "the server did not answer": None,
}


@pytest.mark.parametrize("said", REPLIES)
def test_an_answer_that_does_not_come(tab, said):
    reply = REPLIES[said]
    tab.route("**/predict/**", lambda route: route.fulfill(**reply) if reply else route.abort(), times=1)
    drop(tab, shape=png())
    expect(tab.locator("#error")).to_contain_text(said)
    button(tab, "try again").click()
    check_answer(cards(tab))
