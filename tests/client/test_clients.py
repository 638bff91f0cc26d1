"""One contract for both clients, on three real nodes and against nodes that misbehave on purpose."""

import asyncio
import gc
import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from unittest.mock import ANY

import pytest
from asgiref.sync import async_to_sync

from django_clusterstate import runtime
from django_clusterstate.client.aio import AsyncClient, from_now
from django_clusterstate.client.blocking import Client
from django_clusterstate.client.circuit_breaker import FAILURES_TO_OPEN, HALF_OPEN_AFTER
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.loops import MAX_LOOPS, Loop, PerLoop
from django_clusterstate.client.routing import Routing, RoutingTable, Target
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.membership.heartbeat import NO_VIEW, Identity, View
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.exceptions import (
    CircuitOpen,
    ClusterStateError,
    ConnectionLost,
    ProtocolError,
    Refused,
    Unavailable,
    Unreachable,
)
from django_clusterstate.wire import aio
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import Address, TcpAddress, UnixAddress
from django_clusterstate.wire.derived_keys import LinkKey, derive_link_keys
from django_clusterstate.wire.framing import HEADER, frame
from django_clusterstate.wire.handshake import Hello, NodeHandshake, OtherInstance, OtherNode
from django_clusterstate.wire.noise import TAG
from testproject import settings
from testproject.processes import ROOT, LocalCluster, free_port
from tests.conftest import NODES
from tests.faults.proxy import Proxy
from tests.forks import SECONDS, InChild, in_child_of
from tests.peers import (
    KEYS,
    Script,
    ScriptedNode,
    SealedSocket,
    answering,
    keep_busy,
    read_frame,
    shake_hands,
    take_time,
    wait_for_the_end,
)
from tests.timing import check_seconds

PING = frame(wire.encode(wire.Ping()))
T = TypeVar("T")


