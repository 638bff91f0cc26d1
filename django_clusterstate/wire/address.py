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
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_wildcard(self) -> bool:
        return self.host in ("", "0.0.0.0", "::")  # noqa: S104 - a comparison, nothing is bound


class UnixAddress(NamedTuple):
    path: str

    def __str__(self) -> str:
        return self.path


Address = TcpAddress | UnixAddress


def parse_tcp(text: str) -> TcpAddress:
    """Raises `ValueError`, which says what an address looks like."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address: write HOST:PORT, for example 10.0.0.5:4370 or [::1]:4370")
    return TcpAddress(host, int(port))


def parse_address(text: str) -> Address:
    """A path (it has a slash) or `host:port`. Raises `ValueError`."""
    return UnixAddress(text) if "/" in text else parse_tcp(text)
