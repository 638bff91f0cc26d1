"""The IP address of a request's client, also behind reverse proxies. Pure.

Any client can send an `X-Forwarded-For` header. Each proxy appends the address of its own client, so only the last
entries, which trusted proxies have written, are reliable.
"""

import functools
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNIX = "unix"  # among trusted proxies: a proxy that connects over a unix socket, and so has no address

THIS_HOST = "0.0.0.0"  # noqa: S104 - never bound: the address of a trusted proxy that has none

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Proxies:
    """The trusted proxies: the last `count`, or those with an address in one of `networks`, or on a unix socket."""

    count: int = 0
    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Proxies":
        """Parses one number, or addresses, networks and "unix". Raises `ValueError`."""
        texts = list(texts)
        if len(texts) == 1 and texts[0].isdecimal():
            return cls(count=int(texts[0]))
        networks = tuple(_unmapped(ipaddress.ip_network(text)) for text in texts if text != UNIX)
        return cls(networks=networks, unix=UNIX in texts)

    def __bool__(self) -> bool:
        return bool(self.count or self.networks or self.unix)

    def trusts(self, hop: str) -> bool:
        address = parse_hop(hop)
        if address is None:
            return self.unix and not hop
        return any(address in network for network in self.networks)


def client_ip(meta: Mapping[str, Any], proxies: Proxies) -> str:
    """The address of the client, from the `META` of its request. It is an IP address unless the server or a trusted
    proxy gave none; a client can't cause that.

    Without proxies it is `REMOTE_ADDR`. With a count it is the entry of `X-Forwarded-For` at that position from the
    end, or the first entry if there are fewer. With networks it is the last entry that isn't a trusted proxy's address.
    If a trusted proxy wrote anything but an address, the result is the proxy's own address, or THIS_HOST if it has
    none, as behind a unix socket.
    """
    remote: str = meta.get("REMOTE_ADDR", "")
    if not proxies:
        return remote
    forwarded: str = meta.get("HTTP_X_FORWARDED_FOR", "")
    entries = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
    if proxies.count:
        found = next((hop for hop in entries[-proxies.count :] if parse_hop(hop)), remote)
    else:
        found, hops = remote, list(entries)
        while hops and proxies.trusts(found) and parse_hop(hops[-1]):
            found = hops.pop()
    return THIS_HOST if not found and entries and (proxies.count or proxies.unix) else found


@functools.lru_cache(maxsize=4096)
def parse_hop(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address of an entry, without the port and the zone that some proxies add; IPv4-mapped IPv6 becomes IPv4.
    None if it isn't an address."""
    host = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@functools.lru_cache(maxsize=4096)
def network_of(text: str, ipv4_mask: int = 32, ipv6_mask: int = 64) -> str:
    """The network of an address by the length of its prefix, or the address itself if the prefix is the full length.

    Raises `ValueError` if `text` isn't an IP address.
    """
    address = parse_hop(text)
    if address is None:
        raise ValueError(f"{text!r} is not an IP address")
    mask = ipv6_mask if isinstance(address, ipaddress.IPv6Address) else ipv4_mask
    if mask == address.max_prefixlen:
        return str(address)
    return str(ipaddress.ip_network((address.packed, mask), strict=False))


def _unmapped(network: Network) -> Network:
    """::ffff:10.0.0.0/104 becomes 10.0.0.0/8, since addresses are compared after `parse_hop()`."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped and network.prefixlen >= 96:
        return ipaddress.ip_network((int(mapped), network.prefixlen - 96))
    return network
