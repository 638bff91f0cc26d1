"""The blocking face of a requester: pooled sockets, one for each thread that asks at the same moment."""

import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from ..exceptions import ClusterStateError, Unavailable
from ..wire.address import Address
from ..wire.blocking import BlockingConnection
from ..wire.framing import frame
from ..wire.messages import GetView, Reply, Viewed, encode
from .routing import Routing, Table, Target, named

MAX_IDLE = 64  # connections kept for each node

logger = logging.getLogger("django_clusterstate.client")

_GET_VIEW = frame(encode(GetView()))


class Client:
    """Sends framed requests to the owners of their keys. Safe to share between threads, and to use after a fork.

    `local` is this host's node, `keys` prove us to the others, `deadline` is seconds for each operation.
    """

    def __init__(
        self,
        local: Address,
        keys: Sequence[bytes],
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routing = Routing(local)
        self._keys = keys
        self._deadline = deadline
        self._clock = clock
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _after_fork(this))

    # -- operations -----------------------------------------------------------------------------------------

    def call(self, key: bytes, request: bytes) -> Reply:
        """One request to the owner of a key.

        Raises `Unavailable` when the owner doesn't answer within the deadline, or has failed to again and again;
        `ProtocolError` when what it says makes no sense.
        """
        now = self._clock()
        if now >= self.routing.refresh_at:
            self._refresh(now)
        return self.call_node(self.routing.owner(key), request, now)

    def call_node(self, target: Target, request: bytes, now: float | None = None) -> Reply:
        """One request to one node. Raises as `call`."""
        if now is None:
            now = self._clock()
        if target.failures:
            target.check(now)
        try:
            pool = target.pool
            if pool:
                try:
                    connection = pool.pop()
                    connection.send(request)
                    reply: Reply = connection.receive()
                except (IndexError, Unavailable) as error:
                    if isinstance(error.__cause__, BlockingIOError):
                        raise  # too late is too late; any other failure may be that the node was restarted
                    connection, reply = self._call_afresh(target, request, now)
            else:
                connection, reply = self._call_afresh(target, request, now)
        except ClusterStateError as error:
            raise self._failed(target, error, now) from error
        self._succeeded(target, connection, reply, now)
        return reply

    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[Reply | ClusterStateError]:
        """Several requests to different nodes at once. An error stands where its reply would."""
        now = self._clock()
        if len(requests) == 1:
            return [self._call_or_error(*requests[0], now)]
        sent = [self._send(target, request, now) for target, request in requests]
        until = now + self._deadline
        results: list[Reply | ClusterStateError] = []
        for (target, request), connection in zip(requests, sent, strict=True):
            if connection is None:
                results.append(self._call_or_error(target, request, now))
                continue
            try:
                reply = connection.receive(until)
                self._succeeded(target, connection, reply, now)
                results.append(reply)
            except ClusterStateError as error:
                results.append(self._failed(target, error, now))
        return results

    def table(self) -> Table:
        """The current view and what follows from it, asked for if it is old."""
        now = self._clock()
        if now >= self.routing.refresh_at:
            self._refresh(now)
        return self.routing.table

    def close(self) -> None:
        """Closes all idle connections; the client can be used again."""
        for target in {self.routing.local, *self.routing.table.targets.values()}:
            _drop_pool(target)

    # -- one exchange ---------------------------------------------------------------------------------------

    def _call_afresh(self, target: Target, request: bytes, now: float) -> tuple[BlockingConnection, Reply]:
        _drop_pool(target)
        connection = BlockingConnection(target.address, self._keys, self._deadline)
        connection.send(request)
        return connection, connection.receive(now + self._deadline)

    def _send(self, target: Target, request: bytes, now: float) -> BlockingConnection | None:
        """A connection on which the request is under way, or None when it is to be tried by itself."""
        try:
            connection: BlockingConnection = target.pool.pop()
            connection.send(request)
        except (AttributeError, IndexError, Unavailable):
            return None
        return connection

    def _call_or_error(self, target: Target, request: bytes, now: float) -> Reply | ClusterStateError:
        try:
            return self.call_node(target, request, now)
        except ClusterStateError as error:
            return error

    def _succeeded(self, target: Target, connection: BlockingConnection, reply: Reply, now: float) -> None:
        pool = target.pool
        if pool is None:
            pool = target.pool = deque()
        if len(pool) < MAX_IDLE:
            pool.append(connection)
        else:
            connection.close()
        if target.failures and target.answered():
            logger.info("%s answers again", target)
        if reply.epoch != self.routing.epoch:
            self.routing.noticed(reply.epoch, now)

    def _failed(self, target: Target, error: ClusterStateError, now: float) -> ClusterStateError:
        _drop_pool(target)
        error = named(target, error)
        if target.failed(now):
            logger.warning("%s; it is left alone until it answers again", error)
        return error

    # -- the view -------------------------------------------------------------------------------------------

    def _refresh(self, now: float) -> None:
        """Asks for the view. When nobody answers, the old one stays."""
        for source in self.routing.sources(now):
            try:
                viewed = self.call_node(source, _GET_VIEW, now)
            except ClusterStateError:
                continue
            if isinstance(viewed, Viewed):
                for target in self.routing.learn(viewed, source, now):
                    _drop_pool(target)
                return


def _drop_pool(target: Target) -> None:
    while target.pool:
        try:
            target.pool.pop().close()
        except IndexError:  # another thread was faster
            return


def _after_fork(reference: "weakref.ref[Client]") -> None:
    """The parent goes on using its sockets: the child must not read a byte of theirs."""
    client = reference()
    if client is not None:
        client.close()
