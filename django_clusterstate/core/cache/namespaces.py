"""The namespaces of a cache store, and the keys of each in the buckets of a timer wheel.

A bucket holds keys of one namespace that are due at the same time. So the expired entries and those of a cleared
namespace are found without an index for either. Between calls each namespace holds a bucket, and each bucket a key:
an empty one is dropped at once. Times are seconds on the node's monotonic clock.
"""

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from ..replication.tombstones import Clears

V = TypeVar("V")

Cursor = tuple[float, int]  # of a bucket: its due time and serial

# A full bucket has another one beside it, due at the same time, so that a scan can go by buckets and yet never reads
# many keys at once. CPython gives a dict of 342 keys a table twice as large as one of 341.
BUCKET_KEYS: Final = 340
SCANNED_BUCKETS: Final = 1000  # by one scan: those of other namespaces and nearly empty ones are cheap, not free


@dataclass(eq=False, repr=False, slots=True)
class Namespace:
    """A namespace from its first entry to its last, or to `clear()`, which makes its entries absent by one flag: all up
    to the version `cleared_to`."""

    name: bytes
    serial: int
    cleared: bool = False
    cleared_to: float = math.inf
    # By serial. Ordered, since a plain dict can't give its first item in O(1) once others before it are deleted.
    buckets: OrderedDict[int, "Bucket"] = field(default_factory=OrderedDict)
    # The buckets with room for a key, by due time and serial. They are filled before another one is created, so there
    # are never more than the largest number of keys has needed.
    with_room: dict[float, dict[int, "Bucket"]] = field(default_factory=dict)


@dataclass(eq=False, repr=False, slots=True)
class Bucket:
    """Keys of one namespace that have all expired at `due`: a whole second, or infinity."""

    namespace: Namespace
    due: float
    serial: int
    # A dict where a set would do: the garbage collector skips dicts of plain values, and visits sets, which takes 40 ms
    # for a million keys.
    keys: dict[bytes, None] = field(default_factory=dict)


class Entry(msgspec.Struct, Generic[V], gc=False):
    """The value of a key. `used`: the coarse time of its last use. `copied`: whether another node has written it last,
    and this one hasn't used it since."""

    # Without gc=False the collector would visit all again and again, a million in 0.25 s. They are in no cycle.
    # The key is the very object that the ordered dict holds: an equal copy in a bucket would stay in memory.
    key: bytes
    value: V
    size: int
    expires: float
    bucket: Bucket
    namespace: Namespace
    generation: int
    used: float
    version: int
    copied: bool


