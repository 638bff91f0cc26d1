"""A process of a site under load: it uses the cache, locks, counters and limits through their public functions.

`python -m tests.deploys.worker PREFIX` goes on until a line comes on its standard input, then prints what it found as
JSON. Another line makes it read all that it has written again.
"""

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache as remember
from http import HTTPStatus
from itertools import count
from typing import Any

import django
from django.test import Client

from django_clusterstate.core.rendezvous_hashing import Rendezvous

THREADS = 4
PAUSE = float(os.environ.get("PAUSE", "0.002"))  # seconds between two operations of a thread
LIMIT = 50
RATE = f"{LIMIT}/d"  # a bucket gets one token in half an hour
SHARED = 20  # counters, locks, and limits of each algorithm
NEW_LIMITS = 20  # seconds after which a half of the hits goes to other limits, which aren't used up
LATE = 0.1  # seconds, the default deadline
LOCK_SECONDS = float(os.environ.get("LOCK_SECONDS", "60"))  # for which a lock stays that can't be released
# Of which nodes only the keys of which owners are used; all keys if there are none.
NODES, OWNERS = (os.environ.get(name, "").split() for name in ("NODES", "OWNERS"))
RANKING = Rendezvous(dict.fromkeys(NODES, 1.0))
KEEP = 24 * 3600  # seconds
FIGURES = (
    "operations", "increments", "admitted", "hits", "fallbacks", "held", "missed", "stale", "errors", "late", "slowest",
)  # fmt: skip


@remember
def named(prefix: str, routing_key: Callable[[str], bytes]) -> str:
    """This name, or if only keys of some owners are used, the first of theirs that begins with it."""
    if not OWNERS:
        return prefix
    found = map(f"{prefix}:{{}}".format, count())
    return next(name for name in found if RANKING.owner(routing_key(name)) in OWNERS)


class Load:
    """What the threads of one process have done. Each key of `written` is written by one thread only."""

    def __init__(self, prefix: str) -> None:
        from django.core.cache import cache  # noqa: PLC0415 - after django.setup()

        from django_clusterstate import ratelimit  # noqa: PLC0415 - after django.setup()

        self.cache: Any = cache
        self.ratelimit = ratelimit
        self.limits = {name: ratelimit.Limit.parse(RATE, name) for name in ratelimit.ALGORITHMS}
        self.counters = [self.entry(f"counter:{number}") for number in range(SHARED)]
        self.prefix = prefix
        self.over = threading.Event()
        self.written: dict[str, tuple[int, float]] = {}
        self.increments: Counter[str] = Counter()
        self.admitted: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.hits: list[tuple[str, float, float]] = []  # those that passed
        self.held: list[tuple[str, float, float]] = []
        self.operations = 0
        self.missed: list[str] = []
        self.stale: list[str] = []
        self.errors: list[str] = []
        self.late = 0
        self.slowest = 0.0
        self.browser = Client(raise_request_exception=False, headers={"host": "localhost"})
        self._lock = threading.Lock()

    def entry(self, name: str) -> str:
        """A cache key."""
        return named(name, self.cache.routing_key)

    def lock_key(self, name: str) -> bytes:
        """The routing key of a lock."""
        key: bytes = self.cache.routing_key(f"lock:{name}")
        return key

    def limit_key(self, name: str) -> bytes:
        """The routing key of a limit."""
        return self.ratelimit.routing_key("deploys", name)

    def run(self, number: int) -> None:
        chance = random.Random(f"{self.prefix} {number}")
        mine: list[str] = []
        steps = (self.write, self.read, self.read, self.increment, self.hold, self.hit, self.hit, self.visit)
        while not self.over.wait(PAUSE):
            start = time.monotonic()
            try:
                chance.choice(steps)(chance, mine, number)
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            took = time.monotonic() - start
            with self._lock:
                self.operations += 1
                self.late += took > LATE
                self.slowest = max(self.slowest, took)

    def write(self, chance: random.Random, mine: list[str], number: int) -> None:
        """Writes a new key, or again an old one of those in even places."""
        if mine and chance.random() < 0.5:
            key = mine[chance.randrange(0, len(mine), 2)]
        else:
            key = self.entry(f"{self.prefix}:{number}:{len(mine)}")
            mine.append(key)
        value = self.written.get(key, (0, 0.0))[0] + 1
        self.cache.set(key, value, KEEP)
        self.written[key] = value, time.monotonic()

    def read(self, chance: random.Random, mine: list[str], number: int) -> None:
        """Reads what this thread has written: never nothing, never an older value."""
        if not mine:
            return
        key = chance.choice(mine)
        value = self.cache.get(key)
        if value is None:
            self.missed.append(key)
        elif value != self.written[key][0]:
            self.stale.append(f"{key} is {value}, not {self.written[key][0]}")

    def increment(self, chance: random.Random, mine: list[str], number: int) -> None:
        key = chance.choice(self.counters)
        self.cache.incr(key)
        with self._lock:
            self.increments[key] += 1

    def hold(self, chance: random.Random, mine: list[str], number: int) -> None:
        name = named(f"lock:{chance.randrange(SHARED)}", self.lock_key)
        with self.cache.lock(name, LOCK_SECONDS, blocking_timeout=30):
            start = time.monotonic()
            time.sleep(0.001)
            self.held.append((name, start, time.monotonic()))

    def hit(self, chance: random.Random, mine: list[str], number: int) -> None:
        algorithm = chance.choice(list(self.limits))
        start = time.monotonic()
        period = chance.choice(("", f":{start // NEW_LIMITS:.0f}"))
        key = named(f"{algorithm}:{chance.randrange(SHARED)}{period}", self.limit_key)
        decision = self.ratelimit.hit(self.limits[algorithm], "deploys", key, fresh=True)  # each asks a node
        with self._lock:
            self.admitted[key] += decision.allowed
            self.fallbacks[decision.fallback] += 1
            if decision.allowed:
                self.hits.append((key, start, time.monotonic()))

    def visit(self, chance: random.Random, mine: list[str], number: int) -> None:
        """Asks for a page with a limit."""
        status = self.browser.get("/limited/").status_code
        if status not in (HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS):
            self.errors.append(f"a page with the status {status}")

    def verify(self) -> dict[str, Any]:
        """Reads all that was written."""
        wrong = {}
        for key, (value, at) in self.written.items():
            found = self.cache.get(key)
            if found != value:
                wrong[key] = (found, value, at)
        counters = {key: self.cache.get(key) for key in self.counters}
        return {"read": [at for _, at in self.written.values()], "wrong": wrong, "counters": counters}

    def figures(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIGURES}


def main() -> None:
    django.setup()
    load = Load(sys.argv[1])
    for key in load.counters:
        load.cache.add(key, 0, KEEP)
    threads = [threading.Thread(target=load.run, args=[number]) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    load.over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(load.figures()), flush=True)
    sys.stdin.readline()
    print(json.dumps(load.verify()), flush=True)


if __name__ == "__main__":
    main()
