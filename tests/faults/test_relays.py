"""A relay between two nodes, or at an address where one was, reads nothing, alters nothing, isn't admitted.

Figures are printed (-s).
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.exceptions import ClusterStateError, ProtocolError
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.handshake import Hello, OtherInstance, OtherNode
from testproject.processes import LocalCluster, wait_until
from tests.faults.kept import KEYS, Kept
from tests.faults.observing import SECONDS, lines, moves, status_of, until_all_say
from tests.faults.proxy import Proxy
from tests.faults.requesters import client_on, link_keys

pytestmark = pytest.mark.fault

ALTERED = int(os.environ.get("ALTERED_MESSAGES", "10000"))

Figure = Callable[[str, object], None]
PING = frame(wire.encode(wire.Ping()))
MARK = b"what nobody else may read"


class RelayedCluster(LocalCluster):
    """Each node is reached by way of a relay: its advertised address is that of a proxy."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        super().__init__(folder, names)
        self.proxies = {name: Proxy(self.ports[name]) for name in names}
        self.discovery = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies.values())

    def env(self, name: str) -> dict[str, str]:
        return super().env(name) | {"CLUSTERSTATE_ADVERTISE": f"127.0.0.1:{self.proxies[name].port}"}


@pytest.fixture
def relayed(folder: Path) -> Iterator[RelayedCluster]:
    with ExitStack() as stack:
        cluster = RelayedCluster(folder, ("a", "b", "c"))
        stack.enter_context(cluster)
        for proxy in cluster.proxies.values():
            stack.enter_context(proxy)
        cluster.start()
        cluster.wait_for()
        yield cluster


def passed(cluster: RelayedCluster) -> bytes:
    """All that the relays have seen."""
    return b"".join(
        b"".join(said) for proxy in cluster.proxies.values() for side in (proxy.sent, proxy.answered) for said in side
    )


def test_a_relay_on_every_connection_reads_nothing(relayed: RelayedCluster, figure: Figure) -> None:
    """Values, keys, limits and channel messages, between requesters and nodes and between nodes."""
    client = client_on(relayed, "a", 2.0)
    for number in range(60):
        key = b"space\0" + MARK + b" %d" % number
        assert isinstance(client.call(key, frame(wire.encode(wire.Set([(key, MARK)], 60.0)))), wire.FlagsReply)
        reply = client.call(key, frame(wire.encode(wire.Get([key]))))
        assert isinstance(reply, wire.ValuesReply)
        assert reply.values == [MARK]
    group = "chat"
    receiver = BlockingConnection(UnixAddress(str(relayed.socket("b"))), (), 5.0)
    queue = f"specific.{wire.channel_tag('b')}.1234!"
    receiver.call(frame(wire.encode(wire.GroupAdd(group, queue + "abcd", 60.0))))
    client.call_node(client.routing.local, frame(wire.encode(wire.GroupSend(group, MARK, 60.0, 100))))
    received = receiver.call(frame(wire.encode(wire.Receive(queue, 4.0))))
    assert isinstance(received, wire.ReceiveReply)
    assert received.payload == MARK
    seen = passed(relayed)
    figure("bytes that the relays saw", f"{len(seen):,}")
    assert len(seen) > 60 * 2 * len(MARK)
    for plain in (MARK, b"space\0", b"clusterstate.heartbeat", b"macs", b"chat"):
        assert plain not in seen
    receiver.close()
    client.close()


def seen(proxy: Proxy, number: int) -> bool:
    return proxy.connections > number


def test_no_altered_message_is_ever_believed(folder: Path, figure: Figure) -> None:
    """One random bit of each conversation, in the handshake or in a record of either side, is altered."""
    source = random.Random(21)
    chosen: dict[int, int] = {}  # by connection, how many chunks pass before one is altered
    altered: set[int] = set()

    def alter(number: int, from_maker: bool, data: bytes) -> bytes:
        left = chosen.setdefault(number, source.randrange(6))  # challenge, offers, answer, set, flags, get
        chosen[number] -= 1
        if left:
            return data
        altered.add(number)
        changed = bytearray(data)
        bit = source.randrange(len(data) * 8)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    believed = refused = 0
    with LocalCluster(folder, ("a",)) as cluster, Proxy(cluster.ports["a"], alter=alter) as proxy:
        cluster.start()
        cluster.wait_for()
        keys = link_keys(cluster, "a")
        address = TcpAddress("127.0.0.1", proxy.port)
        get, put = (frame(wire.encode(request)) for request in (wire.Get([b"s\0k"]), wire.Set([(b"s\0k", MARK)], None)))
        while len(altered) < ALTERED:
            number = proxy.connections
            try:
                connection = BlockingConnection(address, keys, 0.1)
                with contextlib.closing(connection):
                    connection.call(put)
                    connection.call(get)
            except ClusterStateError:
                refused += 1
                wait_until(partial(seen, proxy, number), SECONDS, "the relay has seen it")
            else:
                believed += number in altered
        figure(f"of {len(altered):,} altered messages", f"{believed} believed")
        assert believed == 0
        assert refused >= ALTERED
        status = status_of(cluster, "a")
        assert status.state is MemberState.ALIVE
        with contextlib.closing(BlockingConnection(TcpAddress("127.0.0.1", cluster.ports["a"]), keys, 2.0)) as direct:
            reply = direct.call(get)
            assert isinstance(reply, wire.ValuesReply)
            assert reply.values in ([MARK], [None])