class Namespaces:
    """The live namespaces, the cleared ones that still hold entries, and the buckets of all by due time."""

    def __init__(self) -> None:
        self._live: dict[bytes, Namespace] = {}
        self._cleared: OrderedDict[int, Namespace] = OrderedDict()  # by serial
        # By (due, serial). A sorted list, not a heap, because buckets also go before they are due; there are so few
        # that the memmove of an insertion takes a microsecond or two, once in BUCKET_KEYS keys.
        self._schedule: list[tuple[float, int, Bucket]] = []
        self._serial = 0
        self._clears = Clears()

    @property
    def floor(self) -> int:
        """Clears up to this version may be forgotten."""
        return self._clears.floor

    def version(self, key: bytes) -> int:
        """The version of the last clear of a key's namespace; 0 if there was none, or it is forgotten."""
        return self._clears.version(key.partition(b"\0")[0])

    def get(self, key: bytes) -> Namespace | None:
        """The live namespace of a key or of a prefix that includes the zero byte; None if it has no entries."""
        return self._live.get(key.partition(b"\0")[0])

    def get_or_create(self, key: bytes) -> Namespace:
        """The live namespace of a key. The caller adds an entry to a new one at once."""
        name = key.partition(b"\0")[0]
        namespace = self._live.get(name)
        if namespace is None:
            self._serial += 1
            namespace = self._live[name] = Namespace(name, self._serial)
        return namespace

    def add(self, namespace: Namespace, key: bytes, due: float) -> Bucket:
        """Puts a key into a bucket that is due at `due`, and returns the bucket."""
        with_room = namespace.with_room.setdefault(due, {})
        bucket = with_room.popitem()[1] if with_room else self._create(namespace, due)
        bucket.keys[key] = None
        if len(bucket.keys) < BUCKET_KEYS:
            with_room[bucket.serial] = bucket
        return bucket

    def _create(self, namespace: Namespace, due: float) -> Bucket:
        self._serial += 1
        bucket = namespace.buckets[self._serial] = Bucket(namespace, due, self._serial)
        insort(self._schedule, (due, self._serial, bucket))
        return bucket

    def remove(self, bucket: Bucket, key: bytes) -> None:
        """Removes a key from its bucket."""
        del bucket.keys[key]
        if not bucket.keys:
            self.drop(bucket)
        elif len(bucket.keys) == BUCKET_KEYS - 1:
            bucket.namespace.with_room.setdefault(bucket.due, {})[bucket.serial] = bucket

    def drop(self, bucket: Bucket) -> None:
        """Drops an empty bucket, and its namespace if that was its last one."""
        namespace, due = bucket.namespace, bucket.due
        # A pair sorts before the triple it begins, and no two triples begin alike.
        del self._schedule[bisect_left(self._schedule, (due, bucket.serial))]
        del namespace.buckets[bucket.serial]
        with_room = namespace.with_room.get(due, {})
        with_room.pop(bucket.serial, None)
        if not with_room:
            namespace.with_room.pop(due, None)
        if not namespace.buckets:
            if namespace.cleared:
                del self._cleared[namespace.serial]
            else:
                del self._live[namespace.name]

    def clear(self, name: bytes, version: float = math.inf) -> None:
        """Marks every entry of a namespace up to a version as absent, in O(1). The next entry begins another namespace
        of that name."""
        if version != math.inf and not self._clears.add(name, int(version)):
            return
        namespace = self._live.pop(name, None)
        if namespace is not None:
            namespace.cleared = True
            namespace.cleared_to = version
            self._cleared[namespace.serial] = namespace

    def survives(self, entry: Entry[Any]) -> bool:
        """Whether an entry of a cleared namespace is newer than the clear, which came late: then it moves to the live
        namespace of that name."""
        if not self.is_newer(entry):
            return False
        cleared = entry.bucket
        self.refile(entry)
        self.remove(cleared, entry.key)
        return True

    def is_newer(self, entry: Entry[Any]) -> bool:
        """Whether an entry is newer than all clears of its namespace."""
        return entry.version > max(entry.namespace.cleared_to, self._clears.version(entry.namespace.name))

    def refile(self, entry: Entry[Any]) -> None:
        """Puts the key of an entry into a bucket of the live namespace."""
        entry.namespace = self.get_or_create(entry.key)
        entry.bucket = self.add(entry.namespace, entry.key, entry.bucket.due)

    def clear_all(self) -> None:
        """Marks every entry of every namespace as absent."""
        for name in list(self._live):
            self.clear(name)

    def first_reclaimable(self, now: float) -> Bucket | None:
        """A bucket of entries to reclaim: of a cleared namespace, or else the one that has been due the longest; None
        if there is none."""
        if self._cleared:
            namespace = next(iter(self._cleared.values()))
            return next(iter(namespace.buckets.values()))
        if self._schedule and self._schedule[0][0] <= now:
            return self._schedule[0][2]
        return None

    def scan(self, namespace: Namespace, cursor: Cursor | None) -> tuple[list[Bucket], Cursor | None]:
        """The next buckets of a namespace, by due time, BUCKET_KEYS keys at most together; and the cursor to go on
        with, which is None after the last one."""
        start = 0 if cursor is None else bisect_left(self._schedule, (cursor[0], cursor[1] + 1))
        found: list[Bucket] = []
        keys = 0
        for due, serial, bucket in self._schedule[start : start + SCANNED_BUCKETS]:
            if bucket.namespace is namespace:
                keys += len(bucket.keys)
                if keys > BUCKET_KEYS:
                    return found, cursor
                found.append(bucket)
            cursor = float(due), serial
        return found, cursor if start + SCANNED_BUCKETS < len(self._schedule) else None
