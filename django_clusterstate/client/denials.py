"""What a requester remembers of denials, so that a flood on a denied key costs no round trips. Pure.

A denial that names the seconds until the same cost may pass holds for that long whatever others do, since their hits
only add to the count; a property test shows it of each algorithm. What would end it sooner is a reset or a refund by
another process, so it is remembered for MAX_AGE at most.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

MAX_AGE = 1.0  # seconds
MAX_ENTRIES = 4096

D = TypeVar("D")


class Denials(Generic[D]):
    """The last denial of each key. `limit` is compared, never looked into."""

    __slots__ = ("_answered", "_known")

    def __init__(self) -> None:
        self._answered: dict[bytes, int] = {}  # how often, from memory, and the owner doesn't know yet
        self._known: OrderedDict[bytes, tuple[float, float, object, int, D]] = OrderedDict()  # oldest first

    def find(self, key: bytes, limit: object, cost: int, now: float) -> tuple[D, float] | None:
        """The answer that still holds for a hit of `cost`, and its age in seconds."""
        found = self._known.get(key)
        if found is None:
            return None
        until, asked, denied, least, answer = found
        if now >= until or cost < least or (denied is not limit and denied != limit):
            return None
        self._answered[key] = self._answered.get(key, 0) + 1
        return answer, now - asked

    def note(self, key: bytes, limit: object, cost: int, answer: D, retry_after: float, asked: float) -> None:
        """Remembers an answer to a hit of `cost`. `asked`: when it was asked for; the owner decided after that."""
        self._known.pop(key, None)
        self._known[key] = (asked + min(retry_after, MAX_AGE), asked, limit, cost, answer)
        if len(self._known) > MAX_ENTRIES:
            oldest, _ = self._known.popitem(last=False)
            self._answered.pop(oldest, None)
        if len(self._answered) > MAX_ENTRIES:  # left there by threads that were in each other's way
            self._answered.clear()

    def take_answered(self, key: bytes) -> int:
        """How many hits on the key were answered from memory since this was last asked: the owner is to be told."""
        return self._answered.pop(key, 0)

    def forget(self, key: bytes) -> None:
        self._known.pop(key, None)
        self._answered.pop(key, None)

    def __len__(self) -> int:
        return len(self._known)
