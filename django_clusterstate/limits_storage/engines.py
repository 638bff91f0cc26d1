"""The engines that a LIMITS_STORAGE URI can name, and their clients."""

import asyncio
import importlib
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from ..client.routing import CircuitBreaker

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

    __slots__ = ("hosts", "scheme")

    def __init__(self, uri: str) -> None:
        super().__init__()
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


class EngineClient(NamedTuple):
    """A storage of the package `limits`, and seconds for each exchange with its engine."""

    storage: Any
    deadline: float


def connect(uri: str, scheme: str, deadline: float) -> EngineClient:
    """Connects to a cluster at once if the client is blocking, and to anything else at the first exchange."""
    from limits.storage import storage_from_string  # noqa: PLC0415 - an extra

    asynchronous = uri.startswith("async+")
    options: dict[str, Any]
    if scheme != "memcached":
        options = {"socket_timeout": deadline, "socket_connect_timeout": deadline, "max_connections": MAX_CONNECTIONS}
        options |= _without_retries(scheme, asynchronous)
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
    return EngineClient(storage_from_string(uri, **options), deadline)


def _without_retries(scheme: str, asynchronous: bool) -> dict[str, Any]:
    """Options that turn off the client's retries, for which a deadline has no time."""
    (package,) = ENGINES[scheme]
    retry = importlib.import_module(f"{package}.asyncio.retry" if asynchronous else f"{package}.retry")
    backoff = importlib.import_module(f"{package}.backoff")
    return {"retry": retry.Retry(backoff.NoBackoff(), 0)}


async def disconnect(client: EngineClient) -> None:
    """Closes an asyncio client."""
    storage = client.storage
    if hasattr(storage.bridge, "get_storage"):  # Memcached
        (await storage.bridge.get_storage()).connection_pool.close()
        await asyncio.sleep(0)  # lets the transports finish
    else:
        await storage.bridge.get_connection().aclose()
