"""`make demo` and `make smoke`: three nodes and three sites as one cluster, and a tour of it.

python -m testproject.demo            the tour, then everything runs until Ctrl-C
python -m testproject.demo --check    the tour; exit code 1 if a claim doesn't hold
"""

import argparse
import http.client
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import django

from testproject.processes import ROOT, LocalCluster, Process, is_free, wait_until

NODES = ("amber", "birch", "cedar")
HITS, LIMIT = 30, 10
LOAD_SECONDS = 4.0


@dataclass
class Site:
    name: str
    node: str
    port: int
    server: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def command(self) -> list[str]:
        if self.server == "uvicorn":
            options = ["testproject.asgi:application", "--host", "127.0.0.1", "--port", str(self.port)]
            return [sys.executable, "-m", "uvicorn", "--no-access-log", *options]
        options = ["--bind", f"127.0.0.1:{self.port}", "--workers", "2", "--preload"]
        return [sys.executable, "-m", "gunicorn", *options, "testproject.wsgi"]

    def get(self, path: str, client: str = "127.0.0.1") -> tuple[int, dict[str, str], Any]:
        """One request from a client address: status, headers, and the answer if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10, source_address=(client, 0))
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            headers = dict(response.headers.items())
            is_json = headers.get("Content-Type") == "application/json"
            return response.status, headers, json.loads(body) if is_json else body.decode()
        finally:
            connection.close()

    def answers(self) -> bool:
        try:
            return self.get("/")[0] == http.HTTPStatus.OK
        except OSError:
            return False


@dataclass
class Tour:
    """What is shown, and whether all that was claimed held."""

    failed: list[str] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def say(self, text: str) -> None:
        print(f"    {text}", flush=True)

    def claim(self, text: str, holds: bool) -> None:
        print(f"  {'✓' if holds else '✗ NOT TRUE:'} {text}", flush=True)
        if not holds:
            self.failed.append(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="end after the tour; exit code 1 if a claim fails")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    node_port = int(os.environ.get("DEMO_NODE_PORT", "4371"))
    site_port = int(os.environ.get("DEMO_SITE_PORT", "8001"))
    taken = [p for p in (*range(node_port, node_port + 3), *range(site_port, site_port + 3)) if not is_free(p)]
    if taken:
        print(
            f"Port {taken[0]} is taken by another program. Stop it, or choose other ports with "
            "DEMO_NODE_PORT and DEMO_SITE_PORT (three each, from that number on).",
            file=sys.stderr,
        )
        return 1
    run = ROOT / "run"
    run.mkdir(exist_ok=True)
    run.chmod(0o700)  # nodes refuse a directory that a umask of 002 leaves writable for a group
    os.environ["DEMO_RUN_DIR"] = str(run)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    tour = Tour()
    try:
        password = prepare(tour)
        with started(run, node_port, site_port) as (nodes, sites):
            show(tour, nodes, sites)
            if not arguments.check:
                _print_addresses(sites, password, run)
                _wait_forever()
    except TimeoutError as error:
        tour.claim(str(error), holds=False)
    except KeyboardInterrupt:
        print("\nAll processes are stopped.")
    if tour.failed:
        print(f"\n{len(tour.failed)} claims do not hold. The processes' logs are in {run}.", file=sys.stderr)
    return 1 if tour.failed else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _wait_forever() -> None:
    while True:
        time.sleep(3600)


# -- before the tour ----------------------------------------------------------------------------------------------


def prepare(tour: Tour) -> str:
    """The database and an admin user; returns the user's password."""
    tour.chapter("A database (SQLite) and an admin user")
    subprocess.run([sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity", "0"], check=True, cwd=ROOT)
    django.setup()
    from django.contrib.auth.models import User  # noqa: PLC0415 - there are models only after setup()

    user, _ = User.objects.get_or_create(username="admin", defaults={"is_staff": True, "is_superuser": True})
    password = secrets.token_urlsafe(9)
    user.set_password(password)
    user.save()
    tour.say("migrated; user `admin` made")
    return password


@contextmanager
def started(run: Path, node_port: int, site_port: int) -> Iterator[tuple[LocalCluster, list[Site]]]:
    """Three nodes that find each other through the database, and a site on the host of each."""
    ports = range(node_port, node_port + len(NODES))
    servers = ("gunicorn", "gunicorn", "uvicorn")
    sites = [Site(f"site-{i + 1}", NODES[i], site_port + i, servers[i]) for i in range(len(NODES))]
    for log in run.glob("*.log"):
        log.unlink()
    with ExitStack() as stack:
        nodes = stack.enter_context(LocalCluster(run, NODES, ports=ports, discovery="database"))
        stack.callback(nodes.stop)
        nodes.start()
        for site in sites:
            env = {**nodes.env(site.node), "DEMO_SITE": site.name, "DEMO_ASYNC": "1" * (site.server == "uvicorn")}
            process = Process(site.command(), run / f"{site.name}.log", env)
            stack.callback(process.stop)
        nodes.wait_for()
        for site in sites:
            wait_until(site.answers, 60, f"an answer of {site.name} at {site.url} (its log is in {run})")
        yield nodes, sites


# -- the tour -----------------------------------------------------------------------------------------------------


def show(tour: Tour, nodes: LocalCluster, sites: list[Site]) -> None:
    # A client address of its own for each tour, of the 16 million that a loopback interface has.
    client = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
    show_members(tour, nodes, sites)
    show_limit(tour, nodes, sites, client)
    show_cache(tour, sites)
    show_kill(tour, nodes, sites, client)


def show_members(tour: Tour, nodes: LocalCluster, sites: list[Site]) -> None:
    tour.chapter("1. Three nodes are one cluster")
    command = [sys.executable, str(ROOT / "manage.py"), "clusterstatus"]
    done = subprocess.run(command, env=nodes.env(NODES[0]), cwd=ROOT, capture_output=True, text=True, check=False)
    for line in (done.stdout + done.stderr).splitlines():
        tour.say(line)
    tour.claim("`manage.py clusterstatus` says that all nodes agree, with exit code 0", done.returncode == 0)
    for site in sites:
        tour.say(f"{site.name} at {site.url} runs under {site.server}, on the host of node {site.node}")


def show_limit(tour: Tour, nodes: LocalCluster, sites: list[Site], client: str) -> None:
    tour.chapter(f"2. A limit of {LIMIT}/m holds across all sites: client {client} sends {HITS} requests")
    passed: Counter[str] = Counter()
    denied: dict[str, str] = {}
    statuses: Counter[int] = Counter()
    for number in range(HITS):
        site = sites[number % len(sites)]
        status, headers, _ = site.get("/limited/", client)
        statuses[status] += 1
        if status == http.HTTPStatus.OK:
            passed[site.name] += 1
        else:
            denied = headers
    tour.say(", ".join(f"{site}: {count} passed" for site, count in sorted(passed.items())))
    tour.claim(f"exactly {LIMIT} of {HITS} passed, the others were answered with 429",
               statuses == {http.HTTPStatus.OK: LIMIT, http.HTTPStatus.TOO_MANY_REQUESTS: HITS - LIMIT})  # fmt: skip
    tour.say(f"Retry-After: {denied.get('Retry-After')}    RateLimit: {denied.get('RateLimit')}")
    tour.claim(
        "a 429 says when to come back",
        0 < int(denied.get("Retry-After", "0")) <= 60 and {"RateLimit", "RateLimit-Policy"} <= set(denied),
    )


def show_cache(tour: Tour, sites: list[Site]) -> None:
    tour.chapter("3. A value cached on one site is read on the others")
    word = secrets.token_hex(4)
    sites[0].get(f"/value/?key=greeting&set={word}")
    read = {site.name: site.get("/value/?key=greeting")[2]["value"] for site in sites}
    tour.say(f"{sites[0].name} wrote {word!r}; read: {read}")
    tour.claim("all sites read what one wrote", set(read.values()) == {word})


def show_kill(tour: Tour, nodes: LocalCluster, sites: list[Site], client: str) -> None:
    owner = _owner(nodes, client)
    tour.chapter(f"4. kill -9 of node {owner}, which owns the client's key, while requests go on")
    others = [name for name in nodes.names if name != owner]
    with load(sites, client) as statuses:
        time.sleep(LOAD_SECONDS / 4)
        start = time.monotonic()
        nodes.kill(owner)
        wait_until(lambda: all(_sees_down(nodes, name, owner) for name in others), 60, f"{owner} seen down")
        seconds = time.monotonic() - start
        nodes.wait_for(*others)
        time.sleep(LOAD_SECONDS / 4)
        next_owner = _owner(nodes, client, asked=others[0])
        tour.say(f"after {seconds:.2f} s both others say: {owner} is down. The key now belongs to {next_owner}.")
        tour.claim("the peers saw it within half a second", seconds < 0.5)
        tour.claim("the key has a new owner", next_owner in others)
        nodes.start(owner)
        nodes.wait_for()
        time.sleep(LOAD_SECONDS / 4)
    total = sum(statuses.values())
    shown = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    tour.say(f"{total} requests meanwhile, over all sites: {shown}")
    tour.claim("no error: every request was answered with 200 or 429",
               total > 0 and set(statuses) <= {http.HTTPStatus.OK, http.HTTPStatus.TOO_MANY_REQUESTS})  # fmt: skip
    tour.claim(f"{owner} is back, and owns the key again", _owner(nodes, client, asked=others[0]) == owner)


@contextmanager
def load(sites: list[Site], client: str) -> Iterator[Counter[Any]]:
    """Requests to every site, without a pause, for as long as the block runs. Yields what they were answered."""
    statuses: Counter[Any] = Counter()
    over = threading.Event()

    def ask(site: Site) -> None:
        while not over.is_set():
            for path in ("/limited/", "/value/?key=greeting"):
                try:
                    statuses[site.get(path, client)[0]] += 1
                except OSError as error:
                    statuses[f"{site.name}: {error!r}"] += 1

    threads = [threading.Thread(target=ask, args=(site,)) for site in sites]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _owner(nodes: LocalCluster, client: str, asked: str = "") -> str:
    """The owner of the client's limit, as the site at this node sees it."""
    code = (
        "import django; django.setup(); from django_clusterstate import cluster, ratelimit; "
        f"print(cluster.owner(ratelimit.routing_key('limited', 'ip:{client}')))"
    )
    env = nodes.env(asked or nodes.names[0])
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _sees_down(nodes: LocalCluster, name: str, other: str) -> bool:
    status = nodes.status(name)
    return status is not None and any(m.identity.name == other and m.state == "down" for m in status.members)


def _print_addresses(sites: list[Site], password: str, run: Path) -> None:
    print("\nIt runs until Ctrl-C. Look around:")
    for site in sites:
        print(f"  {site.name}   {site.url}limited/   {site.url}value/?key=greeting")
    print(f"  admin    {sites[0].url}admin/   user: admin   password: {password}")
    print(f"  logs     {run}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
