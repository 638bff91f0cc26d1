"""`ClusterCache`: a Django cache in the memory of the cluster's nodes, each key at its owner.

Best effort: an entry is lost when its owner is killed, or evicted when the owner is full; an owner that can't be
reached makes a miss.
"""

import asyncio
import inspect
import time
from collections.abc import Iterable, Mapping
from typing import Any

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.exceptions import SynchronousOnlyOperation

from .. import runtime
from ..client.routing import Target
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from ..wire.framing import frame
from .extras import Extras
from .requests import flag
from .single_flight import MISSING, Do, Step


class ClusterCache(Extras):
    """`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache", "LOCATION": "a name"}}`

    LOCATION is the namespace: aliases with the same one share their entries, and `clear()` of one leaves the others.
    OPTIONS are described in docs/settings.md. Raises `ImproperlyConfigured` for a wrong one.

    Instances are made for each thread and each asynchronous context, so they hold nothing but options; the
    connections are the process's.
    """

    # -- the blocking face ----------------------------------------------------------------------------------

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        request = self._add_request(key, wire_key, value, timeout)
        return flag(self._call(wire_key, request))

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        value = self._value(self.routing_key(key, version))
        return default if value is None else self._load(value, default)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        wire_key = self.routing_key(key, version)
        try:
            request = self._set_request(key, wire_key, value, timeout)
        except Exception:
            self._call(wire_key, wire.Delete([wire_key]))  # the older value must not outlive one that is refused
            raise
        self._stored(request, self._call(wire_key, request), key)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(self._call(wire_key, wire.Touch([wire_key], self._ttl(timeout))))

    def delete(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(self._call(wire_key, wire.Delete([wire_key])))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self._value(self.routing_key(key, version)) is not None

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        wire_key = self.routing_key(key, version)
        return self._number(self._call(wire_key, self._incr_request(wire_key, delta)), key)

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None, *, stale: float = 0.0
    ) -> Any:
        """The value; for an absent one that of `default`, a value or a callable, which is stored.

        Of all who miss an entry at once, on all hosts, one calls `default`; the others wait for its value, or call it
        themselves when it takes longer than the option LEASE. What `default` raises is raised here.

        With `stale` the value is kept that many seconds longer than `timeout`: once it is older than `timeout`, one
        caller computes a new one and the others get the old one at once.
        """
        if not stale and (found := self.get(key, MISSING, version)) is not MISSING:
            return found
        wire_key, steps = self._flight(key, default, timeout, version, stale)
        try:
            step = next(steps)
            while True:
                try:
                    done = self._do(step, wire_key, default)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            return end.value

    def _do(self, step: Step, key: bytes, default: Any) -> Any:
        if step is Do.COMPUTE:
            value = default() if callable(default) else default
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError("get_or_set() can't await what its default returns; aget_or_set() does")
            return value
        if isinstance(step, float):
            return time.sleep(step)
        if callable(step):
            return step()
        return self._call(key, step)

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """As Django's, but what is left of the timeout goes with the value.

        Raises `ValueError` for an absent key, and where the new version can't be stored: then the value stays in the
        old one.
        """
        version = self.version if version is None else version
        before, after = self.routing_key(key, version), self.routing_key(key, version + delta)
        value, ttl = self._movable(self._call(before, wire.GetEntry(before, value=True)), key)
        self._moved(self._call(after, wire.Set([(after, value)], ttl)), key, version + delta)
        self._call(before, wire.Delete([before]))
        return version + delta

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        wanted = {self.routing_key(key, version): key for key in keys}
        near, tickets = self._nearby(wanted)
        answers = self._call_owners([key for key in wanted if key not in near], self._get_request)
        return self._collect(wanted, near, answers, tickets)

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        names = self._names(data, version)
        try:
            batch = self._batch(names, data, timeout)
        except Exception:
            self._call_owners(names, wire.Delete)
            raise
        if batch.too_big:
            self._call_owners(batch.too_big, wire.Delete)
        answers = self._call_owners(batch.values, batch.request, batch.size_of)
        self._refused(batch.problems)
        return self._unstored(names, answers)

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._call_owners([self.routing_key(key, version) for key in keys], wire.Delete)

    def clear(self) -> None:
        """Empties this namespace on every node that serves. A node that can't be reached keeps its entries."""
        self._cleared(list(self.clear_each().values()))

    def clear_each(self) -> dict[Target, wire.Reply | ClusterStateError]:
        """The same, and what each node answers."""
        client = runtime.get_client()
        request = frame(wire.encode(wire.Clear(self._namespace)))
        try:
            targets = self._everywhere(client.table())
            return dict(zip(targets, client.call_each([(target, request) for target in targets]), strict=True))
        finally:
            self._near.clear()

    # -- the asyncio face, method by method the same ----------------------------------------------------------
    # Some values ask the database while they are serialised or read, such as lazy querysets. Django refuses that in an
    # event loop, and then it is done in a thread.

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        try:
            request = self._add_request(key, wire_key, value, timeout)
        except SynchronousOnlyOperation:
            request = await sync_to_async(self._add_request)(key, wire_key, value, timeout)
        return flag(await self._acall(wire_key, request))

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        value = await self._avalue(self.routing_key(key, version))
        if value is None:
            return default
        try:
            return self._load(value, default)
        except SynchronousOnlyOperation:
            return await sync_to_async(self._load)(value, default)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        wire_key = self.routing_key(key, version)
        try:
            try:
                request = self._set_request(key, wire_key, value, timeout)
            except SynchronousOnlyOperation:
                request = await sync_to_async(self._set_request)(key, wire_key, value, timeout)
        except Exception:
            await self._acall(wire_key, wire.Delete([wire_key]))  # the older value must not outlive one that is refused
            raise
        self._stored(request, await self._acall(wire_key, request), key)

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(await self._acall(wire_key, wire.Touch([wire_key], self._ttl(timeout))))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return flag(await self._acall(wire_key, wire.Delete([wire_key])))

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return await self._avalue(self.routing_key(key, version)) is not None

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        wire_key = self.routing_key(key, version)
        return self._number(await self._acall(wire_key, self._incr_request(wire_key, delta)), key)

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None, *, stale: float = 0.0
    ) -> Any:
        """As `get_or_set`; `default` may be a coroutine function as well."""
        if not stale and (found := await self.aget(key, MISSING, version)) is not MISSING:
            return found
        wire_key, steps = self._flight(key, default, timeout, version, stale)
        try:
            step = next(steps)
            while True:
                try:
                    done = await self._ado(step, wire_key, default)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            return end.value

    async def _ado(self, step: Step, key: bytes, default: Any) -> Any:
        if step is Do.COMPUTE:
            value = default() if callable(default) else default
            return await value if inspect.isawaitable(value) else value
        if isinstance(step, float):
            return await asyncio.sleep(step)
        if callable(step):
            try:
                return step()
            except SynchronousOnlyOperation:
                return await sync_to_async(step)()
        return await self._acall(key, step)

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        version = self.version if version is None else version
        before, after = self.routing_key(key, version), self.routing_key(key, version + delta)
        value, ttl = self._movable(await self._acall(before, wire.GetEntry(before, value=True)), key)
        self._moved(await self._acall(after, wire.Set([(after, value)], ttl)), key, version + delta)
        await self._acall(before, wire.Delete([before]))
        return version + delta

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        wanted = {self.routing_key(key, version): key for key in keys}
        near, tickets = self._nearby(wanted)
        answers = await self._acall_owners([key for key in wanted if key not in near], self._get_request)
        try:
            return self._collect(wanted, near, answers, tickets)
        except SynchronousOnlyOperation:
            return await sync_to_async(self._collect)(wanted, near, answers, tickets)

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        names = self._names(data, version)
        try:
            try:
                batch = self._batch(names, data, timeout)
            except SynchronousOnlyOperation:
                batch = await sync_to_async(self._batch)(names, data, timeout)
        except Exception:
            await self._acall_owners(names, wire.Delete)
            raise
        if batch.too_big:
            await self._acall_owners(batch.too_big, wire.Delete)
        answers = await self._acall_owners(batch.values, batch.request, batch.size_of)
        self._refused(batch.problems)
        return self._unstored(names, answers)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await self._acall_owners([self.routing_key(key, version) for key in keys], wire.Delete)

    async def aclear(self) -> None:
        client = runtime.get_async_client()
        request = frame(wire.encode(wire.Clear(self._namespace)))
        try:
            targets = self._everywhere(await client.table())
            self._cleared(await client.call_each([(target, request) for target in targets]))
        finally:
            self._near.clear()

    async def aclose(self, **kwargs: Any) -> None:
        """Nothing: the connections outlive the request."""
