"""The blocking face of a requester: pooled sockets, one for each thread that asks at the same moment."""

import logging
import select
import time
from collections.abc import Callable, Iterator, Sequence
from os import getpid

from ..exceptions import ClusterStateError, NoCluster, Refused, TimedOut, Unavailable, Unreachable
from ..wire.address import Address
from ..wire.blocking import GRACE, BlockingConnection
from ..wire.busy_polling import Processors
from ..wire.handshake import OtherStart
from ..wire.keys import LinkKey
from ..wire.messages import Reply, ViewReply
from ..wire.resolver import Resolver
from .forks import PerProcess
from .retries import may_be_executed, may_send_again
from .routing import GET_VIEW, Routing, RoutingTable, Target, also_ask, named

MAX_IDLE = 64  # connections kept for each node
LONG_IDLE = 0.05  # seconds after which a connection is looked at before it is used: the node may have closed it
_ENDED = "the node closed the connection while it was idle"

Lost = tuple[BlockingConnection, ClusterStateError]  # a connection, and how it failed

logger = logging.getLogger("django_clusterstate.client")


class Client(PerProcess):
    """Sends framed requests to the owners of their keys. Safe to share between threads, and to use after a fork.

    `local` is this host's node, `keys` prove us to the others, `deadline` is seconds for each operation.
    """

    def __init__(
        self,
        local: Address,
        keys: Sequence[LinkKey],
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routing = Routing(local)
        self._keys = keys
        self._deadline = deadline
        self._clock = clock
        self._processors = Processors()
        self._names = Resolver()
        super().__init__()

    # -- operations -----------------------------------------------------------------------------------------

    def call(self, key: bytes, request: bytes) -> Reply:
        """One request to the owner of a key.

        Raises `Unavailable` when the owner doesn't answer within the deadline, or has failed to again and again;
        `ProtocolError` when what it says makes no sense.
        """
        now = self._clock()
        if now >= self.routing.refresh_at:
            self._refresh(now)
            now = self._clock()
        owner = self.routing.table.owner(key)
        if owner is None:
            raise NoCluster()
        try:
            return self.call_node(owner, request, now)
        except OtherStart:
            return self._call_new_owner(key, request)

    def _call_new_owner(self, key: bytes, request: bytes) -> Reply:
        """The owner has been restarted, and the request not sent: once more, by a new view if there is one."""
        now = self._clock()
        if now >= self.routing.refresh_at:
            self._refresh(now)
        owner = self.routing.table.owner(key)
        if owner is None:
            raise NoCluster()
        return self.call_node(owner, request)

    def call_node(self, target: Target, request: bytes, now: float | None = None) -> Reply:
        """One request to one node. Raises as `call`."""
        if getpid() != self.pid:
            self.reset_after_fork()
        if now is None:
            now = self._clock()
        deadline = self._deadline * target.check(now) if target.failures else self._deadline
        try:
            try:
                connection: BlockingConnection = target.pool.pop()
                if now - connection.idle_since > LONG_IDLE and connection.is_stale():
                    raise Unreachable(_ENDED)
                reply = connection.call(request)
            except IndexError:
                connection, reply = self._call_afresh(target, request, now + deadline)
            except TimedOut:
                raise
            except Unavailable as error:  # the node may have been restarted
                _drop_pool(target)
                connection, reply = self._call_afresh(target, request, now + deadline, (connection, error))
        except OtherStart:
            self.routing.restarted(now)
            raise
        except ClusterStateError as error:
            raise self._failed(target, error, now) from error
        self._succeeded(target, connection, reply, now)
        return reply

    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[Reply | ClusterStateError]:
        """Several requests to different nodes at once. An error stands where its reply would."""
        if getpid() != self.pid:
            self.reset_after_fork()
        now = self._clock()
        if len(requests) == 1:
            return [self._call_or_error(*requests[0], now)]
        until = time.monotonic() + self._deadline
        sent = [self._send(target, request, now) for target, request in requests]
        # Where no idle connection is at hand one is made, while the others' answers are under way.
        results = [
            self._call_in_time(target, request, now, until) if connection is None else None
            for (target, request), connection in zip(requests, sent, strict=True)
        ]
        for index, connection, patience in _as_they_answer(sent, until):
            target, request = requests[index]
            try:
                results[index] = reply = connection.receive(patience, grace=0)
            except ClusterStateError as error:
                results[index] = self._call_again(target, request, (connection, error), now, until)
            else:
                self._succeeded(target, connection, reply, now)
        return [result for result in results if result is not None]

    def table(self) -> RoutingTable:
        """The current view and what follows from it, asked for if it is old."""
        now = self._clock()
        if now >= self.routing.refresh_at:
            self._refresh(now)
        return self.routing.table

    def close(self) -> None:
        """Closes all idle connections; the client can be used again."""
        for target in {self.routing.local, *self.routing.table.targets.values()}:
            _drop_pool(target)

    def _reset(self) -> None:
        self.close()
        self.routing.count_anew()

    # -- one exchange ---------------------------------------------------------------------------------------

    def _call_afresh(
        self, target: Target, request: bytes, until: float, lost: Lost | None = None
    ) -> tuple[BlockingConnection, Reply]:
        """By a new connection. After one that was `lost` only what can't so be executed twice."""
        until += time.monotonic() - self._clock()
        try:
            connection = self._connect(target, until)
        except Unavailable as error:
            if lost is not None and not isinstance(error, Refused):
                raise lost[1] from error
            raise
        if lost is not None and not may_send_again(request, lost[1], lost[0].node_boot, connection.node_boot):
            connection.close()
            raise lost[1]
        connection.send(request)
        return connection, connection.receive(until)

    def _connect(self, target: Target, until: float) -> BlockingConnection:
        *others, last = self._names.resolve(target.address, until - time.monotonic())
        keys, idle, hello = self._keys, self._processors.idle, target.hello
        for index, address in enumerate(others):  # of a name with several; each has its part of the time
            now = time.monotonic()
            try:
                part = now + (until - now) / (len(others) + 1 - index)
                return BlockingConnection(address, keys, self._deadline, part, idle, hello)
            except Unavailable as error:
                logger.debug("%s; its next address is tried", error)
        return BlockingConnection(last, keys, self._deadline, until, idle, hello)

    def _send(self, target: Target, request: bytes, now: float) -> BlockingConnection | None:
        """An idle connection on which the request is under way now, or None."""
        try:
            connection: BlockingConnection = target.pool.pop()
            if now - connection.idle_since > LONG_IDLE and connection.is_stale():
                return None
            connection.send(request)
        except (IndexError, Unavailable):
            return None
        return connection

    def _call_again(
        self, target: Target, request: bytes, lost: Lost, now: float, until: float
    ) -> Reply | ClusterStateError:
        """What becomes of a request that was sent together with others, and whose connection failed."""
        connection, error = lost
        try:
            if not isinstance(error, Unavailable) or isinstance(error, TimedOut) or time.monotonic() >= until:
                raise error
            _drop_pool(target)
            connection, reply = self._call_afresh(target, request, now + self._deadline, lost)
        except OtherStart as other:
            self.routing.restarted(now)
            return other
        except ClusterStateError as failure:
            return self._failed(target, failure, now)
        self._succeeded(target, connection, reply, now)
        return reply

    def _call_or_error(self, target: Target, request: bytes, now: float) -> Reply | ClusterStateError:
        try:
            return self.call_node(target, request, now)
        except ClusterStateError as error:
            return error

    def _call_in_time(self, target: Target, request: bytes, now: float, until: float) -> Reply | ClusterStateError:
        """The same, but a node isn't asked, and so not blamed, when others have used up the time."""
        if time.monotonic() >= until:
            return Unreachable(f"{target} wasn't asked: no time was left")
        return self._call_or_error(target, request, now)

    def _succeeded(self, target: Target, connection: BlockingConnection, reply: Reply, now: float) -> None:
        connection.idle_since = answered = self._clock()
        self.routing.waits.append(answered - now)
        if len(target.pool) < MAX_IDLE:
            target.pool.append(connection)
        else:
            connection.close()
        if target.failures and target.answered():
            logger.info("%s answers again", target)
        if reply.epoch != self.routing.epoch:
            self.routing.noticed(reply.epoch, now)

    def _failed(self, target: Target, error: ClusterStateError, now: float) -> ClusterStateError:
        self.routing.waits.append(self._clock() - now)
        _drop_pool(target)
        failure = named(target, error)
        if self.routing.failed(target, now, str(error)):
            logger.warning("%s; it is left alone until it answers again", failure)
        elif not target.is_open:
            logger.debug("%s; the next request tries it again", failure)
        return failure

    # -- the view -------------------------------------------------------------------------------------------

    def _refresh(self, now: float) -> None:
        """Asks for the view until a node has answered that serves itself. When none does, the old view stays."""
        request, counted = self.routing.view_request()
        sources, told = self.routing.sources(now), False
        try:
            for source in sources:  # which grows while it is gone through
                viewed: Reply | None = None
                try:
                    viewed = self.call_node(source, GET_VIEW if told else request)
                except ClusterStateError as error:
                    told |= may_be_executed(error)  # what may have been counted isn't told again
                if isinstance(viewed, ViewReply):
                    told = True
                    learned = self.routing.learn(viewed, source, now)
                    for target in learned.unused:
                        _drop_pool(target)
                    if learned.taken:
                        return
                    also_ask(sources, learned)
                if self._clock() - now >= self._deadline:
                    return  # a caller waits
        finally:
            if not told:
                self.routing.untold.put_back(counted)


def _as_they_answer(
    sent: Sequence[BlockingConnection | None], until: float
) -> Iterator[tuple[int, BlockingConnection, float]]:
    """(index, connection, until when to receive) of each connection as its answer comes; last, those without one."""
    waiting = {connection.fileno(): (index, connection) for index, connection in enumerate(sent) if connection}
    until = max(until, time.monotonic() + GRACE)
    poll = _make_poll()
    for fileno in waiting:
        poll.register(fileno, select.POLLIN)
    try:
        while waiting:
            ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            for fileno in [fileno for fileno, _ in ready] or list(waiting):
                poll.unregister(fileno)
                # What has come in time is read, even if others took until now.
                yield *waiting.pop(fileno), max(until, time.monotonic() + GRACE) if ready else until
    finally:
        for _, connection in waiting.values():  # what waits here was interrupted, by a signal or a greenlet's timeout
            connection.close()


class _SelectPoll:
    """`select.poll()` by way of `select.select()`, for reading."""

    def __init__(self) -> None:
        self._filenos: set[int] = set()

    def register(self, fileno: int, events: int) -> None:
        self._filenos.add(fileno)

    def unregister(self, fileno: int) -> None:
        self._filenos.discard(fileno)

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        ready, _, _ = select.select(self._filenos, (), (), milliseconds / 1000)
        return [(fileno, select.POLLIN) for fileno in ready]


def _make_poll() -> "select.poll | _SelectPoll":
    # eventlet takes `poll` away, and puts a cooperative function in the place of `select`.
    return select.poll() if hasattr(select, "poll") else _SelectPoll()


def _drop_pool(target: Target) -> None:
    while target.pool:
        try:
            target.pool.pop().close()
        except IndexError:  # another thread was faster
            return
