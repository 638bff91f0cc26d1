"""The operations of a cache, each written once for the blocking and the asyncio methods of `ClusterCache`.

`key` is a key as the nodes know it, `name` as the user wrote it, for errors. `ttl` is seconds to live (None: forever).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation

from .. import runtime
from ..client.operations import CallEither, ClientCommand, Operation, RunOperation
from ..client.routing import Target
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from .codec import MAX_VALUE_BYTES, ValueCodec, is_too_big
from .log import is_due, logger
from .near_cache import NearReads
from .options import CacheOptions
from .requester import CacheRequester, succeeded
from .single_flight import MISSING, SingleFlight

T = TypeVar("T")


class CacheOperations:
    """Django's cache API over the parts of one cache."""

    def __init__(self, options: CacheOptions, codec: ValueCodec, near: NearReads, requester: CacheRequester) -> None:
        self._options = options
        self._codec = codec
        self._near = near
        self._requester = requester
        self._call = requester.call

    # -- one key --------------------------------------------------------------------------------------------

    def add(self, key: bytes, name: Any, value: Any, ttl: float | None) -> Operation[bool]:
        data = yield from _convert(self._codec.dump, value)
        if is_too_big(data):
            # False would mean that the key exists: for a new session Django would try ten thousand others.
            self._report_too_big(_size_problem(name, data), raises=True)
        return succeeded((yield self._call(key, wire.Set([(key, data)], ttl, absent=True))))

    def set(self, key: bytes, name: Any, value: Any, ttl: float | None) -> ClientCommand[object]:
        """Stores a value. If the value is refused, an older one is deleted."""
        try:
            data = self._dump(name, value)
        except Exception as error:
            return RunOperation(self._set_or_delete(key, name, value, ttl, error))
        return self._store(key, name, data, ttl)

    def _set_or_delete(self, key: bytes, name: Any, value: Any, ttl: float | None, error: Exception) -> Operation[None]:
        """Stores a value that `_dump()` raised an error for, if the error is only that it needs a thread."""
        try:
            if not isinstance(error, SynchronousOnlyOperation):
                raise error
            data = yield from _convert(self._dump, name, value)
        except Exception:
            yield self.delete(key)
            raise
        yield self._store(key, name, data, ttl)

    def _store(self, key: bytes, name: Any, data: wire.Value | None, ttl: float | None) -> ClientCommand[object]:
        if data is None:
            return self.delete(key)
        return self._call(key, wire.Set([(key, data)], ttl), partial(self._check_room, name))

    def _check_room(self, name: Any, reply: wire.Reply | None) -> None:
        if isinstance(reply, wire.FlagsReply) and not reply.flags[0]:
            self._report_no_room(name)

    def touch(self, key: bytes, ttl: float | None) -> ClientCommand[bool]:
        return self._call(key, wire.Touch([key], ttl), succeeded)

    def delete(self, key: bytes) -> ClientCommand[bool]:
        return self._call(key, wire.Delete([key]), succeeded)

    def ttl(self, key: bytes) -> Operation[float | None]:
        reply = yield self._call(key, wire.GetEntry(key))
        return reply.ttl if isinstance(reply, wire.EntryReply) and reply.found else 0.0

    def incr(self, key: bytes, name: Any, delta: int) -> ClientCommand[int]:
        if type(delta) is not int or delta not in wire.INT64:
            raise TypeError(f"only a 64-bit integer can be added to a value, not {delta!r}")
        return self._call(key, wire.Incr(key, delta), partial(_sum, name))

    def move(self, source: bytes, target: bytes, name: Any, version: int) -> Operation[None]:
        """Moves a value and its remaining ttl to a key's other version. Raises `ValueError` where the source is absent,
        or the target can't be stored; then the value stays at the source."""
        entry = yield self._call(source, wire.GetEntry(source, value=True))
        if not isinstance(entry, wire.EntryReply) or entry.value is None:
            raise _not_found(name)
        request = wire.Set([(target, entry.value)], entry.ttl)
        if not succeeded((yield self._call(target, request))):
            raise ValueError(f"Key {name!r} could not be stored in version {version} and stays where it was")
        yield self.delete(source)

    def get_or_set(self, key: bytes, name: Any, default: Any, ttl: float | None, stale: float) -> Operation[Any]:
        """The value of an entry that was absent, or with `stale` of one that may be fresh, stale or absent."""
        if not isinstance(stale, int | float) or stale < 0:
            raise ValueError(f"stale must be seconds, not {stale!r}")
        flight = SingleFlight(
            key=key,
            default=default,
            ttl=ttl,
            stale=float(stale),
            lease=self._options.lease,
            call=self._call,
            dump=partial(_convert, self._dump, name),
            load=self._codec.load_without_queries,
            no_room=partial(self._report_no_room, name),
        )
        if stale:
            return (yield from flight.serve_stale_or_compute())
        if callable(default):
            return (yield from flight.compute_or_wait())
        return (yield from flight.store_default())

    # -- many keys ------------------------------------------------------------------------------------------

    def get_many(self, names: Mapping[bytes, Any]) -> Operation[dict[Any, Any]]:
        """The values found, by the name of their key. `names` are the keys' names by their stored form."""
        values, marks = self._near.find_many(names)
        absent = [key for key in names if key not in values]
        for keys, reply in (yield from self._requester.call_owners(absent, self._near.request_type)):
            values.update(zip(keys, self._near.take_many(keys, reply, marks), strict=False))
        found: dict[Any, Any] = yield from _convert(self._load_all, names, values)
        return found

    def set_many(self, names: Mapping[bytes, Any], data: Mapping[Any, Any], ttl: float | None) -> Operation[list[Any]]:
        """Stores `data[name]` for each name. Returns the names of those that weren't stored."""
        try:
            encoded = yield from _convert(lambda: {key: self._codec.dump(data[name]) for key, name in names.items()})
        except Exception:
            yield from self._requester.call_owners(names, wire.Delete)
            raise
        values = {key: value for key, value in encoded.items() if not is_too_big(value)}
        too_big = [key for key in names if key not in values]
        if too_big:
            yield from self._requester.call_owners(too_big, wire.Delete)
        stored = yield from self._store_all(names, values, ttl)
        if too_big:
            problem = _size_problem(names[too_big[0]], encoded[too_big[0]])
            self._report_too_big(problem, count=len(too_big), raises=self._options.raise_too_big)
        return [name for key, name in names.items() if key not in stored]

    def delete_many(self, keys: Sequence[bytes]) -> Operation[None]:
        yield from self._requester.call_owners(keys, wire.Delete)

    def _load_all(self, names: Mapping[bytes, Any], values: Mapping[bytes, wire.Value | None]) -> dict[Any, Any]:
        found = {}
        for key, name in names.items():
            encoded = values.get(key)
            value = MISSING if encoded is None else self._codec.load(encoded, MISSING)
            if value is not MISSING:
                found[name] = value
        return found

    def _store_all(
        self, names: Mapping[bytes, Any], values: Mapping[bytes, wire.Value], ttl: float | None
    ) -> Operation[Collection[bytes]]:
        """The keys of the values that were stored."""

        def make(keys: list[bytes]) -> wire.Request:
            return wire.Set([(key, values[key]) for key in keys], ttl)

        def size_of(key: bytes) -> int:
            value = values[key]
            return len(key) + (len(value) if isinstance(value, bytes) else 0)

        stored: set[bytes] = set()
        for keys, reply in (yield from self._requester.call_owners(values, make, size_of)):
            if isinstance(reply, wire.FlagsReply):
                accepted = {key for key, flag in zip(keys, reply.flags, strict=True) if flag}
                stored |= accepted
                for key in keys:
                    if key not in accepted:
                        self._report_no_room(names[key], raises=False)  # set_many() returns its name instead
        return stored

    # -- the nodes ------------------------------------------------------------------------------------------

    def clear(self) -> Operation[None]:
        for reply in (yield from self.clear_each()).values():
            if isinstance(reply, ClusterStateError):
                self._requester.failed(reply)

    def clear_each(self) -> Operation[dict[Target, wire.Reply | ClusterStateError]]:
        return (yield from self._requester.clear(self._options.namespace))

    def stats(self) -> Operation[dict[str, dict[str, float]]]:
        replies = (yield from self._requester.call_all(wire.GetStatus())).values()
        found = {reply.identity.name: _figures(reply) for reply in replies if isinstance(reply, wire.StatusReply)}
        return dict(sorted(found.items()))

    # -- values that are too big ----------------------------------------------------------------------------

    def _dump(self, name: Any, value: Any) -> wire.Value | None:
        """The encoded value; None for one that is too big, unless that raises `ValueError`."""
        data = self._codec.dump(value)
        if not is_too_big(data):
            return data
        self._report_too_big(_size_problem(name, data), raises=self._options.raise_too_big)
        return None

    def _report_no_room(self, name: Any, raises: bool | None = None) -> None:
        problem = f"the value of {name!r} takes more than its owner has room for (MAX_BYTES, or CACHE_MAX_BYTES)"
        self._report_too_big(problem, raises=self._options.raise_too_big if raises is None else raises)

    def _report_too_big(self, problem: str, *, count: int = 1, raises: bool) -> None:
        runtime.get_stats().too_big += count
        if raises:
            raise ValueError(problem)
        namespace = self._options.namespace
        if is_due("too big", namespace):
            logger.warning("cache %r: %s; it was not stored (see VALUE_TOO_BIG)", namespace.decode(), problem)


