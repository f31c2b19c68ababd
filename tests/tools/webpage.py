"The web page in a browser: files that arrive, and the cards that answer them."
import base64
from contextlib import contextmanager

from playwright.sync_api import expect
from tools.files import BASE, saved

from cifar_nb.predict import Predictor
from cifar_nb.settings import ServiceSettings

PHONE = dict(width=390, height=800)
LOOK = "where did it look?"
expect.set_options(timeout=30_000)


def png(size=(90, 60)): return saved(BASE.resize(size), "PNG")


def settings(**changes):
    "A busy machine may keep an image waiting for long."
    return ServiceSettings(**{"max_wait": 60, "backend": "eager", **changes})


def other_card(**changes):
    "The bundled model with something else on its card."
    predictor = Predictor.load("cifar10")
    predictor.card = predictor.card.model_copy(update=changes)
    return predictor


@contextmanager
def visit(browser, url, **context):
    """The page in a window of its own.

    When it closes there was no script error, and nothing came from elsewhere."""
    troubles, hosts = [], set()
    window = browser.new_context(**dict(viewport=PHONE) | context)
    window.set_default_timeout(30_000)

    def note(message):
        expected = "Failed to load resource" in message.text
        if message.type == "error" and not expected: troubles.append(message.text)

    def note_host(request):
        if request.url.startswith("http"): hosts.add(request.url.split("/")[2])
    try:
        tab = window.new_page()
        tab.on("console", note)
        tab.on("pageerror", lambda e: troubles.append(str(e)))
        tab.on("request", note_host)
        tab.goto(url)
        yield tab
        assert troubles == [] and hosts == {url.split("/")[2]}
    finally: window.close()


ARRIVE = """([event, sent]) => {
    const files = new DataTransfer(), bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
    for (const [name, content, kind] of sent) files.items.add(new File([bytes(content)], name, {type: kind}));
    const how = {bubbles: true, cancelable: true};
    const happening = event === "drop" ? new DragEvent("drop", {dataTransfer: files, ...how})
        : new ClipboardEvent("paste", {clipboardData: files, ...how});
    document.getElementById("drop").dispatchEvent(happening);
}"""


def send(tab, event, *files):
    "Let files (name, content, kind) arrive by drop or paste, as the browser would deliver them."
    sent = [[name, base64.b64encode(data).decode(), kind] for name, data, kind in files]
    tab.evaluate(ARRIVE, [event, sent])


def drop(tab, **images):
    send(tab, "drop", *((f"{name}.png", content, "image/png") for name, content in images.items()))


def cards(tab): return tab.locator("#results > li")


def status(tab): return tab.get_by_role("status")


def button(tab, name): return tab.get_by_role("button", name=name)


def width_of(image):
    "Not by wait_for_function: it polls with eval, which the page's policy forbids."
    return image.evaluate("image => image.decode().then(() => image.naturalWidth)")


def fits(tab): return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def check_answer(card, width=90):
    expect(card.locator(".bars tr")).to_have_count(10)
    name, sure = card.locator(".answer").inner_text().split(", ")
    first = card.locator(".bars tr").first
    assert [first.locator(cell).last.inner_text() for cell in ("th", "td")] == [name, sure]
    assert (width_of(card.locator(".seen")), width_of(card.locator(".sent"))) == (32, width)
    expect(card.locator(".view figcaption")).to_have_text("as the model sees it, 32 × 32")
    expect(card.locator(".problem")).to_be_empty()
    expect(card.locator(".rest")).to_be_hidden()
