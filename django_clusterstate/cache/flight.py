"""Single flight: of all threads, tasks and processes that miss an entry at once, one computes it and the others wait.

Beside the entry, at its owner, lies a lease, which one of them can add and whoever has it computes. A lease ends by
itself, so nobody waits for a process that is gone.

A flight decides; the faces of the cache do. It is a generator of steps: a request for the entry's owner, for which the
reply is sent in, or None where there is none; seconds to sleep; or `Do.COMPUTE`, for which the value is sent in. What
any of them raises is thrown in.
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

Step = wire.Request | float | Do
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

    def missed(self) -> Steps:
        """The value of an entry that was absent a moment ago."""
        if self.ttl == 0:
            return (yield Do.COMPUTE)
        waiting = _Waiting(self.lease)
        while True:
            asked = self.clock()
            reply = yield self._take()
            if not isinstance(reply, wire.Flags):
                return (yield Do.COMPUTE)
            if reply.flags[0]:
                return (yield from self._hold(asked + self.lease))
            value = yield from self._wait(waiting)
            if value is not _ENDED:
                return value

    def given(self, value: Any) -> Steps:
        """The same, where nothing has to be computed."""
        value, _ = yield from self._keep(value)
        return value

    def fresh_or_stale(self) -> Steps:
        """The value; a stale one if another renews it just now."""
        reply = yield wire.Get([self.key, self._mark_key, self._lease_key])
        if not isinstance(reply, wire.Values):
            return (yield Do.COMPUTE)
        value, mark, lease = reply.values
        found = self._loaded(value)
        if found is MISSING:
            return (yield from self.missed())
        if mark is not None or lease is not None:
            return found
        asked = self.clock()
        reply = yield self._take()
        if isinstance(reply, wire.Flags) and reply.flags[0]:
            return (yield from self._hold(asked + self.lease))
        return found

    @property
    def _lease_key(self) -> bytes:
        return beside(self.key, b"lease")

    @property
    def _mark_key(self) -> bytes:
        return beside(self.key, b"fresh")

    def _keep(self, value: Any) -> Generator[wire.Request, Any, tuple[Any, bool]]:
        """Stores a value. Returns it as others read it, or theirs if they were faster; and whether one is kept."""
        data = self.dump(value)
        if data is None:
            yield wire.Delete([self.key])
            return value, False
        ttl = None if self.ttl is None else self.ttl + self.stale
        reply = yield wire.Set([(self.key, data)], ttl, absent=not self.stale)
        if isinstance(reply, wire.Flags) and not reply.flags[0]:
            theirs = yield from self._fresh()
            if theirs is not MISSING:
                return theirs, True
            reply = yield wire.Set([(self.key, data)], ttl)  # what is there can't be read
            if isinstance(reply, wire.Flags) and not reply.flags[0]:
                self.refused()
        if self.stale:
            yield wire.Set([(self._mark_key, b"")], self.ttl)
        if not isinstance(reply, wire.Flags):
            return value, True
        return self.load(data, value), reply.flags[0]

    def _take(self) -> wire.Request:
        return wire.Set([(self._lease_key, os.urandom(8))], self.lease, absent=True)

    def _hold(self, until: float) -> Steps:
        """The lease is ours until then."""
        kept = True
        try:
            value = yield from self._fresh()  # another may have stored it before we had the lease
            if value is MISSING:
                value, kept = yield from self._keep((yield Do.COMPUTE))
        except GeneratorExit:
            until = -math.inf  # nobody takes our steps any more
            raise
        finally:
            if self.clock() < until:  # else it has ended, and another may have one
                yield self._give_back(kept)
        return value

    def _give_back(self, kept: bool) -> wire.Request:
        return wire.Delete([self._lease_key]) if kept else wire.Set([(self._lease_key, NOT_KEPT)], self.lease)

    def _fresh(self) -> Generator[wire.Request, Any, Any]:
        reply = yield wire.Get([self.key, self._mark_key] if self.stale else [self.key])
        if not isinstance(reply, wire.Values) or None in reply.values:
            return MISSING
        return self._loaded(reply.values[0])

    def _loaded(self, value: wire.Value | None) -> Any:
        return MISSING if value is None else self.load(value, MISSING)

    def _wait(self, waiting: "_Waiting") -> Steps:
        """The value that another computes; `_ENDED` when the lease has ended without one."""
        while True:
            yield waiting.pause()
            reply = yield wire.Get([self.key, self._lease_key])
            if not isinstance(reply, wire.Values):
                return (yield Do.COMPUTE)
            value, lease = reply.values
            found = self._loaded(value)
            if found is not MISSING:
                return found
            if lease is None:
                return _ENDED
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