class Clock:
    """The monotonic clock, which can be put forward, and stopped."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._stopped: float | None = None

    def __call__(self) -> float:
        return (time.monotonic() if self._stopped is None else self._stopped) + self.ahead

    def stop(self) -> None:
        self._stopped = time.monotonic()


class Requester(Protocol):
    """What both can do."""

    clock: Clock

    @property
    def routing(self) -> Routing: ...
    def call(self, key: bytes, request: bytes) -> wire.Reply: ...
    def call_node(self, target: Target, request: bytes) -> wire.Reply: ...
    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[wire.Reply | ClusterStateError]: ...
    def table(self) -> RoutingTable: ...
    def close(self) -> None: ...


class Sync(Client):
    def __init__(self, local: Address, keys: Sequence[LinkKey], deadline: float) -> None:
        self.clock = Clock()
        super().__init__(Routing(local), Dialer(keys, deadline), self.clock)


class Async:
    """The asyncio client, in one event loop."""

    def __init__(self, local: Address, keys: Sequence[LinkKey], deadline: float) -> None:
        self.clock = Clock()
        self._client = AsyncClient(Routing(local), Dialer(keys, deadline), self.clock)
        self._runner = asyncio.Runner()

    @property
    def routing(self) -> Routing:
        return self._client.routing

    def call(self, key: bytes, request: bytes) -> wire.Reply:
        return self._runner.run(self._client.call(key, request))

    def run_loop(self) -> None:
        self._runner.run(asyncio.sleep(0))

    def call_node(self, target: Target, request: bytes) -> wire.Reply:
        return self._runner.run(self._client.call_node(target, request))

    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[wire.Reply | ClusterStateError]:
        return self._runner.run(self._client.call_each(requests))

    def table(self) -> RoutingTable:
        return self._runner.run(self._client.table())

    def close(self) -> None:
        self._runner.close()


Make = Callable[..., Requester]


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Requester] = []

    def make(local: Address, keys: Sequence[LinkKey] = KEYS, deadline: float = 60.0) -> Requester:
        made.append(request.param(local, keys, deadline))
        return made[-1]

    yield make
    for requester in made:
        requester.close()


def local_socket(cluster: LocalCluster, name: str = "alpha") -> UnixAddress:
    return UnixAddress(str(cluster.socket(name)))


@pytest.fixture
def requester(make: Make, cluster: LocalCluster) -> Requester:
    return make(local_socket(cluster), runtime.get_settings().link_keys)


def set_request(key: bytes, value: wire.Value) -> bytes:
    return frame(wire.encode(wire.Set([(key, value)], 30.0)))


def get_request(*keys: bytes) -> bytes:
    return frame(wire.encode(wire.Get(list(keys))))


def values(reply: wire.Reply | ClusterStateError) -> list[wire.Value | None]:
    assert isinstance(reply, wire.ValuesReply)
    return reply.values


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# -- three real nodes -----------------------------------------------------------------------------------------


def test_first_call_learns_the_members(requester: Requester) -> None:
    requester.call(b"k", get_request(b"k"))
    table = requester.table()
    assert [member.name for member in table.view.members] == sorted(NODES)
    assert table.local_name == "alpha"
    assert table.view.epoch != 0


def test_each_key_lives_at_its_owner_to_which_other_nodes_forward(requester: Requester) -> None:
    keys = [b"owners\0%d" % number for number in range(40)]
    for key in keys:
        requester.call(key, set_request(key, key))
    targets = requester.table().targets
    found = {name: [values(requester.call_node(targets[name], get_request(key))) for key in keys] for name in NODES}
    assert list(found.values()) == [[[key] for key in keys]] * 3
    assert {owner.name for key in keys if (owner := requester.table().owner(key))} == set(NODES)


def test_requests_to_several_nodes_bring_their_replies_in_order(requester: Requester) -> None:
    for _ in range(2):  # without and with connections at hand
        targets = list(requester.table().targets.values())
        replies = requester.call_each([(target, PING) for target in targets])
        names = [reply.identity.name for reply in replies if isinstance(reply, wire.PongReply)]
        assert names == [target.name for target in targets]
    assert requester.call_each([]) == []


def test_long_replies_of_several_nodes_arrive_whole(requester: Requester) -> None:
    value = b"x" * 1024 * 1024
    targets = list(requester.table().targets.values())
    requests = [(target, set_request(b"long\0" + target.name.encode(), value)) for target in targets]
    assert all(isinstance(reply, wire.FlagsReply) for reply in requester.call_each(requests))
    for _ in range(3):
        replies = requester.call_each([(target, get_request(b"long\0" + target.name.encode())) for target in targets])
        assert [values(reply) for reply in replies] == [[value]] * 3


def test_same_node_takes_several_requests_at_once(requester: Requester) -> None:
    target = requester.table().targets["beta"]
    replies = requester.call_each([(target, set_request(b"k%d" % number, number)) for number in range(10)])
    assert all(isinstance(reply, wire.FlagsReply) for reply in replies)


def test_without_its_local_node_the_view_comes_from_another(requester: Requester) -> None:
    table = requester.table()
    key = next(b"%d" % n for n in range(100) if (owner := table.owner(b"%d" % n)) and owner.name == "beta")
    gone = UnixAddress("/nowhere/node.sock")
    requester.routing.local.address = gone
    if isinstance(requester, Client):
        requester.close()
    before = requester.routing.refresh_at
    requester.clock.ahead += 1.5
    assert isinstance(requester.call(key, set_request(key, 1)), wire.FlagsReply)
    assert requester.routing.refresh_at > before
    assert requester.table().local_name == "alpha"  # it is still this host's, though nobody answers there


def test_error_says_that_there_is_no_cluster_and_names_the_local_node(make: Make, tmp_path: Path) -> None:
    requester = make(UnixAddress(str(tmp_path / "none.sock")))
    with pytest.raises(Unavailable, match=r"no cluster: .* Start one with: manage\.py clusternode"):
        requester.call(b"k", PING)
    assert requester.table().targets == {}
    with pytest.raises(Unavailable, match=r"the local node at .*none\.sock"):
        requester.call_node(requester.routing.local, PING)


def test_error_is_a_connection_error_and_names_the_node(make: Make) -> None:
    address = TcpAddress("127.0.0.1", free_port())
    with pytest.raises(ConnectionError, match=f"^node x at {address}: cannot connect: Connection refused$"):
        make(address).call_node(Target("x", address), PING)


# -- nodes that misbehave -------------------------------------------------------------------------------------

DEADLINE = 1.0  # on a busy machine, scripted nodes take tenths of a second
AT_LATEST = DEADLINE + 0.3  # less than two deadlines


def mute(sock: Any) -> None:
    shake_hands(sock)
    wait_for_the_end(sock)


def answers_once(sock: Any) -> SealedSocket:
    sealed = shake_hands(sock)
    sealed.read_frame()
    sealed.sendall(frame(wire.encode(wire.DoneReply(1))))
    return sealed


def stopped_after_one_answer() -> Script:
    connections = itertools.count()

    def script(sock: Any) -> None:
        if next(connections) == 0:
            answers_once(sock)
        wait_for_the_end(sock)

    return script


def adopt(requester: Requester, *targets: Target) -> None:
    """Makes these the nodes that the requester knows, and whose connections it closes in the end."""
    requester.routing.table = RoutingTable(NO_VIEW, "", {target.name: target for target in targets})


class Nodes:
    """Scripted nodes that a requester takes for members."""

    def __init__(self, *scripts: Script) -> None:
        self.nodes = [ScriptedNode(script) for script in scripts]

    def __enter__(self) -> list[tuple[Target, bytes]]:
        for node in self.nodes:
            node.__enter__()
        return [(Target(f"n{number}", node.address), PING) for number, node in enumerate(self.nodes)]

    def __exit__(self, *exc_info: object) -> None:
        for node in self.nodes:
            node.__exit__()


def kinds(replies: Sequence[object]) -> list[type]:
    return [Unavailable if isinstance(reply, Unavailable) else type(reply) for reply in replies]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.timing
def test_stopped_node_takes_no_time_of_the_others_and_only_it_has_failed(make: Make, warm: bool, position: int) -> None:
    scripts = [answering(), answering()]
    scripts.insert(position, stopped_after_one_answer() if warm else mute)
    with Nodes(*scripts) as requests:
        requester = make(requests[0][0].address, deadline=DEADLINE)
        adopt(requester, *(target for target, _ in requests))
        stopped = requests[position][0]
        others = [target for target, _ in requests if target is not stopped]
        if warm:
            assert kinds(requester.call_each(requests)) == [wire.DoneReply] * 3
        else:
            for target in others:
                requester.call_node(target, PING)
        took = []
        for failures in range(1, FAILURES_TO_OPEN + 1):
            start = time.monotonic()
            replies = requester.call_each(requests)
            took.append(time.monotonic() - start)
            assert kinds(replies).index(Unavailable) == position
            assert kinds(replies).count(wire.DoneReply) == 2
            assert stopped.failures == failures
            assert [target.failures for target in others] == [0, 0]
        check_seconds(statistics.median(took), below=AT_LATEST)
        requester.close()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.timing(alone=True)
def test_nodes_that_are_stopped_take_one_deadline_together(make: Make, warm: bool) -> None:
    with Nodes(*(stopped_after_one_answer() if warm else mute for _ in range(12))) as requests:
        requester = make(requests[0][0].address, deadline=DEADLINE)
        adopt(requester, *(target for target, _ in requests))
        if warm:
            assert kinds(requester.call_each(requests)) == [wire.DoneReply] * 12
        start = time.monotonic()
        assert kinds(requester.call_each(requests)) == [Unavailable] * 12
        check_seconds(time.monotonic() - start, below=AT_LATEST)
        requester.close()


def test_connection_that_the_node_has_closed_is_replaced(make: Make) -> None:
    with ScriptedNode(answers_once) as node:
        requester = make(node.address)
        target = Target("n", node.address)
        for number in range(1, 4):
            assert requester.call_node(target, PING) == wire.DoneReply(1)
            assert node.accepted == number
        other = Target("other", node.address)
        adopt(requester, target, other)
        for _ in range(2):
            assert kinds(requester.call_each([(target, PING), (other, PING)])) == [wire.DoneReply] * 2
        assert target.failures == other.failures == 0
        requester.close()


# -- connections that are lost with an answer --------------------------------------------------------------------

RULES = [Rule(Algorithm.FIXED_WINDOW, 100, 3600.0)]


def incr_request(key: bytes) -> bytes:
    return frame(wire.encode(wire.Incr(key, 1)))


@pytest.fixture
def cut(cluster: LocalCluster, requester: Requester) -> Iterator[tuple[Proxy, Target, Target]]:
    """A proxy before a node, which can lose answers; the node by way of it; and the node itself."""
    direct = requester.table().targets["beta"]
    with Proxy(cluster.ports["beta"]) as proxy:
        target = Target("beta by proxy", TcpAddress("127.0.0.1", proxy.port))
        target.hello = Hello(expected_name="beta")
        if isinstance(requester, Client):
            requester.close()
        adopt(requester, target, direct)
        requester.call_node(target, PING)
        yield proxy, target, direct
        if isinstance(requester, Client):
            requester.close()


Ways = Callable[[Requester, Target, Target, bytes], wire.Reply | ClusterStateError]


def alone(requester: Requester, target: Target, direct: Target, request: bytes) -> wire.Reply | ClusterStateError:
    try:
        return requester.call_node(target, request)
    except ClusterStateError as error:
        return error


def with_others(requester: Requester, target: Target, direct: Target, request: bytes) -> wire.Reply | ClusterStateError:
    replies = requester.call_each([(direct, PING), (target, request)])
    assert isinstance(replies[0], wire.PongReply)
    return replies[1]


@pytest.mark.parametrize("way", [alone, with_others])
@pytest.mark.parametrize("what", ["incr", "hit", "add", "refund", "send"])
def test_request_that_must_not_be_executed_twice_is_not_sent_again(
    requester: Requester, cut: tuple[Proxy, Target, Target], way: Ways, what: str
) -> None:
    proxy, target, direct = cut
    key = b"cut\0" + os.urandom(8)
    requests: dict[str, wire.Request] = {
        "incr": wire.Incr(key, 1),
        "hit": wire.Hit(key, RULES),
        "add": wire.Set([(key, 1)], 60.0, absent=True),
        "refund": wire.Refund(key, RULES, 1, 0.0),
        "send": wire.Send(f"cut.{key[4:].hex()}", b"message", 60.0, 100),
    }
    requester.call_node(direct, frame(wire.encode(wire.Hit(key, RULES, 5))))
    if what == "incr":
        requester.call_node(direct, set_request(key, 0))
    for times in range(1, 3):
        requester.call_node(target, PING)
        proxy.cut = 1
        reply = way(requester, target, direct, frame(wire.encode(requests[what])))
        assert type(reply) is ConnectionLost
        assert proxy.cut == 0
        assert len(proxy.sent[-2][-1]) == len(frame(wire.encode(requests[what]))) + HEADER + TAG  # it was sent
        assert all(len(sent) == 1 for sent in proxy.sent[-1:])  # a handshake, and nothing more
        if what == "incr":
            assert values(requester.call_node(direct, get_request(key))) == [times]
        elif what in ("hit", "refund"):
            peeked = requester.call_node(direct, frame(wire.encode(wire.Peek(key, RULES))))
            assert isinstance(peeked, wire.DecisionsReply)
            assert peeked.decisions[0].remaining == 100 - 5 - (times if what == "hit" else -times)


@pytest.mark.parametrize("way", [alone, with_others])
@pytest.mark.parametrize("what", ["get", "set", "touch", "delete", "take", "peek"])
def test_request_that_may_be_executed_twice_is_sent_again(
    requester: Requester, cut: tuple[Proxy, Target, Target], way: Ways, what: str
) -> None:
    proxy, target, direct = cut
    key, other = b"cut\0" + os.urandom(8), b"cut\0" + os.urandom(8)
    requests: dict[str, wire.Request] = {
        "get": wire.Get([key]),
        "set": wire.Set([(key, 2)], 60.0),
        "touch": wire.Touch([key], 60.0),
        "delete": wire.Delete([key]),
        "take": wire.Set([(other, b"token")], 60.0, absent=True, or_same=True),
        "peek": wire.Peek(key, RULES),
    }
    requester.call_node(direct, set_request(key, 1))
    proxy.cut = 1
    reply = way(requester, target, direct, frame(wire.encode(requests[what])))
    assert isinstance(reply, wire.ValuesReply | wire.FlagsReply | wire.DecisionsReply)
    assert proxy.cut == 0
    if isinstance(reply, wire.FlagsReply):
        assert reply.flags == [what != "delete"]  # there it was absent by then
    assert target.failures == 0


@pytest.mark.parametrize("boots", [(b"a", b"b"), (b"a", b"a"), (b"", b"a")])
@pytest.mark.parametrize("way", [alone, with_others])
def test_request_that_may_not_be_executed_twice_is_sent_once_though_the_node_was_restarted(
    make: Make, way: Ways, boots: tuple[bytes, bytes]
) -> None:
    connections, asked = iter(boots), []

    def script(sock: Any) -> None:
        sealed = shake_hands(sock, boot := next(connections))
        for number in itertools.count():
            asked.append((boot, wire.decode_request(sealed.read_frame())))
            if len(asked) == 2:
                return  # it ends before it answers
            sealed.sendall(frame(wire.encode(wire.DoneReply(number))))

    with ScriptedNode(script) as node, ScriptedNode(answering(pong)) as other:
        requester = make(node.address)
        target, direct = Target("n", node.address), Target("other", other.address)
        adopt(requester, target, direct)
        requester.call_node(target, PING)
        reply = way(requester, target, direct, incr_request(b"k"))
        assert type(reply) is ConnectionLost
        assert [boot for boot, request in asked if isinstance(request, wire.Incr)] == [boots[0]]
        requester.close()


@pytest.mark.parametrize("way", [alone, with_others])
@pytest.mark.parametrize(("sent", "error"), [(True, ConnectionLost), (False, Unreachable)])
def test_node_that_cannot_reach_the_owner_has_not_failed_but_the_request_has_on_any_connection(
    make: Make, way: Ways, sent: bool, error: type[ClusterStateError]
) -> None:
    unavailable = frame(wire.encode(wire.UnavailableReply(1, sent=sent)))
    with ScriptedNode(answering(lambda _: unavailable)) as node, ScriptedNode(answering(pong)) as other:
        requester = make(node.address)
        target, direct = Target("n", node.address), Target("other", other.address)
        adopt(requester, target, direct)
        for _ in range(2):  # first on a new connection
            assert type(way(requester, target, direct, incr_request(b"k"))) is error
        assert target.failures == 0
        requester.close()


def pong(number: int) -> bytes:
    return frame(wire.encode(wire.PongReply(1, Identity("other", b"boot" * 4, "h:1"))))


def test_restart_of_an_idle_node_is_noticed_before_anything_is_sent(folder: Path, make: Make) -> None:
    with LocalCluster(folder, ("only",)) as nodes:
        nodes.start()
        nodes.wait_for()
        keys = derive_link_keys([settings.SECRET_KEY], "default")
        over_tcp = Target("only", TcpAddress("127.0.0.1", nodes.ports["only"]))
        requester = make(local_socket(nodes, "only"), keys)
        adopt(requester, over_tcp)
        for target in (over_tcp, requester.routing.local):
            requester.call_node(target, set_request(b"k", 1))
        nodes.kill("only")
        nodes.start("only")
        nodes.wait_for()
        requester.clock.ahead += 1.0
        if isinstance(requester, Async):
            requester.run_loop()  # as it runs in a server, where a call isn't its first turn since the node ended
        for target in (over_tcp, requester.routing.local):
            assert requester.call_node(target, incr_request(b"k")) == wire.NumberReply(ANY, None)
            assert target.failures == 0
        requester.close()


def test_another_node_at_an_address_is_a_failure_and_gets_no_request(requester: Requester) -> None:
    alpha, beta = (requester.table().targets[name] for name in ("alpha", "beta"))
    assert isinstance(beta.address, TcpAddress)
    requester.clock.stop()  # however long the machine takes for what follows
    wrong = Target("gone", beta.address, b"g" * 16)
    adopt(requester, alpha, wrong)
    for failures in range(1, FAILURES_TO_OPEN + 1):
        with pytest.raises(OtherNode, match="expected gone at .*, but beta answers there"):
            requester.call_node(wrong, PING)
        assert wrong.failures == failures
    with pytest.raises(Unavailable, match="circuit breaker for node gone at .* is open"):
        requester.call_node(wrong, PING)


def test_restart_of_the_owner_refreshes_the_view_and_is_not_a_failure(requester: Requester) -> None:
    table = requester.table()
    beta = table.targets["beta"]
    stale = Target("beta", beta.address, b"earlier instance")
    earlier = View(table.view.members, 0)
    requester.routing.table = RoutingTable(earlier, table.local_name, {**table.targets, "beta": stale})
    key = next(key for key in (b"k%d" % number for number in range(200)) if table.owner(key) is beta)
    requester.clock.ahead += 0.2
    assert isinstance(requester.call(key, get_request(key)), wire.ValuesReply)
    assert stale.failures == 0
    assert requester.routing.table.targets["beta"].hello.expected_boot == beta.hello.expected_boot
    with pytest.raises(OtherInstance):
        requester.call_node(stale, PING)
    assert stale.failures == 0


def test_restart_between_two_requests_to_several_nodes_is_not_a_failure(make: Make) -> None:
    connections = itertools.count()

    def restarted(sock: Any) -> None:
        if next(connections) == 0:
            answers_once(sock).read_frame()
            return
        handshake = NodeHandshake(KEYS, "n1", b"later instance")
        sock.sendall(frame(handshake.challenge))
        sock.sendall(frame(handshake.receive(read_frame(sock))))

    with ScriptedNode(answering()) as first, ScriptedNode(restarted) as second:
        targets = [Target("n0", first.address), Target("n1", second.address, b"the former one")]
        requester = make(first.address)
        adopt(requester, *targets)
        requests = [(target, frame(wire.encode(wire.Get([b"k"])))) for target in targets]
        assert kinds(requester.call_each(requests)) == [wire.DoneReply] * 2
        requester.routing.refresh_at = math.inf
        assert kinds(requester.call_each(requests)) == [wire.DoneReply, OtherInstance]
        assert targets[1].failures == 0
        assert requester.routing.refresh_at < math.inf
        requester.close()


def test_counts_are_reported_once_though_the_reply_was_lost(make: Make) -> None:
    told = []

    def script(sock: Any) -> None:
        sealed = shake_hands(sock, b"boot")
        while True:
            request = wire.decode_request(sealed.read_frame())
            assert isinstance(request, wire.GetView)
            told.append(request.stats.too_big if request.stats else 0)
            if len(told) == 2:
                return
            sealed.sendall(frame(wire.encode(wire.ViewReply(1, (), "n"))))

    with ScriptedNode(script) as node:
        requester = make(node.address)
        requester.table()
        requester.routing.stats.too_big += 1
        for _ in range(3):
            requester.clock.ahead += 2
            requester.table()
        assert sum(told) == 1
        assert len(told) >= 4
        requester.close()


def test_invalid_reply_is_a_failure_of_the_node(make: Make) -> None:
    with ScriptedNode(answering(lambda number: frame(b"nonsense"))) as node:
        requester = make(node.address)
        target = Target("n", node.address)
        with pytest.raises(ProtocolError, match="node n at .* a reply that cannot be read"):
            requester.call_node(target, PING)
        assert target.failures == 1
        requester.close()


def test_latency_of_each_exchange_is_kept_except_while_the_breaker_is_open(make: Make) -> None:
    with ScriptedNode(mute) as mute_node, ScriptedNode(answering()) as node:
        requester = make(mute_node.address, deadline=0.05)
        latencies = requester.routing.latencies
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(Unavailable):
                requester.call_node(requester.routing.local, PING)
        requester.routing.local.retry_at = math.inf  # however long a busy machine takes
        with pytest.raises(Unavailable, match="circuit breaker for .* is open"):
            requester.call_node(requester.routing.local, PING)
        assert len(latencies) == FAILURES_TO_OPEN
        assert max(latencies) >= 0.05
        requester.close()
        patient = make(node.address)
        one, two = Target("one", node.address), Target("two", node.address)
        adopt(patient, one, two)
        patient.call_node(one, PING)
        patient.call_each([(one, PING), (two, PING)])
        assert len(patient.routing.latencies) == 3
        assert min(patient.routing.latencies) > 0
        patient.close()


def test_concurrent_requests_for_the_view_report_counts_once_and_keep_them_if_no_node_replies(tmp_path: Path) -> None:
    told = []

    def script(sock: Any) -> None:
        sealed = shake_hands(sock)
        while True:
            request = wire.decode_request(sealed.read_frame())
            assert isinstance(request, wire.GetView)
            told.append(request.stats.too_big if request.stats else 0)
            take_time(0.05)
            sealed.sendall(frame(wire.encode(wire.ViewReply(1, (), "n"))))

    async def ask(client: AsyncClient) -> None:
        await asyncio.gather(*(client.table() for _ in range(5)))
        await client.close()

    nowhere = UnixAddress(str(tmp_path / "none"))
    with ScriptedNode(script) as node:
        dialer = Dialer(KEYS, 60.0)
        client, async_client = Client(Routing(nowhere), dialer), AsyncClient(Routing(nowhere), dialer)
        for routing in (client.routing, async_client.routing):
            routing.stats.too_big += 1
        client.table()
        asyncio.run(async_client.table())
        for routing in (client.routing, async_client.routing):
            assert routing.stats.too_big == 1
            routing.local = Target("", node.address)
        with ThreadPoolExecutor(5) as threads:
            list(threads.map(lambda _: client.table(), range(5)))
        assert sum(told) == 1
        asyncio.run(ask(async_client))
        assert sum(told) == 2
        client.close()


def test_open_breaker_fails_requests_at_once_and_lets_one_try_in_each_interval(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a try may be over before a busy machine has dialed, and the next one waits for the same dial.
    monkeypatch.setattr("django_clusterstate.client.circuit_breaker.FIRST_TRY", 1)
    with ScriptedNode(mute) as node:
        requester = make(node.address, deadline=1.0)
        requester.clock.stop()  # however long the machine takes for what follows
        target = requester.routing.local
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(Unavailable, match="within the deadline"):
                requester.call_node(target, PING)
        node.until_accepted(FAILURES_TO_OPEN)
        for _ in range(20):
            with pytest.raises(Unavailable, match="circuit breaker for .* is open"):
                requester.call_node(target, PING)
            assert kinds(requester.call_each([(target, PING), (target, PING)])) == [Unavailable] * 2
        assert node.accepted == FAILURES_TO_OPEN
        requester.clock.ahead += HALF_OPEN_AFTER
        with pytest.raises(Unavailable, match="within the deadline"):
            requester.call_node(target, PING)
        with pytest.raises(Unavailable, match="circuit breaker for .* is open"):
            requester.call_node(target, PING)
        node.until_accepted(FAILURES_TO_OPEN + 1)
        requester.close()


def test_breaker_closes_with_the_first_answer(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a try may be over before a busy machine has dialed.
    monkeypatch.setattr("django_clusterstate.client.circuit_breaker.FIRST_TRY", 1)
    requester = make(TcpAddress("127.0.0.1", free_port()))
    target = requester.routing.local
    with caplog.at_level("INFO", "django_clusterstate.client"):
        for _ in range(FAILURES_TO_OPEN + 1):
            with pytest.raises(Unavailable):
                requester.call_node(target, PING)
        with ScriptedNode(answering()) as node:
            target.address = node.address
            requester.clock.ahead += HALF_OPEN_AFTER
            assert requester.call_node(target, PING) == wire.DoneReply(1)
            assert requester.call_node(target, PING) == wire.DoneReply(2)
            requester.close()
    assert target.failures == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.timing
def test_stopped_local_node_costs_one_deadline_and_only_it_has_failed(make: Make) -> None:
    with ScriptedNode(answering()) as owner:
        view = View.of([Identity("local", b"l" * 16, "127.0.0.1:1"), Identity("owner", b"o" * 16, str(owner.address))])
        key = next(key for key in map(bytes, range(9)) if Rendezvous({"local": 1, "owner": 1}).owner(key) == "owner")

        def local(sock: Any) -> None:
            sealed = shake_hands(sock)
            sealed.read_frame()
            sealed.sendall(frame(wire.encode(wire.ViewReply(view.epoch, view.members, "local"))))
            wait_for_the_end(sock)

        with ScriptedNode(local) as stopped:
            requester = make(stopped.address, deadline=DEADLINE)
            target = requester.table().targets["owner"]
            took = []
            for _ in range(FAILURES_TO_OPEN + 1):
                requester.clock.ahead += 1.5
                start = time.monotonic()
                assert isinstance(requester.call(key, PING), wire.DoneReply)
                took.append(time.monotonic() - start)
                assert target.failures == 0
            check_seconds(statistics.median(took), below=AT_LATEST)
            requester.close()


# -- nodes that don't serve -----------------------------------------------------------------------------------


def viewing(name: str, members: Sequence[Identity], told: list[int] | None = None) -> Script:
    """A node that gives a view of what the members are then, and answers everything else with `Done`. `told` takes what
    it is told of values that were too big."""

    def script(sock: Any) -> None:
        sealed = shake_hands(sock)
        while True:
            request, view = wire.decode_request(sealed.read_frame()), View.of(members)
            reply: wire.Reply = wire.DoneReply(view.epoch)
            if isinstance(request, wire.GetView):
                reply = wire.ViewReply(view.epoch, view.members, name)
                if told is not None:
                    told.append(request.stats.too_big if request.stats else 0)
            sealed.sendall(frame(wire.encode(reply)))

    return script


def identity(name: str, address: object) -> Identity:
    return Identity(name, name.encode() * 16, str(address))


def test_process_that_starts_beside_a_joining_node_has_the_view_of_a_member(make: Make) -> None:
    members = [identity("b", f"127.0.0.1:{free_port()}"), identity("c", f"127.0.0.1:{free_port()}")]
    with ScriptedNode(viewing("a", members)) as node:
        members.append(identity("a", node.address))
        with ScriptedNode(viewing("joiner", members[-1:])) as joiner:
            requester = make(joiner.address)
            table = requester.table()
            assert [member.name for member in table.view.members] == ["a", "b", "c"]
            assert table.local_name == "joiner"
            requester.close()


@pytest.mark.parametrize("half", ["", "b"], ids=["nobody", "one"])
def test_view_of_a_node_that_joins_or_leaves_does_not_replace_a_whole_one(make: Make, half: str) -> None:
    known: list[Identity] = []
    whole: list[Identity] = []
    with ScriptedNode(viewing("a", known)) as local, ScriptedNode(viewing("b", whole)) as other:
        whole += [identity("a", local.address), identity("b", other.address)]
        known += whole
        requester = make(local.address)
        view = requester.table().view
        known[:] = [member for member in whole if member.name in half]  # as of one that was started again
        requester.clock.ahead += 2
        assert requester.table().view == view == View.of(whole)
        requester.close()


def test_process_beside_a_joining_node_has_no_view_while_there_are_no_members(make: Make) -> None:
    with ScriptedNode(viewing("joiner", [identity("gone", f"127.0.0.1:{free_port()}")])) as joiner:
        requester = make(joiner.address)
        assert requester.table().view == NO_VIEW
        with pytest.raises(Unavailable, match="no cluster"):
            requester.call(b"k", PING)
        requester.close()


def test_counts_are_reported_to_one_node_though_several_get_requests(make: Make) -> None:
    members: list[Identity] = []
    told: list[int] = []
    with ScriptedNode(viewing("a", members, told)) as node, ScriptedNode(viewing("joiner", members, told)) as joiner:
        members.append(identity("a", node.address))
        requester = make(joiner.address)
        requester.routing.stats.too_big = 1
        assert requester.table().view == View.of(members)
        assert told == [1, 0]
        requester.close()


# -- threads, processes, event loops --------------------------------------------------------------------------


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    client = Client(Routing(local_socket(cluster)), Dialer(runtime.get_settings().link_keys, 60.0))
    yield client
    client.close()


@pytest.fixture
def async_client(cluster: LocalCluster) -> AsyncClient:
    return AsyncClient(Routing(local_socket(cluster)), Dialer(runtime.get_settings().link_keys, 60.0))


def exchange(client: Client, who: int, times: int) -> bool:
    """Whether each answer is the one to its own question."""
    for number in range(times):
        key = b"who\0%d/%d" % (who, number % 7)
        client.call(key, set_request(key, who * 10_000 + number))
        if values(client.call(key, get_request(key))) != [who * 10_000 + number]:
            return False
        if number % 10 == 0:
            targets = list(client.table().targets.values())
            replies = client.call_each([(target, PING) for target in targets])
            if [reply.identity.name for reply in replies if isinstance(reply, wire.PongReply)] != [
                t.name for t in targets
            ]:
                return False
    return True


async def aexchange(client: AsyncClient, who: int, times: int) -> bool:
    async def one(number: int) -> bool:
        key = b"awho\0%d/%d" % (who, number)
        await client.call(key, set_request(key, who * 10_000 + number))
        return values(await client.call(key, get_request(key))) == [who * 10_000 + number]

    return all(await asyncio.gather(*map(one, range(times))))


def test_threads_share_a_client_and_get_their_own_answers(client: Client) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda who: exchange(client, who, 100), range(16)))
    assert all(target.failures == 0 for target in client.routing.table.targets.values())


def test_more_threads_than_a_node_accepts_at_a_time_are_all_served(client: Client) -> None:
    start = threading.Barrier(150, timeout=SECONDS)

    def dial(_: int) -> bool:
        start.wait()
        target = client.routing.table.targets["beta"]
        return isinstance(client.call_node(target, PING), wire.PongReply)

    client.table()
    with ThreadPoolExecutor(150) as threads:
        assert all(threads.map(dial, range(150)))
    assert all(len(target.pool) <= 64 for target in client.routing.table.targets.values())


forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@forking
def test_child_and_parent_never_share_a_socket(client: Client, in_child: InChild) -> None:
    assert exchange(client, 0, 20)
    children = [in_child(lambda who=who: exchange(client, who, 100)) for who in range(1, 4)]  # type: ignore[misc]
    assert exchange(client, 9, 100)
    assert all(child() for child in children)
    assert exchange(client, 0, 20)


@forking
def test_child_starts_without_connections(client: Client) -> None:
    exchange(client, 0, 20)
    targets = {client.routing.local, *client.routing.table.targets.values()}
    assert any(target.pool for target in targets)
    assert in_child_of(os.fork)(lambda: not any(target.pool for target in targets))()  # before it asks for anything
    assert any(target.pool for target in targets)


@forking
def test_child_reports_nothing_that_its_parent_has_counted(
    client: Client, async_client: AsyncClient, in_child: InChild
) -> None:
    def blocking() -> bool:
        assert isinstance(client.call_node(client.routing.local, PING), wire.PongReply)
        return client.routing.stats.remembered == 0 and len(client.routing.latencies) == 1

    async def asynchronous() -> bool:
        assert isinstance(await async_client.call_node(async_client.routing.local, PING), wire.PongReply)
        return async_client.routing.stats.remembered == 0 and len(async_client.routing.latencies) == 1

    for routing, work in ((client.routing, blocking), (async_client.routing, lambda: asyncio.run(asynchronous()))):
        routing.stats.remembered += 1
        routing.latencies.append(0.01)
        assert in_child(work)()
        assert routing.stats.remembered == 1


@forking
def test_child_requests_the_view_first_whatever_its_parent_has_counted_and_locked(
    client: Client, in_child: InChild
) -> None:
    routing, held, forked = client.routing, threading.Event(), threading.Event()

    def hold() -> None:
        with routing._lock:
            held.set()
            forked.wait(SECONDS)

    routing.stats.remembered += 1
    with ThreadPoolExecutor(1) as threads:
        threads.submit(hold)
        assert held.wait(SECONDS)
        child = in_child(lambda: routing.view_request()[1].remembered == 0)
        forked.set()
    assert child()
    assert routing.stats.remembered == 1


@forking
def test_child_of_an_event_loop_has_connections_of_its_own(async_client: AsyncClient, in_child: InChild) -> None:
    def child_work() -> bool:
        # From Python 3.12 on only Python's own fork ends the parent's loop in the child, as far as asyncio knows.
        asyncio.events._set_running_loop(None)
        return asyncio.run(aexchange(async_client, 1, 100))

    async def parent() -> bool:
        assert await aexchange(async_client, 0, 20)
        child = in_child(child_work)
        mine = await aexchange(async_client, 2, 100)
        return child() and mine

    assert asyncio.run(parent())


@forking
def test_event_loop_that_goes_on_in_a_child_has_connections_of_its_own_there(
    async_client: AsyncClient, in_child: InChild
) -> None:
    with asyncio.Runner() as runner:
        assert runner.run(aexchange(async_client, 0, 20))
        assert in_child(lambda: all(runner.run(aexchange(async_client, 1, 20)) for _ in range(20)))()
        connections = dict(async_client._loops[runner.get_loop()].open)
        assert all(runner.run(aexchange(async_client, 2, 20)) for _ in range(20))
        assert async_client._loops[runner.get_loop()].open == connections
    assert async_client._loops == {}


def test_first_requests_import_nothing_under_a_lock_that_a_forked_child_would_inherit(cluster: LocalCluster) -> None:
    code = """
