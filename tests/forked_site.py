"""A site whose master process has used the cluster before it forks its workers, as an import may: `uwsgi --module`."""

import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import django

from django_clusterstate.client import event_batches, event_sender
from testproject.processes import wait_until

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
django.setup()

from asgiref.sync import async_to_sync  # noqa: E402 - after the setup
from django.core.cache import cache  # noqa: E402

from django_clusterstate import ratelimit, runtime  # noqa: E402
from django_clusterstate.events import track  # noqa: E402

MASTER = os.getpid()
LIMIT = ratelimit.Limit.parse("1000/d")
# However long a busy machine holds up a worker at its end.
event_sender.EXIT_TIMEOUT, event_batches.MAX_AGE = 30.0, 60.0

cache.get("while-loading")
cache.get_many([f"while-loading-{number}" for number in range(50)])
async_to_sync(cache.aget)("while-loading")
ratelimit.hit(LIMIT, "forked", "master")
track("forked", key="master")
THREADS = [thread.name for thread in threading.enumerate()]
# Workers hang that uWSGI forks while a thread runs, and `async_to_sync` doesn't wait for the end of its own.
wait_until(lambda: len(os.listdir("/proc/self/task")) == 1, 60, "no other thread runs")

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """What the cache has for some keys, asked in each way; which process answers.

    The request is under way until the file `until` exists.
    """
    query = parse_qs(environ["QUERY_STRING"])
    keys = query.get("key", [])
    for until in map(Path, query.get("until", [])):
        until.with_suffix(".waiting").touch()
        wait_until(until.exists, 60, f"{until} exists")
    got = [(key, cache.get(key)) for key in keys]
    got += list(cache.get_many(keys).items())
    got += [(key, async_to_sync(cache.aget)(key)) for key in keys[:1]]
    for key in keys:
        ratelimit.hit(LIMIT, "forked", key)
        track("forked", key=key)
    start_response("200 OK", [("Content-Type", "application/json")])
    about = {
        "pid": os.getpid(),
        "master": MASTER,
        "threads": THREADS,
        "dropped": runtime.get_event_sender().dropped,
        "got": got,
    }
    return [json.dumps(about).encode()]
