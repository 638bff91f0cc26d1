"""Runs operations on the engine of LIMITS_STORAGE, by a blocking client or by asyncio clients."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import getpid
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from ..client.forks import PerProcess
from ..client.loops import PerLoop
from ..client.operations import Operation, arun, run
from ..core.limits.algorithms import Algorithm, Rule
from ..exceptions import ConnectionLost, raised_by_signal
from .engines import MAX_AT_ONCE, Engine, EngineClient, connect, disconnect
from .operations import Counter, counted_rule, seconds_of

MEMCACHED_MAX_TTL = 30 * 86400  # Memcached takes a longer one for a date, long past

T = TypeVar("T")
StorageOperation = Callable[..., Operation[T]]  # of `operations`, called with the counters and further arguments

logger = logging.getLogger("django_clusterstate.client")


class _Storage(PerProcess):
    """What both storages share. `cluster` keeps the counters of several clusters apart, `deadline` is seconds for an
    exchange with the engine."""

    def __init__(self, uri: str, cluster: str, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = Engine(uri)
        self._uri = uri
        self._cluster = cluster
        self._deadline = deadline
        self._clock = clock
        super().__init__()

    @property
    def name(self) -> str:
        """The scheme of the URI, such as "redis"."""
        return self._engine.scheme

    def _counters(self, key: bytes, rules: Sequence[Rule]) -> list[Counter]:
        """Raises `ImproperlyConfigured` for a period that the engine can't keep."""
        hashed = hashlib.blake2b(key, digest_size=16).hexdigest()  # Memcached's keys are short and have no spaces
        counters = []
        for given in rules:
            rule = counted_rule(given)
            seconds = seconds_of(rule)
            ttl = seconds if rule.algorithm is Algorithm.FIXED_WINDOW else 2 * seconds
            if self.name == "memcached" and ttl > MEMCACHED_MAX_TTL:
                raise ImproperlyConfigured(
                    f"Memcached can't keep a limit of {rule.limit} in {seconds} s; its period can be at most 30 days "
                    "in a fixed window, and at most 15 days with another algorithm."
                )
            name = f"clusterstate/{self._cluster}/{hashed}/{given.algorithm}/{rule.limit}/{seconds}"
            counters.append(Counter(rule, name, scripted=self.name != "memcached"))
        return counters

    def _check_breaker(self) -> float:
        """The time. Raises `CircuitOpen` while the circuit breaker is open."""
        now = self._clock()
        if self._engine.failures:
            self._engine.check(now)
        return now

    def _succeeded(self) -> None:
        if self._engine.failures and self._engine.answered():
            logger.info("%s answers again; circuit breaker closed", self._engine)

    def _failed(self, error: Exception, now: float) -> ConnectionLost:
        # The kind of the error only: its text may be that of a driver that quotes the URI.
        failure = ConnectionLost(f"{self._engine}: {type(error).__name__}")
        if self._engine.failed(now):
            logger.warning("%s; circuit breaker opened, ON_UNAVAILABLE decides until it answers again", failure)
        return failure


class LimitsStorage(_Storage):
    """The blocking storage. Safe to share between threads, and to use after a fork."""

    def __init__(self, uri: str, cluster: str, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(uri, cluster, deadline, clock)
        self._client: EngineClient | None = None

    def run(self, operation: StorageOperation[T], key: bytes, rules: Sequence[Rule], *args: Any) -> T:
        """Runs an operation of `operations` on the counters of a key, with further arguments.

        Raises `Unavailable` when the engine doesn't answer in time, or its circuit breaker is open;
        `ImproperlyConfigured` for a period that the engine can't keep.
        """
        if getpid() != self.pid:
            self.reset_after_fork()
        counters, now = self._counters(key, rules), self._check_breaker()
        try:
            client = self._client
            if client is None:
                client = self._client = connect(self._uri, self.name, self._deadline)
            result = run(operation(counters, *args), client)
        except Exception as error:  # whatever a driver raises, and there are several
            if raised_by_signal(error):
                self.close()  # its connection may be in the middle of a reply
                raise
            failure = self._failed(error, now)
            if self._engine.is_open:
                self.close()  # valkey-py (6.2) never finds a cluster again that was gone as a whole
            raise failure from error
        self._succeeded()
        return result

    def close(self) -> None:
        """Closes all idle connections; the storage can be used again."""
        if getpid() != self.pid:
            self.reset_after_fork()
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # it may be broken
                client.storage.storage.close()

    def _reset(self) -> None:
        self._inherited = self._client  # kept, since a client that is freed may write to the engine
        self._client = None


class AsyncLimitsStorage(_Storage):
    """The asyncio storage, one for all event loops of a process."""

    def __init__(self, uri: str, cluster: str, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(uri, cluster, deadline, clock)
        self._loops = PerLoop(_LoopClient, _LoopClient.disconnect)

    async def run(self, operation: StorageOperation[T], key: bytes, rules: Sequence[Rule], *args: Any) -> T:
        """Asynchronous `LimitsStorage.run()`."""
        if getpid() != self.pid:
            self.reset_after_fork()
        counters = self._counters(key, rules)
        mine = self._loops.get(asyncio.get_running_loop()) or await self._loops.start()
        async with mine.turns:
            now = self._check_breaker()
            try:
                client = mine.client
                if client is None:
                    client = mine.client = connect(f"async+{self._uri}", self.name, self._deadline)
                result = await arun(operation(counters, *args), client)
            except Exception as error:  # whatever a driver raises, and there are several
                if raised_by_signal(error):
                    await mine.disconnect()
                    raise
                failure = self._failed(error, now)
                if self._engine.is_open:
                    await mine.disconnect()
                raise failure from error
            self._succeeded()
            return result

    def _reset(self) -> None:
        self._inherited = self._loops  # kept, since a client that is freed may write to the engine
        self._loops = PerLoop(_LoopClient, _LoopClient.disconnect)


class _LoopClient:
    """The client of one event loop, made when it is first needed, and a semaphore for its operations."""

    def __init__(self) -> None:
        self.client: EngineClient | None = None
        self.turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def disconnect(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            with suppress(Exception):  # it may be broken
                await disconnect(client)
