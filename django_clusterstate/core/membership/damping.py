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

PERIOD: Final = 60.0  # seconds: a node that is cut off so soon after it serves again waits twice as long
DOUBLINGS: Final = 3  # at most
SILENCES: Final = (
    3  # times `down_after`: the first wait, longer than the gaps of a failure that recurs each few seconds
)


class Damping:
    """Whether others hear this node, and how often it was cut off or paused in short succession, `times`."""

    def __init__(self, timings: Timings, mentions: Mentions) -> None:
        self.times = 0
        self._timings = timings
        self._mentions = mentions
        self._cut_off = -math.inf  # when, the last time
        self._served = -math.inf  # when it began to serve; not yet, if that is positive infinity
        self._gap = -math.inf  # the last time at which most didn't hear this node

    @property
    def seconds(self) -> float:
        """For how long this node must be heard without a gap."""
        return SILENCES * self._timings.down_after * 2.0 ** min(self.times - 1, DOUBLINGS)

    def cut_off(self, now: float) -> None:
        """Notes that this node was cut off or paused. Verdicts that arrive together are about one time."""
        self._gap = now
        if now - self._cut_off >= self._timings.down_after:
            self._cut_off = now
            self.times = 1 if now - self._served > PERIOD else self.times + 1
            self._served = math.inf

    def serve(self, now: float) -> None:
        """Notes that this node serves again."""
        self._served = now

    def tick(self, now: float) -> None:
        """Looks for a gap: most peers don't hear this node, or it doesn't hear that they do."""
        if self._mentions.balance(now) <= 0:
            self._gap = now

    def waits(self, now: float) -> bool:
        return self.times > 0 and now - self._gap < self.seconds
