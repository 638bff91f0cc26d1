"""Between the nodes everything is late, heartbeats are out of order or come twice. Figures are printed (-s)."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.exceptions import ClusterStateError
from django_clusterstate.wire.address import TcpAddress
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.derived_keys import LinkKey
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import DecisionsReply, Hit, encode
from testproject.processes import LocalCluster, wait_until
from tests.faults.observing import SECONDS, moves, status_of
from tests.faults.proxy import Proxy
from tests.faults.requesters import client_on, link_keys
from tests.layers import UNRULY, layer_env

pytestmark = pytest.mark.fault

Figure = Callable[[str, object], None]
NAMES = ("a", "b", "c")
LIMIT = 1000
RULES = [Rule(Algorithm.FIXED_WINDOW, LIMIT, 3600.0)]


class ProxiedCluster(LocalCluster):
    """Each node is reached through its proxy, and says so."""

    proxies: dict[str, Proxy]

    def env(self, name: str) -> dict[str, str]:
        return {**super().env(name), "CLUSTERSTATE_ADVERTISE": f"127.0.0.1:{self.proxies[name].port}"}


@contextlib.contextmanager
def far_apart(folder: Path) -> Iterator[ProxiedCluster]:
    """300 ± 200 ms each way."""
    with contextlib.ExitStack() as stack:
        cluster = ProxiedCluster(folder, NAMES, env=layer_env(UNRULY))
        cluster.proxies = {
            name: stack.enter_context(Proxy(port, lambda: random.uniform(0.1, 0.5)))
            for name, port in cluster.ports.items()
        }
        cluster.discovery = ",".join(f"127.0.0.1:{proxy.port}" for proxy in cluster.proxies.values())
        stack.enter_context(cluster)
        cluster.start()
        cluster.wait_for(seconds=40)
        yield cluster


def hit_once(address: TcpAddress, keys: Sequence[LinkKey], key: bytes) -> bool:
    """One hit on a connection of its own. Whether its answer came within 0.6 s, which is half of the time."""
    connection = BlockingConnection(address, keys, 0.6, time.monotonic() + 10)
    try:
        connection.call(frame(encode(Hit(key, RULES))))
    except ClusterStateError:
        return False
    connection.close()
    return True


def test_delay_disorder_and_duplicates_make_nobody_down_and_count_nothing_twice(folder: Path, figure: Figure) -> None:
    with far_apart(folder) as cluster:
        over = time.monotonic() + 30
        client = client_on(cluster, "a", 5.0)
        with contextlib.closing(client), ThreadPoolExecutor(8) as pool:
            wait_until(lambda: len(client.table().targets) == 3, SECONDS, "the requester knows all")
            owned = ((key, client.table().owner(key)) for key in (b"\0key %d" % number for number in range(100)))
            key, owner = next((key, owner) for key, owner in owned if owner and owner.name != "a")
            assert isinstance(owner.address, TcpAddress)
            answered = []
            while time.monotonic() < over:
                tasks = [pool.submit(hit_once, owner.address, link_keys(cluster, "a"), key) for _ in range(8)]
                answered += [task.result() for task in tasks]
            time.sleep(1)  # what waits in the proxy
            decided = client.call(key, frame(encode(Hit(key, RULES, 0))))
        assert isinstance(decided, DecisionsReply)
        counted = LIMIT - decided.decisions[0].remaining
        figure("hits", f"{len(answered)}, of them {answered.count(False)} unanswered in time; {counted} counted")
        assert 0 < answered.count(False) < len(answered)
        assert counted == len(answered)
        figure("suspect in 30 s, times", len(moves(cluster, MemberState.SUSPECT)))
        ignored = [status_of(cluster, name).stats.heartbeats_ignored for name in NAMES]
        figure("repeated or overtaken heartbeats ignored", ignored)
        assert not moves(cluster, MemberState.DOWN)
        assert all(ignored)
