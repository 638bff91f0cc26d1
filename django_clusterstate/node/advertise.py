"""The address that a node advertises: always an IP address, so that no peer or requester has to resolve a name."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..wire.address import TcpAddress
from ..wire.background_threads import BackgroundWork
from ..wire.resolver import Hosts, Lookup, look_up, numeric
from .log import RateLimitedLog, logger
from .network_interfaces import family_of, has_address, is_reachable, own_address

CHECK_EVERY = 60.0  # seconds
WARN_AGAIN = 600.0  # seconds until a warning that still holds is repeated
SLOW_LOOKUP = 2.0  # seconds after which a name lookup is logged


@dataclass(frozen=True, slots=True)
class Advertised:
    """An IP address and a port. `problem` says why other hosts can't reach it, or is empty."""

    address: TcpAddress
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds the address to advertise by the settings `BIND` and `ADVERTISE` (None: not set). `peers` are the addresses
    of a discovery list."""

    bind: TcpAddress
    advertise: TcpAddress | None
    peers: Sequence[TcpAddress] = ()
    lookup: Lookup = look_up

    def find(self) -> Advertised:
        """Determines the address to advertise. Raises `OSError` if a name can't be resolved. Blocks as long as the
        system's resolver."""
        given = self.advertise or self.bind
        known = given if given.is_wildcard else numeric(given)
        if known is not None and known.is_wildcard:
            return self._of_interfaces(given.port, f"it listens on {self.bind}, and this host has no other address")
        if known is not None:
            return Advertised(known)
        hosts = self.lookup(given.host)
        if is_local_name(given.host):
            return Advertised(TcpAddress(self._preferred(hosts), given.port))
        if reachable := tuple(host for host in hosts if is_reachable(host)):
            return Advertised(TcpAddress(self._preferred(reachable), given.port))
        loopback = f"{given.host} resolves to {', '.join(hosts)} on this host, which others cannot reach"
        if self.advertise is None:  # it listens at a loopback address only
            return Advertised(TcpAddress(self._preferred(hosts), given.port), f"BIND: {loopback}")
        return self._of_interfaces(given.port, f"ADVERTISE: {loopback}")

    def _of_interfaces(self, port: int, problem: str) -> Advertised:
        """An address at which the node listens: that of `BIND` if it is one, otherwise one of an interface."""
        bound = numeric(self.bind)
        if bound is not None and not bound.is_wildcard and is_reachable(bound.host):
            return Advertised(TcpAddress(bound.host, port))
        families = self._families()
        if (found := own_address(families, self.peers)) is not None:
            return Advertised(TcpAddress(found, port))
        return Advertised(TcpAddress("127.0.0.1" if families[0] == socket.AF_INET else "::1", port), problem)

    def _families(self) -> tuple[int, ...]:
        """The address families on which the node listens. `::` is IPv6 alone: asyncio and uvloop set `IPV6_V6ONLY`."""
        bound = numeric(self.bind) if self.bind.host else None
        return (socket.AF_INET, socket.AF_INET6) if bound is None else (family_of(bound.host),)

    def _preferred(self, hosts: Hosts) -> str:
        """The first address of a family on which the node listens."""
        families = self._families()
        return next((host for host in hosts if family_of(host) in families), hosts[0])

    def is_current(self, advertised: TcpAddress, found: Advertised) -> bool:
        """Whether an address found earlier can stay, given what is found now."""
        if found.address == advertised:
            return True
        by_interface = (self.advertise or self.bind).is_wildcard
        return by_interface and is_reachable(advertised.host) and has_address(advertised.host)


def is_local_name(host: str) -> bool:
    """Whether the name means this host on every host (RFC 6761), so that a loopback address is intended."""
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def wait_for_address(finder: Finder, pause: Callable[[float], None] = time.sleep) -> Advertised:
    """The address to advertise. Tries again until its name can be resolved, and logs once why it can't."""
    search = BackgroundWork(finder.find, "lookup of this node's address")
    logged = False
    while True:
        try:
            return search.start().result(SLOW_LOOKUP)
        except TimeoutError:
            why = "the DNS server does not answer"
        except OSError as error:
            why = error.strerror or str(error)
            pause(1.0)
        if not logged:
            logged = True
            logger.warning(
                "cannot resolve advertised address %s: %s; the node starts once it is resolved. Set "
                "CLUSTERSTATE_ADVERTISE to an IP address to avoid the lookup",
                finder.advertise or finder.bind,
                why,
            )


class AddressWatch:
    """Checks each minute whether the advertised address is still this host's, and logs a warning while it isn't."""

    def __init__(self, finder: Finder, advertised: Advertised, clock: Callable[[], float] = time.monotonic) -> None:
        self._finder = finder
        self._advertised = advertised
        self._search = BackgroundWork(finder.find, "lookup of this node's address")
        self._log = RateLimitedLog(clock, WARN_AGAIN)
        if advertised.problem:
            self._warn_of_problem(advertised.problem)

    @property
    def address(self) -> TcpAddress:
        return self._advertised.address

    async def run(self) -> None:
        """Checks once a minute until cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            try:
                found = await asyncio.wrap_future(self._search.start())
            except OSError as error:  # the address stays
                logger.debug("advertised address not checked: %s", error)
            else:
                self.check(found)

    def check(self, found: Advertised) -> None:
        if not self._finder.is_current(self._advertised.address, found):
            self._log.write(
                f"advertised address {self._advertised.address} is outdated: this host's is now {found.address}, so "
                "other hosts cannot reach this node; restart it",
                "address",
            )
        elif found.problem:
            self._warn_of_problem(found.problem)

    def _warn_of_problem(self, problem: str) -> None:
        self._log.write(
            f"advertised address {self._advertised.address} is reachable only from this host: {problem}; "
            "set CLUSTERSTATE_ADVERTISE to an address of this host that other hosts can reach",
            "address",
        )
