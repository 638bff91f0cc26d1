"""The blocking and the asyncio API of `ClusterCache` for tests that hold both to one contract: each test with these
fixtures runs twice.

In the asyncio variant no method may leave the event loop's thread.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.cache import caches

from django_clusterstate.wire import messages as wire
from testproject.processes import LocalCluster, wait_until
from tests.counting import watch_requests

BACKEND = "django_clusterstate.cache.ClusterCache"
MIB = 1024 * 1024


def custom_key(key: object, key_prefix: str, version: int) -> str:
    return f"CUSTOM-{key_prefix}-{version}-{key}"


def bare_key(key: object, key_prefix: str, version: int) -> str:
    return str(key)


def hashed_key(key: object, key_prefix: str, version: int) -> str:
    return hashlib.blake2b(f"{key_prefix}{version}{key}".encode()).hexdigest()


class JsonSerializer:
    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


def _caches() -> dict[str, dict[str, Any]]:
    base = {"BACKEND": BACKEND, "LOCATION": "cache-tests"}
    return {
        "default": base,
        "other": {**base, "LOCATION": "cache-tests-other"},
        "twin": base,
        "prefix": {**base, "KEY_PREFIX": "prefix"},
        "v2": {**base, "VERSION": 2},
        "custom_key": {**base, "KEY_FUNCTION": custom_key},
        "custom_key_path": {**base, "KEY_FUNCTION": "tests.cache_variants.custom_key"},
        "bare_key": {**base, "KEY_FUNCTION": bare_key},
        "hashed_key": {**base, "KEY_FUNCTION": hashed_key},
        "json": {
            **base,
            "LOCATION": "cache-tests-json",
            "OPTIONS": {"SERIALIZER": "tests.cache_variants.JsonSerializer"},
        },
        "short": {**base, "TIMEOUT": 1},
        "for_ever": {**base, "TIMEOUT": None},
        "djangos": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "raise": {**base, "OPTIONS": {"ON_UNAVAILABLE": "raise"}},
    }


async def _listed(iterator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in iterator]


class CacheVariant:
    """One cache by its blocking or its asyncio API; the methods have their blocking names."""

    def __init__(self, alias: str, runner: asyncio.Runner | None) -> None:
        self.alias = alias
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.call(name, *args, **kwargs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self._runner is None:
            result = getattr(caches[self.alias], name)(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result
        result = getattr(caches[self.alias], f"a{name}")(*args, **kwargs)
        return self._runner.run(_listed(result) if isinstance(result, AsyncIterator) else result)

    def lock(self, *args: Any, **kwargs: Any) -> "LockVariant":
        cache: Any = caches[self.alias]
        make = cache.lock if self._runner is None else cache.alock
        return LockVariant(make(*args, **kwargs), self._runner)

    def at_once(self, name: str, calls: Sequence[tuple[Any, ...]], threads: int = 16, **kwargs: Any) -> list[Any]:
        """The calls from so many threads, or from as many tasks as there are calls."""
        if self._runner is None:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(lambda args: self.call(name, *args, **kwargs), calls))

        async def gather() -> list[Any]:
            method = getattr(caches[self.alias], f"a{name}")
            return await asyncio.gather(*(method(*args, **kwargs) for args in calls))

        return self._runner.run(gather())


class LockVariant:
    """A lock by its blocking or its asyncio API."""

    def __init__(self, lock: Any, runner: asyncio.Runner | None) -> None:
        self._lock = lock
        self._runner = runner

    def _run(self, result: Any) -> Any:
        return result if self._runner is None else self._runner.run(result)

    def acquire(self) -> bool:
        taken: bool = self._run(self._lock.acquire())
        return taken

    def release(self) -> bool:
        given: bool = self._run(self._lock.release())
        return given

    def extend(self, timeout: float | None = None) -> bool:
        longer: bool = self._run(self._lock.extend(timeout))
        return longer

    def hold(self, then: Callable[[], object]) -> None:
        """Calls `then` while it is held by `with` or `async with`."""

        async def hold() -> None:
            async with self._lock:
                then()

        if self._runner is not None:
            self._runner.run(hold())
            return
        with self._lock:
            then()


class CacheVariants:
    def __init__(self, settings: Any, runner: asyncio.Runner | None) -> None:
        self._settings = settings
        self.runner = runner

    def __getitem__(self, alias: str) -> CacheVariant:
        return CacheVariant(alias, self.runner)

    def made_with(self, options: dict[str, Any], **entries: Any) -> CacheVariant:
        """The cache `default` with these OPTIONS and entries; an alias of its own."""
        alias = f"{entries}{options}"
        entry = {**self._settings.CACHES["default"], **entries, "OPTIONS": options}
        self._settings.CACHES = {**self._settings.CACHES, alias: entry}
        return self[alias]


def _no_thread(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("an asynchronous method left the event loop's thread")


@pytest.fixture(params=["sync", "async"])
def unconnected(
    request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CacheVariants]:
    """The caches by alias, by one API, wherever this process may find its node."""
    settings.CACHES = _caches()
    if request.param == "sync":
        yield CacheVariants(settings, None)
        return
    monkeypatch.setattr(SyncToAsync, "__call__", _no_thread)
    with asyncio.Runner() as runner:
        monkeypatch.setattr(runner.get_loop(), "run_in_executor", _no_thread)
        yield CacheVariants(settings, runner)
        monkeypatch.undo()


@pytest.fixture
def variants(cluster: LocalCluster, unconnected: CacheVariants) -> Iterator[CacheVariants]:
    yield unconnected
    for alias in ("default", "other", "json"):
        unconnected[alias].clear()


@pytest.fixture
def cache(variants: CacheVariants) -> CacheVariant:
    return variants["default"]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[wire.Message]:
    return watch_requests(monkeypatch)


def wait_until_gone(cache: CacheVariant, *keys: str, seconds: float = 60.0) -> None:
    wait_until(lambda: not cache.get_many(keys), seconds, f"{keys} expired")
