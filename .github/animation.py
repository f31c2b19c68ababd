"""The animation on the front page: a photo is dropped on the real page of the service.

    python .github/animation.py [PHOTO]

writes nbs/images/page.webp. This is a tool for development, run by hand when the page changes: it needs the
extra `dev` (playwright) and a Chromium or Chrome, which CHROMIUM may name (tests/tools/browser.py). The
service, its bundled model and its answers are real. The pointer and the dragged photo are drawn over the
screenshots, because a browser that is driven by a program shows neither."""
import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tools.browser import page  # noqa: E402
from tools.webpage import send, settings  # noqa: E402

from cifar_nb.predict import Predictor  # noqa: E402
from cifar_nb.serve import create_app, served  # noqa: E402

# "chelsea" of scikit-image, CC0
PHOTO = ROOT / "cifar_nb" / "static" / "samples" / "cat.jpg"
OUT = ROOT / "nbs" / "images" / "page.webp"
SIZE = dict(width=640, height=700)
MOST_BYTES = 1_000_000
POINTER = [(0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (12, 12)]


class Film:
    "Screenshots of a tab, each with the time that it is shown."
    def __init__(self, tab):
        self.tab, self.frames, self.times = tab, [], []

    def take(self, ms, at=None, dragged=None):
        "A frame for `ms` milliseconds, with the pointer at `at` and what it drags."
        frame = Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB")
        if dragged: frame.paste(dragged, (at[0] - dragged.width // 2, at[1] - dragged.height // 2))
        if at:
            outline = [(at[0] + x, at[1] + y) for x, y in POINTER]
            ImageDraw.Draw(frame).polygon(outline, fill="black", outline="white")
        self.frames.append(frame)
        self.times.append(ms)

    def save(self, path):
        first, *others = self.frames
        first.save(path, save_all=True, append_images=others, duration=self.times, loop=0, quality=80,
                   method=6)


def middle(tab, selector):
    "The middle of an element, as the tab shows it."
    box = tab.locator(selector).bounding_box()
    return round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)


def steps(start, end, n):
    "Points from one place to another, slower at the end."
    for i in range(1, n + 1):
        part = 1 - (1 - i / n) ** 2
        yield tuple(round(a + (b - a) * part) for a, b in zip(start, end, strict=True))


def play(tab, photo, film):
    "What a visitor does, and what the page shows."
    thumbnail = Image.open(photo).convert("RGB")
    thumbnail.thumbnail((150, 150))
    drop = middle(tab, "#drop")
    film.take(1200)
    for number, at in enumerate(steps((SIZE["width"] - 40, SIZE["height"] - 60), drop, 12)):
        if number == 6: tab.evaluate("dispatchEvent(new DragEvent('dragenter', {cancelable: true}))")
        film.take(60, at, thumbnail)
    film.take(400, drop, thumbnail)
    held = []
    tab.route("**/predict/batch*", lambda route: held.append(route))
    send(tab, "drop", (photo.name, photo.read_bytes(), "image/jpeg"))
    while not held: tab.wait_for_timeout(20)
    film.take(500, drop)
    held[0].continue_()
    tab.wait_for_selector("#results .details:not([hidden])")
    film.take(1000, drop)
    top = tab.evaluate("document.getElementById('results').getBoundingClientRect().top - 16")
    for _, y in steps((0, 0), (0, top), 10):
        tab.evaluate(f"scrollTo(0, {y})")
        film.take(50, drop)
    film.take(2500, drop)
    button = middle(tab, "#results .explain")
    for at in steps(drop, button, 10): film.take(50, at)
    tab.click("#results .explain")
    tab.wait_for_selector("#results .where:not([hidden])")
    tab.locator("#results .overlay").evaluate("image => image.decode()")
    film.take(4000, button)


def main(photo):
    predictor = Predictor.load("cifar10")
    predictor(photo.read_bytes())  # the first image takes longest
    with served(create_app(settings(), predictor)) as url, page(viewport=SIZE, color_scheme="light") as tab:
        tab.goto(url)
        tab.wait_for_selector("#samples:not([hidden])")
        tab.wait_for_load_state("networkidle")
        film = Film(tab)
        play(tab, photo, film)
    film.save(OUT)
    size = OUT.stat().st_size
    if size > MOST_BYTES: sys.exit(f"{OUT.name} has {size:,} bytes, more than {MOST_BYTES:,}")
    print(f"{OUT.name}: {size:,} bytes, {len(film.frames)} frames, {sum(film.times) / 1000:.1f} s")


if __name__ == "__main__": main(Path(sys.argv[1]) if sys.argv[1:] else PHOTO)
