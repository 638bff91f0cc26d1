"""The addresses of this host's interfaces, found without name lookups and without sending a packet.

Linux only, as the package is. A library such as `ifaddr` would replace thirty lines, but reports neither the
source address of a route nor which IPv6 addresses are temporary.
"""

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..wire.address import TcpAddress, ip_address
from ..wire.resolver import numeric

# Addresses that a default route leads to, from the ranges for documentation (RFC 5737, RFC 3849), which no host has.
_ANYWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_PORT = 4370  # of a datagram that isn't sent

_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IF_INET6 = Path("/proc/net/if_inet6")
_GLOBAL = 0x00
_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40  # linux/if_addr.h
_IPV6_ADDR_PREFERENCES, _PREFER_PUBLIC = 72, 2  # linux/in6.h, RFC 5014: no temporary address


def own_address(families: Sequence[int], peers: Sequence[TcpAddress] = ()) -> str | None:
    """The address by which other hosts reach this one; None if it has only loopback addresses.

    An address of this host among `peers` (IP addresses; names are ignored) comes first, then the source address of
    the route to a peer, then of the default route, then the first address of the interfaces, by their order.
    """
    sources = []
    for peer in peers:
        if (known := numeric(peer)) is None:
            continue
        source = next((found for family in families if (found := _source(family, known.host))), None)
        if source == known.host:
            return source
        sources.append(source)
    for family in families:
        sources.append(_source(family, _ANYWHERE[socket.AddressFamily(family)]))
    for family in families:
        sources += _ipv4_addresses() if family == socket.AF_INET else _ipv6_addresses()
    return next((source for source in sources if source), None)


def family_of(host: str) -> int:
    """The address family of an IP address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def has_address(host: str) -> bool:
    """Whether it is an address of this host."""
    try:
        with socket.socket(family_of(host), socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def is_reachable(host: str) -> bool:
    """Whether other hosts may reach this IP address: not a loopback, unspecified or link-local one."""
    address = ip_address(host)
    if address is None or address.is_loopback or address.is_unspecified:
        return False
    return address.version == 4 or not address.is_link_local


def _source(family: int, host: str) -> str | None:
    """The address that the kernel would send from, by its routing table: connecting a UDP socket sends nothing."""
    if family_of(host) != family:
        return None
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                with contextlib.suppress(OSError):
                    probe.setsockopt(socket.IPPROTO_IPV6, _IPV6_ADDR_PREFERENCES, _PREFER_PUBLIC)
            probe.connect((host, _PORT))
            found = str(probe.getsockname()[0])
    except OSError:  # no route, or no such family
        return None
    return found if is_reachable(found) else None


def _ipv4_addresses() -> Iterator[str]:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in sorted(socket.if_nameindex()):
            request = struct.pack("256s", name.encode()[:15])
            try:
                (flags,) = struct.unpack_from("H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)
                if not flags & _IFF_UP or flags & _IFF_LOOPBACK:
                    continue
                found = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
            except OSError:  # it has none
                continue
            if is_reachable(found):
                yield found


def _ipv6_addresses() -> list[str]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:  # no IPv6
        return []
    found = []
    for line in lines:
        digits, index, _, scope, flags, *_ = line.split()
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        unusable = int(flags, 16) & (_DADFAILED | _DEPRECATED | _TENTATIVE)
        if int(scope, 16) == _GLOBAL and not unusable and is_reachable(address):
            found.append((int(flags, 16) & _TEMPORARY, int(index, 16), address))
    return [address for _, _, address in sorted(found)]
