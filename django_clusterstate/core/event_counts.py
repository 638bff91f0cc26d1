"""The events that a node has counted: by time, with the most frequent keys and the last events of each name. Pure.

`now` is the caller's monotonic clock, ages are seconds. Everything is bounded: the number of names, keys and samples of
a name, the bytes of all samples, and the batches whose IDs are kept.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from .top_keys import KeyCount, TopKeys

MAX_NAME = 100  # characters
MAX_KEY = 200
MAX_FIELDS_BYTES = 16 * 1024  # of the fields of a sample: eight, with names and values at their longest, take 10 KiB
MAX_ENTRIES = 250  # of a batch, so that it takes a node about a millisecond

MAX_NAMES = 1000
MAX_SAMPLES = 50  # of a name
MAX_SAMPLES_BYTES = 32 * 1024 * 1024  # of all names
SAMPLE_OVERHEAD = 300  # bytes that a sample takes in addition to its key and its fields, about
MAX_TOP = 50  # among them is each key that makes up more than a fiftieth of a name's events
MAX_BATCHES = 10_000  # whose IDs are kept, so that none is counted twice
PAGE = 100  # names in one reply, which takes a node about a millisecond

MINUTES, HOURS = 60, 48  # that are counted
_STEPS = 6  # minutes and hours are counted in sixths because those that are read end now

EventName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
EventKey = Annotated[str, Meta(max_length=MAX_KEY)]
Fields = Annotated[bytes, Meta(max_length=MAX_FIELDS_BYTES)]
Times = Annotated[int, Meta(ge=1, le=2**53)]
Ago = Annotated[float, Meta(ge=0, le=HOURS * 3600)]


class EventEntry(msgspec.Struct, frozen=True, array_like=True):
    """Events of one name and key from one process, at most `ago` old. `samples`: age, and fields as msgpack."""

    name: EventName
    key: EventKey
    times: Times
    ago: Ago
    samples: Annotated[list[tuple[Ago, Fields]], Meta(max_length=8)] = []


class EventSample(msgspec.Struct, frozen=True, array_like=True):
    """One event with its fields, as msgpack. `number` counts the samples of its name at this node, from 1."""

    number: int
    key: str
    fields: bytes
    ago: float


class EventTotals(msgspec.Struct, frozen=True, array_like=True):
    """How many events there were in the last minute, in the last hour and since the name is known, and the last one's
    age."""

    name: str
    minute: int
    hour: int
    total: int
    last_ago: float


class EventAccount(msgspec.Struct, frozen=True, array_like=True):
    """All that a node keeps of a name: counts by minute (60) and by hour (48), the latest first, keys and samples."""

    total: int
    minutes: Annotated[list[int], Meta(min_length=MINUTES, max_length=MINUTES)]
    hours: Annotated[list[int], Meta(min_length=HOURS, max_length=HOURS)]
    top: list[KeyCount[str]]
    recent: list[EventSample]


class Series:
    """Counts of the last `spans * span` seconds, in sixths of a span."""

    __slots__ = ("_counts", "_newest", "_step")

    def __init__(self, span: float, spans: int, now: float) -> None:
        self._step = span / _STEPS
        self._counts = array("Q", bytes(8 * spans * _STEPS))
        self._newest = int(now // self._step)

    def add(self, times: int, at: float, now: float) -> None:
        self._advance(now)
        step = int(at // self._step)
        if step > self._newest - len(self._counts):
            self._counts[step % len(self._counts)] += times

    def latest(self, now: float) -> int:
        """The count of the span that ends now."""
        self._advance(now)
        return sum(self._counts[(self._newest - back) % len(self._counts)] for back in range(_STEPS))

    def all(self, now: float) -> int:
        """The count of all spans together."""
        self._advance(now)
        return sum(self._counts)

    def spans(self, now: float) -> list[int]:
        """The count of each span, the latest first. The first one ends now and lacks at most a sixth."""
        self._advance(now)
        counts = self._counts
        after = self._newest % len(counts) + 1
        steps = [*reversed(counts[:after]), *reversed(counts[after:])]
        return [sum(steps[first : first + _STEPS]) for first in range(0, len(steps), _STEPS)]

    def _advance(self, now: float) -> None:
        """Advances to the step of now, and clears the steps in between."""
        newest = int(now // self._step)
        if newest == self._newest:
            return
        for step in range(max(self._newest, newest - len(self._counts)) + 1, newest + 1):
            self._counts[step % len(self._counts)] = 0
        self._newest = newest


class EventHistory:
    """The events of one name."""

    __slots__ = ("_hour", "_hours", "_minutes", "_top", "_total", "bytes", "last", "number", "samples")

    def __init__(self, now: float) -> None:
        self.bytes = 0  # of the samples, about
        self.last = now
        self.number = 0  # of the last sample
        self.samples: deque[tuple[int, str, bytes, float]] = deque()
        self._hour = int(now // 3600)
        self._minutes = Series(60, MINUTES, now)
        self._hours = Series(3600, HOURS, now)
        self._top: TopKeys[str] = TopKeys(MAX_TOP)
        self._total = 0

    def add(self, entry: EventEntry, now: float) -> None:
        at = now - entry.ago
        self.last = max(self.last, at)
        self._total += entry.times
        self._minutes.add(entry.times, at, now)
        self._hours.add(entry.times, at, now)
        self._rotate(now)
        self._top.add(entry.key, entry.times)
        for ago, fields in entry.samples:
            self.number += 1
            self.samples.append((self.number, entry.key, fields, now - ago))
            self.bytes += _size(entry.key, fields)
            if len(self.samples) > MAX_SAMPLES:
                _, old_key, old_fields, _ = self.samples.popleft()
                self.bytes -= _size(old_key, old_fields)

    def totals(self, name: str, now: float) -> EventTotals:
        minutes = self._minutes
        return EventTotals(name, minutes.latest(now), minutes.all(now), self._total, max(0.0, now - self.last))

    def account(self, now: float) -> EventAccount:
        self._rotate(now)
        return EventAccount(
            self._total,
            self._minutes.spans(now),
            self._hours.spans(now),
            self._top.top(MAX_TOP),
            [
                EventSample(number, key, fields, max(0.0, now - at))
                for number, key, fields, at in reversed(self.samples)
            ],
        )

    def _rotate(self, now: float) -> None:
        hour = int(now // 3600)
        for _ in range(min(hour - self._hour, 2)):
            self._top.rotate()
        self._hour = hour


class EventCounts:
    """The events of one node. When there are too many names, the least recently tracked one is evicted."""

    def __init__(self) -> None:
        self.evictions = 0
        self._known: OrderedDict[str, EventHistory] = OrderedDict()  # the least recently tracked first
        self._bytes = 0
        self._batches: OrderedDict[bytes, None] = OrderedDict()  # the oldest first

    def track(self, batch: bytes, entries: Sequence[EventEntry], now: float) -> int:
        """Counts a batch, unless its ID is known. Returns how many events were counted."""
        if batch in self._batches:
            return 0
        self._batches[batch] = None
        if len(self._batches) > MAX_BATCHES:
            self._batches.popitem(last=False)
        for entry in entries:
            self._add(entry, now)
        return sum(entry.times for entry in entries)

    def _add(self, entry: EventEntry, now: float) -> None:
        event = self._known.get(entry.name)
        if event is None:
            event = self._known[entry.name] = EventHistory(now - entry.ago)
        else:
            self._known.move_to_end(entry.name)
        before = event.bytes
        event.add(entry, now)
        self._bytes += event.bytes - before
        while len(self._known) > MAX_NAMES or self._bytes > MAX_SAMPLES_BYTES:
            _, gone = self._known.popitem(last=False)
            self._bytes -= gone.bytes
            self.evictions += 1

    def names(self, after: str, now: float) -> list[EventTotals]:
        """The totals of the next names in order, at most PAGE. Fewer than PAGE: there are no more."""
        names = sorted(name for name in self._known if name > after)
        return [self._known[name].totals(name, now) for name in names[:PAGE]]

    def account(self, name: str, now: float) -> EventAccount | None:
        """All that is kept of a name; None if it is unknown."""
        event = self._known.get(name)
        return None if event is None else event.account(now)


def _size(key: str, fields: bytes) -> int:
    return SAMPLE_OVERHEAD + len(key) + len(fields)
