"""The table of members, and the views and versions of the nodes."""

from collections import Counter
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..core.counter_history import INTERVAL
from ..core.membership.heartbeat import GONE, SERVING, MemberState
from ..wire.messages import ReportReply, StatusReply
from ..wire.status import MemberStatus
from .formatting import duration
from .node_reports import Reports

STATE_LABELS: dict[MemberState, str | Promise] = {
    MemberState.JOINING: _("joining"),
    MemberState.ALIVE: _("alive"),
    MemberState.SUSPECT: _("suspect"),
    MemberState.DOWN: _("down"),
    MemberState.LEAVING: _("leaving"),
    MemberState.LEFT: _("left"),
}
RECENT = 3600.0  # seconds for which a restart is marked


@dataclass(frozen=True, slots=True)
class Row:
    """One member in the table.

    `report` is None if the member gave none; `silent` is the reason if it was queried. `state` is the one that the
    member reports, or else the observer; `seen_as` is the observer's if it differs. `heard_ago` is None for the
    observer and for a member that it doesn't know. `restarted`: within the last hour, after an earlier instance of
    the same name. `odd_version`: most nodes run another version.
    """

    name: str
    state: MemberState
    address: str
    report: ReportReply | None = None
    silent: str = ""
    seen_as: MemberState | None = None
    heard_ago: float | None = None
    round_trip: float | None = None
    is_observer: bool = False
    restarted: bool = False
    odd_version: bool = False

    @property
    def status(self) -> StatusReply | None:
        return None if self.report is None else self.report.status

    @property
    def state_label(self) -> str | Promise:
        return STATE_LABELS[self.state]

    @property
    def seen_as_label(self) -> str | Promise:
        return "" if self.seen_as is None else STATE_LABELS[self.seen_as]

    @property
    def uptime(self) -> str:
        return "" if self.status is None else duration(self.status.uptime)

    @property
    def heard(self) -> str:
        return "" if self.heard_ago is None else duration(self.heard_ago)

    @property
    def milliseconds(self) -> float | None:
        """The round-trip time."""
        return None if self.round_trip is None else 1000 * self.round_trip

    @property
    def entries(self) -> int:
        return 0 if self.status is None else self.status.stats.cache_entries + self.status.stats.limit_entries

    @property
    def copies(self) -> int:
        """The number of entries that another node owns."""
        return (
            0 if self.status is None else self.entries - self.status.stats.cache_owned - self.status.stats.limit_owned
        )

    @property
    def copies_evicted(self) -> int:
        if self.status is None:
            return 0
        return self.status.stats.cache_copies_evicted + self.status.stats.limit_copies_evicted

    @property
    def serves(self) -> bool:
        return self.state in SERVING

    @property
    def requests_per_second(self) -> float:
        """The average rate of requests in the last five seconds that were counted."""
        counts = [] if self.report is None else self.report.rates.get("requests", [])
        return counts[0] / INTERVAL if counts else 0.0


def observer(reports: Reports) -> str:
    """The node whose heartbeats the page shows: this host's, or the first that answers. Empty if none does."""
    return reports.status.asked or next(iter(reports.status.nodes), "")


def rows(reports: Reports) -> list[Row]:
    """The nodes that answered and the members that any of them knows, by name. Members that are gone come last."""
    name, nodes = observer(reports), reports.status.nodes
    seen = {member.identity.name: member for member in nodes[name].members} if name else {}
    usual, boots = _usual_version(nodes), _boots(reports)
    table = [
        _silent_row(member, seen.get(silent), reports.status.silent.get(silent, ""))
        for silent, member in _last_heard(nodes).items()
        if silent not in nodes
    ]
    for other, status in nodes.items():
        member = seen.get(other)
        row = Row(
            other,
            status.state,
            status.identity.address,
            reports.replies[other],
            seen_as=None if member is None or member.state == status.state else member.state,
            heard_ago=None if member is None else member.heard_ago,
            round_trip=reports.round_trips.get(other),
            is_observer=other == name,
            restarted=status.uptime < RECENT and bool(boots.get(other, set()) - {status.identity.boot}),
            odd_version=status.version != usual,
        )
        table.append(row)
    return sorted(table, key=lambda row: (row.state in GONE, row.name))


def _silent_row(heard: MemberStatus, seen: MemberStatus | None, why: str) -> Row:
    """The row of a member that gave no report: as the observer sees it, or else the node that `heard` it last."""
    member = seen or heard
    heard_ago = None if seen is None else seen.heard_ago
    return Row(member.identity.name, member.state, member.identity.address, silent=why, heard_ago=heard_ago)


def _last_heard(nodes: dict[str, StatusReply]) -> dict[str, MemberStatus]:
    """Each member by name, as the node that received its last heartbeat knows it."""
    members = [member for status in nodes.values() for member in status.members]
    return {member.identity.name: member for member in sorted(members, key=lambda member: -member.heard_ago)}


def _usual_version(nodes: dict[str, StatusReply]) -> str:
    versions = Counter(status.version for status in nodes.values()).most_common(1)
    return versions[0][0] if versions else ""


def _boots(reports: Reports) -> dict[str, set[bytes]]:
    """The boot IDs of each name in the timelines."""
    boots: dict[str, set[bytes]] = {}
    for report in reports.replies.values():
        for moment in report.timeline:
            boots.setdefault(moment.name, set()).add(moment.boot)
    return boots


def views(reports: Reports) -> list[tuple[str, list[str]]]:
    """Each epoch and the names of the nodes that have it, the most common epoch first."""
    holders: dict[str, list[str]] = {}
    for name, node in reports.status.nodes.items():
        holders.setdefault(f"{node.epoch:016x}", []).append(name)
    return sorted(holders.items(), key=lambda view: (-len(view[1]), view[1]))


def versions(reports: Reports) -> list[str]:
    """The versions that are running, sorted as text."""
    return sorted({status.version for status in reports.status.nodes.values()})
