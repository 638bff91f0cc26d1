"""What nodes say about themselves and each other: the values shared by the core and the wire."""

import enum
from collections.abc import Iterable

import mmh3
import msgspec


class State(enum.StrEnum):
    """A member as one node sees it. What moves it stands in `membership`."""

    JOINING = "joining"  # started; owns no keys yet
    ALIVE = "alive"
    SUSPECT = "suspect"  # silent for a while; keeps its keys
    DOWN = "down"
    LEAVING = "leaving"  # said so; owns no keys any more, still answers
    LEFT = "left"


SERVING = frozenset({State.ALIVE, State.SUSPECT})
GONE = frozenset({State.DOWN, State.LEFT})


class Identity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One start of one node, as it presents itself.

    `boot` is 128 random bits, new at every start: the same name with another boot is a restart.
    `address` is `host:port`, where peers and requesters reach it. `weight` is its share of the keys.
    """

    name: str
    boot: bytes
    address: str
    weight: float = 1.0


class Sighting(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the sender of a heartbeat knows of one member; `age` is seconds since it was last heard."""

    name: str
    boot: bytes
    address: str
    state: State
    incarnation: int
    age: float


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """`I am here`, sent to the whole group. `sequence` grows by one with each, so nothing replays.

    `channel` is where an answer to this one node goes; `epoch` is that of the sender's view.
    """

    identity: Identity
    incarnation: int
    sequence: int
    state: State
    epoch: int
    sightings: tuple[Sighting, ...] = ()
    channel: str = ""


class View(msgspec.Struct, frozen=True, array_like=True):
    """The serving members at one moment, by name. Equal views have equal epochs, on every host."""

    members: tuple[Identity, ...]
    epoch: int

    @classmethod
    def of(cls, members: Iterable[Identity]) -> "View":
        ordered = tuple(sorted(members, key=lambda member: member.name))
        digest = mmh3.hash64(msgspec.msgpack.encode(ordered), signed=False)[0]
        return cls(ordered, digest)


NO_VIEW = View((), 0)
