"""Exchanges copies with peers, and forwards requests to the owners of their keys: `core.replication` with its sockets.

What is sent to an instance goes over one connection, in order; a forwarded request can't overtake the changes that it
has to see.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from ..core.membership.heartbeat import Identity, MemberState, View
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
from .log import RateLimitedLog

FLUSH = 0.01  # seconds from a change until it is sent
PAUSE = 0.005  # seconds between steps of 2 ms for nodes that join: they can wait
PATIENCE = 0.5  # of a requester's deadline: the part of it for which a forwarded request waits for its reply
SUBSTITUTE_AFTER = 1.0  # seconds for which an owner gives no reply until another node changes entries in its place
LOOK_AGAIN = 1.0  # seconds
LATEST_HEARTBEAT = 1.2  # intervals before the last tick: they vary by a tenth, and one is sent a little late
ACK_TIMEOUT = 5.0  # seconds after which the connection to a peer that acknowledges nothing is dialed again


class CopyLinks(Protocol):
    """What `Copies` uses of `Links`."""

    log: RateLimitedLog

    def copies(self) -> Iterable[tuple[bytes, AsyncConnection]]:
        """The open connections for copies, each with the boot ID of its peer."""


class Copies:
    """The copies of the node, whose entries are in `stores`.

    `good_until`: the time at which this node will have stood still for so long that others may own its keys.
    """

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
        self._timings = config.timings
        self.good_until = math.inf
        self._ticked_at = self._sent_at = clock()
        self._resumed = -math.inf  # when this node went on after it had stood still
        self._backups = config.backups
        self._seen: tuple[int, frozenset[bytes]] = (0, frozenset())
        self._change: tuple[View, list[Identity]] | None = None  # of the members, not taken in yet
        self._connections: dict[bytes, AsyncConnection] = {}
        self._acknowledged_at: dict[bytes, float] = {}
        self._inbound: dict[bytes, Requester] = {}  # the connections from peers
        self._late_since: dict[bytes, float] = {}  # the owners that are late with a reply
        self.forwarded = 0

    # -- changes --------------------------------------------------------------------------------------------

    def write(self, kind: int, key: bytes, now: float) -> int:
        """Notes that a request changes a key. Returns the version of the change."""
        replication = self.replication
        replication.changed(kind, key)
        self._busy.set()
        return replication.clock.next(now)

    def take_effects(self, effects: Effects) -> None:
        """Takes in that others have declared this node down, and who has served its keys; and changes of members, a
        little later, since what follows from them takes a while to compute."""
        if effects.declared_down:
            self._update()
            self.replication.declared_down(self._clock())
        if effects.changes:
            self._note_change()
        if effects.winners:
            self._update()
            self.replication.yield_to(effects.winners, self._clock())
        self._note_progress()
        self._busy.set()

    def _note_change(self) -> None:
        membership = self._membership
        joining = [m.identity for m in membership.members.values() if m.state is MemberState.JOINING]
        seen = membership.view.epoch, frozenset(identity.boot for identity in joining)
        if seen != self._seen:
            self._seen = seen
            self._change = membership.view, joining
            if not self.replication.placement.boots:
                self._update()  # nobody else serves yet

    def _update(self) -> None:
        """Takes in the last change of the members."""
        if self._change is not None:
            change, self._change = self._change, None
            self.replication.update(*change, self._clock())

    def _note_progress(self) -> None:
        self._membership.joining.filled = self._change is None and self.replication.joiner.may_serve

    async def leave(self, seconds: float) -> Leaver:
        """Begins to hand over what this node owns, within `seconds`."""
        await self._prepare([self._membership.me.boot])
        self._update()
        leaver = self.replication.leave(seconds, self._clock())
        self._busy.set()
        return leaver

    async def _prepare(self, leaving: Sequence[bytes] = ()) -> None:
        """Computes what the last change of the members needs, in steps between which requests are answered and changes
        are sent; with pauses if nodes join, and none leaves or has gone."""
        placement = self.replication.placement
        while True:
            change, known = self._change, set(placement.leaving)
            view, joining = change or (placement.view, list(placement.joining.values()))
            is_urgent = leaving or known or view.epoch != placement.view.epoch
            for _ in self.replication.prepare(view, joining, leaving):
                await asyncio.sleep(0 if is_urgent or change is not self._change else PAUSE)
                self._note_pause(self._clock())
                await self._send_changes()
            if change is self._change and known == placement.leaving:  # nothing else has happened meanwhile
                return

    async def _send_changes(self) -> None:
        if self._clock() >= self._sent_at + FLUSH:
            self._sent_at = self._clock()
            for _ in self.replication.send_changes(self._sent_at):
                await asyncio.sleep(0)
                now = self.replication.outboxes.now = self._clock()
                self._note_pause(now)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits while copies are exchanged."""
        while not condition():
            self._ticked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):  # it may be something else that has changed
                    await self._ticked.wait()

    # -- the passing of time --------------------------------------------------------------------------------

    async def tick_when_due(self, seconds: float) -> None:
        """Sends what has changed, FLUSH seconds after a change and each `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._busy.wait()
        await asyncio.sleep(FLUSH)
        if self._change is not None or self.replication.plan_due:
            await self._prepare()
        for _ in self.tick():
            await asyncio.sleep(0)

    def tick(self) -> Iterator[None]:
        """Sends what has changed, and goes on with joining or leaving, in steps between which requests are answered."""
        self._busy.clear()
        now = self._clock()
        replication, membership = self.replication, self._membership
        self._note_pause(now)
        self._update()
        self._update_connections(now)
        replication.joiner.damped = membership.wait_reason(now) not in (None, WaitReason.FILLING)
        for _ in replication.tick(now):
            self._note_progress()
            self._ticked.set()
            yield
            now = replication.outboxes.now = self._clock()
            self._note_pause(now)
        if not self.replication.idle:
            self._busy.set()

    def _note_pause(self, now: float) -> None:
        """After this node has stood still, it hears within a heartbeat whether it was declared down."""
        # Others count from the last heartbeat that they have received, which may be older than the last tick.
        still = self._timings.down_after - LATEST_HEARTBEAT * self._timings.heartbeat
        if now >= self.good_until and now >= self._ticked_at + still:
            self._resumed = now
        self._ticked_at = now
        if now >= self._resumed + self._timings.heartbeat:
            alone = self.replication.placement.boots <= {self._membership.me.boot}
            self.good_until = math.inf if alone else now + still

    def status(self) -> CopiesStatus:
        """How complete the copies are."""
        replication, outboxes = self.replication, self.replication.outboxes
        return CopiesStatus(
            replication.synced and self._change is None,
            len(replication.placement.held - replication.complete),
            outboxes.lag,
            outboxes.behind,
            self.forwarded,
            outboxes.unfilled,
            outboxes.age,
            self._backups,
        )

    # -- messages -------------------------------------------------------------------------------------------

    def receive(self, request: wire.Replicate, requester: Requester) -> None:
        """Takes in a message of a peer. Raises `ProtocolError` or one of `DECODE_ERRORS` if it can't be read."""
        boot = requester.peer
        before = self._inbound.get(boot)
        if before is not requester:
            self._inbound[boot] = requester
            if before is not None:  # what it still sends would be taken for the new connection's
                before.abort()
                self.replication.disconnected(boot)
        try:
            self.replication.receive(boot, wire.decode_copies(request.message), self._clock())
        except ValueError as error:
            raise ProtocolError(f"a copy that cannot be stored: {error}") from error
        self._busy.set()

    def disconnected(self, requester: Requester) -> None:
        """Notes that a connection to this node is closed."""
        if self._inbound.get(requester.peer) is requester:
            del self._inbound[requester.peer]
            self.replication.disconnected(requester.peer)

    def _send(self, boot: bytes, message: Message) -> None:
        if isinstance(message, Ack):
            if boot in self._inbound:
                self._inbound[boot].push(wire.AckReply(self.epoch, message.clock, message.refused))
            return
        connection = self._connections.get(boot)
        if connection is None:
            return
        data = _framed(wire.Replicate(wire.encode_copies(message)))
        if isinstance(message, ACKNOWLEDGED):
            connection.send(data)  # not many: a window of them, or what can be sent at once
        elif not connection.cast(data) and not connection.closed:
            self._close(boot, connection, "is too slow for its copies")

    def _acknowledged(self, boot: bytes, connection: AsyncConnection, ack: wire.AckReply) -> None:
        if self._connections.get(boot) is connection:
            self._acknowledged_at[boot] = self._clock()
            self.replication.receive(boot, Ack(ack.clock, ack.refused), self._clock())
            self._busy.set()

    def _update_connections(self, now: float) -> None:
        outboxes = self.replication.outboxes.by_boot
        for boot, connection in list(self._connections.items()):
            outbox = outboxes.get(boot)
            if outbox is None or not outbox.open:  # the peer was gone for a moment: nothing sent to it before counts
                connection.close()
            elif not outbox.busy or outbox.ends_fill:
                self._acknowledged_at[boot] = now
            elif now - self._acknowledged_at[boot] > ACK_TIMEOUT:
                self._close(boot, connection, f"has acknowledged no copies for {ACK_TIMEOUT:g} s")
            if connection.closed:
                del self._connections[boot], self._acknowledged_at[boot]
                self._late_since.pop(boot, None)
                self.replication.closed(boot)
        for boot, connection in self._links.copies():
            if boot not in self._connections:
                self._connections[boot] = connection
                self._acknowledged_at[boot] = now
                connection.on_ack = partial(self._acknowledged, boot, connection)
                self.replication.opened(boot, now)

    def _close(self, boot: bytes, connection: AsyncConnection, why: str) -> None:
        """Closes a connection on which nothing moves; the next one begins again."""
        known = (member.identity for member in self._membership.members.values())
        peer = next((str(identity) for identity in known if identity.boot == boot), boot.hex())
        self._links.log.write(
            f"peer {peer} {why}; its link is closed and dialed again: check its load and network", subject=peer
        )
        connection.close()

    @property
    def epoch(self) -> int:
        return self._membership.view.epoch

    # -- requests of which another node owns the keys -------------------------------------------------------

    def destination(self, slot: int, hops: int, merges: bool) -> bytes | None:
        """The instance that executes a request about a slot; None if none can. `merges`: see `Store`.

        An owner that has given no reply for SUBSTITUTE_AFTER seconds counts as one that isn't reached; at once if the
        result is merged with what it has.
        """
        patience = 0.0 if merges else SUBSTITUTE_AFTER
        return self.replication.destination(slot, hops, merges, lambda owner: self._is_reached(owner, patience))

    def _is_reached(self, boot: bytes, patience: float) -> bool:
        connection, since = self._connections.get(boot), self._late_since.get(boot)
        is_late = since is not None and self._clock() - since >= patience
        is_open = connection is not None and not connection.closed and self.replication.outboxes.is_open(boot)
        return is_open and not is_late

    def forward(self, boot: bytes, request: wire.Request, hops: int) -> "asyncio.Future[wire.Reply]":
        """Sends a request to the owner of its keys. The future always gets a reply."""
        connection, data = self._connections[boot], _framed(wire.Execute(wire.encode(request), hops + 1))
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[wire.Reply] = loop.create_future()
        if not self.replication.flush_to(boot, self._clock()):
            reply.set_result(wire.UnavailableReply(self.epoch, sent=False))
            return reply
        self.forwarded += 1

        def expire() -> None:
            self._late_since.setdefault(boot, self._clock())
            reply.set_result(wire.UnavailableReply(self.epoch, sent=True))

        def answered(answer: "asyncio.Future[wire.Reply]") -> None:
            timer.cancel()
            failed = answer.cancelled() or answer.exception() is not None
            if not failed:
                self._late_since.pop(boot, None)
            if not reply.done():
                reply.set_result(wire.UnavailableReply(self.epoch, sent=True) if failed else answer.result())

        timer = loop.call_later(self._patience, expire)
        connection.request(data).add_done_callback(answered)
        return reply


def _framed(request: wire.Request) -> bytes:
    return frame(wire.encode(request), MAX_FRAME)
