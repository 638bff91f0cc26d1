"""What was tracked and isn't with its owner yet. Decides what goes where, and when it is given up.

No event is counted twice. A batch that a node may have taken goes to this node again, which knows it by its number, and
to no other; if the node is gone, it is dropped. What certainly hasn't been taken goes to the next owner.
"""

import os
from collections.abc import Callable, Iterable, Mapping

import msgspec

from ..core.event_counts import MAX_ENTRIES, Entry
from ..exceptions import ClusterStateError, Refused
from ..wire.framing import frame
from ..wire.messages import Reply, Track, encode
from .retries import may_be_executed
from .routing import RoutingTable, Target

KEEP = 5.0  # seconds until an event that no owner takes is dropped
MAX_WAITING = 20_000  # sums
MAX_BATCH = 200_000  # characters and bytes in a batch, which is so less than a frame, in whatever alphabet

Call = Callable[[Target, bytes], Reply]


class Sum:
    """How often a name and key came since `at`, and a few of the events: when, and their fields."""

    __slots__ = ("at", "key", "name", "samples", "times")

    def __init__(self, name: str, key: str, at: float) -> None:
        self.name = name
        self.key = key
        self.at = at
        self.times = 0
        self.samples: list[tuple[float, Mapping[str, object]]] = []

    def packed(self) -> "Packed":
        samples = [(at, _pack(fields)) for at, fields in self.samples]
        return Packed(_clean(self.name), _clean(self.key), self.times, self.at, samples)


class Packed(msgspec.Struct):
    """A sum as it can be sent."""

    name: str
    key: str
    times: int
    at: float
    samples: list[tuple[float, bytes]]

    @property
    def size(self) -> int:
        return len(self.name) + len(self.key) + sum(len(fields) for _, fields in self.samples)

    def entry(self, now: float) -> Entry:
        return Entry(
            self.name, self.key, self.times, now - self.at, [(now - at, fields) for at, fields in self.samples]
        )


class Batch:
    """What goes to one node at once. `asked`: the node may have taken it."""

    __slots__ = ("asked", "id", "sums", "target")

    def __init__(self, target: Target, sums: list[Packed]) -> None:
        self.target = target
        self.sums = sums
        self.id = os.urandom(8)
        self.asked = False

    @property
    def events(self) -> int:
        return sum(one.times for one in self.sums)


class Outbox:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self.dropped = 0  # events
        self._loose: list[Packed] = []  # the oldest first
        self._batches: list[Batch] = []

    @property
    def empty(self) -> bool:
        return not self._loose and not self._batches

    def put(self, sums: Iterable[Sum], now: float) -> None:
        """Takes in what was gathered, and drops what is too old or too much."""
        self._loose += [one.packed() for one in sums]
        room = MAX_WAITING - sum(len(batch.sums) for batch in self._batches)
        fresh = [one for one in self._loose[-room:] if now - one.at < KEEP] if room > 0 else []
        kept = [batch for batch in self._batches if now - batch.sums[0].at < KEEP]
        self.dropped += sum(one.times for one in self._loose) - sum(one.times for one in fresh)
        self.dropped += sum(batch.events for batch in self._batches) - sum(batch.events for batch in kept)
        self._loose, self._batches = fresh, kept

    def place(self, table: RoutingTable) -> None:
        """Gives what is loose to its owners. A batch whose node has left the cluster is loose again, or lost."""
        present = set(table.targets.values())
        for batch in [batch for batch in self._batches if batch.target not in present or not batch.asked]:
            self._batches.remove(batch)
            if batch.asked:
                self.dropped += batch.events
            else:
                self._loose += batch.sums
        groups: dict[Target, list[Packed]] = {}
        homeless = []
        for one in self._loose:
            owner = _owner(table, routing_key(one.name, one.key))
            if owner is None:
                homeless.append(one)
            else:
                groups.setdefault(owner, []).append(one)
        self._loose = homeless
        for target, sums in groups.items():
            self._batches += [Batch(target, part) for part in _parts(sums)]

    def batches(self) -> list[Batch]:
        """What is to be sent, each to its node."""
        return list(self._batches)

    def send(self, batch: Batch, call: Call, now: float) -> None:
        """Sends a batch. What happens to it when that fails is decided here."""
        request = frame(encode(Track(batch.id, [one.entry(now) for one in batch.sums])))
        try:
            call(batch.target, request)
        except ClusterStateError as error:
            if isinstance(error, Refused):  # the process that may have taken the batch before has ended
                batch.asked = False
            elif may_be_executed(error):
                batch.asked = True
        else:
            self._batches.remove(batch)


def routing_key(name: str, key: str) -> bytes:
    """What decides who keeps an event."""
    return f"{name}\0{key}".encode()


def _owner(table: RoutingTable, key: bytes) -> Target | None:
    """The owner; while it is left alone, the next in the ranking that isn't."""
    owner = table.owner(key)
    if owner is None or not owner.is_open:
        return owner
    return next((node for node in table.ranking(key) if not node.is_open), owner)


def _parts(sums: list[Packed]) -> list[list[Packed]]:
    parts: list[list[Packed]] = [[]]
    room = MAX_BATCH
    for one in sums:
        room -= one.size
        if parts[-1] and (room < 0 or len(parts[-1]) == MAX_ENTRIES):
            parts.append([])
            room = MAX_BATCH - one.size
        parts[-1].append(one)
    return parts


def _clean(text: str) -> str:
    """Without what UTF-8 can't say, as Python's file names may have it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _pack(fields: Mapping[str, object]) -> bytes:
    clean = {_clean(name): _clean(value) if isinstance(value, str) else value for name, value in fields.items()}
    return msgspec.msgpack.encode(clean)
