"""Logs how a node takes over keys when it joins, hands them over when it leaves, and copies them after a crash."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..core.membership.heartbeat import MemberState
from ..core.membership.members import Effects
from ..core.replication.hand_over import NO_PROGRESS
from ..core.replication.slots import union
from .handler import Handler
from .log import logger

MAX_NAMED = 5  # peers in one line
MAX_LOST = 1000  # peers that are remembered


class HandOverLog:
    """The log of the hand-overs of the node whose entries `handler` has."""

    def __init__(self, handler: Handler, clock: Callable[[], float]) -> None:
        self._handler = handler
        self._membership = handler.membership
        self._replication = handler.copies.replication
        self._clock = clock
        self._joins_since = clock()
        self._is_joining_logged = False
        self._lost: dict[str, float] = {}  # the peers that went down since all keys had backups, and when

    def take_effects(self, effects: Effects) -> None:
        """Reports from which nodes this node has taken over, once it serves. To be called before the handler takes in
        the effects, since a node that serves forgets that."""
        for change in effects.changes:
            if change.identity is not self._membership.me:
                if (
                    change.new is MemberState.DOWN
                    and change.old is not MemberState.JOINING
                    and len(self._lost) < MAX_LOST
                ):
                    self._lost.setdefault(str(change.identity), self._clock())
            elif change.new is MemberState.JOINING:
                self._joins_since = self._clock()
                self._is_joining_logged = False
            elif change.old is MemberState.JOINING and change.new is MemberState.ALIVE:
                self._joined()

    def tick(self) -> None:
        """Reports that a join is under way, and that what a crash has left without a backup has one. To be called about
        once a second."""
        placement, me = self._replication.placement, self._membership.me
        others = placement.boots - {me.boot}
        joins = self._membership.state is MemberState.JOINING and not placement.serving
        if joins and others and not self._is_joining_logged:
            self._is_joining_logged = True
            logger.info("node %s joins, and receives %d slots from %s", me, len(placement.held), _nodes(len(others)))
        if self._lost and others and self._handler.copies.status().synced:  # a node that is alone has no backup
            if placement.backups:
                seconds, peers = self._clock() - min(self._lost.values()), _first(sorted(self._lost))
                logger.info("node %s: all keys have backups again, %.0f s after the loss of %s", me, seconds, peers)
            self._lost.clear()

    def _joined(self) -> None:
        taken = [slots for slots in self._replication.placement.taken.values() if slots]
        if taken:
            logger.info(
                "node %s took over %d slots from %s in %.1f s; entries held: %d",
                self._membership.me, len(union(taken)), _nodes(len(taken)), self._clock() - self._joins_since,
                self._handler.cache.entries + self._handler.limits.entries,
            )  # fmt: skip
        joiner = self._replication.joiner
        if missing := joiner.missing:
            unfilled = {boot for boot in missing if not joiner.is_filled_by(boot)}
            logger.warning(
                "node %s serves before %s handed over: no copies came for %.0f s; cache entries that it lacks are "
                "absent, and limits begin again; check the network between the hosts",
                self._membership.me, self._named(unfilled or missing), NO_PROGRESS,
            )  # fmt: skip

    @contextlib.contextmanager
    def leaving(self, seconds: float) -> Iterator[None]:
        """The time in which this node hands over what it owns, `seconds` at most."""
        placement, begun = self._replication.placement, self._clock()
        slots, heirs = len(placement.owned), len(placement.boots - placement.leaving - {self._membership.me.boot})
        if not (slots and heirs):
            yield
            return
        me, handler = self._membership.me, self._handler
        entries = handler.cache.owned(placement.owns) + handler.limits.owned(placement.owns)
        logger.info(
            "node %s hands over %d slots to %s within %.0f s; entries owned: %d",
            me, slots, _nodes(heirs), seconds, entries,
        )  # fmt: skip
        yield
        took, unfilled = self._clock() - begun, self._replication.outboxes.unfilled
        if unfilled:
            logger.warning(
                "node %s handed over after %.1f s, before other nodes had received %d of its slots: what only this "
                "node has is lost; raise DRAIN, or check the network between the hosts", me, took, unfilled,
            )  # fmt: skip
        else:
            logger.info("node %s handed over %d slots in %.1f s", me, slots, took)

    def ended(self) -> None:
        """Reports which changes others may lack when this node ends."""
        if lag := self._replication.outboxes.lag:
            logger.warning(
                "node %s ends before other nodes have acknowledged %d changes: these may be lost; raise DRAIN, or "
                "check the network between the hosts", self._membership.me, lag,
            )  # fmt: skip

    def _named(self, boots: Iterable[bytes]) -> str:
        members = self._replication.placement.view.members
        return _first(sorted(str(peer) for peer in members if peer.boot in set(boots)))


def _first(peers: Sequence[str]) -> str:
    more = [f"{len(peers) - MAX_NAMED} more"] if len(peers) > MAX_NAMED else []
    return ", ".join([*peers[:MAX_NAMED], *more])


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
