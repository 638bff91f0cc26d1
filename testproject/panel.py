"""The admin's panel in a real browser: nodes, sites with an administrator, and Chromium. For its tests and pictures.

While a `Browser` is open, Playwright's event loop runs in this thread, and Django's database refuses to work in it.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from django.core.cache import cache
from playwright.sync_api import Browser, StorageState, sync_playwright

from django_clusterstate.events import flush, track
from django_clusterstate.ratelimit import Limit, hit
from testproject.demo import Site
from testproject.processes import ROOT, LocalCluster, Process, free_port, wait_until

NODES = ("web-1", "web-2", "web-3")
PAGE = "admin/django_clusterstate/cluster/"
CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
ADMIN = {"USERNAME": "admin", "PASSWORD": "for-this-run-only", "EMAIL": "admin@example.com"}


class Panel:
    """Three nodes, and on the host of the first a site under each of the servers; they share a database.

    A context manager: starts all, and ends it.
    """

    def __init__(self, folder: Path, servers: Sequence[str], settings: str = "testproject.settings") -> None:
        self._folder = folder
        # A machine that runs tests may hold up a process for longer than the default deadline of 0.1 s.
        env = {"DEMO_RUN_DIR": str(folder), "DJANGO_SETTINGS_MODULE": settings, "CLUSTERSTATE_DEADLINE": "1"}
        self.nodes = LocalCluster(folder, NODES, env=env)
        # Browsers open connections before they need them: a worker of gunicorn that has one thread would wait on such.
        self.env = {**self.nodes.env(NODES[0]), "GUNICORN_CMD_ARGS": "--threads 4"}
        self._sites = {server: Site(server, NODES[0], free_port(), server) for server in servers}
        self._processes: dict[str, Process] = {}

    def url(self, server: str, path: str = PAGE) -> str:
        return self._sites[server].url + path

    def start(self, server: str) -> None:
        site = self._sites[server]
        self._processes[server] = Process(site.command(), self._folder / f"{server}.log", self.env)
        wait_until(site.answers, 60, f"the site under {server}")

    def stop(self, server: str) -> None:
        """At once, but so that gunicorn's workers go too, and leave the port."""
        self._processes[server].signal(signal.SIGINT)
        self._processes[server].stop()

    def manage(self, *command: str) -> None:
        env = {**self.env, **{f"DJANGO_SUPERUSER_{name}": value for name, value in ADMIN.items()}}
        subprocess.run([sys.executable, "manage.py", *command], check=True, cwd=ROOT, env=env, capture_output=True)

    def __enter__(self) -> "Panel":
        self.nodes.start()
        try:
            self.manage("migrate", "--verbosity", "0")
            self.manage("createsuperuser", "--no-input")
            for server in self._sites:
                self.start(server)
            self.nodes.wait_for()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for server in self._processes:
            self.stop(server)
        self.nodes.__exit__()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's: Playwright downloads none."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


def logged_in(browser: Browser, panel: Panel, server: str) -> StorageState:
    """What a context of the browser needs to be the administrator's, on all of the panel's sites."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(panel.url(server, "admin/"))
        page.fill("#id_username", ADMIN["USERNAME"])
        page.fill("#id_password", ADMIN["PASSWORD"])
        page.press("#id_password", "Enter")
        page.wait_for_selector("#user-tools")
        return context.storage_state()


def make_traffic(seconds: float) -> None:
    """Gives the pages something to show: limits that deny, a cache, an event. Needs Django's settings."""
    limits = {"login": Limit.parse("10/m"), "api": Limit.parse(["20/s", "500/h"], "sliding_window")}
    chance, end = random.Random(7), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        busy = 2 if seconds / 3 < left < seconds / 2 else 1
        for _ in range(busy):
            number = int(chance.paretovariate(1)) % 200
            hit(limits["login"], "login", f"ip:10.0.0.{number + 6}")
            hit(limits["api"], "api", f"user:{number}")
            if cache.get(f"page-{number}") is None:
                cache.set(f"page-{number}", "x" * chance.randrange(10_000), 20)
            if chance.random() < 0.1:
                track(
                    "export.failed", key=f"org-{number}", reason=chance.choice(("timeout", "quota")), rows=number * 100
                )
        time.sleep(0.01)  # a hundred a second are enough to look at
    flush()
