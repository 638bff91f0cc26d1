"""Heartbeats, identities and views: the values that the core and the wire share.

All bounds are checked when a message is decoded, so nothing beyond them reaches a node, a requester, a log or a
terminal, whoever signed it. Names and addresses are also checked when a value is created in any other way.
"""

import enum
import functools
import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated

import mmh3
import msgspec
from msgspec import Meta

MAX_NAME = 100  # characters
MAX_WEIGHT = 1000.0
MAX_AGE = 1e9  # seconds: thirty years
MAX_OBSERVATIONS = 64  # in one heartbeat that is taken in; eight are sent
_MAX_NUMBER = 2**53
_HOST = r"(?:\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,32})?\]|[\w.-]{1,253})"
_ADDRESS = re.compile(_HOST + r":([0-9]{1,5})")
_CHANNEL = re.compile(r"[\w.-]*(?:![\w.-]*)?", re.ASCII)

NodeName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
BootId = Annotated[bytes, Meta(min_length=16, max_length=16)]
AddressText = Annotated[str, Meta(max_length=300)]
Number = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]


class MemberState(enum.StrEnum):
    """The state of a member as one node sees it. `transitions` lists all transitions."""

    JOINING = "joining"  # started; owns no keys yet
    ALIVE = "alive"
    SUSPECT = "suspect"  # silent for a while; keeps its keys
    DOWN = "down"
    LEAVING = "leaving"  # owns no keys, but still answers
    LEFT = "left"


SERVING = frozenset({MemberState.ALIVE, MemberState.SUSPECT})
GONE = frozenset({MemberState.DOWN, MemberState.LEFT})


@functools.lru_cache(4096)
def _check(name: str, address: str) -> None:
    """Raises `ValueError`, with nothing in its text that a terminal would interpret."""
    if not name.isprintable():
        raise ValueError(f"a node's name must be printable, which {name[:MAX_NAME]!a} is not")
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[1]) < 65536:
        raise ValueError(f"a node's address must be HOST:PORT, which {address[:MAX_NAME]!a} is not")


@functools.lru_cache(4096)
def is_loopback(address: str) -> bool:
    """Whether only its own host can reach this `host:port`; a name other than `localhost` may be anywhere."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


class Identity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One instance of a node, as it presents itself.

    `boot` is its boot ID, 128 random bits that are new each time a node starts: the same name with a different boot ID
    is a restart, or a second node. `address` is `host:port`, where peers and requesters reach it. `weight` is its share
    of the keys.
    """

    name: NodeName
    boot: BootId
    address: AddressText
    weight: Annotated[float, Meta(gt=0, le=MAX_WEIGHT)] = 1.0

    def __post_init__(self) -> None:
        _check(self.name, self.address)

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


class Observation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The state of one member as the sender of a heartbeat sees it. `age`: seconds since the sender last received a
    heartbeat from the member."""

    name: NodeName
    boot: BootId
    address: AddressText
    state: MemberState
    incarnation: Number
    age: Annotated[float, Meta(ge=0, le=MAX_AGE)]

    def __post_init__(self) -> None:
        _check(self.name, self.address)


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """The periodic message of a running node to all others. `sequence` grows by one with each heartbeat, so a receiver
    ignores repeated ones.

    `channel` is where an answer to this one node goes; `epoch`, `members` and `first` are the epoch, the size and the
    least name of the sender's view.
    """

    identity: Identity
    incarnation: Number
    sequence: Number
    state: MemberState
    epoch: Annotated[int, Meta(ge=0)]
    observations: Annotated[tuple[Observation, ...], Meta(max_length=MAX_OBSERVATIONS)] = ()
    channel: Annotated[str, Meta(max_length=100)] = ""
    members: Annotated[int, Meta(ge=0)] = 0
    first: Annotated[str, Meta(max_length=MAX_NAME)] = ""

    def __post_init__(self) -> None:
        if _CHANNEL.fullmatch(self.channel) is None:
            raise ValueError("a heartbeat names a channel that no channel layer can have")


class View(msgspec.Struct, frozen=True, array_like=True):
    """The serving members at one moment, by name. Equal views have equal epochs, on every host."""

    members: tuple[Identity, ...]
    epoch: int

    @property
    def first(self) -> str:
        """The least name; empty if there is none."""
        return self.members[0].name if self.members else ""

    def outlasts(self, members: int, first: str) -> bool:
        """Whether this view stays when a partition heals, where the other side has a view of this size and least name:
        it has more members, or as many and the least name of all."""
        return bool(self.members) and (-len(self.members), self.first) < (-members, first)

    @classmethod
    def of(cls, members: Iterable[Identity]) -> "View":
        ordered = tuple(sorted(members, key=lambda member: member.name))
        digest = mmh3.hash64(msgspec.msgpack.encode(ordered), signed=False)[0]
        return cls(ordered, digest)


NO_VIEW = View((), 0)
