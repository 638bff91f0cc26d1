"""Runs operations on the engine of LIMITS_STORAGE, by a blocking client or by the asyncio client of an event loop."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from ..client.forks import PerProcess
from ..client.loops import PerLoop
from ..client.operations import Operation, arun, run
from ..core.limits.algorithms import Algorithm, Rule
from ..exceptions import ConnectionLost, raised_by_signal
from .engines import Engine, EngineClient
from .operations import Close, Counter, counted_rule, seconds_of

MEMCACHED_MAX_TTL = 30 * 86400  # Memcached takes a longer one for a date, long past

T = TypeVar("T")
StorageOperation = Callable[..., Operation[T]]  # of `operations`, called with the counters and further arguments


class LimitsStorage(PerProcess):
    """Counts limits in an engine. One for all threads and event loops of a process; can be used after a fork.

    `cluster` keeps the counters of several clusters apart, `deadline` is seconds for an exchange with the engine.
    """

    def __init__(self, uri: str, cluster: str, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = Engine(uri)
        self._cluster = cluster
        self._deadline = deadline
        self._clock = clock
        self._connect_later()
        super().__init__()

    @property
    def name(self) -> str:
        """The scheme of the URI, such as "redis"."""
        return self._engine.scheme

    def run(self, operation: StorageOperation[T], key: bytes, rules: Sequence[Rule], *args: Any) -> T:
        """Runs an operation of `operations` on the counters of a key, with further arguments.

        Raises `Unavailable` when the engine doesn't answer in time, or its circuit breaker is open;
        `ImproperlyConfigured` for a period that the engine can't keep.
        """
        self.reset_if_forked()
        return run(self._guarded(operation(self._counters(key, rules), *args)), self._client)

    async def arun(self, operation: StorageOperation[T], key: bytes, rules: Sequence[Rule], *args: Any) -> T:
        """Asynchronous `run()`."""
        self.reset_if_forked()
        counters = self._counters(key, rules)
        client = self._loops.get(asyncio.get_running_loop()) or await self._loops.start()
        async with client.slots:
            return await arun(self._guarded(operation(counters, *args)), client)

    def close(self) -> None:
        """Closes the blocking client's idle connections; the storage can be used again."""
        self.reset_if_forked()
        self._client.close()

    def _connect_later(self) -> None:
        self._client = EngineClient(self._engine, self._deadline)
        self._loops = PerLoop(
            lambda: EngineClient(self._engine, self._deadline, asynchronous=True), EngineClient.aclose
        )

    def _reset(self) -> None:
        self._inherited = self._client, self._loops  # kept, because a client that is freed may write to the engine
        self._connect_later()

    def _guarded(self, operation: Operation[T]) -> Operation[T]:
        """Runs an operation under the circuit breaker."""
        now = self._clock()
        if self._engine.failures:
            self._engine.check(now)
        try:
            result = yield from operation
        except Exception as error:  # whatever a driver raises, and there are several
            if raised_by_signal(error):
                yield Close()  # a connection may be in the middle of a reply
                raise
            # The kind of the error only: its text may be that of a driver that quotes the URI.
            kind = type(error).__name__
            self._engine.failed(now, kind)
            if self._engine.is_open:
                yield Close()  # valkey-py (6.2) never finds a cluster again that was gone as a whole
            raise ConnectionLost(f"{self._engine}: {kind}") from error
        if self._engine.failures:
            self._engine.answered()
        return result

    def _counters(self, key: bytes, rules: Sequence[Rule]) -> list[Counter]:
        hashed = hashlib.blake2b(key, digest_size=16).hexdigest()  # Memcached's keys are short and have no spaces
        counters = []
        for given in rules:
            rule = counted_rule(given)
            seconds = seconds_of(rule)
            ttl = seconds if rule.algorithm is Algorithm.FIXED_WINDOW else 2 * seconds
            if self.name == "memcached" and ttl > MEMCACHED_MAX_TTL:
                raise ImproperlyConfigured(
                    f"Memcached cannot keep a limit of {rule.limit} in {seconds} s; its period can be at most 30 days "
                    "in a fixed window, and at most 15 days with any other algorithm."
                )
            name = f"clusterstate/{self._cluster}/{hashed}/{given.algorithm}/{rule.limit}/{seconds}"
            counters.append(Counter(rule, name, scripted=self.name != "memcached"))
        return counters
