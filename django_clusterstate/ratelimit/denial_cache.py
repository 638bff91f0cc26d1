"""Denials that a process caches, so that a flood of hits on a denied key makes no round trips.

A denial holds for its `retry_after` whatever others do, since their hits only add to the count; a property test shows
it for each algorithm. Only a reset or a refund by another process ends it sooner, so it is cached for MAX_AGE at most.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from ..client.forks import PerProcess
from .limits import Decision, Limit

MAX_AGE = 1.0  # seconds
MAX_ENTRIES = 4096
_SLOTS = 4096  # keys share a time by hash: one reset or refund ends a 4096th of the cached denials


@dataclass(slots=True)
class _CachedDenial:
    """`cost`: of the denied hit. `since`, `until`: when it was sent, and how long it holds. `count`: hits denied from
    this entry that the owner hasn't been sent yet."""

    denial: Decision
    limit: Limit
    cost: int
    since: float
    until: float
    count: int = 0


class DenialCache(PerProcess):
    """The last denial of each key. Times are monotonic seconds. A forked child starts with an empty cache because the
    parent reports what it has denied."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, _CachedDenial] = OrderedDict()  # oldest first
        self._dropped_at = [-math.inf] * _SLOTS
        super().__init__()

    def _reset(self) -> None:
        self._entries.clear()

    def get(self, key: bytes, limit: Limit, cost: int, now: float) -> Decision | None:
        """The denial of a hit of `cost`, with the times that are left of it; None if no cached one covers the hit."""
        entry = self._entries.get(key)
        if entry is None or now >= entry.until or cost < entry.cost:
            return None
        if entry.limit is not limit and entry.limit != limit:
            return None
        entry.count += 1
        denial, age = entry.denial, now - entry.since
        reset_after = denial.reset_after - age
        return Decision(
            False, denial.limit, denial.period, denial.remaining,
            reset_after if reset_after > 0 else 0.0, denial.retry_after - age, denial.owner,
        )  # fmt: skip

    def add(self, key: bytes, limit: Limit, cost: int, denial: Decision, since: float) -> None:
        """Caches the denial of a hit of `cost` that was sent at `since`, before the owner decided. Without effect if
        the key was dropped since then."""
        self._entries.pop(key, None)
        entry = self._entries[key] = _CachedDenial(denial, limit, cost, since, -math.inf)
        # In this order: a drop in another thread finds the entry, or is found here.
        if since >= self._dropped_at[hash(key) % _SLOTS]:
            entry.until = since + min(denial.retry_after, MAX_AGE)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def take_count(self, key: bytes) -> int:
        """How many hits on the key were denied from the cache since the last call. The next hit reports it."""
        self.reset_if_forked()
        entry = self._entries.get(key)
        if entry is None:
            return 0
        count, entry.count = entry.count, 0
        return count

    def drop(self, key: bytes, now: float) -> None:
        """Ends the denials of hits on the key that were sent before `now`, also of those that are added later. Call it
        after a reset or refund, so that it covers all hits that the owner has denied before."""
        slot = hash(key) % _SLOTS
        if self._dropped_at[slot] < now:  # noqa: PLR1730 - during a call of max() another thread could set a later time
            self._dropped_at[slot] = now
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
