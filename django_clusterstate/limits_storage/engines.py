"""The engines: what a URI names, and the storage of the package `limits` for it."""

import asyncio
import importlib
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from ..client.routing import CircuitBreaker

_REDIS, _VALKEY = ("redis",), ("valkey",)
# By scheme, the packages that the two faces need beside `limits`.
ENGINES = {
    **dict.fromkeys(("redis", "rediss", "redis+unix", "redis+cluster"), _REDIS),
    **dict.fromkeys(("valkey", "valkeys", "valkey+unix", "valkey+cluster"), _VALKEY),
    "memcached": ("pymemcache", "memcachio"),
}
MAX_CONNECTIONS = 1024  # of the blocking face: what bounds them is the number of threads
MAX_AT_ONCE = 64  # operations, and so connections, of one event loop


class Engine(CircuitBreaker):
    """What a URI names, without its credentials, and its circuit breaker.

    Raises `ImproperlyConfigured` for what is no URI of an engine, and where a package is missing.
    """

    __slots__ = ("place", "scheme")

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.scheme, self.place = _parsed(uri)
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
        return f"the limits storage {self.scheme}://{self.place}"


def _parsed(uri: str) -> tuple[str, str]:
    """The scheme, and the hosts or the path, without credentials. Raises `ImproperlyConfigured`, without them too."""
    wanted = "redis://HOST:PORT, or another of docs/settings.md"
    try:
        parts = urlsplit(uri)
        hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
        complete = all(host.hostname and host.port for host in hosts)
    except ValueError:  # a port that is no number, a bracket too few
        raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS_STORAGE'] must be {wanted}.") from None
    if parts.scheme not in ENGINES:
        raise ImproperlyConfigured(
            f"CLUSTERSTATE['LIMITS_STORAGE'] must be {wanted}. It begins with one of: {', '.join(ENGINES)}."
        )
    if parts.scheme.endswith("+unix"):
        if not parts.path.strip("/"):
            raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS_STORAGE'] must be {parts.scheme}:///PATH.")
        return parts.scheme, parts.path
    if not complete or (len(hosts) > 1 and not parts.scheme.endswith("+cluster")):
        # The two clients of Memcached would look for a key on different ones of several hosts.
        several = " or several, separated by commas" if parts.scheme.endswith("+cluster") else " (one)"
        raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS_STORAGE'] must be {parts.scheme}://HOST:PORT{several}.")
    return parts.scheme, parts.netloc.rpartition("@")[2]


def make_storage(uri: str, scheme: str, deadline: float) -> Any:
    """Connects at once for a blocking client of a cluster, else at the first step."""
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
            """One for all threads; by itself the storage makes one for each."""
            if not shared:
                shared.append(module.PooledClient(*hosts, **options))
            return shared[0]

        options = {"timeout": deadline, "connect_timeout": deadline, "no_delay": True, "client_getter": client}
    return storage_from_string(uri, **options)


def _without_retries(scheme: str, asynchronous: bool) -> dict[str, Any]:
    """A try is all that there is time for."""
    (package,) = ENGINES[scheme]
    retry = importlib.import_module(f"{package}.asyncio.retry" if asynchronous else f"{package}.retry")
    backoff = importlib.import_module(f"{package}.backoff")
    return {"retry": retry.Retry(backoff.NoBackoff(), 0)}


async def close_storage(storage: Any) -> None:
    if hasattr(storage.bridge, "get_storage"):  # Memcached
        (await storage.bridge.get_storage()).connection_pool.close()
        await asyncio.sleep(0)  # lets the transports finish
    else:
        await storage.bridge.get_connection().aclose()
