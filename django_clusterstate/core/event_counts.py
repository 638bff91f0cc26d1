"""What an owner keeps of the events that it is told of: counts by time, the most frequent keys, the last samples. Pure.

`now` is monotonic seconds given by the caller; how long ago an event was, seconds. Everything is bounded: the names,
the keys and samples of a name, the bytes of all samples, and the batches that are remembered as taken.
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
SAMPLE_OVERHEAD = 300  # bytes that a sample takes besides its key and its fields, about
MAX_TOP = 50  # keys that make up more than a fiftieth of a name's events are known
MAX_BATCHES = 10_000  # remembered, so that none counts twice
PAGE = 100  # names that are told at once, which takes a node about a millisecond

MINUTES, HOURS = 60, 48  # for how long is counted
_STEPS = 6  # a minute is counted in sixths, and an hour too: what is asked for begins between two of them

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
EventKey = Annotated[str, Meta(max_length=MAX_KEY)]
Fields = Annotated[bytes, Meta(max_length=MAX_FIELDS_BYTES)]
Times = Annotated[int, Meta(ge=1, le=2**53)]
Ago = Annotated[float, Meta(ge=0, le=HOURS * 3600)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What a process counted of one name and key, `ago` at most. `samples`: how long ago, and the fields as msgpack."""

    name: Name
    key: EventKey
    times: Times
    ago: Ago
    samples: Annotated[list[tuple[Ago, Fields]], Meta(max_length=8)] = []


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One event. `number` counts the samples of its name at this node, from 1; `fields` are msgpack."""

    number: int
    key: str
    fields: bytes
    ago: float


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """How often an event came in the last minute, in the last hour, and since it is known; when last."""

    name: str
    minute: int
    hour: int
    total: int
    last_ago: float


class Account(msgspec.Struct, frozen=True, array_like=True):
    """All that is kept of an event: counts by minute (60) and by hour (48), keys and samples, the latest first."""

    total: int
    minutes: Annotated[list[int], Meta(min_length=MINUTES, max_length=MINUTES)]
    hours: Annotated[list[int], Meta(min_length=HOURS, max_length=HOURS)]
    top: list[KeyCount[str]]
    recent: list[Sample]


class Series:
    """Counts of the last `spans * span` seconds, kept in sixths of a span."""

    __slots__ = ("_counts", "_newest", "_spans", "_step")

    def __init__(self, span: float, spans: int, now: float) -> None:
        self._step = span / _STEPS
        self._spans = spans
        self._counts = array("Q", bytes(8 * spans * _STEPS))
        self._newest = int(now // self._step)

    def add(self, times: int, at: float, now: float) -> None:
        self._turn(now)
        step = int(at // self._step)
        if step > self._newest - len(self._counts):
            self._counts[step % len(self._counts)] += times

    def latest(self, now: float) -> int:
        """How often in the span that ends now."""
        self._turn(now)
        return sum(self._counts[(self._newest - back) % len(self._counts)] for back in range(_STEPS))

    def all(self, now: float) -> int:
        """How often in all spans together."""
        self._turn(now)
        return sum(self._counts)

    def spans(self, now: float) -> list[int]:
        """How often in each span, the latest first. The first one ends now and lacks a sixth at most."""
        self._turn(now)
        counts = self._counts
        after = self._newest % len(counts) + 1
        steps = [*reversed(counts[:after]), *reversed(counts[after:])]
        return [sum(steps[first : first + _STEPS]) for first in range(0, len(steps), _STEPS)]

    def _turn(self, now: float) -> None:
        """Makes room for the step of now, and for those since the last one."""
        newest = int(now // self._step)
        if newest == self._newest:
            return
        for step in range(max(self._newest, newest - len(self._counts)) + 1, newest + 1):
            self._counts[step % len(self._counts)] = 0
        self._newest = newest


class Event:
    """What is kept of one name."""

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

    def add(self, entry: Entry, now: float) -> None:
        at = now - entry.ago
        self.last = max(self.last, at)
        self._total += entry.times
        self._minutes.add(entry.times, at, now)
        self._hours.add(entry.times, at, now)
        self._turn(now)
        self._top.add(entry.key, entry.times)
        for ago, fields in entry.samples:
            self.number += 1
            self.samples.append((self.number, entry.key, fields, now - ago))
            self.bytes += _size(entry.key, fields)
            if len(self.samples) > MAX_SAMPLES:
                _, old_key, old_fields, _ = self.samples.popleft()
                self.bytes -= _size(old_key, old_fields)

    def totals(self, name: str, now: float) -> Totals:
        minutes = self._minutes
        return Totals(name, minutes.latest(now), minutes.all(now), self._total, max(0.0, now - self.last))

    def account(self, now: float) -> Account:
        self._turn(now)
        return Account(
            self._total,
            self._minutes.spans(now),
            self._hours.spans(now),
            self._top.most(MAX_TOP),
            [Sample(number, key, fields, max(0.0, now - at)) for number, key, fields, at in reversed(self.samples)],
        )

    def _turn(self, now: float) -> None:
        hour = int(now // 3600)
        for _ in range(min(hour - self._hour, 2)):
            self._top.turn()
        self._hour = hour


class EventCounts:
    """The events of one node. When there are too many names, the one that wasn't tracked for longest goes."""

    def __init__(self) -> None:
        self.evictions = 0
        self._known: OrderedDict[str, Event] = OrderedDict()  # the least recently tracked first
        self._bytes = 0
        self._batches: OrderedDict[bytes, None] = OrderedDict()  # the oldest first

    def track(self, batch: bytes, entries: Sequence[Entry], now: float) -> int:
        """How many events were counted: none of a batch that was counted before."""
        if batch in self._batches:
            return 0
        self._batches[batch] = None
        if len(self._batches) > MAX_BATCHES:
            self._batches.popitem(last=False)
        for entry in entries:
            self._add(entry, now)
        return sum(entry.times for entry in entries)

    def _add(self, entry: Entry, now: float) -> None:
        event = self._known.get(entry.name)
        if event is None:
            event = self._known[entry.name] = Event(now - entry.ago)
        else:
            self._known.move_to_end(entry.name)
        before = event.bytes
        event.add(entry, now)
        self._bytes += event.bytes - before
        while len(self._known) > MAX_NAMES or self._bytes > MAX_SAMPLES_BYTES:
            _, gone = self._known.popitem(last=False)
            self._bytes -= gone.bytes
            self.evictions += 1

    def names(self, after: str, now: float) -> list[Totals]:
        """The next so many names in their order, PAGE at most: fewer are the last ones."""
        names = sorted(name for name in self._known if name > after)
        return [self._known[name].totals(name, now) for name in names[:PAGE]]

    def account(self, name: str, now: float) -> Account | None:
        """What is kept of a name; None when it isn't known."""
        event = self._known.get(name)
        return None if event is None else event.account(now)


def _size(key: str, fields: bytes) -> int:
    return SAMPLE_OVERHEAD + len(key) + len(fields)
