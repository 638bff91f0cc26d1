"""Takes the picture of the admin page that the README shows: `make screenshot`. Needs Chromium."""

import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import django

from testproject.processes import ROOT, LocalCluster, Process, free_port, wait_until

PICTURE = ROOT / "docs" / "_static" / "admin.png"
PAGE = "admin/django_clusterstate/cluster/?kind=limit&group=login&key=ip:10.0.0.7"
CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
)  # fmt: skip


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as folder,
        LocalCluster(Path(folder), ("web-1", "web-2", "web-3"), env={"DEMO_RUN_DIR": folder}) as nodes,
    ):
        nodes.start()
        nodes.wait_for()
        os.environ.update(nodes.env("web-1"))
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], check=True, cwd=ROOT)
        django.setup()
        cookie = fill_and_log_in()
        port = free_port()
        command = [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
        site = Process(command, Path(folder) / "site.log", os.environ)
        try:
            take(f"http://127.0.0.1:{port}/", cookie, Path(folder))
        finally:
            site.kill()


def fill_and_log_in() -> str:
    """Gives the page something to show; returns an administrator's session cookie."""
    from django.contrib.auth.models import User  # noqa: PLC0415 - there are models only after setup()
    from django.core.cache import cache  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    from django_clusterstate.ratelimit import Limit, hit  # noqa: PLC0415

    cache.set_many({f"page-{number}": "x" * 500 for number in range(3000)})
    limit = Limit.parse("10/m")
    for number in range(50):
        hit(limit, "login", f"ip:10.0.0.{number}")
    client = Client()
    client.force_login(User.objects.create_superuser("admin"))
    return f"sessionid={client.cookies['sessionid'].value}"


def take(site: str, cookie: str, folder: Path) -> None:
    """The page is fetched with the cookie, which Chromium's command line can't send, and shown from a file."""
    request = urllib.request.Request(site + PAGE, headers={"Cookie": cookie})

    def answers() -> bool:
        try:
            urllib.request.urlopen(site)
        except OSError:
            return False
        return True

    wait_until(answers, 20, "the site")
    page = urllib.request.urlopen(request).read().decode()
    page = page.replace("<head>", f'<head><base href="{site}">', 1)
    page = re.sub(r"<script[^>]*theme\.js[^>]*></script>", "", page)  # it asks for storage that a file doesn't have
    file = folder / "page.html"
    file.write_text(page)
    options = (f"--user-data-dir={folder}/profile", f"--screenshot={PICTURE}", file.as_uri())
    subprocess.run([*CHROMIUM, *options], check=True, capture_output=True, timeout=60)
    print(PICTURE)


if __name__ == "__main__":
    main()
