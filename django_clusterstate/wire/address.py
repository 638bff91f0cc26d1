"""The address of a node: `host:port`, `[v6]:port`, or the path of a unix socket."""

import ipaddress
from typing import NamedTuple


class TcpAddress(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it. False for a host name other than `localhost`."""
        address = ip_address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Whether it means all addresses of this host: `0.0.0.0`, `::`, or an empty host for both."""
        address = ip_address(self.host)
        return not self.host if address is None else address.is_unspecified


class UnixAddress(NamedTuple):
    path: str

    def __str__(self) -> str:
        return self.path


Address = TcpAddress | UnixAddress


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that the text is, an IPv4 one in IPv6 notation as IPv4; None for any other text."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # Python before 3.13 doesn't recognize `::ffff:127.0.0.1` as loopback.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def parse_tcp(text: str) -> TcpAddress:
    """Parses `host:port` or `[v6]:port`. Raises `ValueError` with an example of an address."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not an address: write HOST:PORT, for example 10.0.0.5:4370 or [::1]:4370")
    return TcpAddress(host, int(port))


def parse_ip(text: str) -> TcpAddress:
    """Parses an IP address and a port, as nodes advertise them. Raises `ValueError`, also for a host name, since
    resolving it would block."""
    address = parse_tcp(text)
    if ip_address(address.host) is None:
        raise ValueError(f"{text!r} is not an address: {address.host!r} is not an IP address")
    return address


def parse_address(text: str) -> Address:
    """Parses the path of a unix socket, which contains a slash, or `host:port`. Raises `ValueError`."""
    if "\0" in text:
        # Any user may take an abstract socket name first, since no directory protects it.
        raise ValueError(f"{text!r} has a zero byte: abstract socket names are not supported, write a path")
    return UnixAddress(text) if "/" in text else parse_tcp(text)
