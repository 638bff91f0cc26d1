"""Single flight: of all threads, tasks and processes that miss an entry at once, one computes it and the others wait.

Beside the entry, at its owner, lies a lease, which one of them can add and whoever has it computes. A lease ends by
itself, so nobody waits for a process that is gone.

A flight decides; the faces of the cache do. It is a generator of steps: a request for the entry's owner, for which the
reply is sent in, or None where there is none; seconds to sleep; `Do.COMPUTE`, for which the value is sent in; or a
callable that serialises the value, for which its result is sent in. What any of them raises is thrown in.
"""

import enum
import hashlib
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

from ..wire import messages as wire

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.05  # seconds between two looks of who waits
PATIENCE = 2  # leases of others that one waits for; the second is that of who took over from a process that is gone
NOT_KEPT = b""  # in the place of a lease: the value can't be kept, so each computes its own


class Do(enum.Enum):
    COMPUTE = enum.auto()


MISSING: Final = object()
_ENDED: Final = object()

Step = wire.Request | float | Do | Callable[[], wire.Value | None]
Steps = Generator[Step, Any, Any]


def beside(key: bytes, kind: bytes) -> bytes:
    """A key of the same namespace for what belongs to an entry. It has a zero byte where no key of a user begins."""
    namespace, _, rest = key.partition(b"\0")
    made = b"%b\0\0%b\0%b" % (namespace, kind, rest)
    if len(made) > wire.MAX_KEY_BYTES:
        made = b"%b\0\0%b\0%b" % (namespace, kind, hashlib.blake2b(rest, digest_size=32).digest())
    return made


