"""How long a node joins again after it was cut off or paused.

Then others have declared it down while it ran, or a failure of its own network has made it lose most of them. A network
that fails every few seconds must not move keys each time, so this node serves again only once it has been heard without
a gap for much longer than the silence that makes it down. It knows of gaps by the observations of it that others send.
They need no rule of their own, since a node that waits says in its heartbeats that it is joining.
"""

import math
from typing import Final

from .members import Timings
from .mentions import Mentions

PERIOD: Final = 60.0  # seconds in which each time that it was cut off doubles the wait
DOUBLINGS: Final = 3  # at most
SILENCES: Final = 3  # the wait is so many times `down_after`: longer than a failure each few seconds leaves it heard


class Damping:
    """Whether others hear this node, and how often it was cut off or paused.

    `times`: how often, within a minute before the last time. `seconds`: for how long it must be heard without a gap.
    """

    def __init__(self, timings: Timings, mentions: Mentions) -> None:
        self._timings = timings
        self._mentions = mentions
        self._cut_off: list[float] = []  # when
        self._gap = -math.inf  # the last time at which most didn't hear this node

    @property
    def times(self) -> int:
        return len(self._cut_off)

    @property
    def seconds(self) -> float:
        return SILENCES * self._timings.down_after * 2.0 ** min(self.times - 1, DOUBLINGS)

    def cut_off(self, now: float) -> None:
        """Notes that this node was cut off or paused. Verdicts that arrive together are about one time."""
        self._gap = now
        if not self._cut_off or now - self._cut_off[-1] >= self._timings.down_after:
            self._cut_off = [when for when in self._cut_off if when > now - PERIOD] + [now]

    def tick(self, now: float) -> None:
        """Looks for a gap: most peers don't hear this node, or it doesn't hear that they do."""
        if self._mentions.balance(now) <= 0:
            self._gap = now

    def waits(self, now: float) -> bool:
        return self.times > 0 and now - self._gap < self.seconds
