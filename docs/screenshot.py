"""Takes the pictures of the admin's panel that the documents show: `make screenshot`. Needs Chromium."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

import django
from playwright.sync_api import Browser, StorageState, ViewportSize

from testproject.panel import CHROMIUM, PAGE, Panel, chromium, logged_in
from testproject.processes import ROOT

FOLDER = ROOT / "docs" / "_static"
SERVER = "gunicorn"
WINDOW = ViewportSize(width=1280, height=900)

# What each picture shows. Those in the dark are beside them, as `NAME-dark.png`.
PICTURES = {"admin": f"{PAGE}?kind=limit&group=login&key=ip:10.0.0.7"}


def main() -> None:
    if CHROMIUM is None:
        sys.exit("This needs Chromium (Debian: apt-get install chromium).")
    with tempfile.TemporaryDirectory(prefix="cs-") as folder, Panel(Path(folder), [SERVER]) as panel:
        os.environ.update(panel.env)
        django.setup()
        fill()
        with chromium() as browser:
            login = logged_in(browser, panel, SERVER)
            for name, path in PICTURES.items():
                take(browser, login, panel.url(SERVER, path), FOLDER / f"{name}.png", dark=False)
                take(browser, login, panel.url(SERVER, path), FOLDER / f"{name}-dark.png", dark=True)


def fill() -> None:
    """Gives the pages something to show."""
    from django.core.cache import cache  # noqa: PLC0415 - there are settings only now

    from django_clusterstate.ratelimit import Limit, hit  # noqa: PLC0415

    cache.set_many({f"page-{number}": "x" * 500 for number in range(3000)})
    limit = Limit.parse("10/m")
    for number in range(50):
        hit(limit, "login", f"ip:10.0.0.{number}")


def take(browser: Browser, login: StorageState, url: str, picture: Path, *, dark: bool) -> None:
    color_scheme: Literal["dark", "light"] = "dark" if dark else "light"
    with browser.new_context(storage_state=login, viewport=WINDOW, color_scheme=color_scheme) as context:
        page = context.new_page()
        page.goto(url)
        page.screenshot(path=picture, full_page=True)
    print(picture.relative_to(ROOT))


if __name__ == "__main__":
    main()
