"""`ClusterCache`: a Django cache in the memory of the cluster's nodes, each key at its owner.

Best effort: an entry is lost when its owner is killed, or evicted when the owner is full; with an owner that can't be
reached, reads are misses and writes are lost.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Self

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, MEMCACHE_MAX_KEY_LENGTH, BaseCache, default_key_func
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

from .. import runtime
from ..client.operations import Operation
from ..client.routing import Target
from ..exceptions import ClusterStateError
from ..runtime import asynchronous, blocking
from ..wire import messages as wire
from .codec import ValueCodec
from .key_patterns import KeyPattern, KeyScan, delete_pattern
from .locks import AsyncLock, Lock, LockOperations
from .near_cache import NearReads, shared_near_cache
from .operations import CacheOperations
from .options import CacheOptions
from .requester import CacheRequester
from .single_flight import MISSING

_PROBE = "A key: *"  # what a KEY_FUNCTION does to it shows whether it only prepends


class ClusterCache(BaseCache):
    """`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache", "LOCATION": "a name"}}`

    LOCATION is the namespace: aliases with the same one share their entries, and `clear()` of one leaves the others.
    OPTIONS are described in docs/settings.md. Raises `ImproperlyConfigured` for a wrong one.

    Each method has an asynchronous twin with an `a` before its name. Django makes an instance for each thread and each
    asynchronous context; the connections are the process's.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._arguments = location, params
        self._has_own_keys = _overrides_keys(type(self))
        self.options = options = CacheOptions.read(location, params.get("OPTIONS", {}))
        self._prefix = options.namespace + b"\0"
        near = shared_near_cache(options.namespace)
        self._near = NearReads(near, options.near_ttl, options.near_entries)
        self._codec = ValueCodec(options)
        self._requester = CacheRequester(near, raise_unavailable=options.raise_unavailable)
        self._operations = CacheOperations(options, self._codec, self._near, self._requester)

    def raising(self) -> Self:
        """A cache with the same alias and options, but ON_UNAVAILABLE "raise".

        It is a new instance, not a copy: debug toolbar and Sentry replace methods of an instance by functions that call
        the methods of that instance, even where they are copied to another one.
        """
        location, params = self._arguments
        return type(self)(location, {**params, "OPTIONS": {**params.get("OPTIONS", {}), "ON_UNAVAILABLE": "raise"}})

    # -- keys -----------------------------------------------------------------------------------------------

    def routing_key(self, key: Any, version: int | None = None) -> bytes:
        """The key as the nodes know it, which decides its owner: for `cluster.owner()` and the like."""
        if self.key_func is default_key_func and not self._has_own_keys:
            # `make_and_validate_key()` written out: its calls take twice as long.
            name = f"{self.key_prefix!s}:{self.version if version is None else version!s}:{key!s}"
            if not _is_valid(name):
                self.validate_key(name)
        else:
            name = self.make_and_validate_key(key, version=version)
        stored = self._prefix + name.encode()
        if len(stored) > wire.MAX_KEY_BYTES:
            stored = self._prefix + hashlib.blake2b(stored, digest_size=32).hexdigest().encode()
        return stored

    def validate_key(self, key: str) -> None:
        """Django's check, which warns. It iterates over the characters, so it is skipped where it has no warning."""
        if not _is_valid(key):
            super().validate_key(key)

    # -- one key --------------------------------------------------------------------------------------------
    # Reads of one key aren't operations: they are the hot path, and a generator would add 0.9 us to 14.

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        value = self._read(self.routing_key(key, version))
        return default if value is None else self._codec.load(value, default)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        value = await self._aread(self.routing_key(key, version))
        if value is None:
            return default
        try:
            return self._codec.load(value, default)
        except SynchronousOnlyOperation:  # such as a lazy queryset that was pickled
            return await sync_to_async(self._codec.load)(value, default)

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self._read(self.routing_key(key, version)) is not None

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return await self._aread(self.routing_key(key, version)) is not None

    def _read(self, key: bytes) -> wire.Value | None:
        """The encoded value of a stored key, near or from its owner; None when it is absent or the owner fails."""
        value, mark = self._near.find(key)
        if value is not None:
            return value
        try:
            reply = runtime.get_client().call(key, self._near.request(key, mark))
        except ClusterStateError as error:
            self._requester.failed(error)
            return None
        return self._near.take(key, reply, mark)

    async def _aread(self, key: bytes) -> wire.Value | None:
        """Asynchronous `_read()`."""
        value, mark = self._near.find(key)
        if value is not None:
            return value
        try:
            reply = await runtime.get_async_client().call(key, self._near.request(key, mark))
        except ClusterStateError as error:
            self._requester.failed(error)
            return None
        return self._near.take(key, reply, mark)

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return runtime.run(self._operations.add(self.routing_key(key, version), key, value, self._ttl(timeout)))

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await runtime.arun(self._operations.add(self.routing_key(key, version), key, value, self._ttl(timeout)))

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        command = self._operations.set(self.routing_key(key, version), key, value, self._ttl(timeout))
        command.run(runtime.get_client())

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        command = self._operations.set(self.routing_key(key, version), key, value, self._ttl(timeout))
        await command.arun(runtime.get_async_client())

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._operations.touch(self.routing_key(key, version), self._ttl(timeout)).run(runtime.get_client())

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        command = self._operations.touch(self.routing_key(key, version), self._ttl(timeout))
        return await command.arun(runtime.get_async_client())

    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._operations.delete(self.routing_key(key, version)).run(runtime.get_client())

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return await self._operations.delete(self.routing_key(key, version)).arun(runtime.get_async_client())

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._operations.incr(self.routing_key(key, version), key, delta).run(runtime.get_client())

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await self._operations.incr(self.routing_key(key, version), key, delta).arun(runtime.get_async_client())

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None, *, stale: float = 0.0
    ) -> Any:
        """The value; for an absent key that of `default`, a value or a callable, which is stored.

        Of all callers that miss an entry at once, on all hosts, one calls `default`; the others wait for its value, or
        call `default` themselves if it takes longer than the option LEASE. Raises the exceptions of `default`,
        `TypeError` if it returns a coroutine, and `ValueError` if `stale` is negative.

        A value is kept `stale` seconds longer than `timeout`: once it is older than `timeout`, one caller computes a
        new value and the others get the old one at once.
        """
        if not stale and (found := self.get(key, MISSING, version)) is not MISSING:
            return found
        return runtime.run(
            self._operations.get_or_set(self.routing_key(key, version), key, default, self._ttl(timeout), stale)
        )

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None, *, stale: float = 0.0
    ) -> Any:
        """Asynchronous `get_or_set()`; `default` may be a coroutine function as well."""
        if not stale and (found := await self.aget(key, MISSING, version)) is not MISSING:
            return found
        return await runtime.arun(
            self._operations.get_or_set(self.routing_key(key, version), key, default, self._ttl(timeout), stale)
        )

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Moves a value to another version of its key and returns that; the remaining timeout moves with it.

        Raises `ValueError` for an absent key, and where the value can't be stored in the new version: then it stays in
        the old one.
        """
        moved = (self.version if version is None else version) + delta
        runtime.run(self._operations.move(self.routing_key(key, version), self.routing_key(key, moved), key, moved))
        return moved

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Asynchronous `incr_version()`."""
        moved = (self.version if version is None else version) + delta
        await runtime.arun(
            self._operations.move(self.routing_key(key, version), self.routing_key(key, moved), key, moved)
        )
        return moved

    # -- many keys ------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return runtime.run(self._operations.get_many(self._names(keys, version)))

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return await runtime.arun(self._operations.get_many(self._names(keys, version)))

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        return runtime.run(self._operations.set_many(self._names(data, version), data, self._ttl(timeout)))

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        return await runtime.arun(self._operations.set_many(self._names(data, version), data, self._ttl(timeout)))

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        runtime.run(self._operations.delete_many([self.routing_key(key, version) for key in keys]))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await runtime.arun(self._operations.delete_many([self.routing_key(key, version) for key in keys]))

    def clear(self) -> None:
        """Empties this namespace on every node that serves. A node that can't be reached keeps its entries."""
        runtime.run(self._operations.clear())

    async def aclear(self) -> None:
        """Asynchronous `clear()`."""
        await runtime.arun(self._operations.clear())

    @blocking
    def clear_each(self) -> Operation[dict[Target, wire.Reply | ClusterStateError]]:
        """Empties this namespace on every node that serves. Returns each node's reply, or the error in its place."""
        return self._operations.clear_each()

    async def aclose(self, **kwargs: Any) -> None:
        """Does nothing: the connections outlive the request."""

    # -- beyond Django's API --------------------------------------------------------------------------------

    @blocking
    def ttl(self, key: Any, version: int | None = None) -> Operation[float | None]:
        """The seconds until the key expires; None when it never does, 0 when it is absent."""
        return self._operations.ttl(self.routing_key(key, version))

    attl = asynchronous(ttl)

    def expire(self, key: Any, timeout: float | None, version: int | None = None) -> bool:
        """Gives a key a new timeout in seconds (None: it never expires). Returns False if the key is absent. `touch()`
        has the name that django-redis uses for this."""
        return self.touch(key, timeout, version)

    async def aexpire(self, key: Any, timeout: float | None, version: int | None = None) -> bool:
        """Asynchronous `expire()`."""
        return await self.atouch(key, timeout, version)

    def persist(self, key: Any, version: int | None = None) -> bool:
        """Makes a key never expire. False when it is absent."""
        return self.touch(key, None, version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        """Asynchronous `persist()`."""
        return await self.atouch(key, None, version)

    def iter_keys(self, pattern: str, version: int | None = None) -> Iterator[str]:
        """The keys that match a glob pattern, each once, as they come from the nodes, one node after the other.

        Finds each key that exists from beginning to end, unless its timeout is shortened meanwhile or its owner
        changes. Keys that are stored as hashes for their length aren't found. Raises `ImproperlyConfigured` for a
        KEY_FUNCTION that does more than prepend.
        """
        scan = KeyScan(self._requester, self._pattern(pattern, version))
        while (keys := runtime.run(scan.next_chunk())) is not None:
            yield from keys

    async def aiter_keys(self, pattern: str, version: int | None = None) -> AsyncIterator[str]:
        """Asynchronous `iter_keys()`."""
        scan = KeyScan(self._requester, self._pattern(pattern, version))
        while (keys := await runtime.arun(scan.next_chunk())) is not None:
            for key in keys:
                yield key

    @blocking
    def delete_pattern(self, pattern: str, version: int | None = None) -> Operation[int]:
        """Deletes the keys that `iter_keys()` finds. Returns their number."""
        return delete_pattern(self._requester, self._pattern(pattern, version))

    adelete_pattern = asynchronous(delete_pattern)

    def lock(
        self,
        key: Any,
        timeout: float = 30.0,
        sleep: float = 0.05,
        blocking_timeout: float | None = None,
        version: int | None = None,
    ) -> Lock:
        """Creates a lock without acquiring it. Once acquired, the lock expires after `timeout` seconds. While another
        holder has it, `acquire()` tries again every `sleep` seconds, for `blocking_timeout` seconds (None: forever).
        Its entry is `lock:<key>`. Create one for each holder: threads that share it would release each other's lock
        after it has expired.

        Best effort: see `docs/cache.md`. Raises `ValueError` where `timeout` or `sleep` isn't above 0.
        """
        stored, call, dump = self.routing_key(f"lock:{key}", version), self._requester.call, self._codec.dump
        return Lock(LockOperations(key, stored, timeout, sleep, blocking_timeout, call, dump))

    def alock(
        self,
        key: Any,
        timeout: float = 30.0,
        sleep: float = 0.05,
        blocking_timeout: float | None = None,
        version: int | None = None,
    ) -> AsyncLock:
        """`lock()` for `async with`. This call itself isn't awaited."""
        return AsyncLock(self.lock(key, timeout, sleep, blocking_timeout, version).operations)

    @blocking
    def stats(self) -> Operation[dict[str, dict[str, float]]]:
        """By node name: `hits`, `misses`, `evictions` and `too_big` since the node's start; now, the `entries` that it
        owns, the `copies` that it has of those of others, and the `bytes` of both; and `uptime` in seconds; for all
        namespaces together. A node that doesn't reply is missing."""
        return self._operations.stats()

    astats = asynchronous(stats)

    # -- arguments of the operations ------------------------------------------------------------------------

    def _names(self, keys: Iterable[Any], version: int | None) -> dict[bytes, Any]:
        return {self.routing_key(key, version): key for key in keys}

    def _ttl(self, timeout: Any) -> float | None:
        """Seconds to live, at least 0; None: forever."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        ttl = float(timeout)
        return ttl if ttl > 0 else 0.0  # max() takes longer

    def _pattern(self, pattern: str, version: int | None) -> KeyPattern:
        before = self.make_key("", version)
        if self.make_key(_PROBE, version) != before + _PROBE:
            raise ImproperlyConfigured(
                "Patterns need a KEY_FUNCTION that only prepends to the key: with any other, keys cannot be recovered "
                "from their stored form."
            )
        return KeyPattern(pattern, self._prefix + before.encode())


def _is_valid(key: str) -> bool:
    """Whether Django has no warning about a key."""
    return len(key) <= MEMCACHE_MAX_KEY_LENGTH and " " not in key and key.isprintable()


def _overrides_keys(cls: type[ClusterCache]) -> bool:
    """Whether a subclass makes or validates keys in its own way."""
    ours = (ClusterCache.validate_key, BaseCache.make_key, BaseCache.make_and_validate_key)
    return (cls.validate_key, cls.make_key, cls.make_and_validate_key) != ours
