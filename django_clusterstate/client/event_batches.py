"""The outbox of tracked events: which batch goes to which node, and when events are dropped.

No event is counted twice. A batch that a node may have counted is sent again only to this node, which recognizes its
ID; when the node is gone, the batch is dropped. A batch that was certainly not counted goes to the next owner.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from ..core.event_counts import MAX_ENTRIES, EventEntry
from ..exceptions import ClusterStateError, Refused
from ..wire import messages as wire
from .retries import may_be_executed
from .routing import RoutingTable, Target

MAX_AGE = 5.0  # seconds until an event that no owner counts is dropped
MAX_SUMS = 20_000  # in the outbox
MAX_BATCH = 200_000  # characters and bytes, so that a batch fits into a frame in any alphabet


class EventSum:
    """How many events of a name and key were tracked since `at`, and some of them: time, and fields as msgpack."""

    __slots__ = ("at", "key", "name", "samples", "times")

    def __init__(self, name: str, key: str, at: float, times: int) -> None:
        self.name = _valid_utf8(name)
        self.key = _valid_utf8(key)
        self.at = at
        self.times = times
        self.samples: list[tuple[float, bytes]] = []

    def add_sample(self, at: float, fields: Mapping[str, object]) -> None:
        self.samples.append((at, _encode_fields(fields)))

    @property
    def size(self) -> int:
        return len(self.name) + len(self.key) + sum(len(fields) for _, fields in self.samples)

    def entry(self, now: float) -> EventEntry:
        samples = [(now - at, fields) for at, fields in self.samples]
        return EventEntry(self.name, self.key, self.times, now - self.at, samples)


@dataclass(slots=True, eq=False)
class Batch:
    """Sums that are sent to one node together. `maybe_counted`: sent, but without a reply."""

    target: Target
    sums: list[EventSum]
    maybe_counted: bool = False
    id: bytes = field(default_factory=lambda: os.urandom(8))


class Outbox:
    """Sums of events that wait to be sent, and the batches made of them. Used by one thread at a time. `dropped`:
    events dropped so far."""

    def __init__(self) -> None:
        self.dropped = 0
        self._unassigned: list[EventSum] = []  # the oldest first
        self._batches: list[Batch] = []

    @property
    def empty(self) -> bool:
        return not self._unassigned and not self._batches

    def put(self, sums: Iterable[EventSum], now: float) -> None:
        """Adds sums, and drops those that are too old; if there are too many, also the oldest."""
        self._unassigned += sums
        room = MAX_SUMS - sum(len(batch.sums) for batch in self._batches)
        before = self._events()
        newest = self._unassigned[-room:] if room > 0 else []
        self._unassigned = [one for one in newest if now - one.at < MAX_AGE]
        self._batches = [batch for batch in self._batches if now - batch.sums[0].at < MAX_AGE]
        self.dropped += before - self._events()

    def assign(self, table: RoutingTable) -> None:
        """Puts sums into batches for their owners; sums without an owner wait.

        A batch is assigned again unless it may have been counted. If it may, and its node has left the cluster, it is
        dropped.
        """
        members = set(table.targets.values())
        kept: list[Batch] = []
        for batch in self._batches:
            if not batch.maybe_counted:
                self._unassigned += batch.sums
            elif batch.target in members:
                kept.append(batch)
            else:
                self.dropped += _count(batch.sums)
        groups: dict[Target | None, list[EventSum]] = {}
        for one in self._unassigned:
            groups.setdefault(_owner(table, routing_key(one.name, one.key)), []).append(one)
        self._unassigned = groups.pop(None, [])
        self._batches = kept + [
            Batch(target, part) for target, sums in groups.items() if target is not None for part in _split(sums)
        ]

    def batches(self) -> list[Batch]:
        """The batches to send, each to its target."""
        return list(self._batches)

    def send(self, batch: Batch, call: Callable[[Target, bytes], wire.Reply], now: float) -> None:
        """Sends a batch, and removes it once it is counted."""
        request = wire.request_frame(wire.Track(batch.id, [one.entry(now) for one in batch.sums]))
        try:
            call(batch.target, request)
        except Refused:  # the process that may have counted the batch before has ended
            batch.maybe_counted = False
        except ClusterStateError as error:
            batch.maybe_counted = batch.maybe_counted or may_be_executed(error)
        else:
            self._batches.remove(batch)

    def _events(self) -> int:
        return _count(self._unassigned) + sum(_count(batch.sums) for batch in self._batches)


def routing_key(name: str, key: str) -> bytes:
    """The key by which the owner of an event is determined."""
    return f"{name}\0{key}".encode()


def _owner(table: RoutingTable, key: bytes) -> Target | None:
    """The owner of a key; while its circuit breaker is open, the next node in the ranking whose breaker is closed."""
    owner = table.owner(key)
    if owner is None or not owner.is_open:
        return owner
    return next((node for node in table.ranking(key) if not node.is_open), owner)


def _count(sums: Iterable[EventSum]) -> int:
    return sum(one.times for one in sums)


def _split(sums: list[EventSum]) -> list[list[EventSum]]:
    """The sums in parts that fit into a batch."""
    parts: list[list[EventSum]] = [[]]
    room = MAX_BATCH
    for one in sums:
        room -= one.size
        if parts[-1] and (room < 0 or len(parts[-1]) == MAX_ENTRIES):
            parts.append([])
            room = MAX_BATCH - one.size
        parts[-1].append(one)
    return parts


def _valid_utf8(text: str) -> str:
    """The text with lone surrogates replaced, which Python's file names may contain and UTF-8 can't encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _encode_fields(fields: Mapping[str, object]) -> bytes:
    valid = {
        _valid_utf8(name): _valid_utf8(value) if isinstance(value, str) else value for name, value in fields.items()
    }
    return msgspec.msgpack.encode(valid)
