"""One contract for both clients, on three real nodes and against nodes that misbehave on purpose."""

import asyncio
import gc
import itertools
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from asgiref.sync import async_to_sync

from django_clusterstate import conf
from django_clusterstate.client.aio import AsyncClient, from_now
from django_clusterstate.client.routing import FAILURES_TO_OPEN, HALF_OPEN_AFTER, Routing, Table, Target
from django_clusterstate.client.sync import Client
from django_clusterstate.core.hrw import Rendezvous
from django_clusterstate.core.messages import NO_VIEW, Identity, View
from django_clusterstate.exceptions import ClusterStateError, ProtocolError, Unavailable
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import Address, TcpAddress, UnixAddress
from django_clusterstate.wire.framing import frame
from testproject.processes import LocalCluster, free_port
from tests.conftest import NODES
from tests.peers import (
    KEYS,
    Script,
    ScriptedNode,
    answering,
    keep_busy,
    read_frame,
    shake_hands,
    take_time,
    wait_for_the_end,
)

PING = frame(wire.encode(wire.Ping()))
T = TypeVar("T")


class Clock:
    """The monotonic clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Requester(Protocol):
    """What both can do."""

    clock: Clock

    @property
    def routing(self) -> Routing: ...
    def call(self, key: bytes, request: bytes) -> wire.Reply: ...
    def call_node(self, target: Target, request: bytes) -> wire.Reply: ...
    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[wire.Reply | ClusterStateError]: ...
    def table(self) -> Table: ...
    def close(self) -> None: ...


class Sync(Client):
    def __init__(self, local: Address, keys: Sequence[bytes], deadline: float) -> None:
        self.clock = Clock()
        super().__init__(local, keys, deadline, self.clock)


class Async:
    """The asyncio client, in one event loop."""

    def __init__(self, local: Address, keys: Sequence[bytes], deadline: float) -> None:
        self.clock = Clock()
        self._client = AsyncClient(local, keys, deadline, self.clock)
        self._runner = asyncio.Runner()

    @property
    def routing(self) -> Routing:
        return self._client.routing

    def call(self, key: bytes, request: bytes) -> wire.Reply:
        return self._runner.run(self._client.call(key, request))

    def call_node(self, target: Target, request: bytes) -> wire.Reply:
        return self._runner.run(self._client.call_node(target, request))

    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[wire.Reply | ClusterStateError]:
        return self._runner.run(self._client.call_each(requests))

    def table(self) -> Table:
        return self._runner.run(self._client.table())

    def close(self) -> None:
        self._runner.close()


Make = Callable[..., Requester]


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Requester] = []

    def make(local: Address, keys: Sequence[bytes] = KEYS, deadline: float = 2.0) -> Requester:
        made.append(request.param(local, keys, deadline))
        return made[-1]

    yield make
    for requester in made:
        requester.close()


def local_socket(cluster: LocalCluster, name: str = "alpha") -> UnixAddress:
    return UnixAddress(str(cluster.socket(name)))


@pytest.fixture
def requester(make: Make, cluster: LocalCluster) -> Requester:
    return make(local_socket(cluster), conf.get_settings().link_keys)


def set_request(key: bytes, value: wire.Value) -> bytes:
    return frame(wire.encode(wire.Set([(key, value)], 30.0)))


def get_request(*keys: bytes) -> bytes:
    return frame(wire.encode(wire.Get(list(keys))))


def values(reply: wire.Reply | ClusterStateError) -> list[wire.Value | None]:
    assert isinstance(reply, wire.Values)
    return reply.values


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# -- three real nodes -----------------------------------------------------------------------------------------


def test_first_call_learns_who_serves(requester: Requester) -> None:
    requester.call(b"k", get_request(b"k"))
    table = requester.table()
    assert [member.name for member in table.view.members] == sorted(NODES)
    assert table.local_name == "alpha"
    assert requester.routing.epoch == table.view.epoch != 0


def test_each_key_lives_at_its_owner_and_nowhere_else(requester: Requester) -> None:
    keys = [b"owners\0%d" % number for number in range(40)]
    for key in keys:
        requester.call(key, set_request(key, key))
    table = requester.table()
    holders = {name: values(requester.call_node(table.targets[name], get_request(*keys))) for name in NODES}
    for index, key in enumerate(keys):
        owner = table.owner(key)
        assert owner is not None
        assert [name for name in NODES if holders[name][index] == key] == [owner.name]
    assert {owner.name for key in keys if (owner := table.owner(key))} == set(NODES)


def test_requests_to_several_nodes_bring_their_replies_in_order(requester: Requester) -> None:
    for _ in range(2):  # without and with connections at hand
        targets = list(requester.table().targets.values())
        replies = requester.call_each([(target, PING) for target in targets])
        names = [reply.identity.name for reply in replies if isinstance(reply, wire.Pong)]
        assert names == [target.name for target in targets]
    assert requester.call_each([]) == []


def test_long_replies_of_several_nodes_arrive_whole(requester: Requester) -> None:
    value = b"x" * 1024 * 1024
    targets = list(requester.table().targets.values())
    requests = [(target, set_request(b"long\0" + target.name.encode(), value)) for target in targets]
    assert all(isinstance(reply, wire.Flags) for reply in requester.call_each(requests))
    for _ in range(3):
        replies = requester.call_each([(target, get_request(b"long\0" + target.name.encode())) for target in targets])
        assert [values(reply) for reply in replies] == [[value]] * 3


def test_same_node_may_be_asked_several_times_at_once(requester: Requester) -> None:
    target = requester.table().targets["beta"]
    replies = requester.call_each([(target, set_request(b"k%d" % number, number)) for number in range(10)])
    assert all(isinstance(reply, wire.Flags) for reply in replies)


def test_without_its_local_node_the_view_comes_from_another(requester: Requester) -> None:
    table = requester.table()
    key = next(b"%d" % n for n in range(100) if (owner := table.owner(b"%d" % n)) and owner.name == "beta")
    gone = UnixAddress("/nowhere/node.sock")
    requester.routing.local.address = gone
    if isinstance(requester, Client):
        requester.close()
    before = requester.routing.refresh_at
    requester.clock.ahead += 1.5
    assert isinstance(requester.call(key, set_request(key, 1)), wire.Flags)
    assert requester.routing.refresh_at > before
    assert requester.table().local_name == "alpha"  # it is still this host's, though nobody answers there


def test_nobody_there_is_said_so(make: Make, tmp_path: Path) -> None:
    requester = make(UnixAddress(str(tmp_path / "none.sock")))
    with pytest.raises(Unavailable, match=r"no cluster: .* Start one with: manage\.py clusternode"):
        requester.call(b"k", PING)
    assert requester.table().targets == {}
    with pytest.raises(Unavailable, match=r"the local node at .*none\.sock"):
        requester.call_node(requester.routing.local, PING)


def test_error_is_a_connection_error_and_names_the_node(make: Make) -> None:
    address = TcpAddress("127.0.0.1", free_port())
    with pytest.raises(ConnectionError, match=f"node x at {address}: no node at {address}"):
        make(address).call_node(Target("x", address), PING)


# -- nodes that misbehave -------------------------------------------------------------------------------------

DEADLINE = 0.25
AT_LATEST = DEADLINE + 0.12  # a machine that runs tests is busy


def mute(sock: Any) -> None:
    shake_hands(sock)
    wait_for_the_end(sock)


def answers_once(sock: Any) -> None:
    shake_hands(sock)
    read_frame(sock)
    sock.sendall(frame(wire.encode(wire.Done(1))))


def stopped_after_one_answer() -> Script:
    connections = itertools.count()

    def script(sock: Any) -> None:
        if next(connections) == 0:
            answers_once(sock)
        wait_for_the_end(sock)

    return script


def adopt(requester: Requester, *targets: Target) -> None:
    """Makes these the nodes that the requester knows, and whose connections it closes in the end."""
    requester.routing.table = Table(NO_VIEW, "", {target.name: target for target in targets})


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
    return [type(reply) for reply in replies]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_node_that_is_stopped_takes_no_time_and_no_blame_of_the_others(make: Make, warm: bool, position: int) -> None:
    scripts = [answering(), answering()]
    scripts.insert(position, stopped_after_one_answer() if warm else mute)
    with Nodes(*scripts) as requests:
        requester = make(requests[0][0].address, deadline=DEADLINE)
        adopt(requester, *(target for target, _ in requests))
        stopped = requests[position][0]
        others = [target for target, _ in requests if target is not stopped]
        if warm:
            assert kinds(requester.call_each(requests)) == [wire.Done] * 3
        else:
            for target in others:
                requester.call_node(target, PING)
        took = []
        for failures in range(1, FAILURES_TO_OPEN + 1):
            start = time.monotonic()
            replies = requester.call_each(requests)
            took.append(time.monotonic() - start)
            assert kinds(replies).index(Unavailable) == position
            assert kinds(replies).count(wire.Done) == 2
            assert stopped.failures == failures
            assert [target.failures for target in others] == [0, 0]
        assert statistics.median(took) < AT_LATEST
        requester.close()


@pytest.mark.parametrize("warm", [False, True])
def test_nodes_that_are_stopped_take_one_deadline_together(make: Make, warm: bool) -> None:
    with Nodes(*(stopped_after_one_answer() if warm else mute for _ in range(12))) as requests:
        requester = make(requests[0][0].address, deadline=DEADLINE)
        adopt(requester, *(target for target, _ in requests))
        if warm:
            assert kinds(requester.call_each(requests)) == [wire.Done] * 12
        start = time.monotonic()
        assert kinds(requester.call_each(requests)) == [Unavailable] * 12
        assert time.monotonic() - start < AT_LATEST
        requester.close()


def test_connection_that_the_node_has_closed_is_replaced(make: Make) -> None:
    with ScriptedNode(answers_once) as node:
        requester = make(node.address)
        target = Target("n", node.address)
        for number in range(1, 4):
            assert requester.call_node(target, PING) == wire.Done(1)
            assert node.accepted == number
        other = Target("other", node.address)
        adopt(requester, target, other)
        for _ in range(2):
            assert kinds(requester.call_each([(target, PING), (other, PING)])) == [wire.Done] * 2
        assert target.failures == other.failures == 0
        requester.close()


def test_answer_that_makes_no_sense_is_a_failure_of_the_node(make: Make) -> None:
    with ScriptedNode(answering(lambda number: frame(b"nonsense"))) as node:
        requester = make(node.address)
        target = Target("n", node.address)
        with pytest.raises(ProtocolError, match="node n at .* a reply that can't be read"):
            requester.call_node(target, PING)
        assert target.failures == 1
        requester.close()


def test_time_of_each_exchange_is_kept_and_of_none_that_was_not_tried(make: Make) -> None:
    with ScriptedNode(mute) as mute_node, ScriptedNode(answering()) as node:
        requester = make(mute_node.address, deadline=0.05)
        waits = requester.routing.waits
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(Unavailable):
                requester.call_node(requester.routing.local, PING)
        with pytest.raises(Unavailable, match="left alone"):
            requester.call_node(requester.routing.local, PING)
        assert len(waits) == FAILURES_TO_OPEN
        assert max(waits) >= 0.05
        one, two = Target("one", node.address), Target("two", node.address)
        adopt(requester, one, two)
        requester.call_node(one, PING)
        requester.call_each([(one, PING), (two, PING)])
        assert len(waits) == FAILURES_TO_OPEN + 3
        assert min(waits) > 0
        requester.close()


def test_what_was_counted_is_told_once_whoever_asks_meanwhile_and_kept_if_nobody_answers(tmp_path: Path) -> None:
    told = []

    def script(sock: Any) -> None:
        shake_hands(sock)
        while True:
            request = wire.decode_request(read_frame(sock))
            assert isinstance(request, wire.GetView)
            told.append(request.tally.too_big if request.tally else 0)
            take_time(0.05)
            sock.sendall(frame(wire.encode(wire.Viewed(1, (), "n"))))

    async def ask(client: AsyncClient) -> None:
        await asyncio.gather(*(client.table() for _ in range(5)))
        await client.close()

    nowhere = UnixAddress(str(tmp_path / "none"))
    with ScriptedNode(script) as node:
        client, async_client = Client(nowhere, KEYS, 1.0), AsyncClient(nowhere, KEYS, 1.0)
        for routing in (client.routing, async_client.routing):
            routing.untold.tally.too_big += 1
        client.table()
        asyncio.run(async_client.table())
        for routing in (client.routing, async_client.routing):
            assert routing.untold.tally.too_big == 1
            routing.local = Target("", node.address)
        with ThreadPoolExecutor(5) as threads:
            list(threads.map(lambda _: client.table(), range(5)))
        assert sum(told) == 1
        asyncio.run(ask(async_client))
        assert sum(told) == 2
        client.close()


def test_breaker_spares_the_deadline_and_lets_one_try_in_each_interval(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a try may be over before a busy machine has dialled.
    monkeypatch.setattr("django_clusterstate.client.routing.FIRST_TRY", 1)
    with ScriptedNode(mute) as node:
        requester = make(node.address, deadline=0.05)
        target = requester.routing.local
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(Unavailable, match="no answer within the deadline"):
                requester.call_node(target, PING)
        tried = node.accepted
        for _ in range(20):
            with pytest.raises(Unavailable, match="left alone"):
                requester.call_node(target, PING)
            assert kinds(requester.call_each([(target, PING), (target, PING)])) == [Unavailable] * 2
        assert node.accepted == tried
        requester.clock.ahead += HALF_OPEN_AFTER
        with pytest.raises(Unavailable, match="no answer within the deadline"):
            requester.call_node(target, PING)
        with pytest.raises(Unavailable, match="left alone"):
            requester.call_node(target, PING)
        node.until_accepted(tried + 1)
        requester.close()


def test_breaker_closes_with_the_first_answer(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    requester = make(TcpAddress("127.0.0.1", free_port()))
    target = requester.routing.local
    with caplog.at_level("INFO", "django_clusterstate.client"):
        for _ in range(FAILURES_TO_OPEN + 1):
            with pytest.raises(Unavailable):
                requester.call_node(target, PING)
        with ScriptedNode(answering()) as node:
            target.address = node.address
            requester.clock.ahead += HALF_OPEN_AFTER
            assert requester.call_node(target, PING) == wire.Done(1)
            assert requester.call_node(target, PING) == wire.Done(2)
            requester.close()
    assert target.failures == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_stopped_local_node_costs_one_deadline_and_the_others_no_blame(make: Make) -> None:
    with ScriptedNode(answering()) as owner:
        view = View.of([Identity("local", b"l" * 16, "127.0.0.1:1"), Identity("owner", b"o" * 16, str(owner.address))])
        key = next(key for key in map(bytes, range(9)) if Rendezvous({"local": 1, "owner": 1}).owner(key) == "owner")

        def local(sock: Any) -> None:
            shake_hands(sock)
            read_frame(sock)
            sock.sendall(frame(wire.encode(wire.Viewed(view.epoch, view.members, "local"))))
            wait_for_the_end(sock)

        with ScriptedNode(local) as stopped:
            requester = make(stopped.address, deadline=DEADLINE)
            target = requester.table().targets["owner"]
            took = []
            for _ in range(FAILURES_TO_OPEN + 1):
                requester.clock.ahead += 1.5
                start = time.monotonic()
                assert isinstance(requester.call(key, PING), wire.Done)
                took.append(time.monotonic() - start)
                assert target.failures == 0
            assert statistics.median(took) < AT_LATEST
            requester.close()


# -- nodes that don't serve -----------------------------------------------------------------------------------


def viewing(name: str, members: Sequence[Identity], told: list[int] | None = None) -> Script:
    """A node that gives a view of what the members are then, and answers everything else with `Done`. `told` takes what
    it is told of values that were too big."""

    def script(sock: Any) -> None:
        shake_hands(sock)
        while True:
            request, view = wire.decode_request(read_frame(sock)), View.of(members)
            reply: wire.Reply = wire.Done(view.epoch)
            if isinstance(request, wire.GetView):
                reply = wire.Viewed(view.epoch, view.members, name)
                if told is not None:
                    told.append(request.tally.too_big if request.tally else 0)
            sock.sendall(frame(wire.encode(reply)))

    return script


def identity(name: str, address: object) -> Identity:
    return Identity(name, name.encode() * 16, str(address))


def test_process_that_starts_beside_a_joining_node_has_the_view_of_one_that_serves(make: Make) -> None:
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
def test_view_of_a_node_that_joins_or_leaves_replaces_no_better_one(make: Make, half: str) -> None:
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


def test_process_beside_a_joining_node_has_no_view_while_nobody_serves(make: Make) -> None:
    with ScriptedNode(viewing("joiner", [identity("gone", f"127.0.0.1:{free_port()}")])) as joiner:
        requester = make(joiner.address)
        assert requester.table().view == NO_VIEW
        with pytest.raises(Unavailable, match="no cluster"):
            requester.call(b"k", PING)
        requester.close()


def test_what_was_counted_is_told_to_one_node_though_several_are_asked(make: Make) -> None:
    members: list[Identity] = []
    told: list[int] = []
    with ScriptedNode(viewing("a", members, told)) as node, ScriptedNode(viewing("joiner", members, told)) as joiner:
        members.append(identity("a", node.address))
        requester = make(joiner.address)
        requester.routing.untold.tally.too_big = 1
        assert requester.table().view == View.of(members)
        assert told == [1, 0]
        requester.close()


# -- threads, processes, event loops --------------------------------------------------------------------------


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    client = Client(local_socket(cluster), conf.get_settings().link_keys, 5.0)
    yield client
    client.close()


@pytest.fixture
def async_client(cluster: LocalCluster) -> AsyncClient:
    return AsyncClient(local_socket(cluster), conf.get_settings().link_keys, 5.0)


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
            if [reply.identity.name for reply in replies if isinstance(reply, wire.Pong)] != [t.name for t in targets]:
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
    start = threading.Barrier(150)

    def dial(_: int) -> bool:
        start.wait()
        target = client.routing.table.targets["beta"]
        return isinstance(client.call_node(target, PING), wire.Pong)

    client.table()
    with ThreadPoolExecutor(150) as threads:
        assert all(threads.map(dial, range(150)))
    assert all(len(target.pool) <= 64 for target in client.routing.table.targets.values())


def in_child(work: Callable[[], bool]) -> Callable[[], bool]:
    """Starts the work in a forked child. Returns how to ask whether all went well."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@forking
