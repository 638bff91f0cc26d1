"""What backups cost: `python -m tests.deploys.cost`.

Two clusters of three nodes run beside each other, one without backups. One client sets, increments and hits keys of all
owners, in batches on the one and the other in turn, after each of which the nodes come to rest. So whatever disturbs
the machine disturbs both. A ratio is the median over the rounds.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter_ns

from django_clusterstate.client.blocking import Client
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.wire import messages as wire
from testproject.processes import LocalCluster
from tests.deploys.probe import at
from tests.deploys.rolling import nodes
from tests.faults.requesters import client_on

WITH, WITHOUT = "with backups", "without"
KEYS = 1000
TTL = 3600.0
REST = 0.1  # seconds: all changes have been sent by then
LONG = 20_000  # sets of which the processor time is measured: the system counts it in hundredths of a second
MOST_TIME, MOST_PROCESSOR_TIME = 1.10, 2.0  # times what it is without backups
RULES = [Rule(Algorithm.FIXED_WINDOW, 10**9, TTL)]

Request = tuple[bytes, bytes]  # a key, and the framed request


def _requests(make: Callable[[bytes], wire.Request], prefix: bytes) -> list[Request]:
    keys = [prefix + b"%d" % number for number in range(KEYS)]
    return [(key, wire.request_frame(make(key))) for key in keys]


OPERATIONS = {
    "set": _requests(lambda key: wire.Set([(key, bytes(100))], TTL), b"default\0entry "),
    "incr": _requests(lambda key: wire.Incr(key, 1), b"default\0counter "),
    "hit": _requests(lambda key: wire.Hit(key, RULES), b"\0limit "),
}
COUNTERS = _requests(lambda key: wire.Set([(key, 0)], TTL), b"default\0counter ")


def _is_done(reply: wire.Reply) -> bool:
    """Whether the request has done what it is for."""
    match reply:
        case wire.FlagsReply():
            return reply.flags == [True]
        case wire.NumberReply():
            return reply.value is not None
        case wire.DecisionsReply():
            return reply.decisions[0].allowed
    return False


class Side:
    """One of the two clusters, and its client."""

    def __init__(self, stack: ExitStack, backups: int) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cs-")))
        env = {"CLUSTERSTATE_BACKUPS": str(backups)}
        self.cluster = stack.enter_context(LocalCluster(folder, nodes(3), env=env))
        self.cluster.start()
        self.cluster.wait_until_synced()
        self._client: Client = client_on(self.cluster, "n0", 5.0)
        stack.callback(self._client.close)
        self.batch(COUNTERS, KEYS)

    def batch(self, requests: Sequence[Request], count: int) -> list[float]:
        """How many microseconds each of the requests took."""
        call, times = self._client.call, []
        for key, request in islice(cycle(requests), count):
            start = perf_counter_ns()
            reply = call(key, request)
            times.append((perf_counter_ns() - start) / 1000)
            assert _is_done(reply)
        time.sleep(REST)
        return times

    def processor_time(self, requests: Sequence[Request], count: int) -> float:
        """The microseconds of processor time that all nodes together spend on each of the requests, and on nothing
        else."""
        start, before = time.monotonic(), self._processor_seconds()
        self.batch(requests, count)
        seconds, after = time.monotonic() - start, self._processor_seconds()
        time.sleep(seconds)
        idle = self._processor_seconds() - after
        return 1e6 * (after - before - idle) / count

    def _processor_seconds(self) -> float:
        return sum(process.processor_seconds for process in self.cluster.processes.values())


def measure(sides: dict[str, Side], rounds: int, of: Callable[[Side], list[float]]) -> dict[str, list[list[float]]]:
    """What each round measures on each side, in random order."""
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in random.sample(list(sides), len(sides)):
            found[name].append(of(sides[name]))
    return found


def report(
    what: str, found: dict[str, list[list[float]]], summary: Callable[[list[float]], float], most: float
) -> bool:
    """Prints a line about the rounds, each of which is summed up by a figure. Returns whether the claim holds."""
    figures = {name: [summary(times) for times in rounds] for name, rounds in found.items()}
    ratio = statistics.median(one / other for one, other in zip(figures[WITH], figures[WITHOUT], strict=True))
    medians = ", ".join(f"{name} {statistics.median(values):.1f} us" for name, values in figures.items())
    print(f"{what:30}{medians}: {ratio:.2f} times, at most {most:g}{'' if ratio <= most else '  NOT HELD'}", flush=True)
    return ratio <= most


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deploys.cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1000, help="operations in a round; default: %(default)s")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a claim is not held")
    options = parser.parse_args()
    held = []
    with ExitStack() as stack:
        sides = {WITH: Side(stack, 1), WITHOUT: Side(stack, 0)}
        for name, requests in OPERATIONS.items():
            found = measure(sides, options.rounds, lambda side: side.batch(requests, options.batch))  # noqa: B023 - called at once
            held.append(report(f"{name}, median", found, statistics.median, MOST_TIME))
            held.append(report(f"{name}, p99", found, lambda times: at(0.99, times), MOST_TIME))
        rounds = max(1, options.rounds // 8)
        found = measure(sides, rounds, lambda side: [side.processor_time(OPERATIONS["set"], LONG)])
        held.append(report("set, processor time of all", found, statistics.median, MOST_PROCESSOR_TIME))
    return int(options.check and not all(held))


if __name__ == "__main__":
    sys.exit(main())
