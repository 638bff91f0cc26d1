"""The near cache: encoded values that this process has read in the last NEAR_TTL seconds, used instead of the owner."""

import contextlib
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .. import runtime
from ..wire import messages as wire

MAX_NEAR_VALUE = 64 * 1024  # bytes: with 1,000 entries at most 64 MiB in a process
_SLOTS = 4096  # keys share a write number by hash: one write invalidates a 4096th of the near cache


class ReadMark(NamedTuple):
    """The state before a read: the number of the last write to the key's slot, and the time in monotonic seconds."""

    write: int
    time: float


class NearCache:
    """The near values of one namespace, shared by all aliases of that LOCATION and all threads of a process.

    Without a lock, which a fork could copy while it is held: each step is atomic, and a value counts only if no write
    to its slot came after the read began. Times are monotonic seconds.
    """

    __slots__ = ("_entries", "_used", "_write_numbers", "_writes")

    def __init__(self) -> None:
        # Value, number of the last write before the read, times of the read and of expiry; in LRU order.
        self._entries: OrderedDict[bytes, tuple[wire.Value, int, float, float]] = OrderedDict()
        self._write_numbers = itertools.count(1)
        self._used = False  # before the first read, writes have nothing to invalidate
        self._writes = [0] * _SLOTS

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, since: float, now: float) -> wire.Value | None:
        """The value, unless it was read before `since`, has expired or was overwritten."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, write, read_at, expires = entry
        if read_at < since or expires <= now or write != self._writes[hash(key) % _SLOTS]:
            return None
        try:
            self._entries.move_to_end(key)
        except KeyError:  # another thread dropped it
            return None
        return value

    def mark(self, key: bytes, now: float) -> ReadMark:
        """The mark to take before the owner is queried, for `put()` to compare with."""
        self._used = True
        return ReadMark(self._writes[hash(key) % _SLOTS], now)

    def put(self, key: bytes, value: wire.Value | None, ttl: float | None, mark: ReadMark, max_entries: int) -> None:
        """Keeps a value that was read, and evicts entries above `max_entries`. Absent and large values aren't kept.

        `ttl` is the seconds that the owner reported as left; None: it never expires. They count from the mark, so the
        near value never outlives the entry.
        """
        if value is None or (isinstance(value, bytes) and len(value) > MAX_NEAR_VALUE):
            return
        expires = math.inf if ttl is None else mark.time + ttl
        self._entries[key] = (value, mark.write, mark.time, expires)
        with contextlib.suppress(KeyError):  # other threads evict too
            self._entries.move_to_end(key)
            while len(self._entries) > max_entries:
                self._entries.popitem(last=False)

    def drop(self, *keys: bytes) -> None:
        """Invalidates keys that were written or may have been. Call it after the write, so that it covers all reads
        that began before."""
        if not self._used:
            return
        for key in keys:
            self._writes[hash(key) % _SLOTS] = next(self._write_numbers)
            self._entries.pop(key, None)

    def clear(self) -> None:
        """Invalidates all keys of the namespace."""
        self._writes = [next(self._write_numbers)] * _SLOTS
        self._entries.clear()


def shared_near_cache(namespace: bytes) -> NearCache:
    """The near cache of a namespace in this process: one alias reads what another writes."""
    return runtime.shared(("near", namespace), NearCache)


class NearReads:
    """The reads of one alias: from the near cache for `ttl` seconds after a read, or else from the owner.

    With a ttl of 0 nothing is kept, and the owner is queried for plain values without their ttl.
    """

    __slots__ = ("_cache", "_max_entries", "_ttl", "request_type")

    def __init__(self, cache: NearCache, ttl: float, max_entries: int) -> None:
        self._cache = cache
        self._ttl = ttl
        self._max_entries = max_entries
        self.request_type: type[wire.Get | wire.GetWithTtl] = wire.GetWithTtl if ttl else wire.Get

    def find(self, key: bytes) -> tuple[wire.Value | None, ReadMark | None]:
        """The near value, or None and the mark of the read that is needed; without a near cache both are None."""
        if not self._ttl:
            return None, None
        now = time.monotonic()
        value = self._cache.get(key, now - self._ttl, now)
        return value, (self._cache.mark(key, now) if value is None else None)

    def find_many(self, keys: Iterable[bytes]) -> tuple[dict[bytes, wire.Value | None], dict[bytes, ReadMark]]:
        """The near values, and the marks of the reads that are needed; without a near cache both are empty."""
        values: dict[bytes, wire.Value | None] = {}
        marks: dict[bytes, ReadMark] = {}
        if self._ttl:
            for key in keys:
                value, mark = self.find(key)
                if value is not None:
                    values[key] = value
                elif mark is not None:
                    marks[key] = mark
        return values, marks

    def request(self, key: bytes, mark: ReadMark | None) -> bytes:
        """The framed request for the value of one key."""
        return wire.get_frame(key) if mark is None else wire.request_frame(wire.GetWithTtl([key]))

    def take(self, key: bytes, reply: wire.Reply, mark: ReadMark | None) -> wire.Value | None:
        """The value in the reply to `request()`, which is kept; None in any other reply."""
        if mark is None:
            return reply.values[0] if isinstance(reply, wire.ValuesReply) else None
        values = self.take_many([key], reply, {key: mark})
        return values[0] if values else None

    def take_many(
        self, keys: Iterable[bytes], reply: wire.Reply, marks: Mapping[bytes, ReadMark]
    ) -> list[wire.Value | None]:
        """The values in the reply to `request_type(keys)`, in order, which are kept; none in any other reply."""
        if isinstance(reply, wire.TtlValuesReply):
            for key, value, ttl in zip(keys, reply.values, reply.ttls, strict=True):
                self._cache.put(key, value, ttl, marks[key], self._max_entries)
            return reply.values
        return reply.values if isinstance(reply, wire.ValuesReply) else []
