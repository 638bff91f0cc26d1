"""Single flight: of all threads, tasks and processes that miss an entry at once, one computes it and the others wait.

As in Go's `singleflight`, but across the cluster: the entry's owner also holds a lease, an auxiliary entry that only
one caller can add. The holder of the lease computes. A lease expires, so the others never wait for a process that has
ended.
"""

import inspect
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from ..client.operations import ClientCommand, Operation, Sleep
from ..core.cache.entry_keys import auxiliary_key
from ..wire import messages as wire

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.05  # seconds between two polls of a waiting caller, doubled each time
MAX_LEASES_AWAITED = 2  # the second is that of a caller that took over from a process that has ended
UNCACHEABLE = b""  # in the place of a lease: the value can't be stored, so each caller computes its own

MISSING: Final = object()
_LEASE_ENDED: Final = object()


class Compute(Struct, frozen=True):
    """Computes the default of `get_or_set()`: a value, or a callable, which may return an awaitable in asyncio.

    The result is the value. Raises the exceptions of the callable.
    """

    default: Any

    def run(self, client: object) -> Any:
        value = self._value()
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError("get_or_set() cannot await the coroutine that its default returned: use aget_or_set()")
        return value

    async def arun(self, client: object) -> Any:
        value = self._value()
        return await value if inspect.isawaitable(value) else value

    def _value(self) -> Any:
        return self.default() if callable(self.default) else self.default