def test_child_and_parent_never_share_a_socket(client: Client) -> None:
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
    assert in_child(lambda: not any(target.pool for target in targets))()
    assert any(target.pool for target in targets)


def has_nothing_to_tell(routing: Routing) -> bool:
    return not routing.untold.tally.remembered and not routing.waits


@forking
def test_child_tells_nothing_that_its_parent_has_counted(client: Client, async_client: AsyncClient) -> None:
    for routing in (client.routing, async_client.routing):
        routing.untold.tally.remembered += 1
        routing.waits.append(0.01)
        assert in_child(partial(has_nothing_to_tell, routing))()
        assert routing.untold.tally.remembered == 1


@forking
def test_child_of_an_event_loop_has_connections_of_its_own(async_client: AsyncClient) -> None:
    async def parent() -> bool:
        assert await aexchange(async_client, 0, 20)
        child = in_child(lambda: asyncio.run(aexchange(async_client, 1, 100)))
        mine = await aexchange(async_client, 2, 100)
        return child() and mine

    assert asyncio.run(parent())


@forking
def test_forked_worker_of_multiprocessing_is_served(client: Client, async_client: AsyncClient) -> None:
    assert exchange(client, 0, 5)
    assert asyncio.run(aexchange(async_client, 0, 5))

    def work() -> None:
        assert exchange(client, 1, 50)
        assert asyncio.run(aexchange(async_client, 1, 50))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
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
    assert all(isinstance(reply, wire.Pong) for reply in replies)
    assert open_files() - before == 1


