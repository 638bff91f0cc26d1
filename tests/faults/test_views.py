"""One node of six is started again and again, with requesters on its host that use keys of the other owners.

VIEWS_ROUNDS says how often; `make restarts ROUNDS=20` is the whole proof. Figures are printed (-s).
"""

import asyncio
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from django_clusterstate.client.aio import AsyncClient
from django_clusterstate.client.blocking import Client
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.exceptions import ClusterStateError
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import UnixAddress
from django_clusterstate.wire.framing import frame
from testproject.processes import LocalCluster, wait_until
from tests.faults.observing import SECONDS
from tests.faults.requesters import client_on, link_keys

pytestmark = pytest.mark.fault

ROUNDS = int(os.environ.get("VIEWS_ROUNDS", "2"))
SIX = ("n0", "n1", "n2", "n3", "n4", "n5")
VICTIM = "n3"
LIMIT = 50
KEYS = 12  # of each kind in one round
DEADLINE = 1.0  # the machine has other things to do
PAUSE = 0.002

Figure = Callable[[str, object], None]


def keys_of_others(prefix: str) -> list[bytes]:
    """Keys whose owners run all the time."""
    ranking = Rendezvous(dict.fromkeys(SIX, 1.0))
    keys = (b"\0%s %d" % (prefix.encode(), number) for number in itertools.count())
    return list(itertools.islice((key for key in keys if ranking.owner(key) != VICTIM), KEYS))


class Round:
    """What the requesters of one host do while its node is started again, and what they found wrong."""

    def __init__(self, number: int) -> None:
        self.over = threading.Event()
        self.admitted: Counter[bytes] = Counter()
        self.holders: Counter[bytes] = Counter()
        self.stale: list[str] = []
        self.asked = 0
        self.limits = keys_of_others(f"limit {number}")
        self.locks = keys_of_others(f"lock {number}")
        self._own = f"own {number}"
        self._count = itertools.count()
        self._lock = threading.Lock()

    def note(self, counter: Counter[bytes], key: bytes, times: int = 1) -> None:
        with self._lock:
            counter[key] += times
            self.asked += 1

    def steps(self) -> Generator[tuple[bytes, wire.Message], wire.Reply | None, None]:
        """What one requester asks, again and again: yields (key, request), and is sent the reply or None."""
        rules = [Rule(Algorithm.FIXED_WINDOW, LIMIT, 3600.0)]
        own = keys_of_others(f"{self._own} {next(self._count)}")
        for turn in itertools.count():
            key = self.limits[turn % KEYS]
            reply = yield key, wire.Hit(key, rules)
            if isinstance(reply, wire.DecisionsReply):
                self.note(self.admitted, key, reply.decisions[0].allowed)
            key = self.locks[turn % KEYS]
            reply = yield key, wire.Set([(key, b"mine")], 3600.0, absent=True)
            if isinstance(reply, wire.FlagsReply):
                self.note(self.holders, key, reply.flags[0])
            key = own[turn % KEYS]
            written = yield key, wire.Set([(key, turn)], 3600.0)
            read = yield key, wire.Get([key])
            if isinstance(written, wire.FlagsReply) and isinstance(read, wire.ValuesReply) and read.values != [turn]:
                self.stale.append(f"{key!r} is {read.values}, not {turn}")


def work(round_: Round, cluster: LocalCluster, *, short_lived: bool) -> None:
    """A blocking requester; a short-lived one is a process that has just started, again and again."""
    steps = round_.steps()
    key, message = next(steps)
    client = client_on(cluster, VICTIM, DEADLINE)
    began = time.monotonic()
    while not round_.over.wait(PAUSE):
        if short_lived and time.monotonic() - began > 0.05:
            client.close()
            client, began = client_on(cluster, VICTIM, DEADLINE), time.monotonic()
        key, message = steps.send(_asked(client, key, message))
    client.close()


def _asked(client: Client, key: bytes, message: wire.Message) -> wire.Reply | None:
    try:
        return client.call(key, frame(wire.encode(message)))
    except ClusterStateError:
        return None


def work_async(round_: Round, cluster: LocalCluster) -> None:
    async def run() -> None:
        client = AsyncClient(
            Routing(UnixAddress(str(cluster.socket(VICTIM)))), Dialer(link_keys(cluster, VICTIM), DEADLINE)
        )
        await asyncio.gather(*(one(client) for _ in range(2)))
        await client.close()

    async def one(client: AsyncClient) -> None:
        steps = round_.steps()
        key, message = next(steps)
        while not round_.over.is_set():
            try:
                reply = await client.call(key, frame(wire.encode(message)))
            except ClusterStateError:
                reply = None
            key, message = steps.send(reply)
            await asyncio.sleep(PAUSE)

    asyncio.run(run())


def restart(cluster: LocalCluster, number: int) -> None:
    """Killed and told to leave in turn."""
    process = cluster.processes[VICTIM]
    if number % 2:
        process.signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    else:
        process.kill()
    cluster.start(VICTIM)
    cluster.wait_for()


def until_asked(round_: Round, times: int) -> None:
    wait_until(lambda: round_.asked > times, SECONDS, "requests are answered")


def test_a_node_that_starts_again_misleads_no_requester_of_its_host(folder: Path, figure: Figure) -> None:
    wrong: list[str] = []
    asked = 0
    with LocalCluster(folder, SIX) as cluster:
        cluster.start()
        cluster.wait_for()
        for number in range(ROUNDS):
            round_ = Round(number)
            threads = [
                threading.Thread(target=work, args=[round_, cluster], kwargs={"short_lived": short_lived})
                for short_lived in (False, False, True)
            ]
            threads.append(threading.Thread(target=work_async, args=[round_, cluster]))
            for thread in threads:
                thread.start()
            try:
                until_asked(round_, 50)
                restart(cluster, number)
                until_asked(round_, round_.asked + 500)
            finally:
                round_.over.set()
                for thread in threads:
                    thread.join()
            asked += round_.asked
            over = {key: times for key, times in round_.admitted.items() if times > LIMIT}
            twice = {key: times for key, times in round_.holders.items() if times > 1}
            wrong += [f"round {number}: {what}" for what in (over, twice, round_.stale[:5]) if what]
    figure("hits and locks asked for", asked)
    figure("limits exceeded, locks held twice, own writes read stale", f"in {len(wrong)} cases of {ROUNDS} rounds")
    assert not wrong
