"""What happened to the members of late, as one node saw it. Pure; `now` is monotonic seconds given by the caller."""

import enum
from collections import deque

import msgspec

MOMENTS = 128  # kept; the oldest go first


class What(enum.StrEnum):
    """What happened. The words are on the wire."""

    JOINED = "joined"  # owns keys from then on: a new member, or one that was down
    SUSPECTED = "suspected"  # fell silent
    HEARD_AGAIN = "heard again"  # a suspect that wasn't down
    DOWN = "down"  # gone without a word
    LEFT = "left"  # said that it leaves
    ISOLATED = "isolated"  # most peers of the node that says so fell silent at once
    RECONNECTED = "reconnected"  # and are heard again
    STALLED = "stalled"  # the node that says so was stopped for a while


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """`ago` seconds before something happened to this start of this node: `What`, or the word of a newer version."""

    ago: float
    what: str
    name: str
    boot: bytes


class Timeline:
    """The last MOMENTS, in their order."""

    __slots__ = ("_moments",)

    def __init__(self) -> None:
        self._moments: deque[tuple[float, str, str, bytes]] = deque(maxlen=MOMENTS)

    def note(self, what: What, name: str, boot: bytes, now: float) -> None:
        self._moments.append((now, what, name, boot))

    def moments(self, now: float) -> list[Moment]:
        """The latest first."""
        return [Moment(now - at, what, name, boot) for at, what, name, boot in reversed(self._moments)]
