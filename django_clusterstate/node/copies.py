"""Exchanges copies with peers, and forwards requests to the owners of their keys: `core.replication` with its sockets.

What is sent to an instance goes over one connection, in order; a forwarded request can't overtake the changes that it
has to see.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..core.membership.heartbeat import MemberState
from ..core.membership.joining import WaitReason
from ..core.membership.members import Effects
from ..core.membership.membership import Membership
from ..core.replication.hand_over import Leaver
from ..core.replication.messages import ACKNOWLEDGED, Ack, Message
from ..core.replication.replication import Replication
from ..core.replication.stores import Store
from ..exceptions import ProtocolError
from ..wire import messages as wire
from ..wire.aio import AsyncConnection
from ..wire.framing import MAX_FRAME, frame
from ..wire.status import CopiesStatus
from .channels.requests import Requester
from .config import NodeConfig

FLUSH = 0.01  # seconds from a change until it is sent
PATIENCE = 0.5  # of a requester's deadline: the part of it for which a forwarded request waits for its reply


class CopyLinks(Protocol):
    """The method of `Links` that `Copies` uses."""

    def copies(self) -> Iterable[tuple[bytes, AsyncConnection]]:
        """The open connections for copies, each with the boot ID of its peer."""


@dataclass(eq=False, slots=True)
class _Inbound:
    """The connection from a peer, and the replies that are due on it."""

    requester: Requester
    unacknowledged: deque[asyncio.Future[wire.Reply]] = field(default_factory=deque)


class Copies:
    """The copies of the node, whose entries are in `stores`."""

    def __init__(
        self,
        membership: Membership,
        stores: Sequence[Store],
        config: NodeConfig,
        links: CopyLinks,
        clock: Callable[[], float],
    ) -> None:
        self._busy = asyncio.Event()  # set when there is something to send
        self._ticked = asyncio.Event()
        self._membership = membership
        self._links = links
        self._clock = clock
        self.replication = Replication(membership.me, stores, self._send, clock(), config.backups)
        self._patience = PATIENCE * config.deadline
        self._seen: tuple[int, frozenset[bytes]] = (0, frozenset())
        self._connections: dict[bytes, AsyncConnection] = {}
        self._inbound: dict[bytes, _Inbound] = {}
        self._unanswered: Counter[bytes] = Counter()  # forwarded requests that their owner is late with
        self.forwarded = 0

    # -- changes --------------------------------------------------------------------------------------------

    def write(self, kind: int, key: bytes, now: float) -> int:
        """Notes that a request changes a key. Returns the version of the change."""
        replication = self.replication
        replication.changed(kind, key)
        self._busy.set()
        return replication.clock.next(now)

    def members_changed(self) -> None:
        """Takes in the view, and the members that join."""
        membership = self._membership
        joining = [m.identity for m in membership.members.values() if m.state is MemberState.JOINING]
        seen = membership.view.epoch, frozenset(identity.boot for identity in joining)
        if seen != self._seen:
            self._seen = seen
            self.replication.update(membership.view, joining, self._clock())
            self._busy.set()

    def take_effects(self, effects: Effects) -> None:
        """Takes in that others have declared this node down, and who has served its keys; and changes of members."""
        if effects.declared_down:
            self.replication.given_up(self._clock())
        if effects.changes:
            self.members_changed()
        if effects.winners:
            self.replication.lose(effects.winners, self._clock())
        self._membership.joining.filled = self.replication.joiner.may_serve
        self._busy.set()

    def leave(self, seconds: float) -> Leaver:
        """Begins to hand over what this node owns, within `seconds`."""
        leaver = self.replication.leave(seconds, self._clock())
        self._busy.set()
        return leaver

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits while copies are exchanged."""
        while not condition():
            self._ticked.clear()
            await self._ticked.wait()

    # -- the passing of time --------------------------------------------------------------------------------

    async def tick_when_due(self, seconds: float) -> None:
        """Sends what has changed, FLUSH seconds after a change and each `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._busy.wait()
        await asyncio.sleep(FLUSH)
        self.tick()

    def tick(self) -> None:
        """Sends what has changed, and goes on with joining or leaving."""
        self._busy.clear()
        now = self._clock()
        replication, membership = self.replication, self._membership
        self._update_connections(now)
        replication.joiner.damped = membership.wait_reason(now) not in (None, WaitReason.FILLING)
        replication.tick(now)
        membership.joining.filled = replication.joiner.may_serve
        if not self.replication.idle:
            self._busy.set()
        self._ticked.set()

    def status(self) -> CopiesStatus:
        """How complete the copies are."""
        replication = self.replication
        return CopiesStatus(
            replication.synced,
            len(replication.placement.held - replication.complete),
            replication.outboxes.lag,
            sum(outbox.behind for outbox in replication.outboxes.by_boot.values()),
            self.forwarded,
        )

    # -- messages -------------------------------------------------------------------------------------------

    def receive(
        self, request: wire.Replicate, requester: Requester
    ) -> "wire.Reply | asyncio.Future[wire.Reply] | None":
        """Takes in a message of a peer. Raises `ProtocolError` or one of `DECODE_ERRORS` if it can't be read."""
        boot = requester.peer
        inbound = self._inbound.get(boot)
        if inbound is None or inbound.requester is not requester:
            if inbound is not None:
                self.replication.disconnected(boot)
            inbound = self._inbound[boot] = _Inbound(requester)
        message = wire.decode_copies(request.message)
        reply: asyncio.Future[wire.Reply] | None = None
        if isinstance(message, ACKNOWLEDGED):
            reply = asyncio.get_running_loop().create_future()
            inbound.unacknowledged.append(reply)
        try:
            self.replication.receive(boot, message, self._clock())
        except ValueError as error:
            raise ProtocolError(f"a copy that cannot be stored: {error}") from error
        self._busy.set()
        return reply.result() if reply is not None and reply.done() else reply

    def disconnected(self, requester: Requester) -> None:
        """Notes that a connection to this node is closed."""
        inbound = self._inbound.get(requester.peer)
        if inbound is not None and inbound.requester is requester:
            del self._inbound[requester.peer]
            self.replication.disconnected(requester.peer)

    def _send(self, boot: bytes, message: Message) -> None:
        if isinstance(message, Ack):
            self._acknowledge(boot, message)
            return
        connection = self._connections.get(boot)
        if connection is None:
            return
        data = _framed(wire.Replicate(wire.encode_copies(message)))
        if isinstance(message, ACKNOWLEDGED):
            connection.request(data).add_done_callback(partial(self._acknowledged, boot, connection))
        elif not connection.cast(data):
            connection.close()  # too slow; the next one begins anew

    def _acknowledge(self, boot: bytes, ack: Ack) -> None:
        inbound = self._inbound.get(boot)
        if inbound is not None:
            inbound.unacknowledged.popleft().set_result(wire.AckReply(self.epoch, ack.clock, ack.refused))

    def _acknowledged(self, boot: bytes, connection: AsyncConnection, reply: "asyncio.Future[wire.Reply]") -> None:
        if reply.cancelled() or reply.exception() is not None or self._connections.get(boot) is not connection:
            return  # the connection is lost, which `tick()` notices
        ack = reply.result()
        if isinstance(ack, wire.AckReply):
            self.replication.receive(boot, Ack(ack.clock, ack.refused), self._clock())
            self._busy.set()
        else:
            connection.close()

    def _update_connections(self, now: float) -> None:
        for boot, connection in list(self._connections.items()):
            if connection.closed:
                del self._connections[boot]
                self.replication.closed(boot)
        for boot, connection in self._links.copies():
            if boot not in self._connections:
                self._connections[boot] = connection
                self.replication.opened(boot, now)

    @property
    def epoch(self) -> int:
        return self._membership.view.epoch

    # -- requests of which another node owns the keys -------------------------------------------------------

    def destination(self, slot: int, hops: int) -> bytes | None:
        """The instance that executes a request about a slot; None if none can."""
        me = self._membership.me.boot
        boot = self.replication.destination(slot, hops)
        if boot is None or boot == me:
            return boot
        connection = self._connections.get(boot)
        if connection is not None and not connection.closed and not self._unanswered[boot]:
            return boot
        return me if self.replication.placement.serving else None

    def forward(self, boot: bytes, request: wire.Request, hops: int) -> "asyncio.Future[wire.Reply]":
        """Sends a request to the owner of its keys. The future always gets a reply."""
        self.forwarded += 1
        connection, data = self._connections[boot], _framed(wire.Execute(wire.encode(request), hops + 1))
        self.replication.flush_to(boot, self._clock())
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[wire.Reply] = loop.create_future()

        def expire() -> None:
            self._unanswered[boot] += 1
            reply.set_result(wire.UnavailableReply(self.epoch, sent=True))

        def answered(answer: "asyncio.Future[wire.Reply]") -> None:
            timer.cancel()
            failed = answer.cancelled() or answer.exception() is not None
            if reply.done():
                self._unanswered[boot] -= 1
                self._unanswered += Counter()  # drops zeros
            elif failed:
                reply.set_result(wire.UnavailableReply(self.epoch, sent=True))
            else:
                reply.set_result(answer.result())

        timer = loop.call_later(self._patience, expire)
        connection.request(data).add_done_callback(answered)
        return reply


def _framed(request: wire.Request) -> bytes:
    return frame(wire.encode(request), MAX_FRAME)