async def test_busy_loop_is_served(cluster: LocalCluster) -> None:
    client = AsyncClient(local_socket(cluster), conf.get_settings().link_keys, DEADLINE)
    busy = asyncio.create_task(keep_busy(DEADLINE / 2))  # a dial takes several turns
    targets = (await client.table()).targets
    assert set(targets) == set(NODES)
    for target in targets.values():
        assert isinstance(await client.call_node(target, PING), wire.Pong)
        assert target.failures == 0
    busy.cancel()
    await client.close()


async def test_node_that_restarts_while_the_loop_is_busy_is_not_to_blame() -> None:
    connections = itertools.count()

    def script(sock: Any) -> None:
        if next(connections):
            answering()(sock)
            return
        answers_once(sock)
        read_frame(sock)
        take_time(DEADLINE / 2)

    with ScriptedNode(script) as node:
        client, target = AsyncClient(node.address, KEYS, DEADLINE), Target("n", node.address)
        await client.call_node(target, PING)
        call = asyncio.create_task(client.call_node(target, PING))
        await asyncio.sleep(0.01)  # it is sent
        take_time(2 * DEADLINE)
        assert await call == wire.Done(1)
        assert target.failures == 0
        await client.close()


async def test_cancelled_call_harms_no_other(async_client: AsyncClient) -> None:
    target = (await async_client.table()).targets["beta"]
    for _ in range(2):  # while the connection is made, and after
        cancelled = asyncio.create_task(async_client.call_node(target, PING))
        other = asyncio.create_task(async_client.call_node(target, PING))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert isinstance(await other, wire.Pong)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    assert target.failures == 0


