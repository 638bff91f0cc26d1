"""Decisions without a node: by the policy ON_UNAVAILABLE, or by counters of this process."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import runtime
from ..client.forks import PerProcess
from ..core.limits import algorithms
from ..core.limits.algorithms import Rule
from ..core.limits.store import LimitStore
from ..wire import messages as wire
from .limits import Decision, Limit, strictest_decision

PROCESS_MAX_BYTES = 8 * 1024 * 1024  # of counters in this process


def effective_policy(limit: Limit) -> str:
    return limit.on_unavailable or runtime.get_settings().on_unavailable


class ProcessLimiter(PerProcess):
    """Counts in this process's memory while no node can be reached. Safe to share between threads; a forked child
    starts with empty counters."""

    def __init__(self) -> None:
        self._reset()
        super().__init__()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._store = LimitStore(PROCESS_MAX_BYTES)

    def decide(self, request: wire.Hit | wire.Peek) -> list[algorithms.RuleDecision]:
        """One decision for each rule; a hit is counted if all allow it."""
        key, rules, cost = request.key, request.rules, request.cost
        with self._locked() as (store, now):
            store.expire(now)
            if isinstance(request, wire.Peek):
                return algorithms.peek(store, key, rules, cost, now)
            evictions = store.evictions
            decisions = algorithms.hit(store, key, rules, cost, now)[0]
            runtime.get_stats().process_evictions += store.evictions - evictions
            return decisions

    def refund(self, key: bytes, rules: Sequence[Rule], cost: int, ago: float) -> None:
        with self._locked() as (store, now):
            algorithms.refund(store, key, rules, cost, now - ago, now)

    def reset(self, key: bytes, rules: Sequence[Rule]) -> bool:
        """Forgets the hits of a key. Returns whether there were any."""
        with self._locked() as (store, now):
            return any(algorithms.reset(store, key, rules, now))

    @contextmanager
    def _locked(self) -> Iterator[tuple[LimitStore, float]]:
        """The counters, for this thread alone, and the time."""
        self.reset_if_forked()
        with self._lock:
            yield self._store, time.monotonic()


def decide_by_policy(limit: Limit, request: wire.Hit | wire.Peek, limiter: ProcessLimiter) -> Decision:
    """The decision of the limit's policy. An unknown policy denies."""
    policy = effective_policy(limit)
    if policy == "local":
        return strictest_decision(limit.rules, limiter.decide(request), "", "process")
    rule = min(limit.rules, key=lambda rule: rule.limit)
    if policy == "allow" and rule.limit:  # a limit of 0 needs no counting
        return Decision(True, rule.limit, rule.period, rule.limit, 0.0, 0.0, "", policy)
    # When the owner will be back is unknown; a retry after a second may well succeed.
    return Decision(False, rule.limit, rule.period, 0, 1.0, 1.0, "", "deny")
