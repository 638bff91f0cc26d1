"""How fast counters grew over the last minutes. Pure; `now` is monotonic seconds given by the caller."""

from collections import deque
from collections.abc import Mapping

INTERVAL = 5.0  # seconds
INTERVALS = 120  # kept: ten minutes


class CounterHistory:
    """How much each counter grew in each of the last INTERVALS intervals that are over."""

    def __init__(self, now: float) -> None:
        self._due = now + INTERVAL  # when the current interval is over
        self._last: dict[str, int] = {}
        self._growth: dict[str, deque[int]] = {}

    def sample(self, counters: Mapping[str, int], now: float) -> None:
        """Notes the values of the counters, the same ones each time. The caller calls it about once a second."""
        if now < self._due:
            return
        missed = int((now - self._due) // INTERVAL)  # the node was stopped, so it counted nothing
        for name, value in counters.items():
            growth = self._growth.setdefault(name, deque(maxlen=INTERVALS))
            growth.appendleft(value - self._last.get(name, 0))
            growth.extendleft([0] * min(missed, INTERVALS))
            self._last[name] = value
        self._due += (missed + 1) * INTERVAL

    def all(self) -> dict[str, list[int]]:
        """The latest interval first; fewer than INTERVALS soon after the start."""
        return {name: list(growth) for name, growth in self._growth.items()}
