"""The daemon: one instance of a node, from its start to its leave."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine

from ..core.membership.heartbeat import Heartbeat, Identity, MemberState
from ..core.membership.members import Effects
from ..core.membership.membership import MAY_END, TICK, Membership
from ..wire.handshake import Hello
from .channels.in_process_layer import InProcessLayer
from .channels.queues import NODE_GROUPS
from .config import NodeConfig, NodeError
from .discovery import Discovery
from .hand_over_log import HandOverLog
from .handler import Handler
from .heartbeat import ChannelLayer, Heartbeats
from .links import Links, Peer
from .log import RateLimitedLog, logger
from .membership_changes import MembershipEvents, Notification, ViewChanged
from .server import Server

CLEAN_EVERY = 1.0  # seconds
RECLAIM_PAUSE = 0.01  # seconds between two portions of expired entries: 30,000 a second
DISCOVERY_TIMEOUT = 10.0  # seconds
LINGER = 2.0  # seconds for which a node that has left goes on forwarding requests of requesters with an older view
REJECTED_EVERY = 1.0  # seconds between two log lines about rejected connections and heartbeats
REJECTED_AGAIN = 600.0  # seconds between two of the same
LINK_FAILED_AGAIN = 60.0  # seconds between two log lines about one address


class Node:
    """Serves its sockets, keeps its links, and exchanges heartbeats over `layer` (None: the embedded layer).

    `notify(event)` is called, in order, with each change of state of a member, this node included, with each view after
    the changes that made it, and with isolation.
    """

    def __init__(
        self,
        config: NodeConfig,
        boot: bytes,
        layer: ChannelLayer | None,
        discovery: Discovery | None,
        notify: Callable[[Notification], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._clock = clock
        self._discovery = discovery
        self._notify = notify
        me = Identity(config.name, boot, str(config.advertise), config.weight)
        self.superseded = False  # this instance ended: another node has its name; the process may begin another
        self.membership = Membership(me, config.timings, clock(), must_be_reached=True, rejoins=True)
        self.membership.joining.filled = False
        rejected = RateLimitedLog(clock, REJECTED_AGAIN, REJECTED_EVERY)
        self.links = Links(
            me, config.link_keys, clock, on_open=self._link_opened, on_refused=self._peer_refused,
            log=RateLimitedLog(clock, LINK_FAILED_AGAIN),
        )  # fmt: skip
        self.handler = Handler(config, self.membership, clock, self.links)
        self._hand_overs = HandOverLog(self.handler, clock)
        self._events = MembershipEvents(self.membership, self.handler.stats, self.handler.history, notify, clock)
        self.server = Server(self.handler, config.link_keys, rejected, on_dialed=self._handshake_completed)
        self.heartbeats = Heartbeats(
            self.membership,
            layer or InProcessLayer(self.handler.channel_requests, self.handler.channels, me, clock),
            NODE_GROUPS + config.cluster,
            config.channel_keys,
            clock,
            on_heard=self._heartbeat_received,
            rejected_log=rejected,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._view = self.membership.view
        self._reclaiming = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then leaves. Sets it itself when this instance is superseded.

        Raises `NodeError` when it can't listen, or on a bug.
        """
        self._stop = stop
        try:
            await self.server.listen(self.config.socket)
            await self.server.listen(self.config.bind)
            _freeze_garbage_collector()
            me, config = self.membership.me, self.config
            logger.info(
                "node %s started, listening on %s (advertised as %s) and %s",
                me.name, config.bind, me.address, config.socket,
            )  # fmt: skip
            self._spawn(self.heartbeats.run())
            self._spawn(self._tick_forever())
            self._spawn(self._replicate_forever())
            if self._discovery is not None:
                self._spawn(self._discover_forever(self._discovery))
            await stop.wait()
            if self.superseded:
                self._apply(self.membership.leave_done())
                await self.heartbeats.beat()
            else:
                await self._leave()
            if self._failure is not None:
                raise NodeError(f"the node has stopped because a part of it failed: {self._failure!r}")
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.links.close()
            self.server.close()

    async def _leave(self) -> None:
        """Hands over to the next owners, says that this node leaves, and forwards requests for a while."""
        copies, loop = self.handler.copies, asyncio.get_running_loop()
        if self._failure is None:  # otherwise the part that hands over may be the one that failed
            with self._hand_overs.leaving(self.config.drain):
                leaver = await copies.leave(self.config.drain)
                await copies.until(lambda: leaver.may_leave or self._failure is not None)
        self.links.leaving = True
        self._apply(self.membership.leave())
        await self.heartbeats.beat()
        if self._discovery is not None:
            self._spawn(self._withdraw(self._discovery))
        if self.membership.view.members and self._failure is None:
            lingers_until = loop.time() + LINGER
            await copies.until(lambda: (leaver.done and loop.time() >= lingers_until) or self._failure is not None)
            self._hand_overs.ended()
        self._apply(self.membership.leave_done())
        await self.heartbeats.beat()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A node that lacks one of its tasks does more harm than one that is restarted.
            logger.critical(
                "node %s failed and is leaving the cluster; please report this error",
                self.membership.me,
                exc_info=error,
            )
            self._failure = error
            self._stop.set()

    # -- events ---------------------------------------------------------------------------------------------

    def _heartbeat_received(self, beat: Heartbeat, fresh: bool) -> None:
        if beat.identity.boot != self.membership.me.boot:
            self.handler.stats.heartbeats_heard += 1
        effects = self.membership.heard(beat, self._clock(), fresh=fresh)
        if effects.dial:
            self.links.dial(beat.identity)
        self.links.add(address for address in effects.unknown_addresses if not self.links.has(address))
        self._apply(effects)
        if effects.answer and beat.channel:
            self._spawn(self.heartbeats.answer(beat.channel, beat.identity))

    def _handshake_completed(self, hello: Hello) -> None:
        """Notes that a peer has dialed this node."""
        membership, now = self.membership, self._clock()
        me = membership.me
        if (hello.expected_name, hello.expected_boot, hello.dialed) == (me.name, me.boot, me.address):
            self.links.reached = self.links.reached or hello.boot != me.boot
            self._apply(membership.reached_by(hello.name, hello.boot, now))
        else:
            self._apply(membership.identified(hello.name, hello.boot, now))

    def _link_opened(self, peer: Peer, address: str) -> None:
        member = self.membership.members.get(peer.name)
        self._apply(self.membership.identified(peer.name, peer.boot, self._clock(), address))
        if member is None or member.identity.boot != peer.boot or member.state is MemberState.DOWN:
            self.heartbeats.beat_soon()

    def _peer_refused(self, peer: Peer) -> None:
        self._apply(self.membership.refused(peer.name, peer.boot, self._clock()))

    def _apply(self, effects: Effects) -> None:
        """Carries out the effects of a call of the membership."""
        self._events.take_effects(effects)
        if effects.superseded and not self._stop.is_set() and self.membership.state in MAY_END:
            self.superseded = True
            logger.warning(
                "node %s is restarting empty: another running node has its name, or had it in the meantime, "
                "and has served its keys; give each node its own CLUSTERSTATE_NODE_NAME", self.membership.me,
            )  # fmt: skip
            self._stop.set()
        old, new = self._view, self.membership.view
        self._view = new
        self._hand_overs.take_effects(effects)
        self.handler.take_effects(effects)
        for change in effects.changes:
            self._events.take_change(change)
            if change.new is MemberState.DOWN:
                self.links.reset(change.identity.address)
            elif change.identity is self.membership.me:
                self.heartbeats.beat_soon()
        if new.epoch != old.epoch:
            self._notify(ViewChanged(old, new))

    # -- periodic work --------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        cleaned = self._clock()
        while True:
            due = await self.server.coalescer.sleep(TICK)
            now = self._clock()
            self.membership.layer_failing = self.heartbeats.failing
            self._apply(self.membership.tick(now, due))
            if not self._reclaiming and self.handler.reclaim():
                self._spawn(self._reclaim())
            if now - cleaned >= CLEAN_EVERY:
                cleaned = now
                self._clean(now)

    async def _replicate_forever(self) -> None:
        while True:
            await self.handler.copies.tick_when_due(TICK)

    def _clean(self, now: float) -> None:
        """Does the work that is due about once a second."""
        self.handler.tick()
        self.links.tick()
        self._hand_overs.tick()
        for boot in self.links.connected_boots():
            self.membership.still_linked(boot, now)
        self._events.take_problems(self.links.misdirected)
        stats, channels = self.handler.stats, self.handler.channels
        stats.heartbeats_ignored = self.membership.dropped
        stats.heartbeats_dropped = self.heartbeats.rejected
        stats.changes.restarted = self.membership.restarts
        stats.channel_dropped = channels.dropped + self.links.dropped
        stats.channel_unreceived = channels.unreceived
        stats.channel_unreachable = self.links.unreachable

    async def _reclaim(self) -> None:
        """Frees the rest where many entries expire at once, in portions that delay no request."""
        self._reclaiming = True
        while self._reclaiming:
            await asyncio.sleep(RECLAIM_PAUSE)
            self._reclaiming = self.handler.reclaim()

    async def _discover_forever(self, discovery: Discovery) -> None:
        failed = ""
        while True:
            try:
                async with asyncio.timeout(DISCOVERY_TIMEOUT):
                    self.links.add(await discovery.addresses())
                failure = discovery.problem
            except Exception as error:  # a resolver or a database may raise anything; no member is lost by it
                failure = f"{type(error).__name__}: {error}"
            if failure and not failed:
                logger.warning("discovery failed: %s; known peers stay, new ones are found once it recovers", failure)
            elif failed and not failure:
                logger.warning("discovery recovered")
            failed = failure
            await asyncio.sleep(discovery.interval)

    async def _withdraw(self, discovery: Discovery) -> None:
        try:
            async with asyncio.timeout(LINGER):
                await discovery.withdraw()
        except Exception as error:  # a database may raise anything
            logger.info("discovery entry of this node not deleted: %s; it expires within a day", error)


def _freeze_garbage_collector() -> None:
    """Exempts the objects made so far, the cache's dicts among them, from garbage collection: to traverse a million
    entries takes a quarter of a second each time, and finds nothing."""
    gc.collect()
    gc.freeze()