def test_a_relay_at_a_dead_nodes_address_is_not_taken_for_it(folder: Path, figure: Figure) -> None:
    """The address of a killed node belongs to somebody without the secret, who passes all on to another node."""
    with LocalCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        (dead,) = [m.identity for m in status_of(cluster, "a").members if m.identity.name == "c"]
        cluster.kill("c")
        until_all_say(cluster, MemberState.DOWN, "c", ("a", "b"))
        with Proxy(cluster.ports["b"], port=cluster.ports["c"]) as relay:
            meant = Hello(expected_name="c", expected_boot=dead.boot)
            with pytest.raises(OtherNode, match="expected c at .*, but b answers there"):
                BlockingConnection(TcpAddress("127.0.0.1", relay.port), link_keys(cluster, "a"), 2.0, hello=meant)
            wait_until(lambda: relay.connections > 3, SECONDS, "a dials the address it knew")
            wait_until(lambda: bool(lines(cluster, "a", "but b answers there")), SECONDS, "a says who answers")
            said = lines(cluster, "a", "but b answers there")
            figure("a says", said[0].split(" ", 3)[3])
            assert len(said) == 1
            assert cluster.agreed(("a", "b"))
            seen = b"".join(b"".join(said) for said in relay.sent + relay.answered)
            assert b"clusterstate.heartbeat" not in seen


def test_an_earlier_start_is_not_taken_for_the_present_one(folder: Path) -> None:
    with LocalCluster(folder, ("a",)) as cluster:
        cluster.start()
        cluster.wait_for()
        boot = status_of(cluster, "a").identity.boot
        address, keys = TcpAddress("127.0.0.1", cluster.ports["a"]), link_keys(cluster, "a")
        BlockingConnection(address, keys, 2.0, hello=Hello(expected_name="a", expected_boot=boot)).close()
        cluster.kill("a")
        cluster.start("a")
        cluster.wait_for()
        with pytest.raises(OtherInstance, match="has been restarted"):
            BlockingConnection(address, keys, 2.0, hello=Hello(expected_name="a", expected_boot=boot))


def test_a_node_that_advertises_the_address_of_another_changes_no_view(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ("a", "b")) as cluster:
        cluster.start()
        kept = Kept(cluster, ("a", "b"))
        (folder / "c").mkdir()
        env = {"CLUSTERSTATE_ADVERTISE": f"127.0.0.1:{cluster.ports['b']}"}
        with LocalCluster(folder / "c", ("c",), env=env, discovery=cluster.discovery) as third:
            third.start()
            told = "node c advertises "
            seconds = wait_until(
                lambda: any(told in text for text in status_of(cluster, "a").problems), SECONDS, "a names the address"
            )
            figure("a names the wrong address after", f"{seconds:.2f} s")
            forwarded = {name: status_of(cluster, name).copies.forwarded for name in cluster.names}
            until = time.monotonic() + 8
            while time.monotonic() < until:
                assert cluster.agreed(("a", "b"))
                assert status_of(third, "c").state is MemberState.JOINING
                with contextlib.closing(client_on(cluster, "a", 5.0)) as client:
                    for key in KEYS:
                        client.call(key, wire.request_frame(wire.Get([key])))
                time.sleep(0.1)
            assert status_of(third, "c").problems
            # Nobody has handed keys over to it, or the owners would have forwarded these requests.
            assert not any(status_of(cluster, name).copies.forwarded - forwarded[name] for name in forwarded)
        assert not kept.lost("a", "b")
        assert not moves(cluster, MemberState.SUSPECT)
        assert not moves(cluster, MemberState.DOWN)


def test_another_clusters_node_is_refused(folder: Path) -> None:
    with LocalCluster(folder, ("a",), env={"CLUSTERSTATE_CLUSTER": "another"}) as cluster:
        cluster.start()
        cluster.wait_for()
        with pytest.raises(ProtocolError, match="belongs to a different cluster"):
            BlockingConnection(TcpAddress("127.0.0.1", cluster.ports["a"]), link_keys(cluster, "a"), 2.0)
