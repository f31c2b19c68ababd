"The web page in a real browser: each way in, the answers, and the errors."
import base64
import io
import re
from contextlib import contextmanager

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from tools.browser import page
from PIL import Image
from playwright.sync_api import TimeoutError, expect

from cifar_nb.core import Settings
from cifar_nb.data import synthetic
from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

PIXELS = synthetic("test").pixels
PHONE = dict(width=390, height=800)
LOOK = "where did it look?"
expect.set_options(timeout=30_000)


def png(size=(90, 60), i=3):
    file = io.BytesIO()
    Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()).resize(size).save(file, "PNG")
    return file.getvalue()


def noise(side):
    "A picture that no packing makes small: about three bytes a pixel."
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def settings(**changes): return Settings(max_wait=60, **changes)  # a loaded machine may keep a picture waiting for long


@pytest.fixture(scope="module")
def browser():
    with page() as tab: yield tab.context.browser


@pytest.fixture(scope="module")
def url():
    with served(create_app(settings(), Predictor.load("cifar10"))) as url: yield url


@contextmanager
def visit(browser, url, **context):
    "The page in a window of its own. When it closes there was no script error, and nothing came from elsewhere."
    troubles, hosts, window = [], set(), browser.new_context(**dict(viewport=PHONE) | context)
    window.set_default_timeout(30_000)
    try:
        tab = window.new_page()
        tab.on("console", lambda m: troubles.append(m.text) if m.type == "error" and "Failed to load resource" not in m.text else None)
        tab.on("pageerror", lambda e: troubles.append(str(e)))
        tab.on("request", lambda r: hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
        tab.goto(url)
        yield tab
        assert troubles == [] and hosts == {url.split("/")[2]}
    finally: window.close()


@pytest.fixture
def tab(browser, url):
    with visit(browser, url) as tab: yield tab


def send(tab, event, *files):
    "Let files (name, content, kind) arrive by drop or paste, as the browser would deliver them."
    tab.evaluate("""([event, sent]) => {
        const files = new DataTransfer(), bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
        for (const [name, content, kind] of sent) files.items.add(new File([bytes(content)], name, {type: kind}));
        const happening = event === "drop" ? new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}) : new ClipboardEvent("paste", {clipboardData: files, bubbles: true});
        document.getElementById("drop").dispatchEvent(happening);
    }""", [event, [[name, base64.b64encode(content).decode(), kind] for name, content, kind in files]])


def drop(tab, **pictures): send(tab, "drop", *((f"{name}.png", content, "image/png") for name, content in pictures.items()))


def cards(tab): return tab.locator("#results > li")


def width_of(picture): return picture.evaluate("image => image.decode().then(() => image.naturalWidth)")  # not wait_for_function: it polls with eval, which the page's policy forbids


def fits(tab): return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def check_answer(card, width=90):
    expect(card.locator(".bars tr")).to_have_count(10)
    name, sure = card.locator(".answer").inner_text().split(", ")
    assert [card.locator(".bars tr").first.locator(cell).last.inner_text() for cell in ("th", "td")] == [name, sure]
    assert (width_of(card.locator(".seen")), width_of(card.locator(".sent"))) == (32, width)
    expect(card.locator(".view figcaption")).to_have_text("as the model sees it, 32 × 32")
    expect(card.locator(".problem")).to_be_empty()
    expect(card.locator(".rest")).to_be_hidden()


def test_it_says_what_it_knows(tab):
    expect(tab.locator("#model")).to_contain_text("airplane")
    expect(tab.locator("#model")).to_contain_text("right on")
    expect(tab.get_by_label("API key")).to_be_hidden()


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_and_paste(tab, event):
    send(tab, event, ("shape.png", png(), "image/png"))
    check_answer(cards(tab))
    expect(tab.get_by_role("status")).to_have_text(re.compile(cards(tab).locator(".answer").inner_text() + r"\. Answered in [\d.]+ ms"))


def test_choose_with_the_keyboard(tab):
    tab.bring_to_front()
    for last in (False, False, True):  # on a loaded machine the first key can come before the window has the focus
        try:
            with tab.expect_file_chooser(timeout=8000) as chooser: tab.locator("#choose").press("Enter")
            break
        except TimeoutError:
            if last: raise
    assert chooser.value.is_multiple()
    chooser.value.set_files([dict(name=f"{i}.png", mimeType="image/png", buffer=png(i=i)) for i in (1, 2)])
    expect(cards(tab).locator(".name")).to_have_text(["1.png", "2.png"])
    for card in cards(tab).all(): check_answer(card)
    assert fits(tab)


def test_several_pictures_and_a_bad_one(tab):
    drop(tab, one=png(), two=b"no picture", three=png((60, 60), 5))
    expect(tab.get_by_role("status")).to_have_text("2 of 3 pictures answered.")
    check_answer(cards(tab).nth(0))
    check_answer(cards(tab).nth(2), 60)
    expect(cards(tab).nth(1).get_by_role("alert")).to_contain_text("two.png was not accepted: not a picture")
    expect(cards(tab).nth(1).get_by_role("button")).to_have_count(0)
    drop(tab, four=png())
    expect(cards(tab)).to_have_count(1)  # the newest pictures take the place of the older ones
    check_answer(cards(tab))


def test_more_than_32_pictures_are_several_requests(tab):
    requests = []
    tab.on("request", lambda r: requests.append(r.url) if "predict" in r.url else None)
    drop(tab, **{f"p{i}": png((8, 8), i % 10) for i in range(33)})
    expect(tab.get_by_role("status")).to_have_text("33 of 33 pictures answered.")
    expect(cards(tab).locator(".name")).to_have_text([f"p{i}.png" for i in range(33)])
    assert len(requests) == 2


def test_the_newest_pictures_win(tab):
    held, given_up = [], []
    tab.on("requestfailed", lambda request: given_up.append(request.url))
    tab.route("**/predict/**", lambda route: held.append(route), times=1)  # the first answer would come late
    drop(tab, slow=png())
    expect(tab.get_by_role("status")).to_have_text("Looking at 1 picture …")
    drop(tab, quick=png(), quicker=png())
    expect(tab.get_by_role("status")).to_have_text("2 of 2 pictures answered.")
    expect(cards(tab).locator(".name")).to_have_text(["quick.png", "quicker.png"])
    assert len(held) == 1 and [url for url in given_up if "predict" in url]


def test_camera(tab):
    tab.get_by_role("button", name="use the camera").click()
    expect(tab.get_by_role("button", name="take the picture")).to_be_focused()
    expect(tab.locator("#video")).to_have_js_property("paused", False)
    track = tab.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    assert track.evaluate("track => track.readyState") == "live" and fits(tab)
    width = tab.locator("#video").evaluate("""video => new Promise(found => { const look = () => video.videoWidth ? found(video.videoWidth) : setTimeout(look, 50); look(); })""")
    tab.get_by_role("button", name="take the picture").click()
    check_answer(cards(tab), width)
    expect(cards(tab).locator(".name")).to_have_text("camera.jpg")
    assert track.evaluate("track => track.readyState") == "ended"
    expect(tab.locator("#camera")).to_be_hidden()
    tab.get_by_role("button", name="use the camera").click()
    expect(tab.get_by_role("button", name="take the picture")).to_be_focused()
    track = tab.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    tab.get_by_role("button", name="close").press("Enter")
    expect(tab.get_by_role("button", name="use the camera")).to_be_focused()
    assert track.evaluate("track => track.readyState") == "ended"


@pytest.mark.parametrize("error, said", [("NotAllowedError", "does not allow it"), ("NotFoundError", "there is none"), ("NotReadableError", "it is in use")])
def test_a_camera_that_may_not_be_used(tab, error, said):
    tab.evaluate("error => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('it is in use', error)); }", error)
    tab.get_by_role("button", name="use the camera").click()
    expect(tab.locator("#error")).to_contain_text(f"The camera cannot be used: {said}" if error != "NotAllowedError" else said)
    expect(tab.get_by_role("button", name="use the camera")).to_be_focused()
    expect(tab.locator("#camera")).to_be_hidden()


@pytest.mark.parametrize("so", ["Object.defineProperty(Navigator.prototype, 'mediaDevices', {get: () => undefined})", "navigator.mediaDevices.enumerateDevices = () => Promise.resolve([])"], ids=["page without TLS", "no camera"])
def test_no_camera_button_where_no_camera_can_be(browser, url, so):
    with visit(browser, url) as tab:
        tab.add_init_script(so)
        tab.reload()
        expect(tab.locator("#model")).to_contain_text("airplane")
        expect(tab.locator("#open-camera")).to_be_hidden()


def test_where_it_looked(tab):
    drop(tab, one=png(), two=png())
    button = cards(tab).nth(1).get_by_role("button", name=LOOK)
    expect(button).to_have_attribute("aria-expanded", "false")
    button.press("Enter")
    overlay = cards(tab).nth(1).get_by_alt_text("red where the model saw")
    expect(overlay).to_be_visible(timeout=60_000)  # the first one imports a slow library
    assert width_of(overlay) == 256 and fits(tab)
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(cards(tab).nth(0).locator(".where")).to_be_hidden()
    button.press("Enter")
    expect(overlay).to_be_hidden()
    expect(button).to_have_attribute("aria-expanded", "false")
    tab.route("**/explain", lambda route: route.abort())
    button.press("Enter")
    expect(overlay).to_be_visible()  # it is not asked for a second time
    cards(tab).nth(0).get_by_role("button", name=LOOK).click()
    expect(cards(tab).nth(0).locator(".problem")).to_contain_text("the server did not answer")
    tab.unroute("**/explain")
    cards(tab).nth(0).get_by_role("button", name=LOOK).click()
    expect(cards(tab).nth(0).locator(".overlay")).to_be_visible()
    expect(cards(tab).nth(0).locator(".problem")).to_be_empty()


def other_card(**changes):
    "The bundled model with something else on its card."
    predictor = Predictor.load("cifar10")
    predictor.card = predictor.card.model_copy(update=changes)
    return predictor


def test_an_unknown_thing(browser):
    with served(create_app(settings(), other_card(confidence_threshold=1.0))) as url, visit(browser, url) as tab:
        drop(tab, shape=noise(60))
        check_answer(cards(tab), 60)
        expect(cards(tab).locator(".unknown")).to_have_text("The model is unusually unsure of this picture. Perhaps it shows none of the classes that it knows; the best guess is shown anyway.")


def test_a_known_thing(browser):
    with served(create_app(settings(), other_card(confidence_threshold=0.0))) as url, visit(browser, url) as tab:
        drop(tab, shape=png())
        check_answer(cards(tab))
        expect(cards(tab).locator(".unknown")).to_be_hidden()


def test_a_hundred_classes(tab):
    names = [f"class_{i}" for i in range(99)] + ["a_name_that_is_much_too_long_for_the_column_that_it_stands_in"]
    shares = {name: 0.5 if i == 99 else 0.5 / 99 for i, name in enumerate(names)}
    answer = dict(class_name=names[99], confidence=0.5, probabilities=shares, in_distribution=None, inference_ms=1.0, view=None)
    tab.route("**/predict/**", lambda route: route.fulfill(json=[answer]))
    drop(tab, shape=png())
    expect(cards(tab).locator(".bars tr")).to_have_count(10)
    expect(cards(tab).locator(".rest tr").first).to_be_hidden()
    cards(tab).get_by_text("the other 90 classes").click()
    expect(cards(tab).locator(".rest tr").last).to_be_visible()
    expect(cards(tab).locator(".rest tr")).to_have_count(90)
    assert fits(tab)


def test_the_key(browser):
    with served(create_app(settings(api_key="open sesame!"), Predictor.load("cifar10"))) as url, visit(browser, url) as tab:
        field, use = tab.get_by_label("API key"), tab.get_by_role("button", name="use this key")
        expect(field).to_be_visible()
        expect(field).to_have_attribute("type", "password")
        expect(tab.locator("#key-said")).to_contain_text("have its key")
        drop(tab, one=png(), two=b"no picture")
        field.dispatch_event("paste", dict(bubbles=True))
        field.fill("open barley!")
        use.click()
        expect(tab.locator("#key-said")).to_contain_text("not accepted")
        expect(field).to_be_focused()
        field.fill("ключ")
        field.press("Enter")
        expect(tab.locator("#key-said")).to_contain_text("No key has such characters")
        field.fill("open sesame!")
        field.press("Enter")
        expect(tab.get_by_role("status")).to_have_text("1 of 2 pictures answered.")  # they were sent again
        check_answer(cards(tab).nth(0))
        expect(cards(tab).nth(1).locator(".problem")).to_contain_text("not a picture")
        expect(tab.locator("#model")).to_contain_text("airplane")
        expect(field).to_be_hidden()
        cards(tab).nth(0).get_by_role("button", name=LOOK).click()
        expect(cards(tab).nth(0).locator(".overlay")).to_be_visible(timeout=60_000)
        drop(tab, three=png())
        check_answer(cards(tab))
        assert tab.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        tab.reload()
        expect(field).to_be_visible()  # it was kept nowhere


def test_dropped_text_is_no_picture_and_spoils_none(tab):
    drop(tab, shape=png())
    check_answer(cards(tab))
    tab.evaluate("""() => { const words = new DataTransfer(); words.setData("text/plain", "cat");
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: words, bubbles: true, cancelable: true})); }""")
    expect(tab.locator("#error")).to_contain_text("no picture")
    expect(tab.get_by_role("button", name="try again")).to_be_hidden()
    check_answer(cards(tab))


@pytest.mark.parametrize("name, content, said", [("notes.txt", b"no picture", "not a picture"), ("half.png", png()[:200], "damaged"), ("empty.png", b"", "empty")])
def test_errors_are_shown(tab, name, content, said):
    drop(tab, shape=png())
    check_answer(cards(tab))
    send(tab, "drop", (name, content, "text/plain"))
    expect(cards(tab).get_by_role("alert")).to_have_text(re.compile(f"{name} was not accepted.*{said}"))
    expect(cards(tab)).to_have_count(1)  # the old answer does not stand beside the new error
    expect(cards(tab).locator(".details")).to_be_hidden()
    drop(tab, shape=png())
    check_answer(cards(tab))


def test_a_folder_spoils_nothing(tab):
    tab.evaluate("""content => { const folder = new File([], "folder"), picture = new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], "shape.png");
        folder.slice = () => ({arrayBuffer: () => Promise.reject(new DOMException("", "NotReadableError"))});
        take([folder, picture]); }""", base64.b64encode(png()).decode())
    expect(tab.get_by_role("status")).to_have_text("1 of 2 pictures answered.")
    expect(cards(tab).nth(0).get_by_role("alert")).to_contain_text("is it a folder?")
    check_answer(cards(tab).nth(1))


def test_too_large(browser):
    with served(create_app(settings(max_body_bytes=20_000), Predictor.load("cifar10"))) as url, visit(browser, url) as tab:
        drop(tab, small=noise(70), huge=noise(90), other=noise(71))  # two small ones are too much for one request as well
        expect(tab.get_by_role("status")).to_have_text("2 of 3 pictures answered.")
        check_answer(cards(tab).nth(0), 70)
        expect(cards(tab).nth(1).get_by_role("alert")).to_contain_text("huge.png was not accepted: the request body is larger than 20,000 bytes")
        check_answer(cards(tab).nth(2), 71)


@pytest.mark.parametrize("state, said", [(dict(stopping=True), "the service is stopping"), (dict(predictor=None, why="it is being loaded"), "it is being loaded")])
def test_a_service_that_cannot_answer_now(browser, state, said):
    app = create_app(settings(), Predictor.load("cifar10"))
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#model")).to_contain_text("airplane")
        before = {name: getattr(app.state.engine, name) for name in state}
        for name, value in state.items(): setattr(app.state.engine, name, value)
        drop(tab, one=png(), two=png())
        expect(tab.locator("#error")).to_have_text(re.compile(f"no answer for 2 pictures yet: .*{said}.*Please try again"))
        for name, value in before.items(): setattr(app.state.engine, name, value)
        tab.get_by_role("button", name="try again").click()
        expect(tab.get_by_role("status")).to_have_text("2 of 2 pictures answered.")
        for card in cards(tab).all(): check_answer(card)
        expect(tab.locator("#trouble")).to_be_hidden()


@pytest.mark.parametrize("reply, said", [(dict(status=408, json=dict(detail="no part has come")), "no part has come. Please try again"), (dict(status=502, body="<html>"), "502"), (None, "the server did not answer")])
def test_an_answer_that_does_not_come(tab, reply, said):
    tab.route("**/predict/**", lambda route: route.fulfill(**reply) if reply else route.abort(), times=1)
    drop(tab, shape=png())
    expect(tab.locator("#error")).to_contain_text(said)
    tab.get_by_role("button", name="try again").click()
    check_answer(cards(tab))


def test_under_a_prefix(browser, url):
    with visit(browser, url) as tab:
        tab.route("**/pictures/**", lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/pictures/", "/"))))
        tab.goto(f"{url}/pictures/")
        drop(tab, shape=png())
        check_answer(cards(tab))
        cards(tab).get_by_role("button", name=LOOK).click()
        expect(cards(tab).locator(".overlay")).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser, scheme):
    def check():
        found = Axe().run(tab)
        assert found.violations_count == 0, found.generate_report()
    app = create_app(settings(api_key="open sesame!"), other_card(confidence_threshold=1.0))
    with served(app) as url, visit(browser, url, color_scheme=scheme) as tab:
        expect(tab.get_by_label("API key")).to_be_visible()
        check()
        tab.get_by_label("API key").fill("open sesame!")
        tab.get_by_role("button", name="use this key").click()
        expect(tab.locator("#model")).to_contain_text("airplane")
        drop(tab, one=png(), two=b"no picture", three=png())
        check_answer(cards(tab).nth(2))
        cards(tab).nth(0).get_by_role("button", name=LOOK).click()
        expect(cards(tab).nth(0).locator(".overlay")).to_be_visible(timeout=60_000)
        tab.get_by_role("button", name="use the camera").click()
        expect(tab.locator("#camera")).to_be_visible()
        check()
        app.state.engine.stopping = True
        drop(tab, one=png())
        expect(tab.get_by_role("button", name="try again")).to_be_visible()
        check()


def test_the_documentation_page_draws_itself_offline(tab):
    tab.goto(tab.url + "docs")
    tab.wait_for_selector("text=/predict_base64")
    tab.locator("#operations-default-predict_predict_post button.opblock-summary-control").click()
    tab.locator("button.try-out__btn").click()
    tab.locator("input[type=file]").first.set_input_files(dict(name="one.png", mimeType="image/png", buffer=png()))
    tab.locator("button.execute").click()
    expect(tab.locator(".live-responses-table .response-col_status").nth(1)).to_contain_text("200")
    expect(tab.locator(".live-responses-table .response-col_description").nth(1)).to_contain_text("class_name")


def test_a_page_that_came_before_its_model_notices_when_it_is_there(browser):
    app = create_app(settings(), predictor := Predictor.load("cifar10"))
    with served(app) as url:
        app.state.engine.tried.wait()
        app.state.engine.predictor = None
        with visit(browser, url) as tab:
            expect(tab.locator("#model")).to_have_text("There is no model behind this page yet.")
            app.state.engine.predictor = predictor
            expect(tab.locator("#model")).to_contain_text("The model knows 10 classes")
