"""How fast counters grew over the last minutes. Pure; `now` is monotonic seconds given by the caller."""

from collections import deque
from collections.abc import Mapping

STEP = 5.0  # seconds
STEPS = 120  # kept: ten minutes


class CounterHistory:
    """By how much each counter grew in each of the last STEPS steps that are over."""

    __slots__ = ("_due", "_last", "_steps")

    def __init__(self, now: float) -> None:
        self._due = now + STEP  # when the step that runs now is over
        self._last: dict[str, int] = {}
        self._steps: dict[str, deque[int]] = {}

    def sample(self, counters: Mapping[str, int], now: float) -> None:
        """To be called about once a second with what the counters read, which are the same ones each time."""
        if now < self._due:
            return
        over = 1 + int((now - self._due) // STEP)
        for name, reads in counters.items():
            steps = self._steps.setdefault(name, deque(maxlen=STEPS))
            steps.appendleft(reads - self._last.get(name, 0))
            steps.extendleft([0] * min(over - 1, STEPS))  # nobody looked, so nothing was counted: the node was stopped
            self._last[name] = reads
        self._due += over * STEP

    def all(self) -> dict[str, list[int]]:
        """The latest step first; fewer than STEPS soon after the start."""
        return {name: list(steps) for name, steps in self._steps.items()}