import asyncio, sys, django
django.setup()
from django.core.cache import cache
from django_clusterstate import events, ratelimit
before = {*sys.modules}
cache.get_many(map(str, range(50)))
ratelimit.hit(ratelimit.Limit.parse("10/s"), "group", "key")
events.track("name", field=1)
events.flush()
asyncio.run(cache.aget("key"))
print(*{*sys.modules} - before)
"""
    command, env = [sys.executable, "-c", code], cluster.env("alpha")
    ended = subprocess.run(command, check=True, env=env, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert ended.stdout == "\n"


@forking
def test_threads_of_a_child_that_come_at_the_same_time_share_no_socket_with_the_parent(
    client: Client, in_child: InChild
) -> None:
    def work(first: int) -> bool:
        start = threading.Barrier(8, timeout=SECONDS)

        def thread(who: int) -> bool:
            start.wait()
            return exchange(client, who, 20)

        with ThreadPoolExecutor(8) as threads:
            return all(threads.map(thread, range(first, first + 8)))

    with ThreadPoolExecutor(8) as threads:  # so that there are several idle connections
        assert all(threads.map(lambda who: exchange(client, who, 20), range(8)))
    children = [in_child(partial(work, first)) for first in (10, 20, 30)]
    assert exchange(client, 9, 100)
    assert all(child() for child in children)


@forking
def test_forked_worker_of_multiprocessing_is_served(client: Client, async_client: AsyncClient) -> None:
    assert exchange(client, 0, 5)
    assert asyncio.run(aexchange(async_client, 0, 5))

    def work() -> None:
        assert exchange(client, 1, 50)
        assert asyncio.run(aexchange(async_client, 1, 50))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(SECONDS)
    process.kill()  # or the interpreter would wait for it at its end
    process.join()
    assert process.exitcode == 0


def runs(run: Callable[[Coroutine[Any, Any, bool]], bool], client: AsyncClient) -> Callable[[int], bool]:
    return lambda who: run(aexchange(client, who, 10))


def test_event_loops_in_a_row_leave_no_socket_open(async_client: AsyncClient) -> None:
    asyncio.run(aexchange(async_client, 0, 10))
    before = open_files()
    for who in range(10):
        assert asyncio.run(aexchange(async_client, who, 10))
        assert async_to_sync(aexchange)(async_client, who, 10)
        assert open_files() <= before
    assert async_client._loops == {}


def test_event_loops_in_parallel_threads_are_served_and_leave_no_socket_open(async_client: AsyncClient) -> None:
    before = open_files()

    def loops(who: int) -> bool:
        run = asyncio.run(aexchange(async_client, who, 50))
        return run and all(async_to_sync(aexchange)(async_client, who, 5) for _ in range(10))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(loops, range(8)))
    assert async_client._loops == {}
    assert open_files() <= before


async def test_calls_that_start_together_share_one_connection(async_client: AsyncClient) -> None:
    target = (await async_client.table()).targets["beta"]
    before = open_files()
    replies = await asyncio.gather(*(async_client.call_node(target, PING) for _ in range(50)))
    assert all(isinstance(reply, wire.PongReply) for reply in replies)
    assert open_files() - before == 1


async def test_busy_loop_is_served(cluster: LocalCluster) -> None:
    client = AsyncClient(Routing(local_socket(cluster)), Dialer(runtime.get_settings().link_keys, 0.5))
    busy = asyncio.create_task(keep_busy(0.25))  # a dial takes several turns
    targets = (await client.table()).targets
    assert set(targets) == set(NODES)
    for target in targets.values():
        assert isinstance(await client.call_node(target, PING), wire.PongReply)
        assert target.failures == 0
    busy.cancel()
    await client.close()


async def test_restart_of_a_node_while_the_loop_is_busy_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "GRACE", SECONDS)  # for a busy machine, which dials once more after the deadline
    connections, asked = itertools.count(), threading.Event()

    def script(sock: Any) -> None:
        if next(connections):
            answering()(sock)
            return
        answers_once(sock).read_frame()
        asked.set()
        take_time(DEADLINE / 2)

    with ScriptedNode(script) as node:
        client, target = AsyncClient(Routing(node.address), Dialer(KEYS, DEADLINE)), Target("n", node.address)
        await client.call_node(target, PING)
        call = asyncio.create_task(client.call_node(target, PING))
        assert await asyncio.to_thread(asked.wait, SECONDS)
        take_time(2 * DEADLINE)
        assert await call == wire.DoneReply(1)
        assert target.failures == 0
        await client.close()


async def test_cancelled_call_leaves_others_their_replies(async_client: AsyncClient) -> None:
    target = (await async_client.table()).targets["beta"]
    for _ in range(2):  # while the connection is made, and after
        cancelled = asyncio.create_task(async_client.call_node(target, PING))
        other = asyncio.create_task(async_client.call_node(target, PING))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert isinstance(await other, wire.PongReply)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    assert target.failures == 0


@pytest.mark.timing
async def test_reply_that_misses_the_callers_own_deadline_is_not_a_failure() -> None:
    with Nodes(answering(), mute) as requests:
        client = AsyncClient(Routing(requests[0][0].address), Dialer(KEYS, 60.0))
        start = time.monotonic()
        replies = await client.call_each(requests, from_now(2))
        assert kinds(replies) == [wire.DoneReply, Unavailable]
        assert str(replies[1]) == f"{requests[1][0]}: no answer in time"
        check_seconds(time.monotonic() - start, below=10)
        assert [target.failures for target, _ in requests] == [0, 0]
        await client.close()


@pytest.mark.timing
async def test_view_that_does_not_come_in_time_is_the_last_one() -> None:
    with ScriptedNode(mute) as node:
        client = AsyncClient(Routing(node.address), Dialer(KEYS, 60.0))
        last = client.routing.table = RoutingTable(NO_VIEW, "", {"n": Target("n", node.address)})
        start = time.monotonic()
        assert await client.table(from_now(0.2)) is last
        check_seconds(time.monotonic() - start, below=10)
        await client.close()


async def test_process_without_a_view_requests_it_twice_within_the_callers_deadline(tmp_path: Path) -> None:
    client = AsyncClient(Routing(UnixAddress(str(tmp_path / "none"))), Dialer(KEYS, 60.0))
    assert (await client.table(from_now(5.0))).targets == {}
    assert client.routing.local.failures == 2


def test_both_clients_of_a_process_share_the_view_and_the_circuit_breakers() -> None:
    members: list[Identity] = []
    requests: list[int] = []
    with ScriptedNode(viewing("a", members, requests)) as node:
        members.append(identity("a", node.address))
        routing = Routing(node.address)
        client, async_client = Client(routing, Dialer(KEYS, 2.0)), AsyncClient(routing, Dialer(KEYS, 2.0))
        assert client.table().view == View.of(members)
        routing.refresh_at = math.inf
        assert asyncio.run(async_client.table()) is client.table()
        assert len(requests) == 1
        gone = Target("gone", TcpAddress("127.0.0.1", free_port()))
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(Refused):
                client.call_node(gone, PING)
        gone.retry_at = math.inf  # however long a busy machine takes
        with pytest.raises(CircuitOpen):
            asyncio.run(async_client.call_node(gone, PING))
        client.close()


async def test_connection_of_an_event_loop_is_closed_when_another_thread_learns_that_its_node_has_left() -> None:
    members: list[Identity] = []
    closed = threading.Event()

    def script(sock: Any) -> None:
        try:
            answering()(sock)
        finally:
            closed.set()

    with ScriptedNode(viewing("a", members)) as node, ScriptedNode(script) as other:
        members += [identity("a", node.address), identity("b", other.address)]
        routing = Routing(node.address)
        client, async_client = Client(routing, Dialer(KEYS, 2.0)), AsyncClient(routing, Dialer(KEYS, 60.0))
        target = (await async_client.table()).targets["b"]
        await async_client.call_node(target, PING)
        async_client._deadline = 0.1  # after which the connection is closed
        connection = async_client._loops[asyncio.get_running_loop()].open[target]
        del members[1:]
        routing.refresh_at = 0.0
        assert set((await asyncio.to_thread(client.table)).targets) == {"a"}
        assert await asyncio.to_thread(closed.wait, 60)
        assert connection.closed
        assert target not in async_client._loops[asyncio.get_running_loop()].open
        client.close()
        await async_client.close()


async def test_connection_to_a_node_that_has_left_is_closed_though_it_is_made_later() -> None:
    ended = threading.Event()

    def script(sock: Any) -> None:
        try:
            answering()(sock)
        finally:
            ended.set()

    with ScriptedNode(script) as node:
        client = AsyncClient(Routing(node.address), Dialer(KEYS, 1.0))
        left = Target("b", node.address)  # of a task with an earlier table
        await client.call_node(left, PING)
        assert await asyncio.to_thread(ended.wait, SECONDS)
        assert left not in client._loops[asyncio.get_running_loop()].open
        await client.close()


async def test_closed_client_can_be_used_again(async_client: AsyncClient) -> None:
    before = open_files()
    for _ in range(2):
        assert await aexchange(async_client, 0, 5)
        await async_client.close()
        await async_client.close()
        assert open_files() == before


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_loop_that_ended_without_shutdown_is_dropped(async_client: AsyncClient) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(aexchange(async_client, 0, 5))
    loop.close()
    assert asyncio.run(aexchange(async_client, 1, 5))
    assert async_client._loops == {}
    del loop
    gc.collect()


def test_loop_that_two_threads_drop_at_once_leaves_no_generator_behind() -> None:
    class Contended(PerLoop[object]):
        def pop(self, loop: Loop, default: Any = None) -> Any:
            made = super().pop(loop, default)
            self._drop(loop)  # by another thread
            return made

    async def close(made: object) -> None:
        pass

    loops, loop = Contended(object, close), asyncio.new_event_loop()
    loop.run_until_complete(loops.start())
    closer: Any = loops._closers[loop]
    loop.close()
    loops._drop(loop)
    assert closer.ag_frame is None


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_loops_that_are_never_closed_are_bounded(async_client: AsyncClient) -> None:
    before = open_files()
    first = asyncio.new_event_loop()
    for number in range(3 * MAX_LOOPS):
        loop = asyncio.new_event_loop() if number else first
        assert loop.run_until_complete(aexchange(async_client, number, 1))
    assert len(async_client._loops) <= MAX_LOOPS + 1
    del loop
    gc.collect()
    assert open_files() - before <= 7 * (MAX_LOOPS + 2)  # three connections, and what a loop itself has open
    assert first.run_until_complete(aexchange(async_client, 0, 5))
    first.close()
    for loop in list(async_client._loops):
        loop.close()
    assert asyncio.run(aexchange(async_client, 1, 5))
    assert async_client._loops == {}
    del first, loop
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_loop_that_ends_while_connecting_logs_nothing_about_our_tasks(
    async_client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin() -> None:
        call = asyncio.create_task(async_client.call_node(Target("silent", node.address), PING))
        await asyncio.to_thread(node.until_accepted, 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    with ScriptedNode(wait_for_the_end) as node:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        del loop
        assert asyncio.run(aexchange(async_client, 1, 1))  # drops what belongs to the loop that has ended
        gc.collect()
    assert caplog.text == ""
