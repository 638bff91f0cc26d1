"""The blocking client: pooled connections, one for each thread that waits for a reply at the same moment."""

import select
import time
from collections.abc import Callable, Iterator, Sequence

from ..exceptions import ClusterStateError, TimedOut, Unavailable, Unreachable
from ..wire.blocking import GRACE, BlockingConnection
from ..wire.handshake import OtherInstance
from ..wire.messages import Reply, UnavailableReply
from .dialing import Dialer
from .operations import refresh_view, run
from .retries import may_send_again
from .routing import Routing, RoutingTable, Target

MAX_IDLE = 64  # connections kept for each node
LONG_IDLE = 0.05  # seconds after which a connection is checked before it is used: the node may have closed it


class Client:
    """Sends framed requests to the owners of their keys. Safe to share between threads, and to use after a fork."""

    def __init__(self, routing: Routing, dialer: Dialer, clock: Callable[[], float] = time.monotonic) -> None:
        self.routing = routing
        self._dialer = dialer
        self._deadline = dialer.deadline
        self._clock = clock

    # -- operations -----------------------------------------------------------------------------------------

    def call(self, key: bytes, request: bytes) -> Reply:
        """Sends one request to the owner of a key, and returns its reply.

        Raises `Unavailable` if the owner doesn't reply within the deadline or its circuit breaker is open,
        `ProtocolError` if the reply can't be read.
        """
        try:
            return self.call_node(self.table().require_owner(key), request)
        except OtherInstance:  # the owner was restarted, so the view is requested first
            return self.call_node(self.table().require_owner(key), request)

    def call_node(self, target: Target, request: bytes, now: float | None = None) -> Reply:
        """Sends one request to one node, and returns its reply. Raises `Unavailable` or `ProtocolError`."""
        self.routing.reset_if_forked()
        if now is None:
            now = self._clock()
        deadline = self._deadline * target.check(now) if target.failures else self._deadline
        try:
            try:
                connection: BlockingConnection = target.pool.pop()
                if now - connection.idle_since > LONG_IDLE and connection.is_stale():
                    raise Unreachable("the node closed the connection while it was idle")
                reply = connection.call(request)
            except IndexError:
                reply = self._call_on_new_connection(target, request, now, now + deadline)
            except TimedOut:
                raise
            except Unavailable as error:  # the node may have been restarted
                target.close_pool()
                reply = self._call_on_new_connection(target, request, now, now + deadline, error)
            else:
                self._answered(target, connection, reply, now)
        except ClusterStateError as error:
            raise self._failed(target, error, now) from error
        if type(reply) is UnavailableReply:
            raise self.routing.owner_unavailable(target, reply)
        return reply

    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[Reply | ClusterStateError]:
        """Sends requests to several nodes at once, and returns for each, in order, its reply or its error."""
        self.routing.reset_if_forked()
        now = self._clock()
        until = time.monotonic() + self._deadline
        if len(requests) == 1:
            return [self._call_or_error(*requests[0], now, until)]
        sent = [self._send(target, request, now) for target, request in requests]
        # New connections are made while the nodes work on the requests that have been sent.
        results = [
            self._call_or_error(target, request, now, until) if connection is None else None
            for (target, request), connection in zip(requests, sent, strict=True)
        ]
        for index, connection, receive_until in _in_order_of_replies(sent, until):
            target, request = requests[index]
            try:
                results[index] = reply = connection.receive(receive_until, grace=0)
            except ClusterStateError as error:
                results[index] = self._call_again(target, request, error, now, until)
            else:
                self._answered(target, connection, reply, now)
                if type(reply) is UnavailableReply:
                    results[index] = self.routing.owner_unavailable(target, reply)
        return [result for result in results if result is not None]

    def table(self) -> RoutingTable:
        """The current routing table, refreshed if it is old."""
        if self._clock() >= self.routing.refresh_at:
            run(refresh_view(self.routing, self._deadline, self._clock), self)
        return self.routing.table

    def close(self) -> None:
        """Closes all idle connections; the client can be used again."""
        self.routing.close_pools()

    # -- one exchange ---------------------------------------------------------------------------------------

    def _call_on_new_connection(
        self, target: Target, request: bytes, now: float, until: float, lost: ClusterStateError | None = None
    ) -> Reply:
        """Sends a request on a new connection; after it was `lost` on another one only if it may be sent again."""
        until += time.monotonic() - self._clock()
        try:
            connection = self._dialer.dial(target, until)
        except Unavailable as error:
            if lost is None:
                raise
            raise lost from error
        if lost is not None and not may_send_again(request, lost):
            connection.close()
            raise lost
        connection.send(request)
        reply = connection.receive(until)
        self._answered(target, connection, reply, now)
        return reply

    def _send(self, target: Target, request: bytes, now: float) -> BlockingConnection | None:
        """Sends a request on an idle connection, and returns this connection, or None if there is none."""
        try:
            connection: BlockingConnection = target.pool.pop()
            if now - connection.idle_since > LONG_IDLE and connection.is_stale():
                return None
            connection.send(request)
        except (IndexError, Unavailable):
            return None
        return connection

    def _call_again(
        self, target: Target, request: bytes, error: ClusterStateError, now: float, until: float
    ) -> Reply | ClusterStateError:
        """Sends a request again whose connection was lost while other nodes were waited for too."""
        try:
            if not isinstance(error, Unavailable) or isinstance(error, TimedOut) or time.monotonic() >= until:
                raise error
            target.close_pool()
            reply = self._call_on_new_connection(target, request, now, now + self._deadline, error)
        except ClusterStateError as failure:
            return self._failed(target, failure, now)
        return self.routing.owner_unavailable(target, reply) if type(reply) is UnavailableReply else reply

    def _call_or_error(self, target: Target, request: bytes, now: float, until: float) -> Reply | ClusterStateError:
        """Sends a request unless other nodes have used up the time: then this one has not failed."""
        if time.monotonic() >= until:
            return Unreachable(f"{target} was not sent the request: other nodes used up the deadline")
        try:
            return self.call_node(target, request, now)
        except ClusterStateError as error:
            return error

    def _answered(self, target: Target, connection: BlockingConnection, reply: Reply, now: float) -> None:
        connection.idle_since = ended = self._clock()
        if len(target.pool) < MAX_IDLE:
            target.pool.append(connection)
        else:
            connection.close()
        self.routing.answered(target, reply.epoch, now, ended)

    def _failed(self, target: Target, error: ClusterStateError, now: float) -> ClusterStateError:
        target.close_pool()
        return self.routing.failed(target, error, now, self._clock())


def _in_order_of_replies(
    sent: Sequence[BlockingConnection | None], until: float
) -> Iterator[tuple[int, BlockingConnection, float]]:
    """(index, connection, end of its time) of each connection as its reply arrives, then of those without a reply."""
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
                # A reply that arrived in time is read, even if reading others took until now.
                index, connection = waiting.pop(fileno)
                yield index, connection, max(until, time.monotonic() + GRACE) if ready else until
    finally:
        for _, connection in waiting.values():  # not empty after a signal's exception or a greenlet's timeout
            connection.close()


class _SelectPoll:
    """`select.poll()` for reading, by means of `select.select()`."""

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
    # eventlet removes `poll`, and replaces `select` by a cooperative function.
    return select.poll() if hasattr(select, "poll") else _SelectPoll()
