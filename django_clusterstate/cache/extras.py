"""What `ClusterCache` offers beyond Django's cache API, in both faces."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .. import runtime
from ..client.routing import Target
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from ..wire.framing import frame
from .calls import Calls
from .locks import AsyncLock, Lock
from .patterns import Pattern

_PROBE = "A key: *"
_GET_STATUS = frame(wire.encode(wire.GetStatus()))


class Extras(Calls):
    """Each method has a twin for asynchronous code, with an `a` before its name."""

    # -- timeouts -------------------------------------------------------------------------------------------

    def ttl(self, key: Any, version: int | None = None) -> float | None:
        """Seconds that the key has left; None when it never expires, 0 when it is absent."""
        wire_key = self.routing_key(key, version)
        return self._left(self._call(wire_key, wire.GetEntry(wire_key)))

    async def attl(self, key: Any, version: int | None = None) -> float | None:
        wire_key = self.routing_key(key, version)
        return self._left(await self._acall(wire_key, wire.GetEntry(wire_key)))

    def expire(self, key: Any, timeout: float | None, version: int | None = None) -> bool:
        """`touch()` by the name that django-redis has for it."""
        return self.touch(key, timeout, version)

    async def aexpire(self, key: Any, timeout: float | None, version: int | None = None) -> bool:
        return await self.atouch(key, timeout, version)

    def persist(self, key: Any, version: int | None = None) -> bool:
        """From now on the key never expires; False when it is absent."""
        return self.touch(key, None, version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        return await self.atouch(key, None, version)

    # -- patterns -------------------------------------------------------------------------------------------

    def iter_keys(self, pattern: str, version: int | None = None) -> Iterator[str]:
        """The keys that match a glob pattern, each once, as they come from the nodes, one node after the other.

        Finds each key that is there from beginning to end, unless its timeout is shortened meanwhile or its owner
        changes. Not found are keys that are stored as hashes for their length. Raises `ImproperlyConfigured` where
        KEY_FUNCTION does more than put something before the key.
        """
        wanted = self._pattern(pattern, version)
        table = runtime.get_client().table()
        for target in self._everywhere(table):
            given: set[bytes] = set()
            for keys in self._scan(target, wanted):
                for key in keys:
                    if key not in given and table.owner(key) is target:
                        given.add(key)
                        yield wanted.user_key(key)

    async def aiter_keys(self, pattern: str, version: int | None = None) -> AsyncIterator[str]:
        wanted = self._pattern(pattern, version)
        table = await runtime.get_async_client().table()
        for target in self._everywhere(table):
            given: set[bytes] = set()
            async for keys in self._ascan(target, wanted):
                for key in keys:
                    if key not in given and table.owner(key) is target:
                        given.add(key)
                        yield wanted.user_key(key)

    def delete_pattern(self, pattern: str, version: int | None = None) -> int:
        """Deletes the keys that `iter_keys()` finds. How many."""
        wanted = self._pattern(pattern, version)
        deleted = 0
        for target in self._everywhere(runtime.get_client().table()):
            for keys in self._scan(target, wanted):
                deleted += self._delete(target, keys)
        return deleted

    async def adelete_pattern(self, pattern: str, version: int | None = None) -> int:
        wanted = self._pattern(pattern, version)
        deleted = 0
        for target in self._everywhere(await runtime.get_async_client().table()):
            async for keys in self._ascan(target, wanted):
                deleted += await self._adelete(target, keys)
        return deleted

    # -- locks ----------------------------------------------------------------------------------------------

    def lock(
        self,
        key: Any,
        timeout: float = 30.0,
        sleep: float = 0.05,
        blocking_timeout: float | None = None,
        version: int | None = None,
    ) -> Lock:
        """A lock, not acquired yet. It ends by itself `timeout` seconds after it was acquired; one that waits for it
        tries every `sleep` seconds, for `blocking_timeout` seconds or for ever (None). Its entry is `lock:<key>`.

        Best effort: see `docs/cache.md`. Raises `ValueError` where `timeout` or `sleep` isn't above 0.
        """
        return Lock(self, key, timeout, sleep, blocking_timeout, version)

    def alock(
        self,
        key: Any,
        timeout: float = 30.0,
        sleep: float = 0.05,
        blocking_timeout: float | None = None,
        version: int | None = None,
    ) -> AsyncLock:
        """The same for `async with`. This call itself isn't awaited."""
        return AsyncLock(self, key, timeout, sleep, blocking_timeout, version)

    # -- statistics -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, float]]:
        """Of each node, by its name: `hits`, `misses`, `evictions` and `too_big` since its start, `entries` and `bytes`
        now, and `uptime` in seconds. They count all namespaces together. A node that doesn't answer is missing."""
        client = runtime.get_client()
        targets = self._everywhere(client.table())
        return by_node(client.call_each([(target, _GET_STATUS) for target in targets]))

    async def astats(self) -> dict[str, dict[str, float]]:
        client = runtime.get_async_client()
        targets = self._everywhere(await client.table())
        return by_node(await client.call_each([(target, _GET_STATUS) for target in targets]))

    # -- under the hood -------------------------------------------------------------------------------------

    def _scan(self, target: Target, wanted: Pattern) -> Iterator[list[bytes]]:
        """Stored keys of one node that match, in chunks, until that was all or the node fails."""
        request: wire.Scan | None = wanted.first_request()
        while request is not None:
            keys, request = wanted.take(self._ask(target, request))
            if keys:
                yield keys

    async def _ascan(self, target: Target, wanted: Pattern) -> AsyncIterator[list[bytes]]:
        request: wire.Scan | None = wanted.first_request()
        while request is not None:
            keys, request = wanted.take(await self._aask(target, request))
            if keys:
                yield keys

    def _delete(self, target: Target, keys: list[bytes]) -> int:
        """How many of these keys of one node it had. It may do a few at a time."""
        deleted = 0
        while keys and isinstance(reply := self._ask(target, wire.Delete(keys)), wire.FlagsReply) and reply.flags:
            deleted += sum(reply.flags)
            keys = keys[len(reply.flags) :]
        return deleted

    async def _adelete(self, target: Target, keys: list[bytes]) -> int:
        deleted = 0
        while (
            keys and isinstance(reply := await self._aask(target, wire.Delete(keys)), wire.FlagsReply) and reply.flags
        ):
            deleted += sum(reply.flags)
            keys = keys[len(reply.flags) :]
        return deleted

    def _pattern(self, pattern: str, version: int | None) -> Pattern:
        before = self.make_key("", version)
        if self.make_key(_PROBE, version) != before + _PROBE:
            raise ImproperlyConfigured(
                "Keys can't be told from what is stored, so patterns don't work: this KEY_FUNCTION does more than put "
                "something before the key."
            )
        return Pattern(pattern, self._prefix + before.encode())


def by_node(replies: list[wire.Reply | ClusterStateError]) -> dict[str, dict[str, float]]:
    found = {reply.identity.name: _figures(reply) for reply in replies if isinstance(reply, wire.StatusReply)}
    return dict(sorted(found.items()))


def _figures(status: wire.StatusReply) -> dict[str, float]:
    stats = status.stats
    return {
        "hits": stats.hits,
        "misses": stats.misses,
        "entries": stats.cache_entries,
        "bytes": stats.cache_bytes,
        "evictions": stats.cache_evictions,
        "too_big": stats.tally.too_big,
        "uptime": status.uptime,
    }
