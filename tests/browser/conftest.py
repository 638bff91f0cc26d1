"""The panel in Chromium. `visit()` opens a page; when the test ends, nothing may have gone wrong in it.

All ends with the package: Playwright's event loop must not run while other tests use the database.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, StorageState, expect

from testproject.panel import CHROMIUM, PAGE, Panel, chromium, logged_in

SERVERS = ("gunicorn", "uvicorn")  # WSGI and ASGI

# A script to run before the page's: it refreshes every tenth of a second.
HASTE = """
const real = setTimeout;
window.setTimeout = (call, milliseconds) => real(call, milliseconds / 20);
"""

Visit = Callable[..., "Visited"]

expect.set_options(timeout=30_000)  # milliseconds; a busy machine takes longer than the default of 5 s


class Visited:
    """An open page, what went wrong in it (`problems`), and what it asked for since it was loaded (`requests`)."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[Request] = []
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108 - not a built-in method
        page.set_default_timeout(60_000)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.requests.clear()

    def _listen(self, said: ConsoleMessage) -> None:
        asked = said.location["url"]
        if said.type in ("error", "warning") and not asked.endswith("/favicon.ico"):  # which a site may have or not
            self.problems.append(f"{asked}: {said.text}")

    @property
    def refreshes(self) -> list[Request]:
        return [request for request in self.requests if is_refresh(request.url)]

    def await_refresh(self, count: int = 1) -> None:
        """So many refreshes that begin from now on are over, and shown."""
        for _ in range(count):
            with self.page.expect_event("requestfinished", lambda request: is_refresh(request.url)):
                pass
        self.page.evaluate("new Promise((resolve) => requestAnimationFrame(resolve))")


def is_refresh(url: str) -> bool:
    return "live" in parse_qs(urlsplit(url).query, keep_blank_values=True)


@pytest.fixture(scope="package")
def panel() -> Iterator[Panel]:
    """A test that kills a node or a site starts it again."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as folder,
        Panel(Path(folder), SERVERS, "tests.browser.settings") as panel,
    ):
        yield panel


@pytest.fixture(scope="package")
def browser(panel: Panel) -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def login(browser: Browser, panel: Panel) -> StorageState:
    return logged_in(browser, panel, SERVERS[0])


@pytest.fixture
def visit(browser: Browser, panel: Panel, login: StorageState) -> Iterator[Visit]:
    """Opens a page as an administrator, in a context with these options, `color_scheme="dark"` for example.

    `before` is a script that runs before those of the page. With `clock`, its clock can be moved: `page.clock`.
    """
    visits: list[Visited] = []

    def visit(
        path: str = PAGE, server: str = SERVERS[0], before: str = "", clock: bool = False, **options: Any
    ) -> Visited:
        context = browser.new_context(storage_state=login, **options)
        context.add_init_script(before)
        if clock:
            context.clock.install()
        visits.append(Visited(context.new_page()))
        visits[-1].open(panel.url(server, path))
        return visits[-1]

    yield visit
    for visited in visits:
        visited.page.context.close()
    assert [visited.problems for visited in visits if visited.problems] == []


def assert_accessible(page: Page) -> None:
    """Of a page that was opened with `bypass_csp=True`: axe puts styles into it."""
    # With "preload" it would load the style sheets once more, and those that they import from wrong addresses.
    results = Axe().run(page, options={"resultTypes": ["violations"], "preload": False})
    assert results.violations_count == 0, results.generate_report()


def assert_fits(page: Page) -> None:
    """No part of the page is beside the window."""
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def focused(page: Page) -> str:
    """The id of the element that has the keyboard."""
    found: str = page.evaluate("document.activeElement.id")
    return found
