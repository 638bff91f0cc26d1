"""Answers the requests that a node receives for rate limits."""

from collections.abc import Callable
from typing import Any

from ..core.limits import algorithms
from ..core.limits.store import LimitStore
from ..core.membership.membership import Membership
from ..wire import messages as wire
from ..wire.status import Stats
from .recent_activity import History


class LimitRequests:
    """Answers the requests for limits from a node's store, and counts decisions in `stats` and keys in `history`."""

    def __init__(
        self, store: LimitStore, history: History, membership: Membership, stats: Stats, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._history = history
        self._membership = membership
        self._stats = stats
        self._clock = clock
        self._rules = algorithms.RecentRules()
        self.methods: dict[type, Callable[[Any], wire.Reply]] = {
            wire.Hit: self._hit,
            wire.Peek: self._peek,
            wire.Reset: self._reset,
            wire.Refund: self._refund,
            wire.FindLimits: self._find,
        }

    def _hit(self, request: wire.Hit) -> wire.Reply:
        store, history, stats = self._store, self._history, self._stats
        created = store.created
        decisions, allowed = algorithms.hit(store, request.key, request.rules, request.cost, self._clock())
        if store.created != created:
            self._rules.note(request.rules)
        denied = request.denied_locally
        if allowed:
            stats.allowed += 1
        else:
            denied += 1
            stats.denied += 1
            if request.dry:
                stats.dry_denied += 1
        history.busiest.add(request.key, 1 + request.denied_locally)
        if denied:
            history.denied.add(request.key, denied)
        return wire.DecisionsReply(self._membership.view.epoch, decisions)

    def _peek(self, request: wire.Peek) -> wire.Reply:
        decisions = algorithms.peek(self._store, request.key, request.rules, request.cost, self._clock())
        return wire.DecisionsReply(self._membership.view.epoch, decisions)

    def _reset(self, request: wire.Reset) -> wire.Reply:
        flags = algorithms.reset(self._store, request.key, request.rules, self._clock())
        return wire.FlagsReply(self._membership.view.epoch, flags)

    def _refund(self, request: wire.Refund) -> wire.Reply:
        now = self._clock()
        algorithms.refund(self._store, request.key, request.rules, request.cost, now - request.ago, now)
        self._stats.refunds += 1
        return wire.DoneReply(self._membership.view.epoch)

    def _find(self, request: wire.FindLimits) -> wire.Reply:
        limits = algorithms.find(self._store, request.key, self._rules, self._clock())
        return wire.LimitsReply(self._membership.view.epoch, limits)
