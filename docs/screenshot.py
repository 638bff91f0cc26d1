"""Takes the pictures of the admin's panel that the documents show: `make screenshot`. Needs Chromium."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

import django
from playwright.sync_api import Browser, FloatRect, StorageState, ViewportSize

from testproject.panel import CHROMIUM, PAGE, Panel, chromium, logged_in, make_traffic
from testproject.processes import ROOT

DIRECTORY = ROOT / "docs" / "_static"
SERVER = "gunicorn"
WINDOW = ViewportSize(width=1280, height=900)

# What each picture shows, and how much of its page. Those in the dark are beside them, as `NAME-dark.png`.
PICTURES = {
    "admin": (PAGE, "#content"),
    "key": (f"{PAGE}?kind=limit&group=api&key=user:3", "#clusterstate-key"),
    "events": (f"{PAGE}events/?name=export.failed", "#content"),
}
TALLEST = 1500.0  # pixels
TRAFFIC = 60.0  # seconds, so that the curves show something


def main() -> None:
    if CHROMIUM is None:
        sys.exit("This needs Chromium (Debian: apt-get install chromium).")
    with tempfile.TemporaryDirectory(prefix="cs-") as folder, Panel(Path(folder), [SERVER]) as panel:
        os.environ.update(panel.env)
        django.setup()
        make_traffic(TRAFFIC)
        with chromium() as browser:
            login = logged_in(browser, panel, SERVER)
            for name, (path, part) in PICTURES.items():
                take(browser, login, panel.url(SERVER, path), part, DIRECTORY / f"{name}.png", dark=False)
                take(browser, login, panel.url(SERVER, path), part, DIRECTORY / f"{name}-dark.png", dark=True)


def take(browser: Browser, login: StorageState, url: str, part: str, picture: Path, *, dark: bool) -> None:
    color_scheme: Literal["dark", "light"] = "dark" if dark else "light"
    with browser.new_context(storage_state=login, viewport=WINDOW, color_scheme=color_scheme) as context:
        page = context.new_page()
        page.goto(url)
        box = page.locator(part).bounding_box()
        assert box is not None
        clip = FloatRect(x=box["x"], y=box["y"], width=box["width"], height=min(box["height"], TALLEST))
        page.screenshot(path=picture, full_page=True, clip=clip)
    print(picture.relative_to(ROOT))


if __name__ == "__main__":
    main()
