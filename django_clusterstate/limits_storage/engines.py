"""The engines that a LIMITS_STORAGE URI can name, and their clients."""

import asyncio
import importlib
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from ..client.circuit_breaker import CircuitBreaker

_REDIS, _VALKEY = ("redis",), ("valkey",)
# The packages that the blocking and the asyncio client of each scheme need, apart from `limits`.
ENGINES = {
    **dict.fromkeys(("redis", "rediss", "redis+unix", "redis+cluster"), _REDIS),
    **dict.fromkeys(("valkey", "valkeys", "valkey+unix", "valkey+cluster"), _VALKEY),
    "memcached": ("pymemcache", "memcachio"),
}
MAX_CONNECTIONS = 1024  # of the blocking client; the number of threads is the real bound
MAX_AT_ONCE = 64  # operations, and so connections, of one event loop


class Engine(CircuitBreaker):
    """The engine that a URI names, and its circuit breaker. Its `str()` is free of credentials.

    Raises `ImproperlyConfigured` if the URI isn't one of an engine, or a package is missing.
    """

    __slots__ = ("hosts", "scheme", "uri")

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri = uri
        self.scheme, self.hosts = _parsed(uri)
        for package in ("limits", *ENGINES[self.scheme]):
            try:
                importlib.import_module(package)
            except ImportError as error:
                needed = " ".join(("'django-clusterstate[limits]'", *ENGINES[self.scheme]))
                raise ImproperlyConfigured(
                    f"CLUSTERSTATE['LIMITS_STORAGE'] of {self.scheme} needs the package {package!r}: "
                    f"pip install {needed}"
                ) from error

    def __str__(self) -> str:
        return f"limits storage {self.scheme}://{self.hosts}"


def _parsed(uri: str) -> tuple[str, str]:
    """The scheme, and the hosts or the path. Raises `ImproperlyConfigured`. Neither contains the credentials."""
    expected = "redis://HOST:PORT, or another URI of docs/settings.md"
    try:
        parts = urlsplit(uri)
        hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
        complete = all(host.hostname and host.port for host in hosts)
    except ValueError:  # a port that isn't a number, a missing bracket
        raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS_STORAGE'] must be {expected}.") from None
    if parts.scheme not in ENGINES:
        raise ImproperlyConfigured(
            f"CLUSTERSTATE['LIMITS_STORAGE'] must be {expected}. Its scheme must be one of: {', '.join(ENGINES)}."
        )
    if parts.scheme.endswith("+unix"):
        if not parts.path.strip("/"):
            raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS_STORAGE'] must be {parts.scheme}:///PATH.")
        return parts.scheme, parts.path
    if not complete or (len(hosts) > 1 and not parts.scheme.endswith("+cluster")):
        # The two clients of Memcached would choose different hosts for a key.
        several = " or several, separated by commas" if parts.scheme.endswith("+cluster") else " (one)"
        raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS_STORAGE'] must be {parts.scheme}://HOST:PORT{several}.")
    return parts.scheme, parts.netloc.rpartition("@")[2]


class EngineClient:
    """A storage of the package `limits` with its connections: a blocking one, or the asyncio one of an event loop.

    It is made at its first use, and again after it was closed. `deadline` is seconds for each exchange.
    """

    def __init__(self, engine: Engine, deadline: float, *, asynchronous: bool = False) -> None:
        self.deadline = deadline
        self.slots = asyncio.Semaphore(MAX_AT_ONCE)  # for operations of the event loop
        self._engine = engine
        self._asynchronous = asynchronous
        self._made: dict[str, Any] = {}  # the storage, once there is one

    @property
    def storage(self) -> Any:
        storage = self._made.get("storage")
        if storage is None:
            made = _connect(self._engine, self.deadline, asynchronous=self._asynchronous)
            storage = self._made.setdefault("storage", made)
            if storage is not made:  # another thread was faster
                _close(made)
        return storage

    def close(self) -> None:
        """Closes the idle connections of a blocking storage."""
        storage = self._made.pop("storage", None)
        if storage is not None:
            _close(storage)

    async def aclose(self) -> None:
        """Closes the connections of an asyncio storage."""
        storage = self._made.pop("storage", None)
        if storage is None:
            return
        with suppress(Exception):  # it may be broken
            if hasattr(storage.bridge, "get_storage"):  # Memcached
                (await storage.bridge.get_storage()).connection_pool.close()
                await asyncio.sleep(0)  # lets the transports finish
            else:
                await storage.bridge.get_connection().aclose()


def _close(storage: Any) -> None:
    with suppress(Exception):  # it may be broken
        storage.storage.close()


def _connect(engine: Engine, deadline: float, *, asynchronous: bool) -> Any:
    """A storage of `limits`. A blocking one connects to a cluster at once, any other at its first exchange."""
    from limits.storage import storage_from_string  # noqa: PLC0415 - an extra

    options: dict[str, Any]
    if engine.scheme != "memcached":
        options = {"socket_timeout": deadline, "socket_connect_timeout": deadline, "max_connections": MAX_CONNECTIONS}
        options |= _without_retries(engine.scheme, asynchronous)
        if asynchronous:
            options["implementation"] = "redispy"
    elif asynchronous:
        options = dict.fromkeys(("connect_timeout", "read_timeout", "blocking_timeout"), deadline)
        options["max_connections"] = MAX_AT_ONCE
    else:
        shared: list[Any] = []

        def client(module: Any, hosts: Any, **options: Any) -> Any:
            """One client for all threads; the storage would make one for each."""
            if not shared:
                shared.append(module.PooledClient(*hosts, **options))
            return shared[0]

        options = {"timeout": deadline, "connect_timeout": deadline, "no_delay": True, "client_getter": client}
    return storage_from_string(f"async+{engine.uri}" if asynchronous else engine.uri, **options)


def _without_retries(scheme: str, asynchronous: bool) -> dict[str, Any]:
    """Options that turn off the client's retries, for which a deadline has no time."""
    (package,) = ENGINES[scheme]
    retry = importlib.import_module(f"{package}.asyncio.retry" if asynchronous else f"{package}.retry")
    backoff = importlib.import_module(f"{package}.backoff")
    return {"retry": retry.Retry(backoff.NoBackoff(), 0)}
