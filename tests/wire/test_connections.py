"""One contract for both connections, the blocking and the asyncio one: against a real node, and against false ones."""

import asyncio
import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec
import pytest
import uvloop

from django_clusterstate import runtime
from django_clusterstate.exceptions import ConnectionLost, ProtocolError, Refused, Unavailable, Unreachable
from django_clusterstate.wire import aio, blocking
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import Address, TcpAddress, UnixAddress
from django_clusterstate.wire.aio import AsyncConnection, connect
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.busy_polling import BusyPoll
from django_clusterstate.wire.derived_keys import LinkKey, derive_link_keys
from django_clusterstate.wire.framing import HANDSHAKE_LIMIT, HEADER, frame
from django_clusterstate.wire.handshake import MAGIC, Challenge, NodeHandshake
from testproject.processes import LocalCluster, free_port
from tests.peers import (
    KEYS,
    Script,
    ScriptedNode,
    answering,
    dribble,
    keep_busy,
    read_frame,
    shake_hands,
    take_time,
    wait_for_the_end,
)
from tests.timelimits import handling
from tests.timing import check_seconds

pytestmark = pytest.mark.timing
DEADLINE = 1.0  # of calls that end with it; on a busy machine a handshake takes tenths of a second
AMPLE = 20.0  # the deadline of calls that end before it
AT_LATEST = DEADLINE + 0.3  # less than two deadlines
PING = frame(wire.encode(wire.Ping()))
DONE = frame(wire.encode(wire.DoneReply(1)))
CHALLENGE = frame(NodeHandshake(KEYS).challenge)


class Caller(Protocol):
    """What both can do."""

    def call(self, request: bytes) -> wire.Reply: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...


class Blocking:
    def __init__(self, address: Address, keys: Sequence[LinkKey], deadline: float) -> None:
        self._connection = BlockingConnection(address, keys, deadline)

    def call(self, request: bytes) -> wire.Reply:
        return self._connection.call(request)

    def close(self) -> None:
        self._connection.close()

    @property
    def closed(self) -> bool:
        return self._connection.fileno() == -1


class Asyncio:
    def __init__(self, address: Address, keys: Sequence[LinkKey], deadline: float) -> None:
        self._runner = asyncio.Runner()
        try:
            self._connection: AsyncConnection = self._runner.run(connect(address, keys, deadline))
        except BaseException:
            self._runner.close()
            raise

    def call(self, request: bytes) -> wire.Reply:
        async def call() -> wire.Reply:
            return await self._connection.request(request)

        return self._runner.run(call())

    def close(self) -> None:
        async def close() -> None:
            self._connection.close()
            await asyncio.sleep(0)

        self._runner.run(close())
        self._runner.close()

    @property
    def closed(self) -> bool:
        return self._connection.closed


Dial = Callable[..., Caller]


