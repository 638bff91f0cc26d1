"""Host names to IP addresses, looked up outside the path of a request.

The system's resolver has no deadline: with a DNS server that doesn't answer it blocks for 5 to 30 s. So look-ups run in
threads, a caller waits for one no longer than it has time, and the last answer is kept while the next is on its way.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..exceptions import Unavailable
from .address import Address, TcpAddress, UnixAddress
from .background import Background

RENEW_AFTER = 2.0  # seconds: an older answer is used, and renewed meanwhile
MAX_NAMES = 64  # they come from settings, so they are few

Hosts = tuple[str, ...]
Lookup = Callable[[str], Hosts]


def look_up(name: str) -> Hosts:
    """All IP addresses of a name by the system's resolver, in its order. Raises `OSError`; takes any time."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{name!r} is not a host name") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def numeric(address: TcpAddress) -> TcpAddress | None:
    """The address in its usual notation if its host is an IP address; None for a name. Never asks a server."""
    try:
        found = socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return TcpAddress(str(found[0][4][0]), address.port)


@dataclass(slots=True)
class _Name:
    lookup: Background[Hosts]
    answer: Hosts = ()
    answered: float = float("-inf")


class Resolver:
    """The names that one client or node uses, with their last answers."""

    def __init__(self, lookup: Lookup = look_up, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        self._names: dict[str, _Name] = {}

    def resolve(self, address: Address, seconds: float) -> Sequence[Address]:
        """What to dial, best first, none of it a name: by the last answer, or the first within so many seconds.

        Raises `Unavailable` when there is none.
        """
        if isinstance(address, UnixAddress):
            return [address]
        if (known := self._known(address)) is not None:
            return known
        try:
            return _dialled(address, self._name(address.host).lookup.start().result(max(0.0, seconds)))
        except TimeoutError as error:
            raise _stalled(address, error) from error
        except OSError as error:
            raise _unresolved(address, error) from error

    async def resolve_async(self, address: Address, seconds: float) -> Sequence[Address]:
        """As `resolve`, for asyncio."""
        if isinstance(address, UnixAddress):
            return [address]
        if (known := self._known(address)) is not None:
            return known
        return await self.resolve_now(address, seconds)

    async def resolve_now(self, address: TcpAddress, seconds: float) -> list[TcpAddress]:
        """As `resolve_async`, but only by an answer of the last `RENEW_AFTER` seconds, not by an older one."""
        if (found := numeric(address)) is not None:
            return [found]
        name = self._name(address.host)
        if self._clock() - name.answered <= RENEW_AFTER:
            return _dialled(address, name.answer)
        try:
            async with asyncio.timeout(seconds):
                return _dialled(address, await asyncio.wrap_future(name.lookup.start()))
        except TimeoutError as error:
            raise _stalled(address, error) from error
        except OSError as error:
            raise _unresolved(address, error) from error

    def _known(self, address: TcpAddress) -> list[TcpAddress] | None:
        if (found := numeric(address)) is not None:
            return [found]
        name = self._name(address.host)
        if not name.answer:
            return None
        if self._clock() - name.answered > RENEW_AFTER:
            name.lookup.start()
        return _dialled(address, name.answer)

    def _name(self, host: str) -> _Name:
        found = self._names.get(host)
        if found is None:
            if len(self._names) >= MAX_NAMES:
                raise Unavailable(f"more than {MAX_NAMES} host names are in use")
            found = self._names.setdefault(host, _Name(Background(lambda: self._ask(host), f"look-up of {host}")))
        return found

    def _ask(self, host: str) -> Hosts:
        answer = self._lookup(host)
        name = self._names[host]
        name.answer, name.answered = answer, self._clock()
        return answer


def _dialled(address: TcpAddress, hosts: Hosts) -> list[TcpAddress]:
    return [TcpAddress(host, address.port) for host in hosts]


def _stalled(address: TcpAddress, error: TimeoutError) -> Unavailable:
    return Unavailable(f"the name {address.host} was not resolved in time: the DNS server does not answer")


def _unresolved(address: TcpAddress, error: OSError) -> Unavailable:
    return Unavailable(f"the name {address.host} can't be resolved: {error.strerror or error}")
