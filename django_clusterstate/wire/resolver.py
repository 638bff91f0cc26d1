"""Resolves host names to IP addresses without blocking a request.

The system's resolver has no deadline: it blocks for 5 to 30 s when the DNS server doesn't answer. So lookups run in
threads, a caller waits for one until its own deadline, and the last result is used while a new lookup runs.
"""

import asyncio
import codecs
import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..exceptions import Unreachable
from .address import Address, TcpAddress, UnixAddress
from .background_threads import BackgroundWork

REFRESH_AFTER = 2.0  # seconds: an older result is used, and refreshed in the background
MAX_NAMES = 64  # names come from settings, so they are few

# The first lookup would import this codec under a lock, on which a child that is forked meanwhile waits forever.
codecs.lookup("idna")

Hosts = tuple[str, ...]
Lookup = Callable[[str], Hosts]


def look_up(name: str) -> Hosts:
    """All IP addresses of a name in the order of the system's resolver. Raises `OSError`; blocks without a deadline."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{name!r} is not a host name") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def numeric(address: TcpAddress) -> TcpAddress | None:
    """The address in canonical notation if its host is an IP address, None for a host name. Never queries DNS."""
    try:
        found = socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return TcpAddress(str(found[0][4][0]), address.port)


@dataclass(slots=True)
class _CachedName:
    lookup: BackgroundWork[Hosts]
    hosts: Hosts = ()
    resolved_at: float = float("-inf")


class Resolver:
    """Resolves the host names of one client or node, and caches the results."""

    def __init__(self, lookup: Lookup = look_up, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        self._names: dict[str, _CachedName] = {}

    def resolve(self, address: Address, seconds: float) -> Sequence[Address]:
        """Addresses to connect to, best first: the cached ones, or those of a lookup within `seconds`.

        Raises `Unreachable` when the name isn't resolved in time.
        """
        if isinstance(address, UnixAddress):
            return [address]
        if (cached := self._cached(address)) is not None:
            return cached
        with _unreachable(address.host):
            return _addresses(address, self._name(address.host).lookup.start().result(max(0.0, seconds)))

    async def resolve_async(self, address: Address, seconds: float) -> Sequence[Address]:
        """Asynchronous `resolve()`."""
        if isinstance(address, UnixAddress):
            return [address]
        if (cached := self._cached(address)) is not None:
            return cached
        return await self.resolve_now(address, seconds)

    async def resolve_now(self, address: TcpAddress, seconds: float) -> list[TcpAddress]:
        """Asynchronous `resolve()` that doesn't use a cached result older than `REFRESH_AFTER` seconds."""
        if (found := numeric(address)) is not None:
            return [found]
        name = self._name(address.host)
        if self._clock() - name.resolved_at <= REFRESH_AFTER:
            return _addresses(address, name.hosts)
        with _unreachable(address.host):
            async with asyncio.timeout(seconds):
                return _addresses(address, await asyncio.wrap_future(name.lookup.start()))

    def _cached(self, address: TcpAddress) -> list[TcpAddress] | None:
        """The addresses without a lookup, or None. A stale result is refreshed in the background."""
        if (found := numeric(address)) is not None:
            return [found]
        name = self._name(address.host)
        if not name.hosts:
            return None
        if self._clock() - name.resolved_at > REFRESH_AFTER:
            name.lookup.start()
        return _addresses(address, name.hosts)

    def _name(self, host: str) -> _CachedName:
        found = self._names.get(host)
        if found is None:
            if len(self._names) >= MAX_NAMES:
                raise Unreachable(
                    f"the name {host} was not resolved: {MAX_NAMES} other host names are in use, the most allowed"
                )
            work = BackgroundWork(lambda: self._refresh(host), f"lookup of {host}")
            found = self._names.setdefault(host, _CachedName(work))
        return found

    def _refresh(self, host: str) -> Hosts:
        hosts = self._lookup(host)
        name = self._names[host]
        name.hosts, name.resolved_at = hosts, self._clock()
        return hosts


def _addresses(address: TcpAddress, hosts: Hosts) -> list[TcpAddress]:
    return [TcpAddress(host, address.port) for host in hosts]


@contextlib.contextmanager
def _unreachable(host: str) -> Iterator[None]:
    """Raises `Unreachable` for a lookup that fails or isn't done in time."""
    try:
        yield
    except TimeoutError as error:
        raise Unreachable(f"the name {host} was not resolved in time: the DNS server does not answer") from error
    except OSError as error:
        raise Unreachable(f"the name {host} cannot be resolved: {error.strerror or error}") from error
