"""A node's knowledge of the other nodes, and the effects of a call of its `Membership`.

Times are monotonic seconds of this node.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from .heartbeat import GONE, SERVING, Heartbeat, Identity, MemberState, is_loopback
from .transitions import when_ended

TOMBSTONES = 256  # members that are gone and still shown, at most
TOMBSTONE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Timings:
    """The heartbeat interval, and the time without heartbeats after which a member is suspect or declared down, all in
    seconds."""

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
    """One other node as this node sees it."""

    identity: Identity
    state: MemberState
    incarnation: int
    sequence: int  # of its last heartbeat
    heard: float
    since: float  # when its state changed last
    epoch: int = 0
    heard_by_others: float = -math.inf  # the latest time that they have reported
    unreachable: bool = False  # this node alone would have declared it down
    resumed: float = -math.inf  # when its heartbeats came again after a gap: the next ones may have been on their way
    verdict: int = -1  # the last incarnation of this node that it has declared down
    notified: bool = False  # that it is down: from then on, a higher incarnation refutes that


@dataclass(slots=True)
class Instance:
    """An instance of a node that isn't the member with its name (it is provisional, or in a name conflict), and its
    last heartbeat."""

    beat: Heartbeat
    first_heard: float
    heard: float
    answered: float = -math.inf

    @property
    def identity(self) -> Identity:
        return self.beat.identity

    def hear(self, beat: Heartbeat, now: float) -> None:
        """Keeps a heartbeat of this instance, unless a newer one has arrived before it."""
        if beat.sequence > self.beat.sequence:
            self.beat, self.heard = beat, now


@dataclass(frozen=True, slots=True)
class Change:
    """`identity` went from `old` (None: not known before) to `new`."""

    identity: Identity
    old: MemberState | None
    new: MemberState


@dataclass(slots=True)
class Effects:
    """The changes made by one call, and the actions that its caller must take.

    `answer`: send a heartbeat to the sender now. `dial`: the sender is proven to run, so its address is worth a dial.
    `declared_down`: others had declared this node down, and have served its keys. `winners`: the boot IDs of these, as
    soon as all are known, in this call or a later one. `stalled`: seconds that this node was stopped. `superseded`:
    another instance has this node's name; this one must end, and its process may begin another. `unreachable`: members
    that others hear and this node no longer hears. `unknown_addresses`: addresses of members that others know and this
    node doesn't.
    """

    changes: list[Change] = field(default_factory=list)
    answer: bool = False
    dial: bool = False
    declared_down: bool = False
    stalled: float = 0.0
    superseded: bool = False
    unreachable: list[Identity] = field(default_factory=list)
    unknown_addresses: list[str] = field(default_factory=list)
    winners: frozenset[bytes] = frozenset()


def move(member: Member, state: MemberState, now: float, effects: Effects) -> None:
    """Changes the state of a member."""
    if member.state is not state:
        effects.changes.append(Change(member.identity, member.state, state))
        member.state = state
        member.since = now
        member.notified = False


def end(member: Member, now: float, effects: Effects) -> None:
    """Notes that the process of a member has ended, or that it was silent for too long."""
    move(member, when_ended(member.state), now, effects)


def owners(members: Iterable[Member], me: Identity | None) -> list[Identity]:
    """The members that own keys, and `me` if it serves: if there are others, not those with loopback addresses."""
    serving = [member.identity for member in members if member.state in SERVING]
    if me is not None:
        serving.append(me)
    return [who for who in serving if not is_loopback(who.address)] or serving


def expired_tombstones(members: Iterable[Member], now: float) -> list[Member]:
    """The members that are no longer shown: gone for more than an hour, or the oldest ones above `TOMBSTONES`."""
    gone = sorted((member for member in members if member.state in GONE), key=lambda member: member.since)
    surplus = max(len(gone) - TOMBSTONES, 0)
    return gone[:surplus] + [member for member in gone[surplus:] if now - member.since > TOMBSTONE_SECONDS]
