"""Versions of entries: a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014).

Monotonic clocks of hosts begin anywhere, so each node adds an offset that grows whenever it receives a version ahead of
its own clock. A version orders two writes of a key, and is never read as a time.
"""

from typing import Final

TIE_BITS: Final = 12  # of the boot ID, so that two nodes don't give one version to different writes
NONE: Final = 0  # older than every version
MAX_VERSION: Final = 2**63 - 1


class HybridClock:
    """Gives versions, each greater than all that it has given or received."""

    def __init__(self, boot: bytes) -> None:
        self._tie = int.from_bytes(boot[-2:], "big") & ((1 << TIE_BITS) - 1)
        self._offset = 0
        self._last = 0

    def next(self, now: float) -> int:
        """A new version, at `now` in monotonic seconds."""
        self._last = max(int(now * 1e6) + self._offset, self._last + 1)
        return (self._last << TIE_BITS) | self._tie

    def last(self) -> int:
        """An upper bound of the versions that this node has given or received."""
        return ((self._last + 1) << TIE_BITS) - 1

    def receive(self, version: int, now: float) -> None:
        """Takes in a version of another node."""
        clock = version >> TIE_BITS
        if clock > self._last:
            self._last = clock
            self._offset = max(self._offset, clock - int(now * 1e6))
