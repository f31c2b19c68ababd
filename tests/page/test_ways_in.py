"How images reach the page: drop, paste, file chooser, camera; one or many."
import re

import pytest
from playwright.sync_api import TimeoutError, expect
from tools.files import noise
from tools.webpage import (
    button,
    cards,
    check_answer,
    drop,
    fits,
    other_card,
    png,
    send,
    settings,
    status,
    visit,
    width_of,
)

from cifar_nb.predict import Predictor
from cifar_nb.serve import create_app, served

CAMERA = dict(open="use the camera", shoot="take the photo", close="close")
FIRST_WIDTH = """video => new Promise(found => {
    const look = () => video.videoWidth ? found(video.videoWidth) : setTimeout(look, 50);
    look();
})"""
NO_CAMERA = {
    "page without TLS": "Object.defineProperty(Navigator.prototype, 'mediaDevices', {get: () => undefined})",
    "no camera": "navigator.mediaDevices.enumerateDevices = () => Promise.resolve([])",
}


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_and_paste(tab, event):
    send(tab, event, ("shape.png", png(), "image/png"))
    check_answer(cards(tab))
    answer = cards(tab).locator(".answer").inner_text()
    expect(status(tab)).to_have_text(re.compile(answer + r"\. Answered in [\d.]+ ms"))


def choose(tab):
    "By keyboard. On a busy machine the first key can come before the window has the focus."
    for last in (False, False, True):
        try:
            with tab.expect_file_chooser(timeout=8000) as chooser: tab.locator("#choose").press("Enter")
            return chooser.value
        except TimeoutError:
            if last: raise


def test_choose_with_the_keyboard(tab):
    tab.bring_to_front()
    chooser = choose(tab)
    assert chooser.is_multiple()
    files = [dict(name=f"{i}.png", mimeType="image/png", buffer=png()) for i in (1, 2)]
    chooser.set_files(files)
    expect(cards(tab).locator(".name")).to_have_text(["1.png", "2.png"])
    for card in cards(tab).all(): check_answer(card)
    assert fits(tab)


def test_several_images_and_a_bad_one(tab):
    drop(tab, one=png(), two=b"not an image", three=png((60, 60)))
    expect(status(tab)).to_have_text("2 of 3 images answered.")
    check_answer(cards(tab).nth(0))
    check_answer(cards(tab).nth(2), 60)
    expect(cards(tab).nth(1).get_by_role("alert")).to_contain_text("two.png was not accepted")
    expect(cards(tab).nth(1).get_by_role("button")).to_have_count(0)
    drop(tab, four=png())
    expect(cards(tab)).to_have_count(1)  # the newest images take the place of the older ones
    check_answer(cards(tab))


def batches(tab):
    "The requests for predictions that the page makes from now on."
    requests = []
    tab.on("request", lambda r: requests.append(r.url) if "predict" in r.url else None)
    return requests


@pytest.mark.parametrize("max_batch, requests", [(32, 2), (5, 7)])
def test_more_images_than_a_request_takes_are_several_requests(browser, max_batch, requests):
    "The page reads the limit of the service, so no request is refused and sent again."
    app = create_app(settings(max_batch=max_batch), Predictor.load("cifar10"))
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#model")).to_contain_text("10 classes")
        seen = batches(tab)
        drop(tab, **{f"p{i}": png((8, 8)) for i in range(33)})
        expect(status(tab)).to_have_text("33 of 33 images answered.")
        expect(cards(tab).locator(".name")).to_have_text([f"p{i}.png" for i in range(33)])
    assert len(seen) == requests


def test_images_that_are_too_large_together_are_several_requests(browser):
    app = create_app(settings(max_body_bytes=20_000), Predictor.load("cifar10"))
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#model")).to_contain_text("10 classes")
        seen = batches(tab)
        drop(tab, small=noise(70), huge=noise(90), other=noise(71))
        expect(status(tab)).to_have_text("2 of 3 images answered.")
        check_answer(cards(tab).nth(0), 70)
        refusal = "huge.png was not accepted: the request body is larger than 20,000 bytes"
        expect(cards(tab).nth(1).get_by_role("alert")).to_contain_text(refusal)
        check_answer(cards(tab).nth(2), 71)
    assert len(seen) == 3


@pytest.mark.parametrize("formats, said, accepted", [
    (["PNG", "WEBP"], "PNG or WebP", "image/png,image/webp"),
    (["PNG", "AVIF", "JPEG2000"], "PNG, AVIF or JPEG 2000", "image/png,image/avif,.jp2,.j2k")])