async def test_who_waits_less_long_than_the_deadline_blames_nobody() -> None:
    with Nodes(answering(), mute) as requests:
        client = AsyncClient(requests[0][0].address, KEYS, 60.0)
        start = time.monotonic()
        replies = await client.call_each(requests, from_now(0.2))
        assert kinds(replies) == [wire.Done, Unavailable]
        assert str(replies[1]) == f"{requests[1][0]}: no answer in time"
        assert time.monotonic() - start < 10
        assert [target.failures for target, _ in requests] == [0, 0]
        await client.close()


async def test_view_that_does_not_come_in_time_is_the_last_one() -> None:
    with ScriptedNode(mute) as node:
        client = AsyncClient(node.address, KEYS, 60.0)
        last = client.routing.table = Table(NO_VIEW, "", {"n": Target("n", node.address)})
        start = time.monotonic()
        assert await client.table(from_now(0.2)) is last
        assert time.monotonic() - start < 10
        await client.close()


async def test_who_knows_no_view_and_does_not_wait_long_asks_twice(tmp_path: Path) -> None:
    client = AsyncClient(UnixAddress(str(tmp_path / "none")), KEYS, 60.0)
    assert (await client.table(from_now(5.0))).targets == {}
    assert client.routing.local.failures == 2


async def test_closed_client_can_be_used_again(async_client: AsyncClient) -> None:
    before = open_files()
    for _ in range(2):
        assert await aexchange(async_client, 0, 5)
        await async_client.close()
        await async_client.close()
        assert open_files() == before


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_loop_that_ended_without_a_farewell_is_forgotten(async_client: AsyncClient) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(aexchange(async_client, 0, 5))
    loop.close()
    assert asyncio.run(aexchange(async_client, 1, 5))
    assert async_client._loops == {}
    del loop
    gc.collect()
