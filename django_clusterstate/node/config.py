"""The configuration of a node."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.membership.members import Timings
from ..wire.address import TcpAddress, UnixAddress
from ..wire.derived_keys import LinkKey, SecretKey


class NodeError(Exception):
    """The node can't start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Sizes in bytes, times in seconds.

    `link_keys` and `channel_keys` are derived from the secrets, the newest first. Peers reach the node at `advertise`,
    processes of this host at `socket`.
    """

    name: str
    cluster: str
    bind: TcpAddress
    advertise: TcpAddress
    socket: UnixAddress | TcpAddress
    link_keys: tuple[LinkKey, ...]
    channel_keys: tuple[SecretKey, ...]
    timings: Timings
    weight: float = 1.0
    cache_max_bytes: int = 256 * 1024 * 1024
    cache_own_bytes: Mapping[bytes, int] = field(default_factory=dict)  # quotas: the parts of it for one namespace each
    limits_max_bytes: int = 64 * 1024 * 1024
    deadline: float = 0.1  # of requesters
    backups: int = 1
    drain: float = 10.0
