"""`ClusterCache`: a Django cache in the memory of the cluster's nodes, each key at its owner.

Best effort: an entry is lost when its owner is killed, or evicted when the owner is full; an owner that can't be
reached makes a miss.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT

from .. import conf
from ..wire import messages as wire
from ..wire.framing import frame
from .extras import Extras
from .requests import flag, present


class ClusterCache(Extras):
    """`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache", "LOCATION": "a name"}}`

    LOCATION is the namespace: aliases with the same one share their entries, and `clear()` of one leaves the others.
    OPTIONS: `SERIALIZER` (a dotted path to a class with `dumps` and `loads`), `ON_UNAVAILABLE` ("miss" or "raise"),
    `MAX_BYTES` (this namespace's own share of each node's memory).

    Instances are made for each thread and each asynchronous context, so they hold nothing but options; the
    connections are the process's.
    """

    # -- the blocking face ----------------------------------------------------------------------------------

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        request = wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout), absent=True)
        return flag(self._call(wire_key, request))

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        wire_key = self.routing_key(key, version)
        return self._loaded(self._call(wire_key, wire.Get([wire_key])), default)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        wire_key = self.routing_key(key, version)
        self._call(wire_key, wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout)))

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(self._call(wire_key, wire.Touch([wire_key], self._ttl(timeout))))

    def delete(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(self._call(wire_key, wire.Delete([wire_key])))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return present(self._call(wire_key, wire.Get([wire_key])))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        wire_key = self.routing_key(key, version)
        return self._number(self._call(wire_key, self._incr_request(wire_key, delta)), key)

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """As Django's, but what is left of the timeout goes with the value."""
        version = self.version if version is None else version
        before, after = self.routing_key(key, version), self.routing_key(key, version + delta)
        value, ttl = self._movable(self._call(before, wire.Look(before, value=True)), key)
        self._call(after, wire.Set([(after, value)], ttl))
        self._call(before, wire.Delete([before]))
        return version + delta

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        wanted = {self.routing_key(key, version): key for key in keys}
        return self._collect(wanted, self._call_owners(wanted, wire.Get))

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        names, make, size_of = self._set_requests(data, timeout, version)
        return self._unstored(names, self._call_owners(names, make, size_of))

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._call_owners([self.routing_key(key, version) for key in keys], wire.Delete)

    def clear(self) -> None:
        """Empties this namespace on every node that serves. A node that can't be reached keeps its entries."""
        client = conf.get_client()
        request = frame(wire.encode(wire.Clear(self._namespace)))
        self._cleared(client.call_each([(target, request) for target in self._everywhere(client.table())]))

    # -- the asyncio face, method by method the same ----------------------------------------------------------

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        request = wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout), absent=True)
        return flag(await self._acall(wire_key, request))

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        wire_key = self.routing_key(key, version)
        return self._loaded(await self._acall(wire_key, wire.Get([wire_key])), default)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        wire_key = self.routing_key(key, version)
        await self._acall(wire_key, wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout)))

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(await self._acall(wire_key, wire.Touch([wire_key], self._ttl(timeout))))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(await self._acall(wire_key, wire.Delete([wire_key])))

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return present(await self._acall(wire_key, wire.Get([wire_key])))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        wire_key = self.routing_key(key, version)
        return self._number(await self._acall(wire_key, self._incr_request(wire_key, delta)), key)

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        version = self.version if version is None else version
        before, after = self.routing_key(key, version), self.routing_key(key, version + delta)
        value, ttl = self._movable(await self._acall(before, wire.Look(before, value=True)), key)
        await self._acall(after, wire.Set([(after, value)], ttl))
        await self._acall(before, wire.Delete([before]))
        return version + delta

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        wanted = {self.routing_key(key, version): key for key in keys}
        return self._collect(wanted, await self._acall_owners(wanted, wire.Get))

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        names, make, size_of = self._set_requests(data, timeout, version)
        return self._unstored(names, await self._acall_owners(names, make, size_of))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await self._acall_owners([self.routing_key(key, version) for key in keys], wire.Delete)

    async def aclear(self) -> None:
        client = conf.get_async_client()
        request = frame(wire.encode(wire.Clear(self._namespace)))
        targets = self._everywhere(await client.table())
        self._cleared(await client.call_each([(target, request) for target in targets]))

    async def aclose(self, **kwargs: Any) -> None:
        """Nothing: the connections outlive the request."""
