"""Real sockets, hostile peers: they cost a constant, and the others are served as if they weren't there."""

import asyncio
import contextlib
import itertools
import os
import random
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from django_clusterstate.core.membership.heartbeat import Identity
from django_clusterstate.core.membership.members import Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.exceptions import ProtocolError, Unavailable
from django_clusterstate.node import coalescing
from django_clusterstate.node import server as module
from django_clusterstate.node.channels.requests import Requester
from django_clusterstate.node.config import NodeConfig, NodeError
from django_clusterstate.node.connection_slots import SourceKind
from django_clusterstate.node.handler import Handler, resident_bytes
from django_clusterstate.node.late_replies import MAX_WAITING
from django_clusterstate.node.links import Links, Peer
from django_clusterstate.node.log import RateLimitedLog
from django_clusterstate.node.problems import Misdirected
from django_clusterstate.node.server import Server
from django_clusterstate.node.socket_file import SocketFile
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.aio import AsyncConnection, connect
from django_clusterstate.wire.derived_keys import derive_link_keys
from django_clusterstate.wire.framing import HANDSHAKE_LIMIT, HEADER, MAX_FRAME, MAX_REQUEST, frame
from django_clusterstate.wire.handshake import Hello, Role
from testproject.processes import free_port
from tests.node.logs import KeptLog
from tests.timing import check_seconds

KEYS = derive_link_keys(["the secret"], "default")
PING = frame(wire.encode(wire.Ping()))
MIB = 1024 * 1024
SECONDS = 60.0


class NoPeers:
    misdirected: Mapping[str, Misdirected] = {}
    log = RateLimitedLog(lambda: 0.0, 60.0)

    def fan_out(self, message: wire.Deliver) -> None: ...
    def forward(self, tag: str, message: wire.Forward) -> None: ...
    def redial(self, name: str) -> None: ...
    def copies(self) -> Iterable[tuple[bytes, AsyncConnection]]:
        return ()


