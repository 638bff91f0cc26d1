"""What both faces of the cache share, without I/O: keys, values, requests, and what the answers to them mean."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, MEMCACHE_MAX_KEY_LENGTH, BaseCache
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ..client.routing import Table, Target
from ..exceptions import ClusterStateError, Unavailable
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from .values import PickleSerializer

_ROOM = MAX_REQUEST - 64  # for the keys and values in one message
MAX_VALUE_BYTES = _ROOM - wire.MAX_KEY_BYTES
_MAX_NAMESPACE = 256  # bytes, by the wire
_ITEM = 16  # bytes that a key and a value take besides themselves, at most

_INT64 = range(-(2**63), 2**63)
OPTIONS = {"SERIALIZER", "ON_UNAVAILABLE", "MAX_BYTES"}

Groups = list[tuple[Target, list[bytes]]]
Answers = list[tuple[list[bytes], wire.Reply]]
MakeRequest = Callable[[list[bytes]], wire.Request]
SizeOf = Callable[[bytes], int]


class Requests(BaseCache):
    """The base of `ClusterCache`."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = params.get("OPTIONS", {})
        unknown = set(options) - OPTIONS - {"MAX_ENTRIES", "CULL_FREQUENCY"}
        if unknown:
            raise ImproperlyConfigured(f"ClusterCache has no option {min(unknown)!r}; it has {sorted(OPTIONS)}.")
        self._namespace = _namespace(location)
        self.max_bytes = _max_bytes(options.get("MAX_BYTES"))
        self._prefix = self._namespace + b"\0"
        self._raise = _reads_raise(options.get("ON_UNAVAILABLE", "miss"))
        serializer = options.get("SERIALIZER", PickleSerializer)
        self._serializer = (import_string(serializer) if isinstance(serializer, str) else serializer)()

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

    def _left(self, reply: wire.Reply | None) -> float | None:
        return reply.ttl if isinstance(reply, wire.Looked) and reply.found else 0.0

    def _movable(self, reply: wire.Reply | None, key: Any) -> tuple[wire.Value, float | None]:
        if not isinstance(reply, wire.Looked) or reply.value is None:
            raise ValueError(f"Key {key!r} not found")
        return reply.value, reply.ttl

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
            self._failed(no_owner())
        return groups

    def _everywhere(self, table: Table) -> list[Target]:
        if not table.targets:
            self._failed(no_owner())
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


def flag(reply: wire.Reply | None) -> bool:
    return isinstance(reply, wire.Flags) and reply.flags[0]


def present(reply: wire.Reply | None) -> bool:
    return isinstance(reply, wire.Values) and reply.values[0] is not None


def first_round(groups: Groups, size_of: SizeOf) -> tuple[Groups, Groups]:
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


def without_failed(later: Groups, groups: Groups, replies: list[wire.Reply | ClusterStateError]) -> Groups:
    """An owner that failed isn't asked for the rest: it would cost another deadline."""
    failed = {
        target for (target, _), reply in zip(groups, replies, strict=True) if isinstance(reply, ClusterStateError)
    }
    return [group for group in later if group[0] not in failed]


def no_owner() -> Unavailable:
    return Unavailable("no node has been reached, or none has joined yet")


def _namespace(location: object) -> bytes:
    if not isinstance(location, str):
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name, not {location!r}.")
    namespace = (location or "default").encode()
    if len(namespace) > _MAX_NAMESPACE or b"\0" in namespace:
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name of 1 to {_MAX_NAMESPACE} bytes.")
    return namespace


def _max_bytes(given: Any) -> int | None:
    if given is None or (type(given) is int and given > 0):
        return given
    raise ImproperlyConfigured(f"ClusterCache's MAX_BYTES must be a number of bytes above 0, not {given!r}.")


def _reads_raise(policy: str) -> bool:
    if policy not in ("miss", "raise"):
        raise ImproperlyConfigured(f"ClusterCache's ON_UNAVAILABLE must be 'miss' or 'raise', not {policy!r}.")
    return policy == "raise"