@dataclass(frozen=True, slots=True)
class SingleFlight:
    """One `get_or_set()`; its public methods are operations that result in the value. Times in seconds.

    The value is fresh for `ttl` (None: forever) and kept `stale` longer; a lease expires after `lease`.

    `call` sends a request to the owner of a key; it results in None where that fails.
    `dump` encodes a value; it results in None for one that is too big, or raises.
    `load` decodes a value; it returns its second argument for one that can't be read.
    `no_room` reports that the owner has no room for the value; it may raise.
    """

    key: bytes
    default: Any
    ttl: float | None
    stale: float
    lease: float
    call: Callable[[bytes, wire.Request], ClientCommand[Any]]
    dump: Callable[[Any], Operation[wire.Value | None]]
    load: Callable[[wire.Value, Any], Any]
    no_room: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    token: bytes = field(default_factory=lambda: os.urandom(8))  # distinguishes this caller's lease from others

    def compute_or_wait(self) -> Operation[Any]:
        """Results in the value of an entry that is absent: computes it if this caller gets the lease, otherwise waits
        for the lease's holder."""
        if self.ttl == 0:
            return (yield Compute(self.default))
        wait = _Wait(self.lease)
        while True:
            requested_at = self.clock()
            reply = yield from self._acquire_lease()
            if reply is None:
                return (yield Compute(self.default))
            if reply.flags[0]:
                return (yield from self._compute_with_lease(requested_at + self.lease, reply))
            value = yield from self._wait(wait, requested_at + self.lease)
            if value is not _LEASE_ENDED:
                return value

    def store_default(self) -> Operation[Any]:
        """Stores the default, a plain value, without a lease."""
        value, _ = yield from self._store(self.default)
        return value

    def serve_stale_or_compute(self) -> Operation[Any]:
        """Results in the value if it is fresh, or in a stale one while another caller computes; otherwise computes it
        with the lease, or waits for the lease's holder."""
        reply = yield self.call(self.key, wire.Get([self.key, self._fresh_key, self._lease_key]))
        if not isinstance(reply, wire.ValuesReply):
            return (yield Compute(self.default))
        value, fresh, lease = reply.values
        found = self._load(value)
        if found is MISSING:
            return (yield from self.compute_or_wait())
        if fresh is not None or lease is not None:
            return found
        requested_at = self.clock()
        acquired = yield from self._acquire_lease()
        if acquired is not None and acquired.flags[0]:
            return (yield from self._compute_with_lease(requested_at + self.lease, acquired))
        return found

    # -- with the lease -------------------------------------------------------------------------------------

    def _acquire_lease(self) -> Operation[wire.FlagsReply | None]:
        """Requests the lease. The reply says whether this caller holds it, and has the values of `_fresh_keys`: another
        caller may have stored the value before. No other caller has the token, so the request may be sent again."""
        request = wire.Set(
            [(self._lease_key, self.token)], self.lease, absent=True, reads=self._fresh_keys, or_same=True
        )
        reply = yield self.call(self.key, request)
        return reply if isinstance(reply, wire.FlagsReply) else None

    def _compute_with_lease(self, until: float, entry: wire.FlagsReply | wire.ValuesReply) -> Operation[Any]:
        """Computes and stores the value, while this caller holds the lease until `until`. `entry`: a reply with the
        values of `_fresh_keys` that is newer than the lease."""
        at_end: wire.Request | None = self._release_request()
        try:
            value = self._load_fresh(entry)
            if value is MISSING:
                value, at_end = yield from self._store((yield Compute(self.default)), until)
        except GeneratorExit:
            at_end = None  # the operation was closed: no further command is run
            raise
        finally:
            if at_end is not None and self.clock() < until:  # after that another caller may hold a lease
                yield self.call(self.key, at_end)
        return value

    def _store(self, value: Any, until: float = -math.inf) -> Operation[tuple[Any, wire.Request | None]]:
        """Stores a value, and releases the lease in the same request if this caller holds it, until `until`.

        Results in the value as others will read it, or the one that another caller stored before; and in the request
        that the lease still needs.
        """
        refuse = wire.Set([(self._lease_key, UNCACHEABLE)], self.lease)
        try:
            data = yield from self.dump(value)
        except Exception:
            yield self.call(self.key, wire.Delete([self.key]))  # an older value must not outlive a refused one
            raise
        if data is None:
            yield self.call(self.key, wire.Delete([self.key]))
            return value, refuse
        releases = (self._lease_key,) if self.clock() < until else ()
        stored = yield from self._store_data(data, releases, absent=not self.stale)
        if stored is False:
            theirs = self._load_fresh((yield self.call(self.key, wire.Get(list(self._fresh_keys)))))
            if theirs is not MISSING:
                return theirs, self._release_request()
            stored = yield from self._store_data(data, releases)  # the stored value can't be read
            if stored is False:
                self.no_room()
                return self.load(data, value), refuse
        if stored is None:
            return value, self._release_request()
        return self.load(data, value), None

    def _store_data(
        self, data: wire.Value, releases: tuple[bytes, ...], *, absent: bool = False
    ) -> Operation[bool | None]:
        """Stores the entry and then its freshness marker; the last request also releases the lease. None: no reply."""
        if not self.stale:
            return _stored((yield self.call(self.key, wire.Set([(self.key, data)], self.ttl, absent, releases))))
        kept = None if self.ttl is None else self.ttl + self.stale
        stored = _stored((yield self.call(self.key, wire.Set([(self.key, data)], kept, absent))))
        if stored:
            marker = wire.Set([(self._fresh_key, b"")], self.ttl, deletes=releases)
            stored = _stored((yield self.call(self.key, marker)))
        return stored

    def _release_request(self) -> wire.Request:
        return wire.Delete([self._lease_key], self.token)

    # -- without the lease ----------------------------------------------------------------------------------

    def _wait(self, wait: "_Wait", until: float) -> Operation[Any]:
        """The value that the lease's holder computes; `_LEASE_ENDED` if it stored none. `until`: when the lease ends if
        this caller holds it after all."""
        while True:
            yield Sleep(wait.next_pause())
            reply = yield self.call(self.key, wire.Get([self.key, self._lease_key]))
            if not isinstance(reply, wire.ValuesReply):
                return (yield Compute(self.default))
            value, lease = reply.values
            found = self._load(value)
            if found is not MISSING:
                return found
            if lease is None:
                return _LEASE_ENDED
            if lease == self.token:  # the reply that granted it was lost with its connection
                return (yield from self._compute_with_lease(until, reply))
            if lease == UNCACHEABLE or not wait.continues(lease, self.clock()):
                value, _ = yield from self._store((yield Compute(self.default)))
                return value

    # -- the entry ------------------------------------------------------------------------------------------

    @property
    def _lease_key(self) -> bytes:
        return auxiliary_key(self.key, b"lease")

    @property
    def _fresh_key(self) -> bytes:
        """The key of the freshness marker."""
        return auxiliary_key(self.key, b"fresh")

    @property
    def _fresh_keys(self) -> tuple[bytes, ...]:
        """The keys that all have values if the entry is fresh; the first is the entry."""
        return (self.key, self._fresh_key) if self.stale else (self.key,)

    def _load_fresh(self, reply: wire.Reply | None) -> Any:
        """The value in a reply with the values of `_fresh_keys`; `MISSING` if the entry isn't fresh."""
        if not isinstance(reply, wire.ValuesReply | wire.FlagsReply) or not reply.values or None in reply.values:
            return MISSING
        return self._load(reply.values[0])

    def _load(self, value: wire.Value | None) -> Any:
        return MISSING if value is None else self.load(value, MISSING)


def _stored(reply: wire.Reply | None) -> bool | None:
    """Whether the owner stored the one item of a `Set`; None without its reply."""
    return reply.flags[0] if isinstance(reply, wire.FlagsReply) else None


@dataclass(slots=True)
class _Wait:
    """The pauses of a waiting caller, and the limit of its wait: the length of a lease, for each of the first few
    leases that it sees."""

    lease: float
    _seen: set[wire.Value] = field(default_factory=set)
    _until: float = 0.0
    _pause: float = FIRST_PAUSE

    def next_pause(self) -> float:
        pause = self._pause
        self._pause = min(2 * pause, LONGEST_PAUSE)
        return pause

    def continues(self, lease: wire.Value, now: float) -> bool:
        """Whether to wait for the holder of that lease any longer."""
        if lease not in self._seen and len(self._seen) < MAX_LEASES_AWAITED:
            self._seen.add(lease)
            self._until = now + self.lease
        return now < self._until