class Running:
    """A server on both kinds of sockets, with a handler behind it and no cluster."""

    def __init__(self, folder: Path) -> None:
        self.unix = UnixAddress(str(folder / "node.sock"))
        self.tcp = TcpAddress("127.0.0.1", free_port())
        config = NodeConfig("alpha", "default", self.tcp, self.tcp, self.unix, KEYS, (), Timings())
        membership = Membership(Identity("alpha", b"boot" * 4, str(self.tcp)), Timings(), time.monotonic() - 2)
        effects = membership.tick(time.monotonic())
        self.handler = Handler(config, membership, time.monotonic, NoPeers())
        self.handler.take_effects(effects)
        log = KeptLog()
        self.reports = log.lines
        self.dialed: list[asyncio.StreamWriter] = []
        self.dialed_by: list[Hello] = []
        self.server = Server(self.handler, KEYS, log, self.dialed_by.append)

    async def start(self) -> None:
        await self.server.listen(self.unix)
        await self.server.listen(self.tcp)

    @property
    def refused(self) -> int:
        return self.handler.stats.refused

    async def friend(self) -> AsyncConnection:
        """A peer, which may send what only nodes send."""
        return await connect(self.tcp, KEYS, SECONDS, hello=Hello(Role.NODE, name="beta", boot=os.urandom(16)))

    async def requester(self) -> AsyncConnection:
        return await connect(self.tcp, KEYS, SECONDS)

    async def stranger(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connected, and challenged."""
        reader, writer = await asyncio.open_connection(*self.tcp)
        self.dialed.append(writer)
        size = int.from_bytes(await reader.readexactly(HEADER), "big")
        await reader.readexactly(size)
        return reader, writer

    async def serves(self) -> bool:
        """Whether somebody new is served on both sockets."""
        for address in (self.tcp, self.unix):
            connection = await connect(address, KEYS, SECONDS)
            reply = await connection.request(PING)
            connection.close()
            assert isinstance(reply, wire.PongReply)
        return True


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cs-") as name:
        yield Path(name)


@pytest.fixture
async def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """With more time for both sides, which share one loop; tests of what is too late set less."""
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", SECONDS)
    monkeypatch.setattr(module, "READ_TIMEOUT", SECONDS)
    running = Running(folder)
    await running.start()
    yield running
    for writer in running.dialed:
        writer.close()
    running.server.close()
    # The transports end in the loop's next turns.
    await until(lambda: not running.server.connections and not running.server.unauthenticated)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def closed(reader: asyncio.StreamReader, seconds: float = 30) -> bool:
    """Whether the node closes the connection in time; what it says before doesn't matter."""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(65536):
                pass
    return True


# -- strangers ------------------------------------------------------------------------------------------------


async def test_connections_that_say_nothing_are_closed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", 0.2)
    strangers = [await running.stranger() for _ in range(50)]
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", SECONDS)
    assert await running.serves()
    assert all([await closed(reader) for reader, _ in strangers])
    assert not running.server.unauthenticated
    assert running.refused == 50


async def test_connection_that_says_a_byte_now_and_then_is_closed_as_well(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", 0.2)
    reader, writer = await running.stranger()
    end = asyncio.create_task(closed(reader))
    for byte in frame(b"x" * 8000):  # it takes over two minutes
        if end.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    assert await end
    assert not running.reports
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", SECONDS)
    assert await running.serves()


async def test_silent_strangers_keep_nobody_out(running: Running) -> None:
    before = resident_bytes()
    strangers = [await running.stranger() for _ in range(module.MAX_UNAUTHENTICATED + 40)]
    assert len(running.server.unauthenticated) == module.MAX_UNAUTHENTICATED
    assert await running.serves()
    assert all([await closed(reader) for reader, _ in strangers[:40]])  # those who had been silent for longest
    assert not strangers[-1][0].at_eof()
    assert resident_bytes() - before < len(strangers) * 256 * 1024  # the test's own side of them included


async def test_strangers_that_begin_to_say_something_keep_nobody_out_either(running: Running) -> None:
    running.server.unauthenticated.most = 10
    strangers = [await running.stranger() for _ in range(10)]
    for _, writer in strangers:
        writer.write(b"\0")
    held = list(running.server.unauthenticated)
    await until(lambda: all(stranger._deframer.pending for stranger in held))
    assert await running.serves()
    assert await closed(strangers[0][0])  # the oldest
    assert not strangers[-1][0].at_eof()


async def test_herd_that_dials_at_once_is_served(running: Running) -> None:
    connections = await asyncio.gather(*(running.friend() for _ in range(200)))
    replies = await asyncio.gather(*(connection.request(PING) for connection in connections))
    assert all(isinstance(reply, wire.PongReply) for reply in replies)
    assert running.handler.stats.connections == 200
    assert running.refused == 0
    for connection in connections:
        connection.close()
    await until(lambda: running.handler.stats.connections == 0)


async def from_host(running: Running, host: str) -> AsyncConnection:
    """Somebody who knows the secret, on that host."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: AsyncConnection(KEYS, SECONDS), *running.tcp, local_addr=(host, 0)
    )
    await connection.ready
    return connection


async def is_served(connection: AsyncConnection) -> bool:
    try:
        return isinstance(await connection.request(PING), wire.PongReply)
    except Unavailable:
        return False


async def test_no_more_connections_than_the_limit(running: Running) -> None:
    running.server.connections.most = 2
    friends = [await running.requester(), await running.requester()]
    with pytest.raises(Unavailable):
        await running.requester()  # both are in use, and all are of one host
    assert running.refused == 1
    assert await is_served(friends[0])
    third = await running.requester()
    assert await is_served(third)  # in place of the one that has done nothing since
    assert [await is_served(friend) for friend in friends] == [True, False]
    assert running.handler.stats.connections_evicted == 1
    assert running.handler.stats.connections == 2
    for friend in (*friends, third):
        friend.close()


async def test_host_that_takes_all_connections_keeps_nobody_else_out(running: Running) -> None:
    running.server.connections.most = 40
    hog = [await from_host(running, "127.0.0.9") for _ in range(40)]
    assert [await is_served(connection) for connection in hog] == [True] * 40
    other = await from_host(running, "127.0.0.2")
    assert await is_served(other)  # another host
    local = await connect(running.unix, (), SECONDS)
    assert await is_served(local)  # this host's own processes
    opened: list[Peer] = []
    links = Links(
        Identity("x", b"x", "there:1"),
        KEYS,
        time.monotonic,
        lambda peer, _: opened.append(peer),
        lambda _: None,
        KeptLog(),
    )
    links.add([str(running.tcp)])
    await until(lambda: bool(opened))  # a peer
    links.fan_out(wire.Deliver(GROUP, b"1", 60, 10_000))
    links.fan_out(wire.Deliver("chat", b"1", 60, 10_000))
    await until(lambda: nodes(running) == 3)
    more = []
    for _ in range(60):
        with contextlib.suppress(Unavailable):
            more.append(await from_host(running, "127.0.0.9"))
            await is_served(more[-1])
    assert await is_served(other)
    assert await is_served(local)
    assert nodes(running) == 3
    assert len(running.server.connections) == 40
    assert running.handler.stats.connections_evicted > 0
    told = [report for report in running.reports if "connections are in use, most of them by" in report]
    assert told
    assert all("by 127.0.0.9:" in report for report in told)
    assert len(set(told)) == 1  # the node says the same once in ten minutes
    await links.close()
    for connection in (*hog, *more, other, local):
        connection.close()
    await until(lambda: not running.server.connections)
    assert running.handler.channels.waiters == 0


def nodes(running: Running) -> int:
    connections = running.server.connections
    return sum(connections.sources[connection].kind is SourceKind.NODE for connection in connections)


async def test_evicted_connection_leaves_nothing_behind(running: Running) -> None:
    running.server.connections.most = 2
    waiting = [await from_host(running, "127.0.0.9") for _ in range(2)]
    for connection in waiting:
        connection.request(frame(wire.encode(wire.Receive("a", 60)))).add_done_callback(lambda done: done.exception())
    await until(lambda: running.handler.channels.waiters == 2)
    other = await from_host(running, "127.0.0.2")
    await until(lambda: running.handler.channels.waiters == 1)
    for connection in (*waiting, other):
        connection.close()


async def test_silent_strangers_of_one_host_give_way_to_those_of_another(running: Running) -> None:
    running.server.unauthenticated.most = 10
    first, _ = await running.stranger()
    writers = []
    for _ in range(30):
        reader, writer = await asyncio.open_connection(*running.tcp, local_addr=("127.0.0.9", 0))
        writers.append(writer)
        await reader.readexactly(HEADER)
    assert len(running.server.unauthenticated) == 10
    assert not first.at_eof()
    sources = {running.server.unauthenticated.sources[stranger].name for stranger in running.server.unauthenticated}
    assert sources == {"127.0.0.1", "127.0.0.9"}
    assert await running.serves()
    for writer in writers:
        writer.close()


async def test_host_that_is_gone_without_a_word_is_noticed(running: Running) -> None:
    friend = await running.friend()
    (connection,) = running.server.connections
    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, interval, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert idle + interval * count <= 60
    friend.close()


async def test_health_check_by_http_is_told_where_to_go(running: Running) -> None:
    for said, told in (
        (b"GET /health HTTP/1.1\r\nHost: node\r\n\r\n", "it sent an HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "it sent a TLS hello"),
    ):
        reader, writer = await running.stranger()
        writer.write(said)
        assert await closed(reader)
        assert running.reports.pop().startswith(f"connection from 127.0.0.1 closed: {told}, but this port speaks only")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"\xff\xff\xff\xff",
        (HANDSHAKE_LIMIT + 1).to_bytes(HEADER, "big"),
        frame(b""),
        frame(b"\x91" * HANDSHAKE_LIMIT),
        frame(b"\x93\x01\xc4\x01n\xdd\xff\xff\xff\xff"),
        PING,
        frame(wire.encode(wire.Set([(b"a", b"x")], None))),
    ],
)
async def test_stranger_that_says_anything_but_a_proof_is_closed_at_once(running: Running, said: bytes) -> None:
    reader, writer = await running.stranger()
    writer.write(said)
    assert await closed(reader)
    assert running.refused == 1
    assert running.reports[0].startswith("connection from 127.0.0.1 closed:")
    assert running.handler.stats.requests == 0
    assert await running.serves()


async def test_random_bytes_from_strangers_do_no_harm(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(1)
    for _ in range(100):
        reader, writer = await running.stranger()
        writer.write(source.randbytes(source.randint(4, 2000)))
        writer.write_eof()
        assert await closed(reader)
        writer.close()
    assert await running.serves()
    assert running.handler.stats.requests == 0
    assert not caplog.records  # no traceback either


async def test_wrong_secret_is_refused_counted_and_reported(running: Running) -> None:
    with pytest.raises(ProtocolError, match="it uses a different SECRET or SECRET_KEY"):
        await connect(running.tcp, derive_link_keys(["another secret"], "default"), SECONDS)
    assert running.refused == 1
    assert running.reports[0].endswith(": it uses a different secret, or belongs to a different cluster")
    assert await running.serves()


async def test_recorded_session_admits_nobody(running: Running) -> None:
    record = bytearray()

    async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node_reader, node_writer = await asyncio.open_connection(*running.tcp)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, keep: bytearray) -> None:
            while data := await source.read(65536):
                keep += data
                target.write(data)
            target.close()

        await asyncio.gather(pump(reader, node_writer, record), pump(node_reader, writer, bytearray()))

    proxy = await asyncio.start_server(tap, "127.0.0.1", 0)
    connection = await connect(TcpAddress(*proxy.sockets[0].getsockname()), KEYS, SECONDS)
    await connection.request(frame(wire.encode(wire.Get([b"ns\0key"]))))
    connection.close()
    await until(lambda: not running.server.connections)
    proxy.close()

    reader, writer = await running.stranger()
    writer.write(record)
    assert await closed(reader)
    assert running.handler.stats.requests == 1
    assert running.reports[0].endswith(": it sent more than the handshake's offers before they were answered")


# -- those who know the secret --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        (MAX_FRAME + 1).to_bytes(HEADER, "big"),
        frame(b"\x92\x0a" + b"\x91" * MIB),  # deep nesting
        frame(b"\x93\x0d\xa2\xff\xff\x01"),  # a channel that is no UTF-8
        frame(wire.encode(wire.Get([b"k" * 1025]))),
        frame(wire.encode(wire.DoneReply(1))),
        frame(b"\x91\xcc\x63"),  # a request that we don't know
    ],
)
async def test_message_that_cannot_be_read_closes_the_connection_only(
    running: Running, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    victim, witness = await running.friend(), await running.friend()
    assert victim.cast(said)
    await until(lambda: victim.closed)
    assert isinstance(await witness.request(PING), wire.PongReply)
    assert running.refused == 1
    assert len(running.reports) == 1
    assert not caplog.records
    witness.close()


async def test_requests_before_the_broken_one_take_effect(running: Running) -> None:
    friend = await running.friend()
    friend.cast(frame(wire.encode(wire.Set([(b"a", 1)], None))) + frame(b""))
    await until(lambda: friend.closed)
    assert running.handler.cache.get(b"a", time.monotonic()) == 1


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    friend = await running.friend()
    await friend.request(frame(wire.encode(wire.Set([(b"a", 0)], None))))
    replies = await asyncio.gather(*(friend.request(frame(wire.encode(wire.Incr(b"a", 1)))) for _ in range(1000)))
    assert [reply.value for reply in replies if isinstance(reply, wire.NumberReply)] == list(range(1, 1001))
    friend.close()


def _is_longer(waiting: Sized, count: int) -> bool:
    return len(waiting) > count


async def test_requests_behind_those_that_wait_for_another_node_are_bounded_and_answered_in_order(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[asyncio.Future[wire.Reply]] = []
    handle = running.handler.handle

    def forward(request: wire.Request, requester: Requester) -> Any:
        if not isinstance(request, wire.Incr):
            return handle(request, requester)
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    monkeypatch.setattr(running.handler, "handle", forward)
    friend = await running.friend()
    replies = [friend.request(frame(wire.encode(wire.Incr(b"a", 1)))) for _ in range(300)]
    replies.append(friend.request(PING))
    await until(lambda: len(waiting) == MAX_WAITING)
    assert await running.serves()
    assert len(waiting) == MAX_WAITING
    answered = 0
    while answered < 300:
        await until(partial(_is_longer, waiting, answered))
        for future in waiting[answered:][::-1]:
            future.set_result(wire.NumberReply(1, waiting.index(future)))
        answered = len(waiting)
    done = await asyncio.gather(*replies)
    assert [reply.value for reply in done if isinstance(reply, wire.NumberReply)] == list(range(300))
    assert isinstance(done[-1], wire.PongReply)
    friend.close()


async def give_value(running: Running, size: int) -> bytes:
    """Stores one value. Returns the request for it."""
    friend = await running.friend()
    await friend.request(frame(wire.encode(wire.Set([(b"big", b"x" * size)], None))))
    friend.close()
    return frame(wire.encode(wire.Get([b"big"])))


async def test_many_long_replies_reach_who_reads_them(running: Running) -> None:
    get = await give_value(running, MIB)
    friend = await connect(running.tcp, KEYS, SECONDS)
    replies = await asyncio.gather(*(friend.request(get) for _ in range(64)))
    assert all(isinstance(reply, wire.ValuesReply) and reply.values == [b"x" * MIB] for reply in replies)
    assert running.refused == 0
    friend.close()


async def test_peer_that_does_not_read_its_replies_costs_a_constant_and_is_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.3)
    get = await give_value(running, MIB)
    before = resident_bytes()
    friend = await running.friend()
    assert friend._transport is not None
    friend._transport.pause_reading()
    handled = running.handler.stats.requests
    friend.cast(get * 5000)  # 5 GB of replies, had they been made
    await until(lambda: any(connection._paused for connection in running.server.connections))
    assert resident_bytes() - before < 8 * module.MAX_OUTPUT
    assert running.handler.stats.requests - handled < 50
    assert await running.serves()
    await until(lambda: running.refused == 1)
    assert running.reports[0].endswith("closed: it has not read its replies for 5 s")
    friend.close()


async def test_peer_that_does_not_read_its_channel_messages_is_closed(running: Running) -> None:
    friend, sender = await running.friend(), await running.friend()
    assert friend._transport is not None
    friend._transport.pause_reading()
    for _ in range(40):
        friend.cast(frame(wire.encode(wire.Receive("deaf", 60))))
    await until(lambda: running.handler.channels.waiters == 40)
    send = frame(wire.encode(wire.Send("deaf", b"x" * MIB, 60, 100)))
    for _ in range(40):
        assert isinstance(await sender.request(send), wire.DoneReply)
    await until(lambda: running.refused == 1)
    assert running.reports[0].endswith("closed: it has not read its replies for 5 s")
    assert running.handler.channels.waiters == 0
    assert running.handler.channels.unreceived == 1  # what was to be pushed next
    assert await running.serves()
    friend.close()
    sender.close()


# -- the sockets themselves -----------------------------------------------------------------------------------


def listening(folder: Path) -> Callable[[UnixAddress | TcpAddress], Awaitable[None]]:
    return Running(folder).server.listen


# -- links of peers -------------------------------------------------------------------------------------------

GROUP = "clusterstate.default"


def heartbeat(number: int, group: str = GROUP) -> bytes:
    return frame(wire.encode(wire.Deliver(group, b"%d" % number, 60, 10_000)))


def listen(running: Running) -> list[tuple[float, int]]:
    """When each message to the groups is heard, and which."""
    heard: list[tuple[float, int]] = []

    def hear(request: wire.Deliver, requester: Requester) -> None:
        heard.append((time.monotonic(), int(request.payload)))

    running.handler._methods_with_requester[wire.Deliver] = hear
    return heard


async def until_heard(heard: Sized, count: int) -> None:
    await until(lambda: len(heard) == count)


@pytest.mark.timing(alone=True)
async def test_links_of_many_peers_are_read_together(running: Running) -> None:
    heard = listen(running)
    peers = [await running.friend() for _ in range(coalescing.MIN_SOCKETS)]
    await are_known(peers, heard)
    await asyncio.sleep(coalescing.MAX_DELAY)
    heard.clear()
    for number, peer in enumerate(peers):
        peer.cast(heartbeat(number))
        await asyncio.sleep(2 * coalescing.MAX_DELAY / len(peers))
    await until_heard(heard, len(peers))
    assert sorted(number for _, number in heard) == list(range(len(peers)))
    times = sorted(when for when, _ in heard)
    wakes = sum(after - before > coalescing.MAX_DELAY / 2 for before, after in itertools.pairwise(times)) + 1
    assert wakes <= 4


async def first_heard(heard: list[tuple[float, int]], number: int, since: float) -> float:
    def times() -> list[float]:
        return [when for when, who in heard if who == number and when > since]

    await until(lambda: bool(times()))
    return min(times())


async def are_known(peers: list[AsyncConnection], heard: list[tuple[float, int]]) -> None:
    """By two heartbeats of each it is seen that they are peers."""
    for turn in (1, 2):
        for number, peer in enumerate(peers):
            peer.cast(heartbeat(number))
        await until_heard(heard, turn * len(peers))


async def test_a_read_that_fails_stops_neither_the_others_nor_the_clock() -> None:
    coalescer = coalescing.Coalescer(0.01)
    pairs = [socket.socketpair() for _ in range(coalescing.MIN_SOCKETS)]
    read: list[bytes] = []

    def take(ours: socket.socket) -> None:
        read.append(ours.recv(1))

    def fails() -> None:
        pairs[0][0].recv(1)
        raise RuntimeError("a bug")

    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context["exception"]))
    coalescer.add(pairs[0][0].fileno(), fails)
    for ours, _ in pairs[1:]:
        coalescer.add(ours.fileno(), partial(take, ours))
    for turn in (1, 2, 3):
        for _, theirs in pairs:
            theirs.send(b"x")
        await until_heard(read, turn * (len(pairs) - 1))
        async with asyncio.timeout(60):
            await coalescer.sleep(0.01)
    assert {str(error) for error in raised} == {"a bug"}
    coalescer.close()
    for pair in pairs:
        for end in pair:
            end.close()


async def test_a_request_that_cannot_be_answered_ends_its_connection_and_nothing_else(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    friend = await running.friend()
    monkeypatch.setitem(running.handler._counted_methods, wire.GetEntry, lambda request: 1 / 0)
    with pytest.raises(Unavailable):
        await friend.request(frame(wire.encode(wire.GetEntry(b"k"))))
    assert "its request failed: ZeroDivisionError" in running.reports[0]
    assert await running.serves()


async def test_reply_that_fits_in_no_frame_is_answered_as_failed_and_closes_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    friend = await running.friend()
    monkeypatch.setitem(
        running.handler._counted_methods,
        wire.GetEntry,
        lambda request: wire.EntryReply(7, True, None, bytes(2 * MAX_FRAME), 1),
    )
    look = frame(wire.encode(wire.GetEntry(b"k")))
    for _ in range(3):
        assert await friend.request(look) == wire.FailedReply(running.handler.epoch, wire.REPLY_TOO_LONG)
    assert isinstance(await friend.request(PING), wire.PongReply)
    assert running.refused == 0
    friend.close()


async def test_message_that_fits_in_no_frame_closes_neither_the_sender_nor_the_receiver(running: Running) -> None:
    receiver, sender = await running.friend(), await running.friend()
    waiting = receiver.request(frame(wire.encode(wire.Receive("c", 60))))
    # Longer than any requester of ours may send, and so short that it is a frame.
    send = frame(wire.encode(wire.Send("c", bytes(MAX_FRAME - 40), 60, 100)), MAX_FRAME)
    sender.cast(send)
    await until(lambda: sender.closed)
    sender = await running.friend()
    longest = frame(wire.encode(wire.Send("c", bytes(MAX_REQUEST - 40), 60, 100)))
    assert isinstance(await sender.request(longest), wire.DoneReply)
    reply = await waiting
    assert isinstance(reply, wire.ReceiveReply)
    assert len(reply.payload or b"") == MAX_REQUEST - 40
    receiver.close()
    sender.close()


@pytest.mark.timing
async def test_other_work_is_done_at_the_same_wake_up(running: Running) -> None:
    heard = listen(running)
    coalescer = running.server.coalescer
    start = time.monotonic()
    await coalescer.sleep(0.01)
    check_seconds(time.monotonic() - start, below=coalescing.MAX_DELAY, at_least=0.005)  # there is nothing to wait for
    peers = [await running.friend() for _ in range(coalescing.MIN_SOCKETS)]
    await are_known(peers, heard)
    for number, peer in enumerate(peers):
        peer.cast(heartbeat(number))
    await until_heard(heard, 3 * len(peers))
    async with asyncio.timeout(60):
        await coalescer.sleep(60)
        for peer in peers:
            peer.close()
        await until(lambda: not running.server.connections)
        await coalescer.sleep(0.01)


@pytest.mark.timing
async def test_links_of_a_few_peers_are_read_at_once(running: Running) -> None:
    heard = listen(running)
    peers = [await running.friend() for _ in range(coalescing.MIN_SOCKETS - 1)]
    for number, peer in enumerate(peers * 3):
        said = time.monotonic()
        peer.cast(heartbeat(number))
        await until_heard(heard, number + 1)
        check_seconds(heard[-1][0] - said, below=coalescing.MAX_DELAY / 2)
        assert heard[-1][1] == number


@pytest.mark.timing
async def test_link_that_carries_messages_of_users_is_read_at_once(running: Running) -> None:
    heard = listen(running)
    peers = [await running.friend() for _ in range(coalescing.MIN_SOCKETS)]
    await are_known(peers, heard)
    heard.clear()
    chatty = peers[0]
    chatty.cast(heartbeat(0, "chat"))
    await until_heard(heard, 1)
    for number in range(1, 20):
        said = time.monotonic()
        chatty.cast(heartbeat(number, "chat"))
        await until_heard(heard, number + 1)
        check_seconds(heard[-1][0] - said, below=coalescing.MAX_DELAY / 2)


@pytest.mark.timing
async def test_what_cannot_wait_is_read_at_once_however_many_links_there_are(running: Running) -> None:
    heard = listen(running)
    opened: list[Peer] = []
    everybody = [
        Links(
            Identity(str(number), b"%016d" % number, f"there:{number + 1}"),
            KEYS,
            time.monotonic,
            lambda peer, _: opened.append(peer),
            lambda _: None,
            KeptLog(),
        )
        for number in range(coalescing.MIN_SOCKETS)
    ]
    for links in everybody:
        links.add([str(running.tcp)])
    await until(lambda: len(opened) == len(everybody))
    for turn in (1, 2):
        for number, links in enumerate(everybody):
            links.fan_out(wire.Deliver(GROUP, b"%d" % number, 60, 10_000))
        await until_heard(heard, turn * len(everybody))
    assert len(running.server.coalescer._reads) == len(everybody)  # of two connections each
    for number, links in enumerate(everybody):
        said = time.monotonic()
        links.leaving = number % 2 == 0
        links.fan_out(wire.Deliver(GROUP if links.leaving else "chat", b"%d" % number, 60, 10_000))
        check_seconds(await first_heard(heard, number, said) - said, below=coalescing.MAX_DELAY / 2)
    for links in everybody:
        await links.close()
    await until(lambda: not running.server.connections)


def links_of(name: str, opened: list[Peer]) -> Links:
    me = Identity(name, name.encode() * 16, "127.0.0.1:1")
    return Links(me, KEYS, time.monotonic, lambda peer, _: opened.append(peer), lambda _: None, KeptLog())


async def test_peer_that_is_dialed_at_two_addresses_gets_each_message_once(running: Running) -> None:
    """At one that discovery knows and at the one that it advertises."""
    other = TcpAddress("127.0.0.2", running.tcp.port)
    await running.server.listen(other)
    heard: list[bytes] = []
    running.handler.channel_requests.listeners["chat"] = lambda payload, _: heard.append(payload)
    opened: list[Peer] = []
    links = links_of("x", opened)
    links.add([str(running.tcp), str(other)])
    await until(lambda: len(opened) == 2)
    for payload in (b"1", b"2"):
        links.fan_out(wire.Deliver("chat", payload, 60, 10_000))
    await until(lambda: b"2" in heard)
    assert heard == [b"1", b"2"]
    links.reset(str(running.tcp))
    links.fan_out(wire.Deliver("chat", b"3", 60, 10_000))
    await until(lambda: b"3" in heard)
    assert links.unreachable == 0
    await links.close()


async def test_forwarded_message_goes_by_the_open_link_of_a_node_that_has_moved(running: Running) -> None:
    opened: list[Peer] = []
    links = links_of("x", opened)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # where that host was, nobody answers
        former = f"127.0.0.1:{mute.getsockname()[1]}"
        links.add([former, str(running.tcp)])
        links._links[former].peer = Peer("alpha", b"former instance")
        await until(lambda: bool(opened))
        links.forward(wire.channel_tag("alpha"), wire.Forward("specific.x!y", b"x", 60, 10_000))
        assert links.unreachable == 0
        await until(lambda: running.handler.channels.taken == 1)
        await links.close()


async def test_link_is_not_closed_for_another_node_that_advertises_its_address(running: Running) -> None:
    opened: list[Peer] = []
    links = links_of("x", opened)
    me = running.server.me
    links.dial(me)
    await until(lambda: bool(opened))
    for _ in range(3):
        links.dial(Identity("beta", b"t" * 16, str(running.tcp)))
        links.dial(me)
        await asyncio.sleep(0)
    assert links.connected_boots() == [me.boot]
    assert len(opened) == 1
    assert links.misdirected["beta"][:2] == (str(running.tcp), "alpha")
    await links.close()


async def test_node_that_nobody_has_reached_blames_no_other_for_its_address(running: Running) -> None:
    links = links_of("x", [])
    links.dial(Identity("beta", b"t" * 16, links.me.address))
    assert not links.misdirected
    links.reached = True
    links.dial(Identity("beta", b"t" * 16, links.me.address))
    assert links.misdirected["beta"][:2] == (links.me.address, "x")


async def test_what_finds_a_link_down_is_counted_apart_from_what_finds_it_too_slow(running: Running) -> None:
    opened: list[Peer] = []
    links = Links(
        Identity("x", b"x", "there:1"),
        KEYS,
        time.monotonic,
        lambda peer, _: opened.append(peer),
        lambda _: None,
        KeptLog(),
    )
    links.add([str(running.tcp)])
    await until(lambda: bool(opened))
    tag = wire.channel_tag("alpha")
    chat = wire.Deliver("chat", b"x", 60, 10_000)
    links.fan_out(chat)
    links.forward(tag, wire.Forward("specific.x!y", b"x", 60, 10_000))
    assert (links.dropped, links.unreachable) == (0, 0)
    for connection in running.server.connections:
        assert connection._transport is not None
        connection._transport.pause_reading()  # it is stopped
    payload = bytes(MIB)
    for _ in range(30):
        links.fan_out(wire.Deliver("chat", payload, 60, 10_000))
        links.forward(tag, wire.Forward("specific.x!y", payload, 60, 10_000))
    assert links.dropped > 30
    assert links.unreachable == 0
    dropped = links.dropped
    links.reset(str(running.tcp))
    links.fan_out(wire.Deliver(GROUP, b"0", 60, 10_000))  # a heartbeat: nobody misses one
    assert links.unreachable == 0
    links.fan_out(chat)
    links.forward(tag, wire.Forward("specific.x!y", b"x", 60, 10_000))
    links.forward("unknown", wire.Forward("specific.x!y", b"x", 60, 10_000))
    assert (links.dropped, links.unreachable) == (dropped, 3)
    await links.close()


async def test_link_read_coalesced_is_answered_and_closed_as_any(running: Running) -> None:
    heard = listen(running)
    peers = [await running.friend() for _ in range(coalescing.MIN_SOCKETS + 4)]
    for _ in range(2):
        for number, peer in enumerate(peers):
            peer.cast(heartbeat(number))
        await until_heard(heard, len(peers))
        heard.clear()
        assert isinstance(await peers[0].request(PING), wire.PongReply)
    for peer in peers[1:]:
        peer.close()
    await until(lambda: len(running.server.connections) == 1)
    peers[0].cast(frame(b"nonsense"))
    await until(lambda: not running.server.connections)
    assert len(running.reports) == 1
    assert await running.serves()
    assert not running.server.coalescer._reads


async def test_socket_can_be_used_by_our_user_only(running: Running) -> None:
    assert stat.S_IMODE(os.stat(running.unix.path).st_mode) == 0o600


async def test_directory_is_made_for_our_user_only(folder: Path) -> None:
    running = Running(folder / "made" / "here")
    await running.start()
    assert stat.S_IMODE((folder / "made" / "here").stat().st_mode) == 0o700
    running.server.close()
    assert not Path(running.unix.path).exists()


async def test_socket_of_a_killed_node_is_taken_over(folder: Path) -> None:
    running = Running(folder)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(running.unix.path)
    await running.start()
    assert await running.serves()
    running.server.close()


async def test_socket_of_a_running_node_is_left_to_it(running: Running) -> None:
    second = Running(Path(running.unix.path).parent)
    with pytest.raises(NodeError, match="is taken: a node serves it already"):
        await second.server.listen(running.unix)
    with pytest.raises(NodeError, match="is taken: another node or program listens there"):
        await second.server.listen(running.tcp)
    second.server.close()
    assert await running.serves()


async def test_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "node.sock"
    path.write_text("precious")
    with pytest.raises(NodeError, match="exists and is not a socket"):
        await listening(folder)(UnixAddress(str(path)))
    assert path.read_text() == "precious"


async def test_directory_that_others_can_write_to_is_refused(folder: Path) -> None:
    for mode in (0o777, 0o1777, 0o770):
        folder.chmod(mode)
        with pytest.raises(NodeError, match="others can write to"):
            await listening(folder)(UnixAddress(str(folder / "node.sock")))


async def test_directory_that_is_a_symbolic_link_is_refused(folder: Path) -> None:
    (folder / "elsewhere").mkdir(mode=0o700)
    (folder / "link").symlink_to(folder / "elsewhere")
    with pytest.raises(NodeError, match="is a symbolic link"):
        await listening(folder)(UnixAddress(str(folder / "link" / "node.sock")))
    (folder / "dangling").symlink_to(folder / "nowhere")
    with pytest.raises(NodeError, match="is a symbolic link"):
        await listening(folder)(UnixAddress(str(folder / "dangling" / "node.sock")))
    assert not (folder / "nowhere").exists()


async def test_node_that_stops_leaves_the_socket_of_its_successor(folder: Path) -> None:
    first, second = Running(folder), Running(folder)
    await first.start()
    Path(first.unix.path).unlink()  # as somebody does who believes that it is dead
    await second.start()
    first.server.close()
    for _ in range(10):  # the loop's next turns, in which it ends
        await asyncio.sleep(0)
    assert await second.serves()
    second.server.close()
    assert not Path(second.unix.path).exists()


async def test_socket_is_taken_away_before_it_stops_to_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two another node would take it for a leftover, and lose it again."""
    running = Running(folder)
    await running.start()
    first, *others = running.server._servers
    with monkeypatch.context() as patch:
        patch.setattr(running.server, "_servers", [])
        running.server.close()
    assert not Path(running.unix.path).exists()
    assert first.is_serving()
    for server in (first, *others):
        server.close()


async def test_of_nodes_that_start_in_the_same_instant_one_gets_the_socket_and_keeps_it(folder: Path) -> None:
    for number in range(30):
        address = UnixAddress(str(folder / f"{number}.sock"))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(address.path)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda _, address=address: _bind(address), range(4)))
        winners = [file for file in found if isinstance(file, SocketFile)]
        assert len(winners) == 1
        with socket.socket(socket.AF_UNIX) as requester:
            requester.connect(address.path)
        winners[0].socket.close()


def _bind(address: UnixAddress) -> SocketFile | NodeError:
    try:
        return SocketFile(address, 16)
    except NodeError as error:
        return error


async def test_directory_that_cannot_be_made_is_refused(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(NodeError, match="cannot be created"):
        await listening(folder)(UnixAddress(str(folder / "file" / "node.sock")))


async def test_path_too_long_for_a_socket_is_refused(folder: Path) -> None:
    with pytest.raises(NodeError, match="too long"):
        await listening(folder)(UnixAddress(str(folder / ("x" * 120))))


async def test_address_that_is_not_ours_is_refused(folder: Path) -> None:
    with pytest.raises(NodeError, match=r"192\.0\.2\.1:4370 cannot be used"):
        await listening(folder)(TcpAddress("192.0.2.1", 4370))
