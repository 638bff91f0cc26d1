"""The table of heartbeats: how long ago each node received one of each other node."""

from dataclasses import dataclass

from ..core.membership.heartbeat import GONE
from ..core.membership.members import Timings
from ..wire.messages import StatusReply
from .formatting import duration
from .node_reports import Reports

MAX_COLUMNS = 24  # a wider table can't be read: only the problems are listed then
MAX_LISTED = 50  # problems


@dataclass(frozen=True, slots=True)
class LastHeartbeat:
    """The last heartbeat of `sender` that `receiver` has received, `age` seconds ago.

    `age` is None for the node itself and where nothing is known. `late`: for long enough to make the sender a suspect.
    `lost`: the receiver doesn't know the sender, considers it down or left, or receives no heartbeats although other
    nodes do.
    """

    receiver: str
    sender: str
    age: float | None = None
    is_self: bool = False
    late: bool = False
    lost: bool = False

    @property
    def text(self) -> str:
        return "" if self.age is None else duration(self.age)


@dataclass(frozen=True, slots=True)
class HeartbeatTable:
    """A row for each node that answered, and a column for each of these and each member that isn't gone for all."""

    senders: list[str]
    rows: list[tuple[str, list[LastHeartbeat]]]

    @property
    def is_wide(self) -> bool:
        return len(self.senders) > MAX_COLUMNS

    @property
    def problems(self) -> list[LastHeartbeat]:
        return [last for _, row in self.rows for last in row if last.late or last.lost]

    @property
    def listed(self) -> list[LastHeartbeat]:
        return self.problems[:MAX_LISTED]

    @property
    def more(self) -> int:
        """The number of problems that aren't listed."""
        return max(0, len(self.problems) - MAX_LISTED)


def heartbeat_table(reports: Reports, timings: Timings) -> HeartbeatTable:
    nodes = reports.status.nodes
    known = {*nodes}
    for status in nodes.values():
        known.update(member.identity.name for member in status.members if member.state not in GONE)
    senders = sorted(known)
    return HeartbeatTable(senders, [(name, _row(status, senders, timings)) for name, status in nodes.items()])


def _row(status: StatusReply, senders: list[str], timings: Timings) -> list[LastHeartbeat]:
    receiver = status.identity.name
    members = {member.identity.name: member for member in status.members}
    row = []
    for sender in senders:
        member = members.get(sender)
        if sender == receiver:
            row.append(LastHeartbeat(receiver, sender, is_self=True))
        elif member is None:
            row.append(LastHeartbeat(receiver, sender, lost=True))
        else:
            late = member.heard_ago > timings.suspect_after
            lost = member.unreachable or member.state in GONE
            row.append(LastHeartbeat(receiver, sender, member.heard_ago, late=late, lost=lost))
    return row
