"""The last events of the members, as one node saw them. Pure; `now` is monotonic seconds given by the caller."""

import enum
from collections import deque

import msgspec

TIMELINE_LENGTH = 128  # events; the oldest are dropped


class EventKind(enum.StrEnum):
    """What happened to a member. The values are on the wire."""

    JOINED = "joined"  # owns keys from then on: a new member, or one that was down
    SUSPECTED = "suspected"  # fell silent
    HEARD_AGAIN = "heard again"  # a suspect that wasn't down
    DOWN = "down"  # ended without leaving
    LEFT = "left"  # announced that it leaves
    ISOLATED = "isolated"  # of the node itself: most of its peers fell silent at once
    RECONNECTED = "reconnected"  # of the node itself: no longer isolated
    STALLED = "stalled"  # of the node itself: it was paused


class MemberEvent(msgspec.Struct, frozen=True, array_like=True):
    """A change of an instance of a node `ago` seconds before. `what`: an `EventKind`, or text from a newer version."""

    ago: float
    what: str
    name: str
    boot: bytes


class Timeline:
    """The last TIMELINE_LENGTH events."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, str, str, bytes]] = deque(maxlen=TIMELINE_LENGTH)

    def note(self, what: EventKind, name: str, boot: bytes, now: float) -> None:
        self._events.append((now, what, name, boot))

    def events(self, now: float) -> list[MemberEvent]:
        """The latest first."""
        return [MemberEvent(now - at, what, name, boot) for at, what, name, boot in reversed(self._events)]
