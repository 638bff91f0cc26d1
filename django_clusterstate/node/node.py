"""The daemon: one node of the cluster, from its start to its leave."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from ..core.membership.messages import Heartbeat, Identity, MemberState, View
from ..core.membership.timeline import What
from ..core.membership.transitions import TICK, Change, Effects, Membership
from ..wire.handshake import Hello
from .channels.layer import InProcessLayer
from .channels.queues import NODES_OWN
from .config import NodeConfig, NodeError
from .discovery import Discovery
from .handler import Handler
from .heartbeat import ChannelLayer, Heartbeats
from .links import Links, Peer
from .log import RationedLog, logger, state_change
from .problems import problems
from .server import Server

CLEAN_EVERY = 1.0  # seconds
RECLAIM_PAUSE = 0.01  # seconds between two portions of expired entries: 30,000 a second
DISCOVERY_TIMEOUT = 10.0
REJECTED_EVERY = 1.0  # seconds between two log lines about rejected connections and heartbeats
REJECTED_AGAIN = 600.0  # seconds between two of the same
LINK_FAILED_AGAIN = 60.0  # seconds between two log lines about one address
PROBLEM_AGAIN = 60.0  # seconds between two log lines about a problem that lasts

_NEWS = {
    MemberState.ALIVE: What.JOINED,
    MemberState.SUSPECT: What.SUSPECTED,
    MemberState.DOWN: What.DOWN,
    MemberState.LEAVING: What.LEFT,
    MemberState.LEFT: What.LEFT,
}


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """The serving members are others than before."""

    old: View
    new: View


@dataclass(frozen=True, slots=True)
class Isolated:
    """Most peers fell silent at once: it is probably this node that is cut off."""


Event = Change | ViewChanged | Isolated


class Node:
    """Serves its sockets, keeps its links, and its membership by heartbeats over `layer`; None is the embedded one.

    `notify(event)` is told, in order, of each state change of a member, this node's own included, of each view after
    the changes that made it, and of isolation.
    """

    def __init__(
        self,
        config: NodeConfig,
        boot: bytes,
        layer: ChannelLayer | None,
        discovery: Discovery | None,
        notify: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._clock = clock
        self._discovery = discovery
        self._notify = notify
        me = Identity(config.name, boot, str(config.advertise), config.weight)
        self.over = False  # this start ended since another holds its name; the process may begin another
        self.membership = Membership(me, config.timings, clock(), must_be_reached=True)
        rejected = RationedLog(clock, REJECTED_AGAIN, REJECTED_EVERY)
        self.links = Links(
            me, config.link_keys, clock, on_open=self._link_opened, on_refused=self._peer_refused,
            log=RationedLog(clock, LINK_FAILED_AGAIN),
        )  # fmt: skip
        self.handler = Handler(config, self.membership, clock, self.links)
        self.server = Server(self.handler, config.link_keys, rejected, on_dialled=self._dialled_by)
        self.heartbeats = Heartbeats(
            self.membership,
            layer or InProcessLayer(self.handler.channel_requests, self.handler.channels, me, clock),
            NODES_OWN + config.cluster,
            config.channel_keys,
            clock,
            on_heard=self._heard,
            rejected_log=rejected,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._isolated = False
        self._view = self.membership.view
        self._reclaiming = False
        self._discovery_failure = ""
        self._problems: dict[str, float] = {}  # and when each was logged

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then leaves. Sets it itself when this start is `over`. Raises `NodeError` when a
        socket can't be had, or on a bug."""
        self._stop = stop
        try:
            await self.server.listen(self.config.socket)
            await self.server.listen(self.config.bind)
            _spare_the_collector()
            logger.info(
                "node %s (%s) started, and listens on %s and %s",
                self.config.name, self.config.advertise, self.config.bind, self.config.socket,
            )  # fmt: skip
            for work in (self.heartbeats.run(), self._tick_forever(), self._discover_forever()):
                self._spawn(work)
            await stop.wait()
            if self.over:
                self._act(self.membership.leave_done())
                await self.heartbeats.beat()
            else:
                await self._leave()
            if self._failure is not None:
                raise NodeError(f"the node has stopped, since a part of it failed: {self._failure!r}")
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.links.close()
            self.server.close()

    async def _leave(self) -> None:
        """Says so before anything else, then serves on for those who haven't heard yet."""
        self.links.hurried = True
        self._act(self.membership.leave())
        await self.heartbeats.beat()
        if self._discovery is not None:
            self._spawn(self._withdraw(self._discovery))
        if self.membership.view.members:
            await asyncio.sleep(self.config.drain)
        self._act(self.membership.leave_done())
        await self.heartbeats.beat()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A node that only seems to live is worse than one that is started again.
            me = self.membership.me
            logger.critical(
                "node %s (%s) failed, and leaves the cluster; please report this error", me.name, me.address,
                exc_info=error,
            )  # fmt: skip
            self._failure = error
            self._stop.set()

    # -- what happens ---------------------------------------------------------------------------------------

    def _heard(self, beat: Heartbeat, fresh: bool) -> None:
        if beat.identity.boot != self.membership.me.boot:
            self.handler.stats.heartbeats_heard += 1
        outcome = self.membership.heard(beat, self._clock(), fresh=fresh)
        if outcome.dial:
            self.links.heard(beat.identity)
        if outcome.unmet:
            self.links.want(address for address in outcome.unmet if not self.links.knows(address))
        self._act(outcome)
        if outcome.answer and beat.channel:
            self._spawn(self.heartbeats.answer(beat.channel, beat.identity))

    def _dialled_by(self, hello: Hello) -> None:
        """A peer has completed a handshake with this node."""
        membership, now = self.membership, self._clock()
        me = membership.me
        if (hello.wanted_name, hello.wanted_boot, hello.dialled) == (me.name, me.boot, me.address):
            self.links.reached = self.links.reached or hello.boot != me.boot
            self._act(membership.reached(hello.name, hello.boot, now))
        else:
            self._act(membership.met(hello.name, hello.boot, now))

    def _link_opened(self, peer: Peer, address: str) -> None:
        member = self.membership.members.get(peer.name)
        self._act(self.membership.met(peer.name, peer.boot, self._clock(), address))
        if member is None or member.identity.boot != peer.boot or member.state is MemberState.DOWN:
            self.heartbeats.beat_soon()

    def _peer_refused(self, peer: Peer) -> None:
        self._act(self.membership.refused(peer.name, peer.boot, self._clock()))

    async def _tick_forever(self) -> None:
        cleaned = self._clock()
        coalescer = self.server.coalescer
        assert coalescer is not None  # the server listens
        while True:
            due = await coalescer.rest(TICK)
            now = self._clock()
            self.membership.deaf = self.heartbeats.failing
            self._act(self.membership.tick(now, due))
            if not self._reclaiming and self.handler.reclaim():
                self._spawn(self._reclaim())
            if now - cleaned >= CLEAN_EVERY:
                cleaned = now
                self.handler.tick()
                self.links.tick()
                for boot in self.links.open_to():
                    self.membership.linked(boot, now)
                self._report_problems(now)
                stats = self.handler.stats
                stats.heartbeats_ignored = self.membership.dropped
                stats.heartbeats_dropped = self.heartbeats.rejected
                stats.changes.restarted = self.membership.restarts
                stats.channel_dropped = self.handler.channels.dropped + self.links.dropped
                stats.channel_unreceived = self.handler.channels.unreceived
                stats.channel_unreachable = self.links.unreachable

    async def _reclaim(self) -> None:
        """What is left of a tick's work when much expires at once, in portions that keep no request waiting."""
        self._reclaiming = True
        while self._reclaiming:
            await asyncio.sleep(RECLAIM_PAUSE)
            self._reclaiming = self.handler.reclaim()

    async def _discover_forever(self) -> None:
        while self._discovery is not None:
            try:
                async with asyncio.timeout(DISCOVERY_TIMEOUT):
                    self.links.want(await self._discovery.addresses())
                failure = self._discovery.problem
            except Exception as error:  # a resolver or a database may raise anything; no member is lost by it
                failure = f"{type(error).__name__}: {error}"
            if failure and not self._discovery_failure:
                logger.warning("discovery failed: %s; known peers stay, new ones are found once it works", failure)
            elif self._discovery_failure and not failure:
                logger.warning("discovery works again")
            self._discovery_failure = failure
            await asyncio.sleep(self._discovery.interval)

    async def _withdraw(self, discovery: Discovery) -> None:
        try:
            async with asyncio.timeout(self.config.drain):
                await discovery.withdraw()
        except Exception as error:  # as above; the entry grows old by itself
            logger.info("discovery entry of this node not deleted: %s; it expires within a day", error)

    # -- what comes of it -----------------------------------------------------------------------------------

    def _act(self, outcome: Effects) -> None:
        me = self.membership.me
        if outcome.stalled > self.config.timings.suspect_after:
            logger.warning(
                "node %s (%s) was stopped for %.1f s, so no peer is judged by that silence; look for a suspended "
                "machine, swapping or too little CPU",
                me.name, me.address, outcome.stalled,
            )  # fmt: skip
            self._note(What.STALLED)
            if outcome.stalled > self.config.timings.down_after:
                self.handler.clear_cache()
        if self.membership.isolated != self._isolated:
            self._isolated = self.membership.isolated
            if self._isolated:
                logger.warning(
                    "node %s (%s) isolated: most peers fell silent at once, so they are declared down %.1f s later; "
                    "check this host's network and the channel layer",
                    me.name, me.address, self.config.timings.suspect_after,
                )  # fmt: skip
            else:
                logger.warning("node %s (%s) no longer isolated", me.name, me.address)
            self._note(What.ISOLATED if self._isolated else What.RECONNECTED)
            if self._isolated:
                self._notify(Isolated())
        if outcome.given_up:
            logger.warning(
                "node %s (%s) had been declared down by its peers, and others served its keys, so its cache starts "
                "empty",
                me.name, me.address,
            )  # fmt: skip
            self.handler.clear_cache()
        for peer in outcome.unreachable:
            logger.warning(
                "peer %s (%s) unreachable: not heard for %.1f s, but heard by other nodes, so it stays a member; check "
                "firewalls and routes from its host to this one",
                peer.name, peer.address, self._clock() - self.membership.members[peer.name].heard,
            )  # fmt: skip
        if outcome.over and not self.over and self.membership.state in (MemberState.JOINING, MemberState.ALIVE):
            self.over = True
            logger.warning(
                "node %s (%s) restarts with an empty memory: another running node has its name, or had it meanwhile, "
                "and has served its keys; give each node its own CLUSTERSTATE_NODE_NAME",
                me.name, me.address,
            )  # fmt: skip
            self._stop.set()
        old, new = self._view, self.membership.view
        if new.epoch != old.epoch:
            self._view = new
            self.handler.view_changed()
        for change in outcome.changes:
            self._changed(change)
        if new.epoch != old.epoch:
            self._notify(ViewChanged(old, new))

    def _changed(self, change: Change) -> None:
        self._log(change)
        if (what := news(change)) is not None:
            self._note(what, change.identity)
        if change.new is MemberState.DOWN:
            self.links.reset(change.identity.address)
        elif change.identity is self.membership.me:
            self.heartbeats.beat_soon()
        self._notify(change)

    def _note(self, what: What, who: Identity | None = None) -> None:
        """Counts what happened to a member, else to this node, and remembers it."""
        who, changes = who or self.membership.me, self.handler.stats.changes
        self.handler.history.timeline.note(what, who.name, who.boot, self._clock())
        if what in changes.__struct_fields__:
            setattr(changes, what, getattr(changes, what) + 1)

    def _log(self, change: Change) -> None:
        membership, who = self.membership, change.identity
        member = membership.members.get(who.name)
        silence = self._clock() - member.heard if member is not None and member.identity == who else 0.0
        logger.log(
            logging.WARNING if change.new in (MemberState.SUSPECT, MemberState.DOWN) else logging.INFO,
            "%s %s (%s) %s; %s -> %s, %d nodes serve, epoch %016x",
            "node" if who is membership.me else "peer",
            who.name,
            who.address,
            state_change(change.old, change.new, silence, membership.timings.suspect_after),
            change.old or "unknown",
            change.new,
            len(membership.view.members),
            membership.view.epoch,
        )

    def _report_problems(self, now: float) -> None:
        """Logs each problem when it comes up, again after a while, and when it is over."""
        found = problems(self.membership, self.links.misdirected, now)
        for text in found:
            if now - self._problems.get(text, -PROBLEM_AGAIN) >= PROBLEM_AGAIN:
                self._problems[text] = now
                logger.error("problem: %s", text)
        for text in set(self._problems).difference(found):
            del self._problems[text]
            logger.info("problem solved: %s", text)


def news(change: Change) -> What | None:
    """What a move means to those who look at the cluster; None when it follows from one that was told."""
    match change.old, change.new:
        case MemberState.SUSPECT, MemberState.ALIVE:
            return What.HEARD_AGAIN
        case MemberState.LEAVING, MemberState.LEFT:
            return None
    return _NEWS.get(change.new)


def _spare_the_collector() -> None:
    """What is here now is looked at no more, the cache's dicts among it: to go through a million entries, again and
    again, takes the garbage collector a quarter of a second each time, and finds nothing."""
    gc.collect()
    gc.freeze()
