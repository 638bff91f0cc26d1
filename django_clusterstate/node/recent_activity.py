"""The last minutes of a node: changes of members, rates of requests, and the busiest keys of limits."""

from ..core.counter_history import CounterHistory
from ..core.membership.timeline import Timeline
from ..core.top_keys import KeyCount, TopKeys
from ..wire.status import Stats

TOP_SPAN = 300.0  # seconds: the busiest keys are those of the last one to two spans
TOP_KEYS = 100  # every key with more than a hundredth of a node's hits is among them
REPORTED = 20  # busiest keys in one report


class History:
    """Timeline, rates and busiest keys: bounded in size, and lost when the node ends."""

    def __init__(self, now: float) -> None:
        self.timeline = Timeline()
        self.rates = CounterHistory(now)
        self.busiest: TopKeys[bytes] = TopKeys(TOP_KEYS)
        self.denied: TopKeys[bytes] = TopKeys(TOP_KEYS)
        self._rotate_at = now + TOP_SPAN

    def tick(self, stats: Stats, now: float) -> None:
        """Samples the counters, and rotates the busiest keys when due. The caller calls it about once a second."""
        self.rates.sample(counters(stats), now)
        if now >= self._rotate_at:
            self._rotate_at = now + TOP_SPAN
            self.busiest.rotate()
            self.denied.rotate()

    def top_keys(self) -> tuple[list[KeyCount[bytes]], list[KeyCount[bytes]]]:
        """The busiest and the most denied keys of limits."""
        return self.busiest.top(REPORTED), self.denied.top(REPORTED)


def counters(stats: Stats) -> dict[str, int]:
    """The counters that the panel draws: of this node, and of the requesters that report to it."""
    tally = stats.tally
    return {
        "requests": stats.requests,
        "hits": stats.hits,
        "misses": stats.misses,
        "denials": stats.denied + tally.remembered,
        "fallbacks": tally.fallback_node + tally.fallback_process + tally.fallback_allow + tally.fallback_deny,
        "errors": tally.failures,
    }
