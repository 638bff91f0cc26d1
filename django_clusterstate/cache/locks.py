"""Locks in the cache: an entry with a random token, which only who knows the token deletes.

Best effort. A lock is lost with the node that owns its key, and after its timeout; in a partition each part may have a
holder. So it saves double work, and guards nothing that must never happen twice.
"""

import asyncio
import contextlib
import secrets
import time
from typing import Self

from ..exceptions import ClusterStateError, Unavailable
from ..wire import messages as wire
from .calls import Calls
from .requests import flag


def _ending(timeout: float) -> float:
    if timeout is None or not timeout > 0:
        raise ValueError(f"a lock's timeout must be seconds above 0, not {timeout!r}: it ends a lock nobody releases")
    return timeout


class _Lock:
    """What both faces share. Times in seconds."""

    def __init__(
        self,
        cache: Calls,
        key: object,
        timeout: float,
        sleep: float,
        blocking_timeout: float | None,
        version: int | None,
    ) -> None:
        if not sleep > 0:
            raise ValueError(f"a lock's sleep must be seconds above 0, not {sleep!r}")
        self._cache = cache
        self._name = key
        self._key = cache.routing_key(f"lock:{key}", version)
        self._timeout = _ending(timeout)
        self._sleep = sleep
        self._patience = blocking_timeout
        self._token: wire.Value | None = None  # while it is ours, as far as we know

    def _new_token(self) -> wire.Value:
        return self._cache._values.dump(secrets.token_hex(16))

    def _take(self, token: wire.Value) -> wire.Set:
        return wire.Set([(self._key, token)], self._timeout, absent=True, or_same=True)

    def _taken(self, token: wire.Value, reply: wire.Reply | None) -> bool:
        if flag(reply):
            self._token = token
        return flag(reply)

    def _pause(self, since: float) -> float:
        """How long to wait before the next attempt; 0 when there is none."""
        if self._patience is None:
            return self._sleep
        return max(0.0, min(self._sleep, since + self._patience - time.monotonic()))

    def _give(self) -> wire.Delete | None:
        token, self._token = self._token, None
        return None if token is None else wire.Delete([self._key], token)

    def _longer(self, timeout: float | None) -> wire.Touch | None:
        ttl = self._timeout if timeout is None else _ending(timeout)
        return None if self._token is None else wire.Touch([self._key], ttl, self._token)

    def _entered(self, acquired: bool | None) -> Self:
        if acquired is None:
            raise Unavailable(f"the lock {self._name!r} can't be had, since its owner can't be reached")
        if not acquired:
            raise TimeoutError(f"the lock {self._name!r} is another's, and {self._patience:g} s were not enough")
        return self


class Lock(_Lock):
    """As a context manager it holds the lock, or raises `TimeoutError` when another has it for longer than
    `blocking_timeout`, `Unavailable` when its owner can't be reached."""

    def acquire(self) -> bool:
        """False when another holds the lock for longer than `blocking_timeout` (None: waits for ever), or its owner
        can't be reached, which raises `Unavailable` if the alias has ON_UNAVAILABLE "raise"."""
        return bool(self._acquire())

    def release(self) -> bool:
        """False when it isn't ours any more, or its owner can't be reached, which may raise as in `acquire()`."""
        request = self._give()
        return request is not None and flag(self._cache._call(self._key, request))

    def extend(self, timeout: float | None = None) -> bool:
        """Lets it end that many seconds from now, by default as many as it was made with. False when it isn't ours any
        more, or its owner can't be reached, which may raise as in `acquire()`."""
        request = self._longer(timeout)
        return request is not None and flag(self._cache._call(self._key, request))

    def _acquire(self) -> bool | None:
        token, since = self._new_token(), time.monotonic()
        while (reply := self._cache._call(self._key, self._take(token))) is not None:
            if self._taken(token, reply):
                return True
            if not (pause := self._pause(since)):
                return False
            time.sleep(pause)
        return None

    def __enter__(self) -> Self:
        return self._entered(self._acquire())

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ClusterStateError):  # its timeout ends it
            self.release()


class AsyncLock(_Lock):
    """As `Lock`, for `async with`."""

    async def acquire(self) -> bool:
        return bool(await self._acquire())

    async def release(self) -> bool:
        request = self._give()
        return request is not None and flag(await self._cache._acall(self._key, request))

    async def extend(self, timeout: float | None = None) -> bool:
        request = self._longer(timeout)
        return request is not None and flag(await self._cache._acall(self._key, request))

    async def _acquire(self) -> bool | None:
        token, since = self._new_token(), time.monotonic()
        while (reply := await self._cache._acall(self._key, self._take(token))) is not None:
            if self._taken(token, reply):
                return True
            if not (pause := self._pause(since)):
                return False
            await asyncio.sleep(pause)
        return None

    async def __aenter__(self) -> Self:
        return self._entered(await self._acquire())

    async def __aexit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ClusterStateError):
            await self.release()
