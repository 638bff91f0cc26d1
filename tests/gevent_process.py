"""A process under threads, gevent or eventlet that asks for keys of three nodes, before and after one of them stops.

`python -m tests.gevent_process KIND` prints its results as a line of JSON, and continues with each line of input. With
`late` after the kind it uses the cluster before it is patched, as a module imported too early does.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

KIND, LATE = sys.argv[1], "late" in sys.argv[2:]
CONCURRENT = 20


def patch() -> None:
    if KIND == "gevent":
        from gevent import monkey  # noqa: PLC0415 - only where it is wanted

        monkey.patch_all()
    elif KIND == "eventlet":
        import eventlet  # noqa: PLC0415

        eventlet.monkey_patch()


def load() -> None:
    import django  # noqa: PLC0415

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    django.setup()
    from django.core.cache import cache  # noqa: PLC0415

    if LATE:
        cache.get_many([f"late-{number}" for number in range(50)])


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What green threads, or threads, have from it that run at the same time."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(CONCURRENT) as threads:
        return list(threads.map(work, range(CONCURRENT)))


def main() -> None:
    if LATE:
        load()
        patch()
    else:
        patch()
        load()
    from django.core.cache import cache  # noqa: PLC0415

    from django_clusterstate import ratelimit  # noqa: PLC0415
    from django_clusterstate.events import flush, track  # noqa: PLC0415

    keys = [f"green-{os.getpid()}-{number}" for number in range(60)]
    limit = ratelimit.Limit.parse("1000000/d")

    def work(who: int) -> list[float]:
        """How long each answer took; each must be right."""
        took = []
        for number in range(3):
            key = keys[(who * 3 + number) % len(keys)]
            steps: tuple[Callable[[], bool], ...] = (
                lambda: cache.get(key) in (key, None),  # noqa: B023 - called at once
                lambda: all(name == value for name, value in cache.get_many(keys).items()),
                lambda: ratelimit.hit(limit, "green", key).allowed,  # noqa: B023
            )
            for one in steps:
                start = time.monotonic()
                assert one()
                took.append(time.monotonic() - start)
        return took

    cache.set_many(dict.fromkeys(keys))
    cache.set_many({key: key for key in keys})
    while True:
        found = sum(cache.get(key) == key for key in keys)
        many = len(cache.get_many(keys))
        start = time.monotonic()
        took = max(max(one) for one in at_once(work))
        whole = time.monotonic() - start
        track("green")
        line = {"found": found, "many": many, "slowest": took, "whole": whole, "flushed": flush(5)}
        print(json.dumps(line), flush=True)
        if not sys.stdin.readline():
            return


main()
