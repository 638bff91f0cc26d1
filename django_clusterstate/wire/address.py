"""Where a node listens: `host:port`, `[v6]:port`, or the path of a unix socket."""

import ipaddress
from typing import NamedTuple


class TcpAddress(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it; a name other than `localhost` may be anywhere."""
        address = _ip_address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of this host. `::` is all of IPv6, an empty host is all of both."""
        address = _ip_address(self.host)
        return not self.host if address is None else address.is_unspecified


class UnixAddress(NamedTuple):
    path: str

    def __str__(self) -> str:
        return self.path


Address = TcpAddress | UnixAddress


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # IPv4 in the notation of IPv6, `::ffff:127.0.0.1`, which Python calls loopback since 3.13 only.
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def parse_tcp(text: str) -> TcpAddress:
    """Raises `ValueError`, which says what an address looks like."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address: write HOST:PORT, for example 10.0.0.5:4370 or [::1]:4370")
    return TcpAddress(host, int(port))


def parse_ip(text: str) -> TcpAddress:
    """As nodes name each other: an IP address and a port. Raises `ValueError`, also for a host name, which somebody
    would have to wait for."""
    address = parse_tcp(text)
    if _ip_address(address.host) is None:
        raise ValueError(f"{text!r} is no address: {address.host!r} is not an IP address")
    return address


def parse_address(text: str) -> Address:
    """A path (it has a slash) or `host:port`. Raises `ValueError`."""
    if "\0" in text:
        # An abstract name has no folder whose permissions keep other users from taking it first.
        raise ValueError(f"{text!r} has a zero byte: abstract socket names are not supported, write a path")
    return UnixAddress(text) if "/" in text else parse_tcp(text)
