"""What it brings and costs to look for an answer before sleeping, alone and in a crowd: `python -m bench.crowd`.

Clients that ask one node without a pause, or with work of their own in between, take turns: once they sleep for each
answer at once, once they look for it first as they always do.
"""

import contextlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import django

from testproject.processes import LocalCluster

ROUNDS = 3
SECONDS = 1.5
START = 4.0  # seconds that the processes have to start
CROWDS = ((1, 0), (1, 200), (2, 0), (2, 200), (4, 0), (8, 0), (8, 200))  # clients, and microseconds of their own work

Figures = Sequence[float]  # answers a second, median and p99 in microseconds, processor microseconds an answer


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="clusterstate-bench-") as folder,
        LocalCluster(Path(folder), ["one"]) as nodes,
    ):
        nodes.start()
        nodes.wait_for()
        os.environ.update(nodes.env("one"), DJANGO_SETTINGS_MODULE="bench.settings")
        print(f"{os.cpu_count()} processors; answers a second | median | p99 | processor time an answer, in us")
        for clients, work in CROWDS:
            rounds = [
                (_crowd(clients, work, looking=False), _crowd(clients, work, looking=True)) for _ in range(ROUNDS)
            ]
            sleeping, looking = (_medians(figures) for figures in zip(*rounds, strict=True))
            print(
                f"{clients} clients, {work:3} us of work: sleeping {_row(sleeping)}; looking {_row(looking)}",
                flush=True,
            )


def _crowd(clients: int, work: int, *, looking: bool) -> Figures:
    """Of all clients together: the sum of their answers, else the mean."""
    start = time.monotonic() + START
    with ProcessPoolExecutor(clients, multiprocessing.get_context("spawn")) as pool:
        each = list(pool.map(_client, *zip(*[(start, work, looking)] * clients, strict=True)))
    total, *rest = zip(*each, strict=True)
    return [sum(total), *map(statistics.mean, rest)]


def _client(start: float, work: int, looking: bool) -> Figures:
    django.setup()
    from django_clusterstate.cache import ClusterCache  # noqa: PLC0415 - after the settings are known
    from django_clusterstate.wire.busy_polling import BusyPoll  # noqa: PLC0415

    cache = ClusterCache("crowd", {})
    cache.set("key", "value")
    never = mock.patch.object(BusyPoll, "due", _never)
    with contextlib.nullcontext() if looking else never:
        time.sleep(max(0.0, start - time.monotonic()))
        before, times = _processor_time(), []
        while (asked := time.monotonic()) < start + SECONDS:
            assert cache.get("key") == "value"
            times.append((time.monotonic() - asked) * 1e6)
            until = time.monotonic() + work / 1e6
            while time.monotonic() < until:
                pass
    times.sort()
    spent = (_processor_time() - before) * 1e6 / len(times) - work
    return len(times) / SECONDS, statistics.median(times), times[len(times) * 99 // 100], spent


def _never(_polling: object, _now: float) -> bool:
    return False


def _processor_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _medians(rounds: Sequence[Figures]) -> Figures:
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _row(figures: Figures) -> str:
    return "{:7,.0f} | {:5.1f} | {:6.1f} | {:4.1f}".format(*figures)


if __name__ == "__main__":
    main()