@dataclass(frozen=True, slots=True)
class Flight:
    """One `get_or_set()`. Times in seconds.

    The value is fresh for `ttl` (None: for ever) and kept `stale` longer; a lease ends after `lease`. `dump` returns
    None for a value that is too big to be kept, `load` its second argument for one that can't be read. `refused` is
    called where the owner has no room for a value; it may raise, as `dump` may.
    """

    key: bytes
    ttl: float | None
    stale: float
    lease: float
    dump: Callable[[Any], wire.Value | None]
    load: Callable[[wire.Value, Any], Any]
    refused: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    token: bytes = field(default_factory=lambda: os.urandom(8))  # tells our lease from those of others

    def missed(self) -> Steps:
        """The value of an entry that was absent a moment ago."""
        if self.ttl == 0:
            return (yield Do.COMPUTE)
        waiting = _Waiting(self.lease)
        while True:
            asked = self.clock()
            reply = yield self._take()
            if not isinstance(reply, wire.FlagsReply):
                return (yield Do.COMPUTE)
            if reply.flags[0]:
                return (yield from self._hold(asked + self.lease, reply))
            value = yield from self._wait(waiting, asked + self.lease)
            if value is not _ENDED:
                return value

    def given(self, value: Any) -> Steps:
        """The same, where nothing has to be computed."""
        value, _ = yield from self._keep(value)
        return value

    def fresh_or_stale(self) -> Steps:
        """The value; a stale one if another renews it just now."""
        reply = yield wire.Get([self.key, self._mark_key, self._lease_key])
        if not isinstance(reply, wire.ValuesReply):
            return (yield Do.COMPUTE)
        value, mark, lease = reply.values
        found = self._loaded(value)
        if found is MISSING:
            return (yield from self.missed())
        if mark is not None or lease is not None:
            return found
        asked = self.clock()
        reply = yield self._take()
        if isinstance(reply, wire.FlagsReply) and reply.flags[0]:
            return (yield from self._hold(asked + self.lease, reply))
        return found

    @property
    def _lease_key(self) -> bytes:
        return beside(self.key, b"lease")

    @property
    def _mark_key(self) -> bytes:
        return beside(self.key, b"fresh")

    @property
    def _fresh_keys(self) -> tuple[bytes, ...]:
        return (self.key, self._mark_key) if self.stale else (self.key,)

    def _take(self) -> wire.Request:
        # Another may have stored the value before we have the lease, so it is asked for as well.
        # The token is ours alone, so the request may be sent again.
        return wire.Set([(self._lease_key, self.token)], self.lease, absent=True, reads=self._fresh_keys, or_same=True)

    def _give_back(self) -> wire.Request:
        return wire.Delete([self._lease_key], self.token)

    def _hold(self, until: float, seen: wire.FlagsReply | wire.ValuesReply) -> Steps:
        """The lease is ours until then. `seen`: the entry, after it was taken."""
        last: wire.Request | None = self._give_back()
        try:
            value = self._fresh(seen)
            if value is MISSING:
                value, last = yield from self._keep((yield Do.COMPUTE), until)
        except GeneratorExit:
            last = None  # nobody takes our steps any more
            raise
        finally:
            if last is not None and self.clock() < until:  # else it has ended, and another may have one
                yield last
        return value

    def _keep(self, value: Any, until: float = -math.inf) -> Generator[Step, Any, tuple[Any, wire.Request | None]]:
        """Stores a value, and with it ends the lease if that is ours until then.

        Returns the value as others read it, or theirs if they were faster; and what is left to be done with the lease.
        """
        not_kept = wire.Set([(self._lease_key, NOT_KEPT)], self.lease)
        try:
            data = yield lambda: self.dump(value)
        except Exception:
            yield wire.Delete([self.key])  # an older value must not outlive one that is refused
            raise
        if data is None:
            yield wire.Delete([self.key])
            return value, not_kept
        ends = (self._lease_key,) if self.clock() < until else ()
        reply = yield from self._store(data, ends, absent=not self.stale)
        if isinstance(reply, wire.FlagsReply) and not reply.flags[0]:
            theirs = self._fresh((yield wire.Get(list(self._fresh_keys))))
            if theirs is not MISSING:
                return theirs, self._give_back()
            reply = yield from self._store(data, ends)  # what is there can't be read
            if isinstance(reply, wire.FlagsReply) and not reply.flags[0]:
                self.refused()
                return self.load(data, value), not_kept
        if not isinstance(reply, wire.FlagsReply):
            return value, self._give_back()
        return self.load(data, value), None

    def _store(
        self, data: wire.Value, ends: tuple[bytes, ...], *, absent: bool = False
    ) -> Generator[wire.Request, Any, Any]:
        """The value, then its mark; the lease ends with the last of them."""
        if not self.stale:
            return (yield wire.Set([(self.key, data)], self.ttl, absent, ends))
        reply = yield wire.Set([(self.key, data)], None if self.ttl is None else self.ttl + self.stale, absent)
        if isinstance(reply, wire.FlagsReply) and reply.flags[0]:
            reply = yield wire.Set([(self._mark_key, b"")], self.ttl, deletes=ends)
        return reply

    def _fresh(self, reply: wire.Reply | None) -> Any:
        """The value in the answer to a request that reads `_fresh_keys`."""
        if not isinstance(reply, wire.ValuesReply | wire.FlagsReply) or not reply.values or None in reply.values:
            return MISSING
        return self._loaded(reply.values[0])

    def _loaded(self, value: wire.Value | None) -> Any:
        return MISSING if value is None else self.load(value, MISSING)

    def _wait(self, waiting: "_Waiting", until: float) -> Steps:
        """The value that another computes; `_ENDED` when the lease has ended without one. `until`: as long as ours
        lasts."""
        while True:
            yield waiting.pause()
            reply = yield wire.Get([self.key, self._lease_key])
            if not isinstance(reply, wire.ValuesReply):
                return (yield Do.COMPUTE)
            value, lease = reply.values
            found = self._loaded(value)
            if found is not MISSING:
                return found
            if lease is None:
                return _ENDED
            if lease == self.token:  # the answer that said so was lost with its connection
                return (yield from self._hold(until, reply))
            if lease == NOT_KEPT or not waiting.goes_on(lease, self.clock()):
                value, _ = yield from self._keep((yield Do.COMPUTE))
                return value


@dataclass(slots=True)
class _Waiting:
    """How long one waits: for the length of a lease, for each of the first few leases that are seen."""

    lease: float
    _seen: set[wire.Value] = field(default_factory=set)
    _until: float = 0.0
    _pause: float = FIRST_PAUSE

    def pause(self) -> float:
        pause = self._pause
        self._pause = min(2 * pause, LONGEST_PAUSE)
        return pause

    def goes_on(self, lease: wire.Value, now: float) -> bool:
        if lease not in self._seen and len(self._seen) < PATIENCE:
            self._seen.add(lease)
            self._until = now + self.lease
        return now < self._until
