"""Fills a cluster quickly, and looks for what is lost: `python -m tests.deploys.fill TASK FIRST LAST`.

Each number stands for an entry and a limit. A process has a part of the numbers, and prints of how many of them its
task failed.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import django

from bench.measure import event_loop
from testproject.processes import LocalCluster
from tests.deploys.load import SiteProcess

KEEP = 24 * 3600  # seconds
BLOCK = 1000  # entries that are written or read at once
AT_ONCE = 64  # limits that are hit or looked up at once
SIZE = int(os.environ.get("FILL_SIZE", "100"))  # bytes of a value
OWNERS = os.environ.get("FILL_OWNERS", "").split()  # whose entries `rewrite_entries` writes; of all if there are none


def fill(cluster: LocalCluster, hosts: Sequence[str], task: str, count: int, **env: str) -> int:
    """Divides a task on this number of entries or limits among the hosts. Returns of how many of them it failed. A host
    that is named twice has two processes."""
    parts = pairwise(count * place // len(hosts) for place in range(len(hosts) + 1))
    patient = {"CLUSTERSTATE_DEADLINE": "10", **env}
    processes = [
        SiteProcess(cluster, host, "fill", task, str(first), str(last), env=patient)
        for host, (first, last) in zip(hosts, parts, strict=True)
    ]
    try:
        return sum(int(process.line()) for process in processes)
    finally:
        for process in processes:
            process.close()


# -- the process ----------------------------------------------------------------------------------------------------


def key_of(number: int) -> str:
    return f"filled:{number}"


def value_of(number: int) -> str:
    return f"{number:0{SIZE}}"


def blocks(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + BLOCK] for start in range(0, len(numbers), BLOCK)]


def write_entries(numbers: Sequence[int]) -> int:
    from django.core.cache import cache as entries  # noqa: PLC0415 - after django.setup()

    return sum(
        len(entries.set_many({key_of(number): value_of(number) for number in block}, KEEP)) for block in blocks(numbers)
    )


def rewrite_entries(numbers: range) -> int:
    """Writes those of some owners again and again, until this process is ended."""
    mine = [number for number in numbers if not OWNERS or owner_of(number) in OWNERS]
    while True:
        write_entries(mine)


def owner_of(number: int) -> str:
    from django.core.cache import caches  # noqa: PLC0415 - after django.setup()

    from django_clusterstate import cluster  # noqa: PLC0415 - after django.setup()
    from django_clusterstate.cache import ClusterCache  # noqa: PLC0415 - after django.setup()

    entries = caches["default"]
    assert isinstance(entries, ClusterCache)
    return cluster.ranking(entries.routing_key(key_of(number)))[0]


def lost_entries(numbers: range) -> int:
    from django.core.cache import cache as entries  # noqa: PLC0415 - after django.setup()

    lost = 0
    for block in blocks(numbers):
        found = entries.get_many([key_of(number) for number in block])
        lost += sum(found.get(key_of(number)) != value_of(number) for number in block)
    return lost


@cache
def limits() -> Sequence[Any]:
    from django_clusterstate import ratelimit  # noqa: PLC0415 - after django.setup()

    return [ratelimit.Limit.parse("1/d", algorithm) for algorithm in ratelimit.ALGORITHMS]


def limit_of(number: int) -> tuple[Any, str, str]:
    """A limit that one hit uses up, its group and key."""
    return limits()[number % len(limits())], "filled", key_of(number)


async def _use_up(number: int) -> bool:
    from django_clusterstate import ratelimit  # noqa: PLC0415 - after django.setup()

    decision = await ratelimit.ahit(*limit_of(number))
    return decision.allowed and not decision.fallback


async def _is_used_up(number: int) -> bool:
    from django_clusterstate import ratelimit  # noqa: PLC0415 - after django.setup()

    return not (await ratelimit.apeek(*limit_of(number))).allowed


def use_limits(numbers: range) -> int:
    return failures(numbers, _use_up)


def lost_limits(numbers: range) -> int:
    return failures(numbers, _is_used_up)


def failures(numbers: range, succeeds: Callable[[int], Awaitable[bool]]) -> int:
    left = iter(numbers)

    async def work() -> int:
        return sum([not await succeeds(number) for number in left])

    async def work_at_once() -> int:
        return sum(await asyncio.gather(*(work() for _ in range(AT_ONCE))))

    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(work_at_once())


TASKS: dict[str, Callable[[range], int]] = {
    task.__name__: task for task in (write_entries, rewrite_entries, lost_entries, use_limits, lost_limits)
}


def main() -> None:
    django.setup()
    task, first, last = sys.argv[1:]
    print(TASKS[task](range(int(first), int(last))), flush=True)
    sys.stdin.read()  # until it is ended


if __name__ == "__main__":
    main()
