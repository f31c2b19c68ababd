"Chromium for the tests, and the README's picture: python tests/browser.py PICTURE [OUT]"
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

ARGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera that shows a drawing, and is allowed to


def find():
    "A Chromium or Chrome on this machine, or None."
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))), None)
    if named or os.path.exists(mac): return named or mac
    with sync_playwright() as p: return p.chromium.executable_path if os.path.exists(p.chromium.executable_path) else None


def browser_path():
    "A browser, installed if need be. Raises `RuntimeError` that says what to do."
    ways = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and getattr(os, "geteuid", lambda: 1)() == 0:
        ways.insert(0, ["sh", "-c", "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium"])
    for way in [None, *ways]:
        if way: subprocess.run(way, capture_output=True, timeout=600)
        if path := find(): return path
    raise RuntimeError("no Chromium or Chrome was found or could be installed: install one, or set CHROMIUM to its path")


@contextmanager
def page(**context):
    "A page in a fresh browser."
    path = browser_path()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=ARGS)
        try: yield browser.new_context(**context).new_page()
        finally: browser.close()


if __name__ == "__main__":
    from cifar_nb.core import Settings
    from cifar_nb.predict import Predictor
    from cifar_nb.serve import create_app, served

    picture, out = sys.argv[1], (sys.argv[2:] or ["page.png"])[0]
    with served(create_app(Settings.read(), Predictor.load("cifar10"))) as url, page(viewport=dict(width=720, height=900)) as tab:
        tab.goto(url)
        tab.set_input_files("#file", picture)
        tab.wait_for_selector("#results .details:not([hidden])")
        tab.wait_for_timeout(300)
        tab.locator("main").screenshot(path=out)