def test_the_page_says_which_formats_are_accepted(browser, *, formats, said, accepted):
    app = create_app(settings(formats=formats), Predictor.load("cifar10"))
    with served(app) as url, visit(browser, url) as tab:
        expect(tab.locator("#formats")).to_have_text(said)
        assert tab.locator("#file").get_attribute("accept") == accepted


def test_the_newest_images_win(tab):
    held, given_up = [], []
    tab.on("requestfailed", lambda request: given_up.append(request.url))
    tab.route("**/predict/**", lambda route: held.append(route), times=1)  # the first answer would come late
    drop(tab, slow=png())
    expect(status(tab)).to_have_text("Looking at 1 image …")
    drop(tab, quick=png(), quicker=png())
    expect(status(tab)).to_have_text("2 of 2 images answered.")
    expect(cards(tab).locator(".name")).to_have_text(["quick.png", "quicker.png"])
    assert len(held) == 1 and [url for url in given_up if "predict" in url]


def track_of(tab): return tab.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")


def test_camera(tab):
    button(tab, CAMERA["open"]).click()
    expect(button(tab, CAMERA["shoot"])).to_be_focused()
    expect(tab.locator("#video")).to_have_js_property("paused", False)
    track = track_of(tab)
    assert track.evaluate("track => track.readyState") == "live" and fits(tab)
    width = tab.locator("#video").evaluate(FIRST_WIDTH)
    button(tab, CAMERA["shoot"]).click()
    check_answer(cards(tab), width)
    expect(cards(tab).locator(".name")).to_have_text("camera.jpg")
    assert track.evaluate("track => track.readyState") == "ended"
    expect(tab.locator("#camera")).to_be_hidden()


def test_the_camera_is_closed_without_a_photo(tab):
    button(tab, CAMERA["open"]).click()
    expect(button(tab, CAMERA["shoot"])).to_be_focused()
    track = track_of(tab)
    button(tab, CAMERA["close"]).press("Enter")
    expect(button(tab, CAMERA["open"])).to_be_focused()
    assert track.evaluate("track => track.readyState") == "ended"


PROBLEMS = {"NotAllowedError": "does not allow it", "NotFoundError": "no camera was found",
            "NotReadableError": "it is in use"}


@pytest.mark.parametrize("error", PROBLEMS)
def test_a_camera_that_may_not_be_used(tab, error):
    tab.evaluate("""error => { navigator.mediaDevices.getUserMedia =
        () => Promise.reject(new DOMException('it is in use', error)); }""", error)
    button(tab, CAMERA["open"]).click()
    expect(tab.locator("#error")).to_contain_text("The camera cannot be used: ")
    expect(tab.locator("#error")).to_contain_text(PROBLEMS[error])
    expect(button(tab, CAMERA["open"])).to_be_focused()
    expect(tab.locator("#camera")).to_be_hidden()


@pytest.mark.parametrize("why", NO_CAMERA)
def test_no_camera_button_where_no_camera_can_be(browser, url, why):
    with visit(browser, url) as tab:
        tab.add_init_script(NO_CAMERA[why])
        tab.reload()
        expect(tab.locator("#model")).to_contain_text("airplane")
        expect(tab.locator("#open-camera")).to_be_hidden()


def samples(tab): return tab.locator("#samples button")


def test_a_sample_image_to_try(tab):
    "Those of classes that the model knows: a click, or a key, and it is classified like any other image."
    expect(samples(tab)).to_have_count(3)
    assert [width_of(image) for image in tab.locator("#samples img").all()] == [361, 360, 360]
    button(tab, "the sample image frog").press("Enter")
    expect(cards(tab).locator(".answer")).to_contain_text("frog, 9")
    expect(cards(tab).locator(".name")).to_have_text("frog.jpg")
    check_answer(cards(tab), 360)
    assert fits(tab)


def test_no_sample_of_classes_that_the_model_does_not_know(browser):
    with served(create_app(settings(), Predictor.load("cifar100"))) as url, visit(browser, url) as tab:
        expect(samples(tab)).to_have_count(2)
        for change in (dict(formats="PNG,WEBP"), {}):
            predictor = Predictor.load("cifar10") if change else other_card(classes=tuple("abcdefghij"))
            app = create_app(settings(**change), predictor)
            with served(app) as other, visit(browser, other) as one:
                expect(one.locator("#model")).to_contain_text("10 classes")
                expect(one.locator("#samples")).to_be_hidden()


def test_a_sample_that_does_not_arrive(browser, url):
    with visit(browser, url) as tab:
        expect(samples(tab)).to_have_count(3)
        tab.route("**/samples/frog.jpg", lambda route: route.abort())
        button(tab, "the sample image frog").click()
        expect(tab.locator("#error")).to_contain_text("did not arrive")
