"""`python -m bench.million`: what a million limits, and then a million cache entries, cost one node.

One real node. This process writes the entries, as fast as sixteen requests at once get; another hits one limit a
thousand times a second meanwhile, and while the entries expire. Memory is the node's resident memory by the kernel.
At last, what a write costs a cache that is full.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from django_clusterstate.client.blocking import Client
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import UnixAddress
from django_clusterstate.wire.aio import connect
from testproject.processes import LocalCluster, wait_until

from .full import measure as measure_full
from .measure import event_loop

NODE = "node"
AT_ONCE = 16  # requests under way while the entries are written
EVERY = 0.001  # seconds from one measured hit to the next
REST = 5.0  # seconds of hits on the node as it starts: what this machine does to them anyway
AMPLE = {"CLUSTERSTATE_LIMITS_MAX_BYTES": str(4 << 30), "CLUSTERSTATE_CACHE_MAX_BYTES": str(4 << 30)}
TTLS = 61  # different ttls, spread evenly from the shortest to twice that
VALUE = 50  # bytes of a cache value

Write = Callable[[int, float], tuple[wire.Request, int]]  # the n-th, with this ttl: the request, and its payload bytes


def limit(algorithm: Algorithm) -> Write:
    def write(number: int, ttl: float) -> tuple[wire.Request, int]:
        key = b"\0005:loginip:10.%d.%d.%d" % (number >> 16, number >> 8 & 255, number & 255)
        # A window lasts for its period, and the states of the two others matter for that or twice as long.
        return wire.Hit(key, [Rule(algorithm, 1000, ttl)]), len(key)

    return write


def entry(number: int, ttl: float) -> tuple[wire.Request, int]:
    key = b"default\0:1:product:%d:price" % number
    return wire.Set([(key, b"v" * VALUE)], ttl), len(key) + VALUE


KINDS: dict[str, Write] = {
    "limits": limit(Algorithm.FIXED_WINDOW),
    "sliding": limit(Algorithm.SLIDING_WINDOW),
    "tokens": limit(Algorithm.TOKEN_BUCKET),
    "cache": entry,
}
FULL = "full"


# -- the process that measures ------------------------------------------------------------------------------------


def probe(socket: str, talk: Connection) -> None:
    """Hits one limit from now on; whenever asked, hands over the seconds that each hit took since it was asked last."""
    client = Client(Routing(UnixAddress(socket)), Dialer((), 60.0))
    request = wire.request_frame(wire.Hit(b"\0005:probe", [Rule(Algorithm.FIXED_WINDOW, 10**9, 86400.0)]))
    times: list[float] = []
    due = time.perf_counter()
    while True:
        due += EVERY
        start = time.perf_counter()
        if start < due:
            time.sleep(due - start)
            start = due = time.perf_counter()
        # Else the hit before took so long that this one is late: it is the node that kept it waiting.
        client.call_node(client.routing.local, request)
        times.append(time.perf_counter() - min(start, due))
        if talk.poll():
            if not talk.recv():
                return
            talk.send(times)
            times = []


@dataclass
class Probe:
    talk: Connection

    def times(self) -> list[float]:
        self.talk.send(True)
        taken: list[float] = self.talk.recv()
        return sorted(taken)


# -- the process that writes --------------------------------------------------------------------------------------


async def write_all(socket: str, write: Write, count: int, ttl: float) -> int:
    """Writes so many entries; returns the bytes of their keys and values."""
    connection = await connect(UnixAddress(socket), (), 60.0)
    payload = 0
    numbers = iter(range(count))

    async def work() -> None:
        nonlocal payload
        for number in numbers:
            message, size = write(number, ttl * (1 + number % TTLS / (TTLS - 1)))
            await connection.request(wire.request_frame(message))
            payload += size

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    connection.close()
    return payload


def status_of(cluster: LocalCluster) -> wire.StatusReply:
    status = cluster.status(NODE)
    assert status is not None
    return status


def entries(status: wire.StatusReply) -> int:
    return status.stats.limit_entries + status.stats.cache_entries


# -- the report ---------------------------------------------------------------------------------------------------


def latencies(phase: str, times: list[float]) -> str:
    def at(share: float) -> str:
        return f"{times[min(len(times) - 1, int(len(times) * share))] * 1000:9.2f}"

    return f"  {phase:18}{at(0.5)}{at(0.99)}{at(0.999)}{at(1)}{len(times):11,}"


def measure(kind: str, count: int, ttl: float) -> Iterator[str]:
    """The lines of the report, as they come to be known."""
    with tempfile.TemporaryDirectory(prefix="cs-") as folder, LocalCluster(Path(folder), [NODE], env=AMPLE) as cluster:
        cluster.start()
        cluster.wait_for()
        socket = str(cluster.socket(NODE))
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=probe, args=(socket, there), daemon=True)
        process.start()
        wait_until(lambda: entries(status_of(cluster)) == 1, 20, "a first hit")
        measuring = Probe(here)
        measuring.times()
        time.sleep(REST)
        before, idle = status_of(cluster).memory, measuring.times()
        start = time.monotonic()
        with asyncio.Runner(loop_factory=event_loop) as runner:
            payload = runner.run(write_all(socket, KINDS[kind], count, ttl))
        seconds, writing, full = time.monotonic() - start, measuring.times(), status_of(cluster)
        held = entries(full) - 1
        each, own = (full.memory - before) / held, payload / count
        account = (full.stats.limit_bytes + full.stats.cache_bytes) / held
        yield f"{count:,} {kind}: written in {seconds:.0f} s; {held:,} were held at the end of that"
        yield f"  bytes an entry: {each - own:.0f} in addition to its key and value, which are {own:.0f}"
        yield f"  {each:.0f} in all; the node itself says {account:.0f}"
        yield f"  {'ms of a hit':18}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9}{'hits':>11}"
        yield latencies("at rest", idle)
        yield latencies("while written", writing)
        wait_until(lambda: entries(status_of(cluster)) < 0.99 * held, 4 * ttl, "the first entries expire")
        yield latencies("while all are held", measuring.times())
        wait_until(lambda: entries(status_of(cluster)) <= 1 + count // 1000, 4 * ttl + 120, "all entries expire")
        yield latencies("while they expire", measuring.times())
        memory = [f"{bytes_ >> 20} MiB" for bytes_ in (before, full.memory, status_of(cluster).memory)]
        yield f"  resident: {memory[0]} before, {memory[1]} with all, {memory[2]} after"
        here.send(False)
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="entries of each kind; default: %(default)s")
    parser.add_argument("--ttl", type=float, default=80.0, help="the shortest, in seconds; default: %(default)g")
    parts = ",".join([*KINDS, FULL])
    parser.add_argument("--kinds", default=f"limits,cache,{FULL}", help=f"of {parts}; default: %(default)s")
    options = parser.parse_args()
    for kind in options.kinds.split(","):
        lines = measure_full(options.count) if kind == FULL else measure(kind, options.count, options.ttl)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
