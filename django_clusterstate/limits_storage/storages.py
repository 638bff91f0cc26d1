"""The two faces of a storage, which carry out what `steps` asks."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import getpid
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..client.forks import PerProcess
from ..client.loops import PerLoop
from ..core.limits.algorithms import Algorithm, Rule, RuleDecision
from ..exceptions import Unavailable, raised_by_signal
from . import operations
from .engines import MAX_AT_ONCE, Engine, close_storage, make_storage
from .operations import Counter, Counters, Steps, T

MEMCACHED_MAX_TTL = 30 * 86400  # what is longer, Memcached takes for a date, long past

logger = logging.getLogger("django_clusterstate.client")


class _Face(PerProcess):
    """What both faces share. `cluster` keeps the counters of several apart, `deadline` is seconds for an exchange."""

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

    def _counters(self, key: bytes, rules: Sequence[Rule]) -> Counters:
        """Raises `ImproperlyConfigured` for a period that the engine can't keep."""
        whole = hashlib.blake2b(key, digest_size=16).hexdigest()  # Memcached's keys are short and have no spaces
        counters = []
        for given in rules:
            rule = operations.as_counted(given)
            seconds = operations.seconds_of(rule)
            kept = seconds if rule.algorithm is Algorithm.FIXED_WINDOW else 2 * seconds
            if self.name == "memcached" and kept > MEMCACHED_MAX_TTL:
                raise ImproperlyConfigured(
                    f"Memcached can't keep a limit of {rule.limit} in {seconds} s: there the period is 30 days at "
                    "most, and 15 if it isn't a fixed window."
                )
            name = f"clusterstate/{self._cluster}/{whole}/{given.algorithm}/{rule.limit}/{seconds}"
            counters.append(Counter(rule, name, scripted=self.name != "memcached"))
        return counters

    def _check(self) -> float:
        """The time. Raises `Unavailable` while the breaker is open."""
        now = self._clock()
        if self._engine.failures:
            self._engine.check(now)
        return now

    def _answered(self) -> None:
        if self._engine.failures and self._engine.answered():
            logger.info("%s answers again", self._engine)

    def _failed(self, error: Exception, now: float) -> Unavailable:
        # The kind of the error only: its text may be that of a driver that quotes the URI.
        failure = Unavailable(f"{self._engine}: {type(error).__name__}")
        if self._engine.failed(now):
            logger.warning("%s; it is left alone until it answers again", failure)
        return failure


class LimitsStorage(_Face):
    """The blocking face. Safe to share between threads, and to use after a fork.

    All methods raise `Unavailable` when the engine doesn't answer in time, or has failed to again and again. Counting
    against several rules isn't atomic: they are looked at first, and then counted one after the other.
    """

    def __init__(self, uri: str, cluster: str, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(uri, cluster, deadline, clock)
        self._storage: Any = None

    def hit(self, key: bytes, rules: Sequence[Rule], cost: int) -> list[RuleDecision]:
        """Counts a hit of `cost` (0 only looks) against all rules or none. One decision for each rule."""
        return self._run(operations.hit(self._counters(key, rules), cost))

    def peek(self, key: bytes, rules: Sequence[Rule], cost: int) -> list[RuleDecision]:
        """What a hit would be answered now; `remaining` and `reset_after` are those without it."""
        return self._run(operations.peek(self._counters(key, rules), cost))

    def refund(self, key: bytes, rules: Sequence[Rule], cost: int, ago: float = 0.0) -> None:
        """Gives back a hit of `cost` that was counted `ago` seconds before, or what is left of it. Nothing where its
        window has ended."""
        self._run(operations.refund(self._counters(key, rules), cost, ago))

    def reset(self, key: bytes, rules: Sequence[Rule]) -> bool:
        """Forgets all hits of a key under these rules. Whether there were any."""
        return self._run(operations.reset(self._counters(key, rules)))

    def close(self) -> None:
        """Closes all idle connections; the storage can be used again."""
        if getpid() != self.pid:
            self.reset_after_fork()
        storage, self._storage = self._storage, None
        if storage is not None:
            with suppress(Exception):  # it may be broken
                storage.storage.close()

    def _reset(self) -> None:
        self._inherited = self._storage  # kept, since a client that is freed may say something to the engine
        self._storage = None

    def _run(self, under_way: Steps[T]) -> T:
        if getpid() != self.pid:
            self.reset_after_fork()
        now = self._check()
        try:
            storage = self._storage
            if storage is None:
                storage = self._storage = make_storage(self._uri, self.name, self._deadline)
            result = None
            while True:
                result = under_way.send(result)(storage)
        except StopIteration as done:
            self._answered()
            answer: T = done.value
            return answer
        except Exception as error:  # whatever a driver raises, and there are several
            if raised_by_signal(error):
                self.close()  # its connection may be in the middle of an answer
                raise
            failure = self._failed(error, now)
            if self._engine.is_open:
                # Made anew for the next try: valkey-py (6.2) never finds a cluster again that was gone as a whole.
                self.close()
            raise failure from error


class AsyncLimitsStorage(_Face):
    """The asyncio face; one for all event loops of a process. Its methods are those of `LimitsStorage`."""

    def __init__(self, uri: str, cluster: str, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(uri, cluster, deadline, clock)
        self._loops = PerLoop(_LoopStorage, _LoopStorage.disconnect)

    async def hit(self, key: bytes, rules: Sequence[Rule], cost: int) -> list[RuleDecision]:
        """As `LimitsStorage.hit`."""
        return await self._run(operations.hit(self._counters(key, rules), cost))

    async def peek(self, key: bytes, rules: Sequence[Rule], cost: int) -> list[RuleDecision]:
        """As `LimitsStorage.peek`."""
        return await self._run(operations.peek(self._counters(key, rules), cost))

    async def refund(self, key: bytes, rules: Sequence[Rule], cost: int, ago: float = 0.0) -> None:
        """As `LimitsStorage.refund`."""
        await self._run(operations.refund(self._counters(key, rules), cost, ago))

    async def reset(self, key: bytes, rules: Sequence[Rule]) -> bool:
        """As `LimitsStorage.reset`."""
        return await self._run(operations.reset(self._counters(key, rules)))

    def _reset(self) -> None:
        self._inherited = self._loops  # kept, since a client that is freed may say something to the engine
        self._loops = PerLoop(_LoopStorage, _LoopStorage.disconnect)

    async def _run(self, under_way: Steps[T]) -> T:
        if getpid() != self.pid:
            self.reset_after_fork()
        mine = self._loops.get(asyncio.get_running_loop()) or await self._loops.start()
        async with mine.turns:
            now = self._check()
            try:
                storage = mine.storage
                if storage is None:
                    storage = mine.storage = make_storage(f"async+{self._uri}", self.name, self._deadline)
                result = None
                while True:
                    async with asyncio.timeout(self._deadline):  # some pools connect one after the other
                        result = await under_way.send(result)(storage)
            except StopIteration as done:
                self._answered()
                answer: T = done.value
                return answer
            except Exception as error:  # as above
                if raised_by_signal(error):
                    await mine.disconnect()
                    raise
                failure = self._failed(error, now)
                if self._engine.is_open:
                    await mine.disconnect()
                raise failure from error


class _LoopStorage:
    """The storage of one event loop, made when it is first needed, and its turns."""

    def __init__(self) -> None:
        self.storage: Any = None
        self.turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def disconnect(self) -> None:
        storage, self.storage = self.storage, None
        if storage is not None:
            with suppress(Exception):  # it may be broken
                await close_storage(storage)
