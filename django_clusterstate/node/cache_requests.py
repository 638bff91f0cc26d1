"""Answers the requests for a node's cache. Requests for many keys don't delay other requests."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..core.cache.entry_keys import slot_of_entry
from ..core.cache.quotas import CacheStores
from ..core.cache.store import CacheStore
from ..core.membership.membership import Membership
from ..core.replication.replication import Replication
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from ..wire.status import Stats

MAX_DURATION = 0.002  # seconds of a request for many keys; then the node answers for those that are done
_STEP = 16  # keys between two checks of the clock

VALUE_HEADER = 9  # bytes that a value takes in a reply in addition to its own, at most
TTL_BYTES = 9  # bytes that a ttl takes in a reply, at most

_T = TypeVar("_T")


class CacheRequests:
    """Answers the requests for the cache from a node's stores, and counts hits, misses and failures in `stats`."""

    def __init__(
        self,
        stores: CacheStores,
        replication: Replication,
        membership: Membership,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        self._stores = stores
        self._replication = replication
        self._membership = membership
        self._stats = stats
        self._clock = clock
        self.methods: dict[type, Callable[[Any], wire.Reply]] = {
            wire.Get: self._get,
            wire.GetWithTtl: self._get_with_ttl,
            wire.Set: self._set,
            wire.Touch: self._touch,
            wire.Delete: self._delete,
            wire.Incr: self._incr,
            wire.Clear: self._clear,
            wire.GetEntry: self._get_entry,
            wire.Scan: self._scan,
        }

    def _get(self, request: wire.Get) -> wire.Reply:
        if len(request.keys) == 1:  # nearly always
            value = self._stores.get(request.keys[0], self._clock())
            if value is None:
                self._stats.misses += 1
            else:
                self._stats.hits += 1
            return wire.ValuesReply(self._membership.view.epoch, [value])
        return wire.ValuesReply(self._membership.view.epoch, self._read(request.keys, MAX_REQUEST))

    def _get_with_ttl(self, request: wire.GetWithTtl) -> wire.Reply:
        now, of = self._clock(), self._stores.of
        values = self._read(request.keys, MAX_REQUEST, VALUE_HEADER + TTL_BYTES)
        ttls = [held[1] if (held := of(key).peek(key, now)) else None for key in request.keys[: len(values)]]
        return wire.TtlValuesReply(self._membership.view.epoch, values, ttls)

    def _read(self, keys: Sequence[bytes], room: int, header: int = VALUE_HEADER) -> list[wire.Value | None]:
        """The values of the first keys: those that fit in `room` bytes, each with a `header`, and take little time."""
        now = self._clock()
        get = self._stores.get
        values: list[wire.Value | None] = []
        for key in keys:
            value = get(key, now)
            room -= header + (len(value) if isinstance(value, bytes) else 0)
            if room < 0:
                break
            values.append(value)
            if not len(values) % _STEP and self._clock() - now >= MAX_DURATION:
                break
        misses = values.count(None)
        self._stats.misses += misses
        self._stats.hits += len(values) - misses
        return values

    def _set(self, request: wire.Set) -> wire.Reply:
        now, ttl = self._clock(), request.ttl
        of, store = self._stores.of, CacheStore.add if request.absent else CacheStore.set
        if len(request.items) <= _STEP:
            flags = [store(of(key), key, value, ttl, now) for key, value in request.items]
        else:
            flags = self._each(request.items, lambda item: store(of(item[0]), *item, ttl, now), now)
        if request.or_same and not all(flags):
            flags = [flag or self._matches(*item, now) for flag, item in zip(flags, request.items, strict=False)]
        if request.deletes and all(flags) and len(flags) == len(request.items):
            for key in request.deletes:
                self._stores.of(key).delete(key, now)
        values = self._read(request.reads, MAX_REQUEST - len(flags)) if request.reads else ()
        return wire.FlagsReply(self._membership.view.epoch, flags, tuple(values))

    def _touch(self, request: wire.Touch) -> wire.Reply:
        def touch(key: bytes) -> bool:
            return self._matches(key, request.expected, now) and self._stores.of(key).touch(key, request.ttl, now)

        now = self._clock()
        return wire.FlagsReply(self._membership.view.epoch, self._each(request.keys, touch, now))

    def _delete(self, request: wire.Delete) -> wire.Reply:
        def delete(key: bytes) -> bool:
            return self._matches(key, request.expected, now) and self._stores.of(key).delete(key, now)

        now = self._clock()
        return wire.FlagsReply(self._membership.view.epoch, self._each(request.keys, delete, now))

    def _each(self, items: Sequence[_T], do: Callable[[_T], bool], now: float) -> list[bool]:
        """The results of `do` for each item, or for the first items if they take MAX_DURATION. `now`: when the request
        began."""
        flags: list[bool] = []
        while len(flags) < len(items) and (not flags or self._clock() - now < MAX_DURATION):
            flags += [do(item) for item in items[len(flags) : len(flags) + _STEP]]
        return flags

    def _matches(self, key: bytes, expected: wire.Value | None, now: float) -> bool:
        """Whether the key has that value; None stands for any value, or none."""
        return expected is None or ((held := self._stores.of(key).peek(key, now)) is not None and held[0] == expected)

    def _incr(self, request: wire.Incr) -> wire.Reply:
        now = self._clock()
        value = self._stores.get(request.key, now)
        if value is None:
            return wire.NumberReply(self._membership.view.epoch, None)
        if isinstance(value, bytes) or value + request.delta not in wire.INT64:
            self._stats.failures += 1
            return wire.FailedReply(self._membership.view.epoch, wire.NOT_AN_INTEGER)
        self._stores.of(request.key).replace(request.key, value + request.delta, now)
        return wire.NumberReply(self._membership.view.epoch, value + request.delta)

    def _clear(self, request: wire.Clear) -> wire.Reply:
        replication = self._replication
        # No version of the future: it would advance the clock of all nodes.
        version = min(request.version, replication.clock.last())
        version = replication.clear(request.namespace, version, self._clock())
        return wire.ClearReply(self._membership.view.epoch, version)

    def _get_entry(self, request: wire.GetEntry) -> wire.Reply:
        held = self._stores.of(request.key).peek(request.key, self._clock())
        if held is None:
            return wire.EntryReply(self._membership.view.epoch, found=False)
        value, ttl = held
        size = len(value) if isinstance(value, bytes) else 8
        return wire.EntryReply(self._membership.view.epoch, True, ttl, value if request.value else None, size)

    def _scan(self, request: wire.Scan) -> wire.Reply:
        keys, cursor = self._stores.of(request.prefix).scan(request.prefix, request.cursor, self._clock())
        lists = self._replication.placement.lists
        return wire.ScanReply(self._membership.view.epoch, [key for key in keys if lists(slot_of_entry(key))], cursor)
