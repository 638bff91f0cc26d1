"""A process of a site that measures its gets and hits: `python -m tests.deploys.probe [BACKUP]`.

It uses keys of all owners, or those whose backup is on a node. When a line comes on its standard input, it prints as
JSON what it has measured since the last one.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, count, cycle, islice

import django

from testproject.processes import LocalCluster
from tests.deploys.load import SiteProcess

EVERY = 0.002  # seconds from one operation to the next
KEYS = 100
KEEP = 24 * 3600  # seconds
RATE = "1000000/h"  # so large that every hit passes


@dataclass
class Latencies:
    """The seconds that each operation took, and how many were answered by no owner."""

    gets: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, other: "Latencies") -> None:
        self.gets += other.gets
        self.hits += other.hits
        self.failed += other.failed

    def __str__(self) -> str:
        return f"a get {_figures(self.gets)}; a hit {_figures(self.hits)}; failed {self.failed}"


def at(share: float, times: Sequence[float]) -> float:
    """The time within which this share of the operations ended."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def check_as_fast(during: Latencies, before: Latencies) -> None:
    """Nearly all gets and hits take at most twice as long."""
    assert at(0.99, during.gets) <= 2 * at(0.99, before.gets)
    assert at(0.99, during.hits) <= 2 * at(0.99, before.hits)


def _figures(times: Sequence[float]) -> str:
    shares = {"p50": statistics.median(times), "p99": at(0.99, times), "p99.9": at(0.999, times), "max": max(times)}
    return ", ".join(f"{name} {1000 * time:.2f} ms" for name, time in shares.items()) + f" of {len(times)}"


class Probe:
    """The process on the host of a node, from entering to leaving the context."""

    def __init__(self, cluster: LocalCluster, host: str, *backup: str) -> None:
        self._process = SiteProcess(cluster, host, "probe", *backup)

    def __enter__(self) -> "Probe":
        assert self._process.line() == "ready\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.close()

    def take(self) -> Latencies:
        """What it has measured since it was asked last."""
        self._process.send_line()
        return Latencies(**json.loads(self._process.line()))


# -- the process ----------------------------------------------------------------------------------------------------


class Measuring:
    """Gets and hits in turn."""

    def __init__(self, backup: str) -> None:
        from django.core.cache import caches  # noqa: PLC0415 - after django.setup()

        from django_clusterstate import ratelimit  # noqa: PLC0415 - after django.setup()
        from django_clusterstate.cache import ClusterCache  # noqa: PLC0415 - after django.setup()

        cache = caches["default"]
        assert isinstance(cache, ClusterCache)
        self._cache = cache
        self._ratelimit = ratelimit
        self._limit = ratelimit.Limit.parse(RATE)
        self._entries = names(cache.routing_key, backup)
        self._limited = names(lambda name: ratelimit.routing_key("probe", name), backup)
        self._taken = Latencies()
        self._lock = threading.Lock()
        for name in self._entries:
            self._cache.set(name, name, KEEP)

    def take(self) -> Latencies:
        with self._lock:
            taken, self._taken = self._taken, Latencies()
        return taken

    def run(self) -> None:
        due = time.monotonic()
        for number, name in enumerate(cycle(chain.from_iterable(zip(self._entries, self._limited, strict=True)))):
            due += EVERY
            start = time.monotonic()
            if start < due:
                time.sleep(due - start)
                start = due = time.monotonic()
            # Otherwise the one before took so long that this one is late: it is the node that kept it waiting.
            is_get = number % 2 == 0
            answered = self._get(name) if is_get else self._hit(name)
            seconds = time.monotonic() - due
            with self._lock:
                (self._taken.gets if is_get else self._taken.hits).append(seconds)
                self._taken.failed += not answered

    def _get(self, name: str) -> bool:
        return bool(self._cache.get(name) == name)

    def _hit(self, name: str) -> bool:
        return not self._ratelimit.hit(self._limit, "probe", name).fallback


def names(routing_key: Callable[[str], bytes], backup: str) -> list[str]:
    """Names of keys whose second node in the ranking is `backup`; of any if that is empty."""
    from django_clusterstate import cluster  # noqa: PLC0415 - after django.setup()

    found = map("probe:{}".format, count())
    return list(islice((name for name in found if not backup or cluster.ranking(routing_key(name))[1] == backup), KEYS))


def main() -> None:
    django.setup()
    measuring = Measuring("".join(sys.argv[1:]))
    threading.Thread(target=measuring.run, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(measuring.take())), flush=True)


if __name__ == "__main__":
    main()
