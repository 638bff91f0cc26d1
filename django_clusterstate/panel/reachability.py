"""Who hears whom."""

from dataclasses import dataclass

from ..core.membership.messages import GONE, Identity
from ..core.membership.transitions import Timings
from ..wire.messages import StatusReply
from .formatting import duration
from .reports import Reports

WIDEST = 24  # a matrix of more members is no help: then only what is wrong is listed
LISTED = 50  # of it


@dataclass(frozen=True, slots=True)
class Hearing:
    """What one node hears of one member: `age` seconds ago, None for itself and where nothing is known."""

    listener: str
    speaker: str
    age: float | None = None
    is_self: bool = False
    late: bool = False
    lost: bool = False

    @property
    def text(self) -> str:
        return "" if self.age is None else duration(self.age)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A row for each node that answered; a column for each of them, and for each member that not all hold for gone."""

    speakers: list[str]
    rows: list[tuple[str, list[Hearing]]]

    @property
    def is_wide(self) -> bool:
        return len(self.speakers) > WIDEST

    @property
    def wrong(self) -> list[Hearing]:
        """What isn't as it should be."""
        return [hearing for _, row in self.rows for hearing in row if hearing.late or hearing.lost]

    @property
    def listed(self) -> list[Hearing]:
        return self.wrong[:LISTED]

    @property
    def more(self) -> int:
        """How many are wrong and not listed."""
        return max(0, len(self.wrong) - LISTED)


def matrix(reports: Reports, timings: Timings) -> Matrix:
    """Late is who hasn't been heard for as long as makes a suspect by these timings; lost, whom the listener doesn't
    know, holds for gone, or can't hear while others do."""
    nodes = reports.status.nodes
    known = {*nodes}
    for status in nodes.values():
        known.update(member.identity.name for member in status.members if member.state not in GONE)
    speakers = sorted(known)
    return Matrix(speakers, [(name, _hearings(status, speakers, timings)) for name, status in nodes.items()])


def _hearings(status: StatusReply, speakers: list[str], timings: Timings) -> list[Hearing]:
    me: Identity = status.identity
    heard = {member.identity.name: member for member in status.members}
    hearings = []
    for speaker in speakers:
        member = heard.get(speaker)
        if speaker == me.name:
            hearings.append(Hearing(me.name, speaker, is_self=True))
        elif member is None:
            hearings.append(Hearing(me.name, speaker, lost=True))
        else:
            late = member.heard_ago > timings.suspect_after
            lost = member.unreachable or member.state in GONE
            hearings.append(Hearing(me.name, speaker, member.heard_ago, late=late, lost=lost))
    return hearings
