"""What answers a hit that nobody else can: the policy of its limit, or what this process counts."""

import threading
import time
from collections.abc import Sequence
from os import getpid

from .. import runtime
from ..client.forks import PerProcess
from ..core.limits import algorithms
from ..core.limits.algorithms import Rule
from ..core.limits.store import LimitStore
from .limits import Decision, Limit, binding

PROCESS_MAX_BYTES = 8 * 1024 * 1024  # for what a process counts by itself


def policy_of(limit: Limit) -> str:
    return limit.on_unavailable or runtime.get_settings().on_unavailable


class ProcessLimits(PerProcess):
    """What this process counts by itself while no node answers. Forgotten when the process ends."""

    def __init__(self) -> None:
        self._reset()
        super().__init__()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._store = LimitStore(PROCESS_MAX_BYTES)
        self._told = 0  # evictions

    def decide(
        self, key: bytes, rules: Sequence[Rule], cost: int, *, counts: bool = True
    ) -> list[algorithms.RuleDecision]:
        if getpid() != self.pid:
            self.reset_after_fork()
        now = time.monotonic()
        with self._lock:
            self._store.expire(now)
            if not counts:
                return algorithms.peek(self._store, key, rules, cost, now)
            return algorithms.hit(self._store, key, rules, cost, now)[0]

    def take_evictions(self) -> int:
        """How many live limits were dropped for room since this was asked last."""
        if getpid() != self.pid:
            self.reset_after_fork()
        with self._lock:
            new, self._told = self._store.evictions - self._told, self._store.evictions
        return new

    def refund(self, key: bytes, rules: Sequence[Rule], cost: int, ago: float) -> None:
        if getpid() != self.pid:
            self.reset_after_fork()
        now = time.monotonic()
        with self._lock:
            algorithms.refund(self._store, key, rules, cost, now - ago, now)

    def reset(self, key: bytes, rules: Sequence[Rule]) -> bool:
        """Whether anything was counted."""
        if getpid() != self.pid:
            self.reset_after_fork()
        with self._lock:
            return any(algorithms.reset(self._store, key, rules, time.monotonic()))


def without_nodes(limit: Limit, key: bytes, cost: int, process: ProcessLimits, *, counts: bool) -> Decision:
    """The decision of the limit's policy. What is none denies."""
    policy, tally = policy_of(limit), runtime.get_stats()
    if policy == "local":
        tally.fallback_process += counts
        decisions = process.decide(key, limit.rules, cost, counts=counts)
        tally.process_evictions += process.take_evictions()
        return binding(limit.rules, decisions, "", "process")
    rule = min(limit.rules, key=lambda rule: rule.limit)
    if policy == "allow" and rule.limit:  # a limit of 0 needs no counting
        tally.fallback_allow += counts
        return Decision(True, rule.limit, rule.period, rule.limit, 0.0, 0.0, "", policy)
    tally.fallback_deny += counts
    # Until when is unknown; a second is when the next attempt may well succeed.
    return Decision(False, rule.limit, rule.period, 0, 1.0, 1.0, "", "deny")
