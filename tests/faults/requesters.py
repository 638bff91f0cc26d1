"""Requesters under faults: threads that ask as web workers do, and note how they fared."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from django_clusterstate.client.blocking import Client
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.exceptions import ClusterStateError
from django_clusterstate.wire.address import UnixAddress
from django_clusterstate.wire.derived_keys import LinkKey, derive_link_keys
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import Hit, Reply, encode
from testproject import settings as demo_settings
from testproject.processes import LocalCluster, wait_until
from tests.faults.hosts import HostCluster

DEADLINE = 0.1  # the default
PAUSE = 0.002  # seconds between two requests: the machine has other things to do
# Seconds until an owner that falls silent is down. It may have executed what was forwarded to it, so at first no other
# node does, and the process decides alone.
SILENCE = 3.0

_CLONE_NEWNET = 0x40000000

Work = Callable[[int], tuple[bytes, bytes]]  # the key and the request of the n-th
Hear = Callable[[float, str, bytes, Reply], None]  # when a host asked, the host, its request, and the reply


@dataclass(slots=True)
class Tally:
    """How one requester fared."""

    host: str
    asked: int = 0
    unanswered: int = 0  # by the key's owner; then others are asked
    deadlines: int = 0  # of these, those that cost a whole deadline
    alone: list[float] = field(default_factory=list)  # when none of the others answered: the process decides alone
    slowest: float = 0.0
    refused: list[str] = field(default_factory=list)  # failures that were not a deadline
    errors: list[Exception] = field(default_factory=list)  # what a view would see


def link_keys(cluster: LocalCluster, host: str) -> tuple[LinkKey, ...]:
    secret = cluster.env(host).get("CLUSTERSTATE_SECRET") or demo_settings.SECRET_KEY
    return derive_link_keys([secret], "default")


def client_on(cluster: LocalCluster, host: str, deadline: float = DEADLINE) -> Client:
    return Client(Routing(UnixAddress(str(cluster.socket(host)))), Dialer(link_keys(cluster, host), deadline))


def enter(namespace: str) -> None:
    """This thread, and no other, is on that host from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def hits() -> Work:
    """Hits of many keys, of all owners."""
    rules = [Rule(Algorithm.FIXED_WINDOW, 10**6, 3600.0)]

    def work(number: int) -> tuple[bytes, bytes]:
        key = b"\0key %d" % (number % 100)
        return key, frame(encode(Hit(key, rules)))

    return work


class Requesters:
    """One requester on each of these hosts, from entering to leaving the context. `deadline`: seconds that it waits."""

    def __init__(
        self,
        cluster: LocalCluster,
        hosts: Iterable[str],
        work: Work,
        hear: Hear | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self.tallies = [Tally(host) for host in hosts]
        self._cluster = cluster
        self._work = work
        self._hear = hear
        self._deadline = deadline
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[tally]) for tally in self.tallies]

    def of(self, host: str) -> Tally:
        return next(tally for tally in self.tallies if tally.host == host)

    def go_on(self, requests: int = 50, seconds: float = 60.0) -> None:
        """Waits until each requester has sent this number of further requests."""
        goals = [tally.asked + requests for tally in self.tallies]
        wait_until(
            lambda: all(tally.asked >= goal for tally, goal in zip(self.tallies, goals, strict=True)),
            seconds,
            "requests go on",
        )

    def reset(self) -> None:
        """Forgets what came before the fault."""
        for tally in self.tallies:
            tally.unanswered = tally.deadlines = 0
            tally.slowest = 0.0
            tally.refused.clear()
            tally.alone.clear()

    def alone_outside(self, *expected: tuple[float, float]) -> list[float]:
        """When a process decided alone, other than in these times."""
        times = (at for tally in self.tallies for at in tally.alone)
        return [at for at in times if not any(start <= at < end for start, end in expected)]

    @property
    def errors(self) -> list[Exception]:
        return [error for tally in self.tallies for error in tally.errors]

    def __str__(self) -> str:
        return "; ".join(
            f"on {t.host} {t.asked} asked, {t.unanswered} unanswered by the owner ({t.deadlines} whole deadlines), "
            f"{len(t.alone)} by no node at all, slowest {t.slowest * 1000:.0f} ms"
            for t in self.tallies
        )

    def __enter__(self) -> "Requesters":
        for thread in self._threads:
            thread.start()
        self.go_on()
        self.reset()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, tally: Tally) -> None:
        if isinstance(self._cluster, HostCluster):
            enter(self._cluster.host(tally.host))
        client = client_on(self._cluster, tally.host, self._deadline)
        while not self._over.wait(PAUSE):
            start = time.monotonic()
            try:
                self._ask(client, tally, start)
            except Exception as error:  # what a view would see
                tally.errors.append(error)
            tally.slowest = max(tally.slowest, time.monotonic() - start)
            tally.asked += 1
        client.close()

    def _ask(self, client: Client, tally: Tally, start: float) -> None:
        key, request = self._work(tally.asked)
        try:
            reply = client.call(key, request)
        except ClusterStateError as error:
            tally.unanswered += 1
            if time.monotonic() - start >= 0.8 * self._deadline:
                tally.deadlines += 1
            else:
                tally.refused.append(str(error))
            for node in client.routing.table.fallback_targets(key, client.routing.local):
                try:
                    reply = client.call_node(node, request)
                    break
                except ClusterStateError:
                    continue
            else:
                tally.alone.append(start)
                return
        if self._hear is not None:
            self._hear(start, tally.host, request, reply)


def open_files(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
