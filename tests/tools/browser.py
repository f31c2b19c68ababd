"Chromium for the tests, and the README's screenshot: python tests/tools/browser.py IMAGE [OUT]"
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

ARGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
        # a camera that shows a drawing, and is allowed to
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
APT = "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium"


def find():
    "A Chromium or Chrome on this machine, or None."
    places = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES), MAC if os.path.exists(MAC) else None]
    named = next(filter(None, places), None)
    if named: return named
    with sync_playwright() as p: own = p.chromium.executable_path
    return own if os.path.exists(own) else None


def browser_path():
    "A browser, installed if need be. Raises `RuntimeError` that says what to do."
    ways = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and getattr(os, "geteuid", lambda: 1)() == 0: ways.insert(0, ["sh", "-c", APT])
    for way in [None, *ways]:
        if way: subprocess.run(way, capture_output=True, timeout=600)
        if path := find(): return path
    raise RuntimeError("no Chromium or Chrome was found or could be installed: install one, "
                       "or set CHROMIUM to its path")


@contextmanager
def page(**context):
    "A page in a fresh browser."
    path = browser_path()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=ARGS)
        try: yield browser.new_context(**context).new_page()
        finally: browser.close()


def screenshot(image, out):
    "The page after an image was dropped on it."
    from cifar_nb.predict import Predictor
    from cifar_nb.serve import create_app, served
    from cifar_nb.settings import ServiceSettings
    app = create_app(ServiceSettings.read(), Predictor.load("cifar10"))
    with served(app) as url, page(viewport=dict(width=720, height=900)) as tab:
        tab.goto(url)
        tab.set_input_files("#file", image)
        tab.wait_for_selector("#results .details:not([hidden])")
        tab.wait_for_timeout(300)
        tab.locator("main").screenshot(path=out)


if __name__ == "__main__": screenshot(sys.argv[1], (sys.argv[2:] or ["page.png"])[0])
