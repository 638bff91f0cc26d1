"""Locks in the cache: an entry with a random token, which only the holder of the token deletes.

Best effort. A lock is lost with the node that owns its key, and after its timeout; in a partition each part may have a
holder. So a lock saves work that would be done twice, and protects nothing that must never happen twice.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from .. import runtime
from ..client.operations import ClientCommand, Operation, Sleep
from ..exceptions import ClusterStateError, Unavailable
from ..wire import messages as wire
from .requester import succeeded


@dataclass(slots=True)
class LockOperations:
    """One lock; its methods are operations, which `Lock` and `AsyncLock` run. Times in seconds.

    `call` sends a request to the owner of a key; it results in None where that fails. `dump` encodes a token.
    """

    name: object
    key: bytes
    timeout: float
    sleep: float
    blocking_timeout: float | None
    call: Callable[[bytes, wire.Request], ClientCommand[Any]]
    dump: Callable[[Any], wire.Value]
    _token: wire.Value | None = field(
        default=None, init=False
    )  # set while this holder has the lock, as far as it knows

    def __post_init__(self) -> None:
        _check("timeout", self.timeout)
        _check("sleep", self.sleep)

    def acquire(self) -> Operation[bool | None]:
        """Acquires the lock. Results in False if another holder keeps it for longer than `blocking_timeout`, None if
        the owner of its key doesn't reply."""
        token, since = self.dump(secrets.token_hex(16)), time.monotonic()
        request = wire.Set([(self.key, token)], self.timeout, absent=True, or_same=True)
        while (reply := (yield self.call(self.key, request))) is not None:
            if succeeded(reply):
                self._token = token
                return True
            pause = self.sleep
            if self.blocking_timeout is not None:
                pause = min(pause, since + self.blocking_timeout - time.monotonic())
            if pause <= 0:
                return False
            yield Sleep(pause)
        return None

    def release(self) -> Operation[bool]:
        """Releases the lock. Results in False if this holder has lost it, or the owner of its key doesn't reply."""
        token, self._token = self._token, None
        if token is None:
            return False
        return succeeded((yield self.call(self.key, wire.Delete([self.key], token))))

    def extend(self, timeout: float | None) -> Operation[bool]:
        """Makes the lock expire `timeout` seconds from now (None: the timeout that it was created with). Results in
        False if this holder has lost it, or the owner of its key doesn't reply."""
        ttl = self.timeout if timeout is None else timeout
        _check("timeout", ttl)
        if self._token is None:
            return False
        return succeeded((yield self.call(self.key, wire.Touch([self.key], ttl, self._token))))

    def enter(self) -> Operation[None]:
        """Acquires the lock for a `with` block. Raises `TimeoutError` if another holder keeps it, `Unavailable` if the
        owner of its key can't be reached."""
        acquired = yield from self.acquire()
        if acquired is None:
            raise Unavailable(f"the lock {self.name!r} cannot be acquired: the owner of its key cannot be reached")
        if not acquired:
            raise TimeoutError(
                f"the lock {self.name!r} was not acquired within {self.blocking_timeout:g} s: it is held"
            )

    def exit(self) -> Operation[None]:
        """Releases the lock after a `with` block. If the owner of its key can't be reached, the lock expires."""
        with contextlib.suppress(ClusterStateError):
            yield from self.release()


class Lock:
    """A lock for blocking code. As a context manager it holds the lock, or raises `TimeoutError` when another holder
    keeps it for longer than `blocking_timeout`, `Unavailable` if the owner of its key can't be reached."""

    def __init__(self, operations: LockOperations) -> None:
        self.operations = operations

    def acquire(self) -> bool:
        """Acquires the lock. Returns False if another holder keeps it for longer than `blocking_timeout` (None: waits
        forever), or if the owner of its key can't be reached, unless the alias has ON_UNAVAILABLE "raise": then raises
        `Unavailable`."""
        return bool(runtime.run(self.operations.acquire()))

    def release(self) -> bool:
        """Releases the lock. Returns False if this holder has lost the lock, or if the owner of its key can't be
        reached, unless the alias has ON_UNAVAILABLE "raise": then raises `Unavailable`."""
        return runtime.run(self.operations.release())

    def extend(self, timeout: float | None = None) -> bool:
        """Makes the lock expire `timeout` seconds from now, by default the timeout that it was created with. Returns
        False if this holder has lost the lock, or if the owner of its key can't be reached, unless the alias has
        ON_UNAVAILABLE "raise": then raises `Unavailable`. Raises `ValueError` if `timeout` isn't above 0."""
        return runtime.run(self.operations.extend(timeout))

    def __enter__(self) -> Self:
        runtime.run(self.operations.enter())
        return self

    def __exit__(self, *exc_info: object) -> None:
        runtime.run(self.operations.exit())


class AsyncLock:
    """A lock for asynchronous code, with the methods of `Lock` as coroutines and for `async with`."""

    def __init__(self, operations: LockOperations) -> None:
        self.operations = operations

    async def acquire(self) -> bool:
        """Asynchronous `Lock.acquire()`."""
        return bool(await runtime.arun(self.operations.acquire()))

    async def release(self) -> bool:
        """Asynchronous `Lock.release()`."""
        return await runtime.arun(self.operations.release())

    async def extend(self, timeout: float | None = None) -> bool:
        """Asynchronous `Lock.extend()`."""
        return await runtime.arun(self.operations.extend(timeout))

    async def __aenter__(self) -> Self:
        await runtime.arun(self.operations.enter())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await runtime.arun(self.operations.exit())


def _check(name: str, seconds: float) -> None:
    if seconds is None or not seconds > 0:
        raise ValueError(f"a lock's {name} must be seconds above 0, not {seconds!r}")
