"""uWSGI forks its workers in C, so that none of Python's hooks for forks run in them."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from django.core.cache import cache

from django_clusterstate import ratelimit
from django_clusterstate.events import counts
from testproject.processes import ROOT, LocalCluster, Process, free_port, wait_until
from tests.conftest import NODES

UWSGI = Path(sys.executable).with_name("uwsgi")
LIMIT = ratelimit.Limit.parse("1000/d")  # that of the site
WORKERS, CLIENTS, REQUESTS, KEYS = 4, 8, 60, 5
READY = "the master takes signals"
ACCEPTS = "a worker takes signals"  # until then, it ignores that it shall end
OPTIONS, IDS = [(), ("--enable-threads", "--threads", "2")], ["processes", "threads"]

pytestmark = pytest.mark.skipif(
    not UWSGI.exists(), reason="needs uWSGI, which pip builds where there is a C compiler (Debian: apt-get install gcc)"
)


@contextmanager
def uwsgi(cluster: LocalCluster, folder: Path, *options: str) -> Iterator[tuple[str, Process]]:
    """The site's address and its master, which imports the module, and then forks. It ends as the docs advise."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(UWSGI), "--http-socket", address, "--module", "tests.forked_site", "--master", "--need-app",
        "--disable-logging", "--processes", str(WORKERS), "--home", sys.prefix, "--pythonpath", str(ROOT), *options,
        "--hook-master-start", "unix_signal:15 gracefully_kill_them_all",
        "--hook-master-start", f"print:{READY}",  # its first worker answers before
        "--hook-accepting", f"print:{ACCEPTS}",
    ]  # fmt: skip
    process = Process(command, folder / "uwsgi.log", {**cluster.env(NODES[0]), "CLUSTERSTATE_DEADLINE": "10"})
    try:
        wait_until(lambda: bool(ask(address)), 60, "uWSGI answers")
        wait_until(lambda: f"\n{READY}" in process.output(), 60, "uWSGI can be ended")
        wait_until(lambda: process.output().count(f"\n{ACCEPTS}") == WORKERS, 60, "its workers can be ended")
        yield address, process
    finally:
        process.stop(60)
        print(process.output()[-5000:])


def ask(address: str, *keys: str, **other: str) -> dict[str, Any]:
    query = urlencode({"key": keys, **other}, doseq=True)
    try:
        with urlopen(f"http://{address}/?{query}", timeout=60) as answer:
            said: dict[str, Any] = json.load(answer)
            return said
    except OSError:
        return {}


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_no_worker_is_given_what_another_asked_for(
    cluster: LocalCluster, folder: Path, options: tuple[str, ...]
) -> None:
    keys = [f"forked-{os.urandom(4).hex()}-{number}" for number in range(CLIENTS * KEYS)]
    cache.set_many({key: key for key in keys})
    tracked = counts("forked").total

    def client(who: int) -> list[dict[str, Any]]:
        mine = keys[who * KEYS :][:KEYS]
        return [ask(address, *mine) for _ in range(REQUESTS)]

    with uwsgi(cluster, folder, *options) as (address, _), ThreadPoolExecutor(CLIENTS) as clients:
        answers = [answer for answers in clients.map(client, range(CLIENTS)) for answer in answers]
    got = [(key, value) for answer in answers if answer for key, value in answer["got"]]
    assert [(key, value) for key, value in got if key != value] == []
    assert all(answers)
    assert len(got) == CLIENTS * REQUESTS * (2 * KEYS + 1)  # none of them a miss
    assert {answer["pid"] for answer in answers}.isdisjoint(answer["master"] for answer in answers)
    assert len({answer["pid"] for answer in answers}) > 1
    assert {name for answer in answers for name in answer["threads"] if name.startswith("clusterstate")} == set()
    # What is left at a worker's end is sent then: a thread of uWSGI's runs only with --enable-threads.
    assert counts("forked").total - tracked == CLIENTS * REQUESTS * KEYS + 1  # and that of the master
    used = [1000 - ratelimit.peek(LIMIT, "forked", key).remaining for key in keys]
    assert used == [REQUESTS] * len(keys)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_events_of_a_request_under_way_are_sent_when_uwsgi_ends(
    cluster: LocalCluster, folder: Path, options: tuple[str, ...]
) -> None:
    key = f"under-way-{os.urandom(4).hex()}"
    cache.set(key, key)
    until, tracked = folder / "until", counts("forked").total
    with uwsgi(cluster, folder, *options) as (address, process), ThreadPoolExecutor(1) as client:
        answer = client.submit(ask, address, key, until=str(until))
        wait_until(until.with_suffix(".waiting").exists, 60, "the request is under way")
        process.signal(signal.SIGTERM)
        wait_until(lambda: "Gracefully killing worker" in process.output(), 60, "uWSGI ends its workers")
        until.touch()
        assert answer.result()["got"] == [[key, key]] * 3
        process.wait(60)
    assert counts("forked").total - tracked == 2  # and that of the master
