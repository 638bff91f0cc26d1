"""`ClusterCache`: a Django cache in the memory of the cluster's nodes, each key at its owner.

Best effort: an entry is lost when its owner is killed, or evicted when the owner is full; an owner that can't be
reached makes a miss.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, MEMCACHE_MAX_KEY_LENGTH, BaseCache
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from . import conf
from .client.routing import Table, Target
from .exceptions import ClusterStateError, Unavailable
from .wire import messages as wire
from .wire.framing import MAX_REQUEST, frame

_ROOM = MAX_REQUEST - 64  # for the keys and values in one message
MAX_VALUE_BYTES = _ROOM - wire.MAX_KEY_BYTES
_MAX_NAMESPACE = 256  # bytes, by the wire
_ITEM = 16  # bytes that a key and a value take besides themselves, at most

_INT64 = range(-(2**63), 2**63)
_OPTIONS = {"SERIALIZER", "ON_UNAVAILABLE"}

Groups = list[tuple[Target, list[bytes]]]
Answers = list[tuple[list[bytes], wire.Reply]]
MakeRequest = Callable[[list[bytes]], wire.Request]
SizeOf = Callable[[bytes], int]


class PickleSerializer:
    """Turns values into bytes and back. Anyone who can write to the cluster can run code: see docs/settings.md."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class ClusterCache(BaseCache):
    """`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache", "LOCATION": "a name"}}`

    LOCATION is the namespace: aliases with the same one share their entries, and `clear()` of one leaves the others.
    OPTIONS: `SERIALIZER` (a dotted path to a class with `dumps` and `loads`), `ON_UNAVAILABLE` ("miss" or "raise").

    Instances are made for each thread and each asynchronous context, so they hold nothing but options; the
    connections are the process's.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = params.get("OPTIONS", {})
        unknown = set(options) - _OPTIONS - {"MAX_ENTRIES", "CULL_FREQUENCY"}
        if unknown:
            raise ImproperlyConfigured(f"ClusterCache has no option {min(unknown)!r}; it has {sorted(_OPTIONS)}.")
        self._namespace = _namespace(location)
        self._prefix = self._namespace + b"\0"
        self._raise = _reads_raise(options.get("ON_UNAVAILABLE", "miss"))
        serializer = options.get("SERIALIZER", PickleSerializer)
        self._serializer = (import_string(serializer) if isinstance(serializer, str) else serializer)()

    # -- shared by both faces: keys, values, requests, answers ------------------------------------------------

    def routing_key(self, key: Any, version: int | None = None) -> bytes:
        """What the node knows the key by, and what decides who owns it."""
        whole = self._prefix + self.make_and_validate_key(key, version=version).encode()
        if len(whole) > wire.MAX_KEY_BYTES:
            whole = self._prefix + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
        return whole

    def validate_key(self, key: str) -> None:
        # Django looks at each character in turn, which takes longer than all else here: only where it may warn.
        if len(key) > MEMCACHE_MAX_KEY_LENGTH or " " in key or not key.isprintable():
            super().validate_key(key)

    def _ttl(self, timeout: Any) -> float | None:
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else max(0.0, float(timeout))

    def _dump(self, key: Any, value: Any) -> wire.Value:
        # Integers stay such, so that the owner can add to them; a bool is to come back as a bool.
        if type(value) is int and value in _INT64:
            return value
        data = self._serializer.dumps(value)
        if not isinstance(data, bytes):
            raise TypeError(f"{type(self._serializer).__name__}.dumps must return bytes, not {type(data).__name__}")
        if len(data) > MAX_VALUE_BYTES:
            raise ValueError(f"the value of {key!r} takes {len(data):,} bytes, and {MAX_VALUE_BYTES:,} is the most")
        return data

    def _load(self, value: wire.Value) -> Any:
        return self._serializer.loads(value) if isinstance(value, bytes) else value

    def _failed(self, error: ClusterStateError) -> None:
        """Where each failure of the cluster ends: raised only if the user asked for it."""
        if self._raise:
            raise error

    def _loaded(self, reply: wire.Reply | None, default: Any) -> Any:
        if isinstance(reply, wire.Values) and reply.values[0] is not None:
            return self._load(reply.values[0])
        return default

    def _incr_request(self, key: bytes, delta: int) -> wire.Incr:
        if type(delta) is not int or delta not in _INT64:
            raise TypeError(f"an integer of 64 bits can be added to a value, not {delta!r}")
        return wire.Incr(key, delta)

    def _number(self, reply: wire.Reply | None, key: Any) -> int:
        if isinstance(reply, wire.Failed):
            raise TypeError(f"the value of {key!r} is no integer of 64 bits, so nothing can be added to it")
        if not isinstance(reply, wire.Number) or reply.value is None:
            raise ValueError(f"Key {key!r} not found")
        return reply.value

    def _collect(self, wanted: Mapping[bytes, Any], answers: Answers) -> dict[Any, Any]:
        found = {}
        for keys, reply in answers:
            if isinstance(reply, wire.Values):
                for key, value in zip(keys, reply.values, strict=True):
                    if value is not None:
                        found[key] = self._load(value)
        return {name: found[key] for key, name in wanted.items() if key in found}

    def _unstored(self, names: Mapping[bytes, Any], answers: Answers) -> list[Any]:
        stored: set[bytes] = set()
        for keys, reply in answers:
            if isinstance(reply, wire.Flags):
                stored.update(key for key, flag in zip(keys, reply.flags, strict=True) if flag)
        return [name for key, name in names.items() if key not in stored]

    def _set_requests(
        self, data: Mapping[Any, Any], timeout: Any, version: int | None
    ) -> tuple[dict[bytes, Any], MakeRequest, SizeOf]:
        names = {self.routing_key(name, version): name for name in data}
        values = {key: self._dump(name, data[name]) for key, name in names.items()}
        ttl = self._ttl(timeout)

        def make(keys: list[bytes]) -> wire.Request:
            return wire.Set([(key, values[key]) for key in keys], ttl)

        def size_of(key: bytes) -> int:
            value = values[key]
            return len(key) + (len(value) if isinstance(value, bytes) else 0)

        return names, make, size_of

    def _groups(self, table: Table, keys: Iterable[bytes]) -> Groups:
        wanted = list(keys)
        groups = table.group(wanted)
        if wanted and not groups:
            self._failed(_no_owner())
        return groups

    def _everywhere(self, table: Table) -> list[Target]:
        if not table.targets:
            self._failed(_no_owner())
        return list(table.targets.values())

    def _take(self, answers: Answers, groups: Groups, replies: list[wire.Reply | ClusterStateError]) -> Groups:
        """Adds what was answered to `answers`. Returns the keys that are to be asked for again."""
        again: Groups = []
        for (target, keys), reply in zip(groups, replies, strict=True):
            if isinstance(reply, ClusterStateError):
                self._failed(reply)
            elif isinstance(reply, wire.Values) and 0 < len(reply.values) < len(keys):
                count = len(reply.values)  # no more had room in one reply
                answers.append((keys[:count], reply))
                again.append((target, keys[count:]))
            else:
                answers.append((keys, reply))
        return again

    def _cleared(self, replies: list[wire.Reply | ClusterStateError]) -> None:
        for reply in replies:
            if isinstance(reply, ClusterStateError):
                self._failed(reply)

    # -- the blocking face ----------------------------------------------------------------------------------

    def _call(self, key: bytes, request: wire.Request) -> wire.Reply | None:
        try:
            return conf.get_client().call(key, frame(wire.encode(request)))
        except ClusterStateError as error:
            self._failed(error)
            return None

    def _call_owners(self, keys: Iterable[bytes], make: MakeRequest, size_of: SizeOf = len) -> Answers:
        """One round trip for each owner, the owners in parallel; another one for what had no room in the first."""
        client = conf.get_client()
        answers: Answers = []
        later = self._groups(client.table(), keys)
        while later:
            groups, later = _first_round(later, size_of)
            replies = client.call_each([(target, frame(wire.encode(make(group)))) for target, group in groups])
            later = self._take(answers, groups, replies) + _without_failed(later, groups, replies)
        return answers

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        request = wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout), absent=True)
        return _flag(self._call(wire_key, request))

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        wire_key = self.routing_key(key, version)
        return self._loaded(self._call(wire_key, wire.Get([wire_key])), default)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        wire_key = self.routing_key(key, version)
        self._call(wire_key, wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout)))

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return _flag(self._call(wire_key, wire.Touch([wire_key], self._ttl(timeout))))

    def delete(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return _flag(self._call(wire_key, wire.Delete([wire_key])))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return _present(self._call(wire_key, wire.Get([wire_key])))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        wire_key = self.routing_key(key, version)
        return self._number(self._call(wire_key, self._incr_request(wire_key, delta)), key)

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

    async def _acall(self, key: bytes, request: wire.Request) -> wire.Reply | None:
        try:
            return await conf.get_async_client().call(key, frame(wire.encode(request)))
        except ClusterStateError as error:
            self._failed(error)
            return None

    async def _acall_owners(self, keys: Iterable[bytes], make: MakeRequest, size_of: SizeOf = len) -> Answers:
        client = conf.get_async_client()
        answers: Answers = []
        later = self._groups(await client.table(), keys)
        while later:
            groups, later = _first_round(later, size_of)
            replies = await client.call_each([(target, frame(wire.encode(make(group)))) for target, group in groups])
            later = self._take(answers, groups, replies) + _without_failed(later, groups, replies)
        return answers

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        request = wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout), absent=True)
        return _flag(await self._acall(wire_key, request))

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        wire_key = self.routing_key(key, version)
        return self._loaded(await self._acall(wire_key, wire.Get([wire_key])), default)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        wire_key = self.routing_key(key, version)
        await self._acall(wire_key, wire.Set([(wire_key, self._dump(key, value))], self._ttl(timeout)))

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return _flag(await self._acall(wire_key, wire.Touch([wire_key], self._ttl(timeout))))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return _flag(await self._acall(wire_key, wire.Delete([wire_key])))

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        wire_key = self.routing_key(key, version)
        return _present(await self._acall(wire_key, wire.Get([wire_key])))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        wire_key = self.routing_key(key, version)
        return self._number(await self._acall(wire_key, self._incr_request(wire_key, delta)), key)

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


def _flag(reply: wire.Reply | None) -> bool:
    return isinstance(reply, wire.Flags) and reply.flags[0]


def _present(reply: wire.Reply | None) -> bool:
    return isinstance(reply, wire.Values) and reply.values[0] is not None


def _first_round(groups: Groups, size_of: SizeOf) -> tuple[Groups, Groups]:
    """What fits into one request to each owner, and the rest."""
    first, rest = [], []
    for target, keys in groups:
        count, room = 0, _ROOM
        for key in keys:
            room -= size_of(key) + _ITEM
            if room < 0 and count:
                break
            count += 1
        first.append((target, keys[:count]))
        if count < len(keys):
            rest.append((target, keys[count:]))
    return first, rest


def _without_failed(later: Groups, groups: Groups, replies: list[wire.Reply | ClusterStateError]) -> Groups:
    """An owner that failed isn't asked for the rest: it would cost another deadline."""
    failed = {
        target for (target, _), reply in zip(groups, replies, strict=True) if isinstance(reply, ClusterStateError)
    }
    return [group for group in later if group[0] not in failed]


def _no_owner() -> Unavailable:
    return Unavailable("no node has been reached, or none has joined yet")


def _namespace(location: object) -> bytes:
    if not isinstance(location, str):
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name, not {location!r}.")
    namespace = (location or "default").encode()
    if len(namespace) > _MAX_NAMESPACE or b"\0" in namespace:
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name of 1 to {_MAX_NAMESPACE} bytes.")
    return namespace


def _reads_raise(policy: str) -> bool:
    if policy not in ("miss", "raise"):
        raise ImproperlyConfigured(f"ClusterCache's ON_UNAVAILABLE must be 'miss' or 'raise', not {policy!r}.")
    return policy == "raise"
