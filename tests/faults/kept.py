"""Cache entries, and limits that are used up: what has to survive a fault."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from django_clusterstate.client.blocking import Client
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.exceptions import ClusterStateError
from django_clusterstate.wire import messages as wire
from testproject.processes import LocalCluster, wait_until
from tests.faults.observing import SECONDS, status_of
from tests.faults.requesters import client_on

KEYS = [b"default\0kept %d" % number for number in range(300)]
LIMITS = {b"\0kept %d" % number: [Rule(Algorithm(number % len(Algorithm)), 1, 3600.0)] for number in range(90)}
DEADLINE = 5.0  # the machine has other things to do
AGAIN = 0.05  # seconds


class Kept:
    """Written before the fault, and copied to the backups, while nobody else writes anything.

    All nodes are asked through their unix sockets, and forward requests to the owners: so the test itself need not be
    on one of the hosts.
    """

    def __init__(self, cluster: LocalCluster, names: Sequence[str]) -> None:
        self._cluster = cluster
        self._values: dict[bytes, bytes | None] = {}
        cluster.wait_until_synced(*names)
        self.write(names[0], KEYS, b"first")
        with closing(client_on(cluster, names[0], DEADLINE)) as client:
            for key, rules in LIMITS.items():
                _ask(client, wire.Hit(key, rules))
        wait_until(lambda: not any(status_of(cluster, name).copies.lag for name in names), SECONDS, "all is copied")

    def write(self, name: str, keys: Iterable[bytes], value: bytes | None) -> None:
        """Writes a value under some of the `KEYS` through one node; None deletes them."""
        with closing(client_on(self._cluster, name, DEADLINE)) as client:
            for key in keys:
                _ask(client, wire.Delete([key]) if value is None else wire.Set([(key, value)], 3600.0))
                self._values[key] = value

    def lost(self, *names: str) -> list[str]:
        """What these nodes find wrong: other values than were written last, and limits under which a hit passes."""
        return [f"{name}: {wrong}" for name in names for wrong in self._lost(name)]

    def _lost(self, name: str) -> Iterator[str]:
        with closing(client_on(self._cluster, name, DEADLINE)) as client:
            for key, value in self._values.items():
                reply = _ask(client, wire.Get([key]))
                if not isinstance(reply, wire.ValuesReply) or reply.values != [value]:
                    yield f"{key!r} is {reply}, not {value!r}"
            for key, rules in LIMITS.items():
                decided = _ask(client, wire.Peek(key, rules))
                if not isinstance(decided, wire.DecisionsReply) or decided.decisions[0].allowed:
                    yield f"the limit {key!r} is {decided}"


def _ask(client: Client, request: wire.Request) -> wire.Reply:
    """The reply of this host's node. It is asked again while it can't reach the owner."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            return client.call_node(client.routing.local, wire.request_frame(request))
        except ClusterStateError:
            if time.monotonic() > until:
                raise
            client.routing.local.failures = 0  # so that no circuit breaker opens
            time.sleep(AGAIN)
