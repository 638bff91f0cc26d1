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


class Denial(Generic[D]):
    """An answer that holds until `until`, and how often it was given from memory, which the owner doesn't know yet."""

    __slots__ = ("answer", "answered", "asked", "cost", "limit", "until")

    def __init__(self, answer: D, limit: object, cost: int, asked: float, until: float) -> None:
        self.answer = answer
        self.limit = limit
        self.cost = cost
        self.asked = asked
        self.until = until
        self.answered = 0


class Denials(Generic[D]):
    """The last denial of each key. `limit` is compared, never looked into."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Denial[D]] = OrderedDict()  # oldest first

    def find(self, key: bytes, limit: object, cost: int, now: float) -> tuple[D, float] | None:
        """The answer that still holds for a hit of `cost`, and its age in seconds."""
        found = self._known.get(key)
        if found is None or now >= found.until or cost < found.cost:
            return None
        if found.limit is not limit and found.limit != limit:
            return None
        found.answered += 1
        return found.answer, now - found.asked

    def note(self, key: bytes, limit: object, cost: int, answer: D, retry_after: float, asked: float) -> None:
        """Remembers an answer to a hit of `cost`. `asked`: when it was asked for; the owner decided after that."""
        self._known.pop(key, None)
        self._known[key] = Denial(answer, limit, cost, asked, asked + min(retry_after, MAX_AGE))
        if len(self._known) > MAX_ENTRIES:
            self._known.popitem(last=False)

    def take_answered(self, key: bytes) -> int:
        """How many hits on the key were answered from memory since this was last asked: the owner is to be told."""
        found = self._known.get(key)
        if found is None:
            return 0
        answered, found.answered = found.answered, 0
        return answered

    def forget(self, key: bytes) -> None:
        self._known.pop(key, None)

    def clear(self) -> None:
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)
