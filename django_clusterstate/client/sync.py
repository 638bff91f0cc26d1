"""The blocking face of a requester: pooled sockets, one for each thread that asks at the same moment."""

import logging
import os
import select
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

from ..exceptions import ClusterStateError, Unavailable
from ..wire.address import Address
from ..wire.blocking import OVERTIME, BlockingConnection
from ..wire.messages import Reply, Viewed
from ..wire.polling import Processors
from .routing import GET_VIEW, Routing, Table, Target, also_ask, named, no_owner

MAX_IDLE = 64  # connections kept for each node

logger = logging.getLogger("django_clusterstate.client")


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
        self._processors = Processors()
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
            now = self._clock()
        owner = self.routing.table.owner(key)
        if owner is None:
            raise no_owner()
        return self.call_node(owner, request, now)

    def call_node(self, target: Target, request: bytes, now: float | None = None) -> Reply:
        """One request to one node. Raises as `call`."""
        if now is None:
            now = self._clock()
        deadline = self._deadline * target.check(now) if target.failures else self._deadline
        try:
            try:
                connection: BlockingConnection = target.pool.pop()
                reply = connection.call(request)
            except (IndexError, Unavailable) as error:  # no idle one, or it is broken: the node may have been restarted
                if _is_late(error):
                    raise
                _drop_pool(target)
                connection, reply = self._call_afresh(target, request, now + deadline)
        except ClusterStateError as error:
            raise self._failed(target, error, now) from error
        self._succeeded(target, connection, reply, now)
        return reply

    def call_each(self, requests: Sequence[tuple[Target, bytes]]) -> list[Reply | ClusterStateError]:
        """Several requests to different nodes at once. An error stands where its reply would."""
        now = self._clock()
        if len(requests) == 1:
            return [self._call_or_error(*requests[0], now)]
        until = time.monotonic() + self._deadline
        sent = [self._send(target, request) for target, request in requests]
        # Where no idle connection is at hand one is made, while the others' answers are under way.
        results = [
            self._call_in_time(target, request, now, until) if connection is None else None
            for (target, request), connection in zip(requests, sent, strict=True)
        ]
        for index, connection, patience in _as_they_answer(sent, until):
            target, request = requests[index]
            try:
                results[index] = reply = connection.receive(patience, overtime=0)
            except ClusterStateError as error:
                if _is_late(error):
                    results[index] = self._failed(target, error, now)
                else:
                    results[index] = self._call_in_time(target, request, now, until)
            else:
                self._succeeded(target, connection, reply, now)
        return [result for result in results if result is not None]

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

    def _call_afresh(self, target: Target, request: bytes, until: float) -> tuple[BlockingConnection, Reply]:
        until += time.monotonic() - self._clock()
        connection = BlockingConnection(target.address, self._keys, self._deadline, until, self._processors.idle)
        connection.send(request)
        return connection, connection.receive(until)

    def _send(self, target: Target, request: bytes) -> BlockingConnection | None:
        """An idle connection on which the request is under way now, or None."""
        try:
            connection: BlockingConnection = target.pool.pop()
            connection.send(request)
        except (IndexError, Unavailable):
            return None
        return connection

    def _call_or_error(self, target: Target, request: bytes, now: float) -> Reply | ClusterStateError:
        try:
            return self.call_node(target, request, now)
        except ClusterStateError as error:
            return error

    def _call_in_time(self, target: Target, request: bytes, now: float, until: float) -> Reply | ClusterStateError:
        """The same, but a node isn't asked, and so not blamed, when others have used up the time."""
        if time.monotonic() >= until:
            return Unavailable(f"{target} wasn't asked: no time was left")
        return self._call_or_error(target, request, now)

    def _succeeded(self, target: Target, connection: BlockingConnection, reply: Reply, now: float) -> None:
        self.routing.waits.append(self._clock() - now)
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
        sources, answered = self.routing.sources(now), False
        try:
            for source in sources:  # which grows while it is gone through
                viewed: Reply | None
                try:
                    viewed = self.call_node(source, GET_VIEW if answered else request)
                except ClusterStateError:
                    viewed = None
                if isinstance(viewed, Viewed):
                    answered = True  # and has taken in what was counted
                    learned = self.routing.learn(viewed, source, now)
                    for target in learned.unused:
                        _drop_pool(target)
                    if learned.taken:
                        return
                    also_ask(sources, learned)
                if self._clock() - now >= self._deadline:
                    return  # a caller waits
        finally:
            if not answered:
                self.routing.untold.put_back(counted)


def _as_they_answer(
    sent: Sequence[BlockingConnection | None], until: float
) -> Iterator[tuple[int, BlockingConnection, float]]:
    """(index, connection, until when to receive) of each connection as its answer comes; last, those without one."""
    waiting = {connection.fileno(): (index, connection) for index, connection in enumerate(sent) if connection}
    until = max(until, time.monotonic() + OVERTIME)
    poll = select.poll()
    for fileno in waiting:
        poll.register(fileno, select.POLLIN)
    while waiting:
        ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        for fileno in [fileno for fileno, _ in ready] or list(waiting):
            poll.unregister(fileno)
            # What has come in time is read, even if others took until now.
            yield *waiting.pop(fileno), max(until, time.monotonic() + OVERTIME) if ready else until


def _is_late(error: Exception) -> bool:
    return isinstance(error.__cause__, BlockingIOError)


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
        client.routing.count_anew()
