"""What both faces of the cache share, without I/O: keys, values, requests, and what the answers to them mean."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from django.core.cache.backends.base import DEFAULT_TIMEOUT, MEMCACHE_MAX_KEY_LENGTH, BaseCache, default_key_func
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

from .. import runtime
from ..client.routing import RoutingTable, Target
from ..exceptions import ClusterStateError, NoCluster
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from .codec import ValueCodec, unreadable
from .near_cache import NearCache, Ticket
from .options import OPTIONS, read_choice, read_max_bytes, read_namespace, read_number
from .single_flight import MISSING, Flight, Steps

logger = logging.getLogger("django_clusterstate.cache")

_ROOM = MAX_REQUEST - 64  # for the keys and values in one message
MAX_VALUE_BYTES = _ROOM - 2 * wire.MAX_KEY_BYTES  # its own, and that of a lease that ends with it
# In one exchange, so that it takes a node well below a millisecond, and others don't wait for longer.
KEYS_AT_ONCE = 250
_ITEM = 16  # bytes that a key and a value take besides themselves, at most

_INT64 = range(-(2**63), 2**63)
LEASE = 10.0  # seconds
WARN_EVERY = 600.0  # seconds between two lines in the log of the same kind
NEAR_ENTRIES = 1000
Groups = list[tuple[Target, list[bytes]]]
Answers = list[tuple[list[bytes], wire.Reply]]
MakeRequest = Callable[[list[bytes]], wire.Request]
SizeOf = Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class Batch:
    """What `set_many` is to store, and the keys of values that are too big, with a message for each."""

    values: dict[bytes, wire.Value]
    ttl: float | None
    too_big: list[bytes]
    problems: list[str]

    def request(self, keys: list[bytes]) -> wire.Request:
        return wire.Set([(key, self.values[key]) for key in keys], self.ttl)

    def size_of(self, key: bytes) -> int:
        value = self.values[key]
        return len(key) + (len(value) if isinstance(value, bytes) else 0)


class Requests(BaseCache):
    """The base of `ClusterCache`."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._made_of = location, params
        options = params.get("OPTIONS", {})
        unknown = set(options) - OPTIONS - {"MAX_ENTRIES", "CULL_FREQUENCY"}
        if unknown:
            raise ImproperlyConfigured(f"ClusterCache has no option {min(unknown)!r}; it has {sorted(OPTIONS)}.")
        self._namespace = read_namespace(location)
        self.max_bytes = read_max_bytes(options.get("MAX_BYTES"))
        self._prefix = self._namespace + b"\0"
        self._makes_keys = _makes_keys(type(self))
        self._raise = read_choice(options, "ON_UNAVAILABLE", "miss", "raise") == "raise"
        self._refuse_big = read_choice(options, "VALUE_TOO_BIG", "ignore", "raise") == "raise"
        self._lease = read_number(options, "LEASE", LEASE, "seconds")
        self._near_ttl = read_number(options, "NEAR_TTL", 0, "seconds")
        self._near_entries = int(read_number(options, "NEAR_ENTRIES", NEAR_ENTRIES, "entries", int))
        # Of the namespace, since what is written through one alias is read through another.
        self._near = runtime.shared(("near", self._namespace), NearCache)
        self._values = ValueCodec(options)

    def raising(self) -> Self:
        """A cache like this one, but a failure of the cluster is raised as `ClusterStateError`, and is no miss.

        It is made anew, since debug toolbar and Sentry replace methods of an instance by functions that call those of
        that instance, also where they are copied to another.
        """
        location, params = self._made_of
        return type(self)(location, {**params, "OPTIONS": {**params.get("OPTIONS", {}), "ON_UNAVAILABLE": "raise"}})

    def routing_key(self, key: Any, version: int | None = None) -> bytes:
        """What the node knows the key by, and what decides who owns it."""
        if self.key_func is default_key_func and not self._makes_keys:
            # Written out: `make_key` and what it calls take twice as long.
            name = f"{self.key_prefix!s}:{self.version if version is None else version!s}:{key!s}"
            if not _is_plain(name):
                self.validate_key(name)
        else:
            name = self.make_and_validate_key(key, version=version)
        whole = self._prefix + name.encode()
        if len(whole) > wire.MAX_KEY_BYTES:
            whole = self._prefix + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
        return whole

    def validate_key(self, key: str) -> None:
        # Django looks at each character in turn, which takes longer than all else here: only where it may warn.
        if not _is_plain(key):
            super().validate_key(key)

    def _ttl(self, timeout: Any) -> float | None:
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else max(0.0, float(timeout))

    def _dump(self, key: Any, value: Any) -> wire.Value | None:
        """None for a value that is too big, where that is to be ignored."""
        data = self._values.dump(value)
        if fits(data):
            return data
        self._too_big(_too_long(key, data), raises=self._refuse_big)
        return None

    def _refused(self, problems: list[str]) -> None:
        """These values of one `set_many` were too big. Raises for the first, unless that is to be ignored."""
        if problems:
            runtime.get_stats().too_big += len(problems) - 1
            self._too_big(problems[0], raises=self._refuse_big)

    def _no_room(self, key: Any, *, raises: bool) -> None:
        problem = f"the value of {key!r} takes more than its owner has room for (MAX_BYTES, or CACHE_MAX_BYTES)"
        self._too_big(problem, raises=raises)

    def _too_big(self, problem: str, *, raises: bool) -> None:
        runtime.get_stats().too_big += 1
        if raises:
            raise ValueError(problem)
        self._warn("too big", "%s: it isn't stored, nor are others like it (see VALUE_TOO_BIG)", problem)

    def _load(self, value: wire.Value, default: Any) -> Any:
        """The default, as for a miss, for a value that can't be read: it was written with other options or code."""
        try:
            return self._values.load(value)
        except Exception as error:  # a serializer may raise anything
            if not unreadable(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            self._warn("unreadable", "a value in %r can't be read (%s): it is a miss", self._namespace.decode(), reason)
            return default

    def _load_or(self, value: wire.Value, default: Any) -> Any:
        """As `_load`, and the default for one that can't be read in an event loop."""
        try:
            return self._load(value, default)
        except SynchronousOnlyOperation:
            return default

    def _warn(self, kind: str, message: str, *args: object) -> None:
        """Now and then, for each namespace and process: one deploy would fill the log otherwise."""
        warned: list[float] = runtime.shared((kind, self._namespace), list)
        now = time.monotonic()
        if not warned or now - warned[-1] >= WARN_EVERY:
            warned[:] = [now]
            logger.warning(message, *args)

    def _failed(self, error: ClusterStateError) -> None:
        """Where each failure of the cluster ends: raised only if the user asked for it."""
        if self._raise:
            raise error

    def _near_value(self, key: bytes, now: float) -> tuple[wire.Value | None, Ticket | None]:
        """The value, or a ticket for it where it isn't near."""
        value = self._near.get(key, now - self._near_ttl, now)
        return value, (self._near.ticket(key, now) if value is None else None)

    def _nearby(self, keys: Iterable[bytes]) -> tuple[dict[bytes, wire.Value], dict[bytes, Ticket]]:
        """The values that are near, and the tickets for the rest; neither without a near cache."""
        found: dict[bytes, wire.Value] = {}
        tickets: dict[bytes, Ticket] = {}
        if self._near_ttl:
            now = time.monotonic()
            for key in keys:
                value, ticket = self._near_value(key, now)
                if value is not None:
                    found[key] = value
                elif ticket is not None:
                    tickets[key] = ticket
        return found, tickets

    @property
    def _get_request(self) -> MakeRequest:
        """For many keys; near values are to end when the entries do."""
        return wire.GetWithTtl if self._near_ttl else wire.Get

    def _put_near(self, key: bytes, reply: wire.Reply | None, ticket: Ticket) -> wire.Value | None:
        """The value in the answer to a `Fetch` of one key, which is near from now on."""
        if not isinstance(reply, wire.TtlValuesReply):
            return None
        self._near.put(key, reply.values[0], reply.ttls[0], ticket, self._near_entries)
        return reply.values[0]

    def _set_request(self, key: Any, wire_key: bytes, value: Any, timeout: Any) -> wire.Request:
        data = self._dump(key, value)
        # An older value must not outlive the one that was to replace it.
        return wire.Delete([wire_key]) if data is None else wire.Set([(wire_key, data)], self._ttl(timeout))

    def _stored(self, request: wire.Request, reply: wire.Reply | None, key: Any) -> None:
        # To a Delete the answer is whether there was an older value.
        if isinstance(request, wire.Set) and isinstance(reply, wire.FlagsReply) and not reply.flags[0]:
            self._no_room(key, raises=self._refuse_big)

    def _add_request(self, key: Any, wire_key: bytes, value: Any, timeout: Any) -> wire.Request:
        data = self._values.dump(value)
        if not fits(data):
            # False would say that the key is there: for a new session Django would try ten thousand others.
            self._too_big(_too_long(key, data), raises=True)
        return wire.Set([(wire_key, data)], self._ttl(timeout), absent=True)

    def _flight(self, key: Any, default: Any, timeout: Any, version: int | None, stale: float) -> tuple[bytes, Steps]:
        """The routing key, and the steps to the value of an entry that was absent or is to be renewed in time."""
        if not isinstance(stale, int | float) or stale < 0:
            raise ValueError(f"stale must be seconds, not {stale!r}")
        wire_key = self.routing_key(key, version)
        ttl = self._ttl(timeout)
        flight = Flight(
            wire_key, ttl, float(stale), self._lease,
            lambda value: self._dump(key, value), self._load_or,
            lambda: self._no_room(key, raises=self._refuse_big),
        )  # fmt: skip
        if stale:
            return wire_key, flight.fresh_or_stale()
        return wire_key, flight.missed() if callable(default) else flight.given(default)

    def _incr_request(self, key: bytes, delta: int) -> wire.Incr:
        if type(delta) is not int or delta not in _INT64:
            raise TypeError(f"an integer of 64 bits can be added to a value, not {delta!r}")
        return wire.Incr(key, delta)

    def _number(self, reply: wire.Reply | None, key: Any) -> int:
        if isinstance(reply, wire.FailedReply):
            raise TypeError(f"the value of {key!r} is no integer of 64 bits, so nothing can be added to it")
        if not isinstance(reply, wire.NumberReply) or reply.value is None:
            raise ValueError(f"Key {key!r} not found")
        return reply.value

    def _left(self, reply: wire.Reply | None) -> float | None:
        return reply.ttl if isinstance(reply, wire.EntryReply) and reply.found else 0.0

    def _movable(self, reply: wire.Reply | None, key: Any) -> tuple[wire.Value, float | None]:
        if not isinstance(reply, wire.EntryReply) or reply.value is None:
            raise ValueError(f"Key {key!r} not found")
        return reply.value, reply.ttl

    def _moved(self, reply: wire.Reply | None, key: Any, version: int) -> None:
        if not flag(reply):
            raise ValueError(f"Key {key!r} could not be stored in version {version}, so it stays in the one it had")

    def _collect(
        self,
        wanted: Mapping[bytes, Any],
        values: dict[bytes, wire.Value],
        answers: Answers,
        tickets: Mapping[bytes, Ticket],
    ) -> dict[Any, Any]:
        """What `get_many` returns: of the values that were near, and of the answers for the others."""
        for keys, reply in answers:
            if isinstance(reply, wire.ValuesReply | wire.TtlValuesReply):
                for key, value in zip(keys, reply.values, strict=True):
                    if value is not None:
                        values[key] = value
            if isinstance(reply, wire.TtlValuesReply):
                for key, value, ttl in zip(keys, reply.values, reply.ttls, strict=True):
                    self._near.put(key, value, ttl, tickets[key], self._near_entries)
        found = {}
        for key, name in wanted.items():
            if key in values and (loaded := self._load(values[key], MISSING)) is not MISSING:
                found[name] = loaded
        return found

    def _unstored(self, names: Mapping[bytes, Any], answers: Answers) -> list[Any]:
        stored: set[bytes] = set()
        for keys, reply in answers:
            for key, flag in zip(keys, reply.flags, strict=True) if isinstance(reply, wire.FlagsReply) else ():
                if flag:
                    stored.add(key)
                else:
                    self._no_room(names[key], raises=False)  # it is among what is returned
        return [name for key, name in names.items() if key not in stored]

    def _names(self, data: Iterable[Any], version: int | None) -> dict[bytes, Any]:
        return {self.routing_key(name, version): name for name in data}

    def _batch(self, names: Mapping[bytes, Any], data: Mapping[Any, Any], timeout: Any) -> Batch:
        batch = Batch({}, self._ttl(timeout), [], [])
        for key, name in names.items():
            value = self._values.dump(data[name])
            if fits(value):
                batch.values[key] = value
            else:
                batch.too_big.append(key)
                batch.problems.append(_too_long(name, value))
        return batch

    def _groups(self, table: RoutingTable, keys: Iterable[bytes]) -> Groups:
        wanted = list(keys)
        groups = table.group(wanted)
        if wanted and not groups:
            self._failed(NoCluster())
        return groups

    def _everywhere(self, table: RoutingTable) -> list[Target]:
        if not table.targets:
            self._failed(NoCluster())
        return list(table.targets.values())

    def _take(self, answers: Answers, groups: Groups, replies: list[wire.Reply | ClusterStateError]) -> Groups:
        """Adds what was answered to `answers`. Returns the keys that are to be asked for again."""
        again: Groups = []
        for (target, keys), reply in zip(groups, replies, strict=True):
            if isinstance(reply, ClusterStateError):
                self._failed(reply)
            elif 0 < (count := _answered(reply)) < len(keys):
                answers.append((keys[:count], reply))
                again.append((target, keys[count:]))
            else:
                answers.append((keys, reply))
        return again

    def _cleared(self, replies: list[wire.Reply | ClusterStateError]) -> None:
        for reply in replies:
            if isinstance(reply, ClusterStateError):
                self._failed(reply)


def _is_plain(key: str) -> bool:
    """Whether Django has nothing to say about a key."""
    return len(key) <= MEMCACHE_MAX_KEY_LENGTH and " " not in key and key.isprintable()


def _makes_keys(cls: type[Requests]) -> bool:
    """Whether a subclass has its own way to make or to judge keys."""
    ours = (Requests.validate_key, BaseCache.make_key, BaseCache.make_and_validate_key)
    return (cls.validate_key, cls.make_key, cls.make_and_validate_key) != ours


def _answered(reply: wire.Reply) -> int:
    """For how many of the keys it was asked for; 0 for a reply of another kind."""
    if isinstance(reply, wire.ValuesReply | wire.TtlValuesReply):
        return len(reply.values)  # no more had room in one reply, or the node took turns
    return len(reply.flags) if isinstance(reply, wire.FlagsReply) else 0


def fits(value: wire.Value) -> bool:
    """Whether a value isn't longer than it may be."""
    return isinstance(value, int) or len(value) <= MAX_VALUE_BYTES


def _too_long(key: Any, value: wire.Value) -> str:
    size = len(value) if isinstance(value, bytes) else 8
    return f"the value of {key!r} takes {size:,} bytes, and {MAX_VALUE_BYTES:,} is the most"


def flag(reply: wire.Reply | None) -> bool:
    return isinstance(reply, wire.FlagsReply) and reply.flags[0]


def first_round(groups: Groups, size_of: SizeOf) -> tuple[Groups, Groups]:
    """What fits into one request to each owner, and the rest."""
    first, rest = [], []
    for target, keys in groups:
        count, room = 0, _ROOM
        for key in keys[:KEYS_AT_ONCE]:
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
