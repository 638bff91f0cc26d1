"""What `membership` is told, remembers of a member, and returns."""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from .messages import SERVING, Heartbeat, Identity, MemberState

TOGETHER = 1.0  # peers that fell silent within so many seconds of each other did so for one reason


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: between heartbeats, of silence until `suspect`, of silence until `down`."""

    heartbeat: float = 0.5
    suspect_after: float = 1.5
    down_after: float = 3.0

    def __post_init__(self) -> None:
        if self.heartbeat <= 0:
            raise ValueError(f"the heartbeat interval must be above 0 seconds, not {self.heartbeat:g}")
        if self.suspect_after < 2 * self.heartbeat:
            raise ValueError(
                f"suspect after ({self.suspect_after:g} s) must be at least two heartbeats "
                f"({2 * self.heartbeat:g} s), or one lost heartbeat makes a suspect"
            )
        if self.down_after <= self.suspect_after:
            raise ValueError(
                f"down after ({self.down_after:g} s) must be more than suspect after ({self.suspect_after:g} s)"
            )


@dataclass(slots=True)
class Member:
    """One other node as this node sees it. `heard` and `since` are times of this node."""

    identity: Identity
    state: MemberState
    incarnation: int
    sequence: int
    heard: float
    since: float
    epoch: int = 0
    told: float = -math.inf  # when others heard it, as far as they have told us
    unreachable: bool = False  # it should be down, but others hear it

    @property
    def ended(self) -> MemberState:
        """What it is if its process is gone."""
        return MemberState.LEFT if self.state is MemberState.LEAVING else MemberState.DOWN


@dataclass(slots=True)
class Start:
    """A start of a node that runs, or may run, but isn't the member of its name: its last heartbeat, when it was first
    and last heard, and when it was last answered."""

    beat: Heartbeat
    first: float
    heard: float
    answered: float = -math.inf

    @property
    def identity(self) -> Identity:
        return self.beat.identity

    def hear(self, beat: Heartbeat, now: float) -> None:
        if beat.sequence > self.beat.sequence:
            self.beat, self.heard = beat, now


@dataclass(frozen=True, slots=True)
class Namesakes:
    """Two running nodes have one name. `holder` and `other` are their addresses."""

    name: str
    holder: str
    other: str


class Wait(enum.Enum):
    """Why a node doesn't serve yet."""

    YOUNG = "it has just started"
    NAME = "another running node has its name"
    LOOPBACK = "its address is a loopback one, and those of others aren't"
    UNREACHED = "no member has connected to its address"
    UNMET = "it hasn't heard all members yet"


@dataclass(frozen=True, slots=True)
class Change:
    """`identity` went from `old` (None: not known before) to `new`."""

    identity: Identity
    old: MemberState | None
    new: MemberState


@dataclass(slots=True)
class Effects:
    """What one call brought about.

    `answer`: send the one who was heard a heartbeat now. `given_up`: others held this node for down, and have served
    its keys. `stalled`: seconds that this node was stopped. `over`: others have replaced this start, or it has met an
    older one of its name; it must end, and its process may start anew. `dial`: the sender has shown that it runs, so
    its address is worth a dial. `unreachable`: others hear these, and we don't any more. `unmet`: the addresses of
    members that others know and we don't.
    """

    changes: list[Change] = field(default_factory=list)
    answer: bool = False
    given_up: bool = False
    stalled: float = 0.0
    over: bool = False
    dial: bool = False
    unreachable: list[Identity] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)


def silent_together(members: Iterable[Member], now: float, patience: float) -> bool:
    """Whether most peers fell silent at once: then it is us, or the layer, and verdicts wait."""
    peers = [member for member in members if member.state in SERVING]
    silent = [member.heard for member in peers if now - member.heard >= patience]
    return len(silent) >= 2 and 2 * len(silent) > len(peers) and max(silent) - min(silent) <= TOGETHER