def _convert(function: Callable[..., T], *args: Any) -> Operation[T]:
    """Calls a function that serializes or deserializes values.

    Some values query the database meanwhile, such as lazy querysets. Django refuses that in an event loop, and then the
    function is called again in a thread.
    """
    try:
        return function(*args)
    except SynchronousOnlyOperation:
        result: T = yield CallEither(function, sync_to_async(function), args)
        return result


def _size_problem(name: Any, data: wire.Value) -> str:
    size = len(data) if isinstance(data, bytes) else 8
    return f"the value of {name!r} takes {size:,} bytes, more than the limit of {MAX_VALUE_BYTES:,}"


def _not_found(name: Any) -> ValueError:
    return ValueError(f"Key {name!r} not found")


def _sum(name: Any, reply: wire.Reply | None) -> int:
    """The new value in the reply to an `Incr`."""
    if isinstance(reply, wire.FailedReply):
        raise TypeError(f"the value of {name!r} is not a 64-bit integer, or the sum would overflow 64 bits")
    if not isinstance(reply, wire.NumberReply) or reply.value is None:
        raise _not_found(name)
    return reply.value


def _figures(status: wire.StatusReply) -> dict[str, float]:
    stats = status.stats
    return {
        "hits": stats.hits,
        "misses": stats.misses,
        "entries": stats.cache_owned,  # so that the sum of all nodes is the number of entries
        "copies": stats.cache_entries - stats.cache_owned,
        "bytes": stats.cache_bytes,
        "evictions": stats.cache_evictions,
        "too_big": stats.tally.too_big,
        "uptime": status.uptime,
    }