@pytest.fixture(autouse=True, params=[False, True], ids=["sleeping", "polling"])
def wait(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether connections poll for replies before they sleep. All tests here run in both cases."""
    polling: bool = request.param
    monkeypatch.setattr(BusyPoll, "should_poll", lambda self, now: polling)
    return polling


@pytest.fixture(params=[Blocking, Asyncio], ids=["blocking", "asyncio"])
def dial(request: pytest.FixtureRequest) -> Iterator[Dial]:
    """Makes connections that are closed in the end."""
    made: list[Caller] = []

    def dial(address: Address, keys: Sequence[LinkKey] = KEYS, deadline: float = DEADLINE) -> Caller:
        made.append(request.param(address, keys, deadline))
        return made[-1]

    yield dial
    for caller in made:
        caller.close()


def refused_in_time(call: Callable[[], object], error: type[Exception] = Unavailable, match: str | None = None) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=match):
        call()
    check_seconds(time.monotonic() - start, below=AT_LATEST)


# -- a real node ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["unix", "tcp"])
def node(request: pytest.FixtureRequest, cluster: LocalCluster) -> Address:
    if request.param == "unix":
        return UnixAddress(str(cluster.socket("alpha")))
    return TcpAddress("127.0.0.1", cluster.ports["alpha"])


@pytest.fixture
def known(dial: Dial, node: Address) -> Caller:
    return dial(node, runtime.get_settings().link_keys, AMPLE)


def test_call_brings_the_reply(known: Caller) -> None:
    for _ in range(3):
        reply = known.call(PING)
        assert isinstance(reply, wire.PongReply)
        assert reply.identity.name == "alpha"


@pytest.mark.parametrize("size", [1, 64 * 1024 - 4, 64 * 1024, 1024 * 1024])
def test_value_of_any_size_comes_back_as_it_was(known: Caller, size: int) -> None:
    value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    key = b"connections\0" + b"k" * 1000
    assert isinstance(known.call(frame(wire.encode(wire.Set([(key, value)], 10.0)))), wire.FlagsReply)
    reply = known.call(frame(wire.encode(wire.Get([key]))))
    assert isinstance(reply, wire.ValuesReply)
    assert reply.values == [value]
    assert isinstance(known.call(PING), wire.PongReply)


def test_message_that_the_node_cannot_read_closes_the_connection(known: Caller) -> None:
    with pytest.raises(Unavailable):
        known.call(frame(b"nonsense"))
    assert known.closed
    with pytest.raises(Unavailable):
        known.call(PING)


def test_wrong_secret_is_refused(dial: Dial, cluster: LocalCluster) -> None:
    with pytest.raises(ProtocolError, match="^it uses a different SECRET"):
        dial(TcpAddress("127.0.0.1", cluster.ports["alpha"]), derive_link_keys(["another"], "default"), AMPLE)


# -- no node, or another server ---------------------------------------------------------------------------------


def test_refused_and_unanswered_connections_raise_different_types(dial: Dial, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        dial(TcpAddress("127.0.0.1", free_port()))
    with pytest.raises(Refused, match="No such file"):
        dial(UnixAddress(str(tmp_path / "none.sock")))
    with ScriptedNode(wait_for_the_end) as silent, pytest.raises(Unreachable) as late:
        dial(silent.address)
    assert type(late.value) is Unreachable


def say(text: bytes) -> Script:
    def script(sock: socket.socket) -> None:
        sock.sendall(text)
        wait_for_the_end(sock)

    return script


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\0\0\0\0", frame(b"\x90")],
)
def test_server_of_another_protocol_is_refused(dial: Dial, greeting: bytes) -> None:
    with ScriptedNode(say(greeting)) as other:
        refused_in_time(lambda: dial(other.address, deadline=AMPLE), ProtocolError)


def test_handshake_above_the_limit_is_refused_before_its_bytes_come(dial: Dial) -> None:
    with ScriptedNode(say((HANDSHAKE_LIMIT + 1).to_bytes(HEADER, "big"))) as other:
        refused_in_time(
            lambda: dial(other.address, deadline=AMPLE), ProtocolError, "a frame of 8,193 bytes, more than 8,192"
        )


def test_other_version_is_the_error_though_the_node_can_not_be_informed(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(sock: socket.socket) -> None:
        sock.send(frame(msgspec.msgpack.encode(Challenge(MAGIC, 8, 9, bytes(32)))))
        wait_for_the_end(sock)

    def fail(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(socket.socket, "sendall", fail)
    with ScriptedNode(script) as other, pytest.raises(ProtocolError, match="upgrade the older one"):
        BlockingConnection(other.address, KEYS, AMPLE)


def test_node_of_another_secret_is_refused(dial: Dial) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(CHALLENGE)
        read_frame(sock)
        sock.sendall(frame(b"\0" * 49))
        wait_for_the_end(sock)

    with ScriptedNode(script) as other:
        refused_in_time(lambda: dial(other.address, deadline=AMPLE), ProtocolError, "different secret|is invalid")


def test_connecting_to_a_silent_node_ends_with_the_deadline(dial: Dial) -> None:
    with ScriptedNode(wait_for_the_end) as other:
        refused_in_time(lambda: dial(other.address), match="no answer within the deadline")


def test_default_timeout_of_sockets_changes_no_deadline(folder: Path, dial: Dial) -> None:
    path, done = folder / "node.sock", threading.Event()

    def mute() -> None:
        sock, _ = listener.accept()
        with sock:
            handshake = NodeHandshake(())
            sock.sendall(frame(handshake.challenge))
            sock.sendall(frame(handshake.receive(read_frame(sock))))
            done.wait(20)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=mute)
        thread.start()
        socket.setdefaulttimeout(5)
        try:
            connection = dial(UnixAddress(str(path)))
            start = time.monotonic()
            with pytest.raises(Unavailable, match="deadline"):
                connection.call(PING)
            check_seconds(time.monotonic() - start, below=AT_LATEST)
        finally:
            socket.setdefaulttimeout(None)
            done.set()
            thread.join()


def test_handshake_that_trickles_ends_with_the_deadline(dial: Dial) -> None:
    def late(sock: socket.socket) -> None:
        take_time(0.8 * DEADLINE)
        sock.sendall(CHALLENGE)
        wait_for_the_end(sock)

    with ScriptedNode(late) as other:
        refused_in_time(lambda: dial(other.address))
    with ScriptedNode(lambda sock: dribble(sock, CHALLENGE, DEADLINE / 10)) as other:
        refused_in_time(lambda: dial(other.address))


# -- a node that misbehaves -----------------------------------------------------------------------------------


def mute(sock: socket.socket) -> None:
    shake_hands(sock)
    wait_for_the_end(sock)


def test_call_without_an_answer_ends_with_the_deadline_and_closes(dial: Dial) -> None:
    with ScriptedNode(mute) as node:
        caller = dial(node.address)
        refused_in_time(lambda: caller.call(PING), match="no answer within the deadline")
        assert caller.closed


def test_time_limit_of_the_caller_is_raised_though_it_is_a_timeout_error() -> None:
    with ScriptedNode(mute) as node, handling(raises_timeout):
        connection = BlockingConnection(node.address, KEYS, AMPLE)
        with pytest.raises(TimeoutError, match="of the caller's"):
            with_timer(lambda: connection.call(PING))
    with (
        ScriptedNode(wait_for_the_end) as node,
        handling(raises_timeout),
        pytest.raises(TimeoutError, match="of the caller's"),
    ):
        with_timer(lambda: BlockingConnection(node.address, KEYS, AMPLE))


def with_timer(work: Callable[[], object]) -> None:
    """A signal comes while it works."""
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    work()


def raises_timeout(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError("of the caller's")  # an OSError, as are the network's


def test_long_request_that_is_not_read_ends_with_the_deadline(dial: Dial) -> None:
    end = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        shake_hands(sock)
        for _ in range(100):  # reads a little now and then, so that sending makes progress
            if end.wait(DEADLINE / 10):
                return
            sock.recv(4096)

    with ScriptedNode(script) as node:
        caller = dial(node.address)
        refused_in_time(lambda: caller.call(frame(b"x" * 1024 * 1024)))
        assert caller.closed
        end.set()


def test_reply_that_trickles_ends_with_the_deadline(dial: Dial) -> None:
    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        sealed.read_frame()
        dribble(sock, sealed.seal(frame(wire.encode(wire.ValuesReply(1, [b"x" * 1000])))), DEADLINE / 20)

    with ScriptedNode(script) as node:
        caller = dial(node.address)
        refused_in_time(lambda: caller.call(PING))
        assert caller.closed


def test_busy_polling_succeeds_and_fails(dial: Dial, monkeypatch: pytest.MonkeyPatch, wait: bool) -> None:
    polls: list[bool] = []
    monkeypatch.setattr(BusyPoll, "succeeded", lambda self: polls.append(True))
    monkeypatch.setattr(BusyPoll, "failed", lambda self: polls.append(False))
    for module in (aio, blocking):  # long enough for a false node, which is slow
        monkeypatch.setattr(module, "POLL_FOR", 0.01)
    slow = threading.Event()

    def reply(number: int) -> bytes:
        take_time(0.05 if slow.is_set() else 0)
        return DONE

    with ScriptedNode(answering(reply)) as node:
        caller = dial(node.address, deadline=AMPLE)
        call_until(lambda: True in polls, caller, 60 if wait else 0)
        assert (True in polls) == wait
        slow.set()
        polls.clear()
        call_until(lambda: False in polls, caller, 60 if wait else 0)
        assert (False in polls) == wait


def call_until(condition: Callable[[], bool], caller: Caller, seconds: float) -> None:
    """Calls 20 times at least, and for this time, unless the condition comes true."""
    start = time.monotonic()
    for number in itertools.count():
        caller.call(PING)
        if condition() or (number >= 20 and time.monotonic() - start > seconds):
            return


def test_signal_in_the_middle_of_a_call_closes() -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ScriptedNode(mute) as node:
            connection = BlockingConnection(node.address, KEYS, AMPLE)
            with pytest.raises(KeyboardInterrupt):
                with_timer(lambda: connection.call(PING))
            assert connection.fileno() == -1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_closed_connection_is_not_a_timeout_however_late_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        sealed.read_frame()

    hours = itertools.count(step=3600.0)
    with ScriptedNode(script) as node:
        connection = BlockingConnection(node.address, KEYS, AMPLE)
        monkeypatch.setattr(time, "monotonic", lambda: next(hours))
        with pytest.raises(ConnectionLost, match="closed") as raised:
            connection.call(PING)
        monkeypatch.undo()
        assert type(raised.value) is ConnectionLost


def test_own_delay_does_not_make_a_reply_late(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = threading.Event()

    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        sealed.read_frame()
        done = sealed.seal(DONE)
        sock.sendall(done[:2])
        take_time(0.05)  # so that it comes in two pieces
        sock.sendall(done[2:])
        sent.set()
        wait_for_the_end(sock)

    hours = itertools.count(step=3600.0)

    def next_hour() -> float:
        sent.wait(60)
        return next(hours)

    with ScriptedNode(script) as node:
        connection = BlockingConnection(node.address, KEYS, AMPLE)
        connection.send(PING)
        monkeypatch.setattr(time, "monotonic", next_hour)
        assert connection.receive(0.0) == wire.DoneReply(1)
        monkeypatch.undo()
        connection.close()


def test_receive_after_the_deadline_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedNode(mute) as node:
        connection = BlockingConnection(node.address, KEYS, 5.0)
        connection.send(PING)
        refused_in_time(lambda: connection.receive(0.0), match="no answer within the deadline")


def test_long_wait_uses_no_processor_time(dial: Dial) -> None:
    def slow(number: int) -> bytes:
        take_time(0.2)
        return DONE

    with ScriptedNode(answering(slow)) as node:
        caller = dial(node.address, deadline=AMPLE)
        before = time.process_time()
        assert isinstance(caller.call(PING), wire.DoneReply)
        check_seconds(time.process_time() - before, below=0.1)


def test_late_reply_never_reaches_the_next_request(dial: Dial) -> None:
    late = threading.Event()

    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        sealed.read_frame()
        late.wait(5)
        sealed.sendall(DONE)
        wait_for_the_end(sock)

    with ScriptedNode(script) as node:
        caller = dial(node.address)
        refused_in_time(lambda: caller.call(PING))
        late.set()
        with pytest.raises(Unavailable):
            caller.call(PING)


@pytest.mark.timing(alone=True)
def test_reply_in_pieces_costs_the_next_call_nothing_of_its_time(dial: Dial) -> None:
    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        while True:
            sealed.read_frame()
            done = sealed.seal(DONE)
            take_time(0.7 * DEADLINE)  # of which the rest is the timeout of the second piece
            sock.sendall(done[:2])
            take_time(0.1 * DEADLINE)
            sock.sendall(done[2:])

    with ScriptedNode(script) as node:
        caller = dial(node.address)
        for _ in range(3):
            assert caller.call(PING) == wire.DoneReply(1)


@pytest.mark.parametrize("length", [0, 2, 5])
def test_node_that_ends_in_the_middle_of_a_reply_is_unavailable(dial: Dial, length: int) -> None:
    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        sealed.read_frame()
        sock.sendall(sealed.seal(DONE)[:length])

    with ScriptedNode(script) as node:
        caller = dial(node.address, deadline=AMPLE)
        refused_in_time(lambda: caller.call(PING), match="closed the connection")
        assert caller.closed


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff\xff\xff",
        frame(b""),
        frame(b"\x91\x0a"),  # a request
        frame(b"\x92\xcc\xff\x01"),  # a reply that we don't know
        frame(b"\x92\x25" + b"\x91" * 100_000),
        frame(b"\x93\x26\x01\xa2\xff\xff"),
    ],
)
def test_invalid_reply_is_a_protocol_error_and_closes(dial: Dial, reply: bytes) -> None:
    with ScriptedNode(answering(lambda number: reply)) as node:
        caller = dial(node.address, deadline=AMPLE)
        refused_in_time(lambda: caller.call(PING), ProtocolError, "a reply that cannot be read")
        assert caller.closed


def test_record_that_ends_within_the_length_of_a_frame_is_a_protocol_error() -> None:
    with ScriptedNode(answering(lambda number: b"\xff")) as node:
        connection = BlockingConnection(node.address, KEYS, AMPLE)
        refused_in_time(lambda: connection.call(PING), ProtocolError, "a reply that cannot be read")
        assert connection.fileno() == -1


def test_surplus_reply_never_reaches_the_next_request(dial: Dial) -> None:
    with ScriptedNode(answering(lambda number: DONE + DONE)) as node:
        caller = dial(node.address, deadline=AMPLE)
        with contextlib.suppress(ProtocolError):
            assert caller.call(PING) == wire.DoneReply(1)
        assert caller.closed
        with pytest.raises(Unavailable):
            caller.call(PING)


# -- the asyncio connection only ------------------------------------------------------------------------------


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


def test_answer_that_came_while_the_loop_was_busy_is_in_time(runner: asyncio.Runner) -> None:
    async def call(address: Address) -> None:
        connection = await connect(address, KEYS, DEADLINE)
        answer = connection.request(PING)
        assert await asyncio.to_thread(asked.wait, 60)
        take_time(2 * DEADLINE)
        assert await answer == wire.DoneReply(1)
        connection.close()

    asked = threading.Event()

    def slow(number: int) -> bytes:
        asked.set()
        take_time(0.1)
        return DONE

    with ScriptedNode(answering(slow)) as node:
        runner.run(call(node.address))


def test_request_without_a_reply_ends_with_the_deadline_though_the_loop_is_busy(runner: asyncio.Runner) -> None:
    async def call(address: Address) -> None:
        connection = await connect(address, KEYS, DEADLINE)
        busy = asyncio.ensure_future(keep_busy(0.05))
        start = time.monotonic()
        with pytest.raises(Unavailable, match="no answer within the deadline"):
            await connection.request(PING)
        check_seconds(time.monotonic() - start, below=DEADLINE + 0.25)
        busy.cancel()

    with ScriptedNode(mute) as node:
        runner.run(call(node.address))


def test_busy_loop_can_connect(runner: asyncio.Runner) -> None:
    async def call(address: Address) -> None:
        busy = asyncio.ensure_future(keep_busy(0.25))
        connection = await connect(address, KEYS, 0.5)
        assert await connection.request(PING) == wire.DoneReply(1)
        connection.close()
        busy.cancel()

    with ScriptedNode(answering()) as node:
        runner.run(call(node.address))


async def test_requests_under_way_at_once_get_their_own_replies() -> None:
    with ScriptedNode(answering()) as node:
        connection = await connect(node.address, KEYS, 60)
        first, second = connection.request(PING), connection.request(PING)
        assert (await second, await first) == (wire.DoneReply(2), wire.DoneReply(1))
        connection.close()


async def test_cancelled_request_leaves_the_others_their_replies() -> None:
    with ScriptedNode(answering()) as node:
        connection = await connect(node.address, KEYS, 60)
        cancelled, other = connection.request(PING), connection.request(PING)
        cancelled.cancel()
        assert await other == wire.DoneReply(2)
        assert await connection.request(PING) == wire.DoneReply(3)
        connection.close()


async def test_waiting_requests_fail_with_the_connection_and_on_close_is_called() -> None:
    told = asyncio.Event()
    with ScriptedNode(mute) as node:
        connection = await connect(node.address, KEYS, 2, on_close=told.set)
        replies = await asyncio.gather(*(connection.request(PING) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(reply, Unavailable) for reply in replies)
        assert told.is_set()


async def test_cast_is_refused_when_the_output_buffer_is_full() -> None:
    end = threading.Event()

    def script(sock: socket.socket) -> None:
        shake_hands(sock)
        end.wait(5)

    with ScriptedNode(script) as node:
        connection = await connect(node.address, KEYS, 60)
        message = frame(b"x" * 1024 * 1024)
        sent = [connection.cast(message) for _ in range(64)]
        assert sent.count(True) < 16
        connection.close()
        assert not connection.cast(message)
        end.set()
