"""The members' table, and whether the nodes agree."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..core.counter_history import STEP
from ..core.membership.messages import GONE, MemberState
from ..wire.messages import ReportReply, StatusReply
from ..wire.status import MemberStatus
from .formatting import duration
from .reports import Reports

STATE_LABELS: dict[MemberState, str | Promise] = {
    MemberState.JOINING: _("joining"),
    MemberState.ALIVE: _("alive"),
    MemberState.SUSPECT: _("suspect"),
    MemberState.DOWN: _("down"),
    MemberState.LEAVING: _("leaving"),
    MemberState.LEFT: _("left"),
}


RECENT = 3600.0  # seconds for which a restart is worth a mark


@dataclass(frozen=True, slots=True)
class Row:
    """One member in the table.

    `report` is its own account, None when it gave none; `silent` then says why, if it was asked. `state` is its own
    word, else the observer's; `seen_as` is the observer's where the two differ. `heard_ago` is None for the observer,
    and for a member that it doesn't know. `restarted`: within the last hour, and its name was known from an earlier
    start. `odd_version`: most others run another one.
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
    def told(self) -> StatusReply | None:
        return None if self.report is None else self.report.status

    @property
    def state_label(self) -> str | Promise:
        return STATE_LABELS[self.state]

    @property
    def seen_as_label(self) -> str | Promise:
        return "" if self.seen_as is None else STATE_LABELS[self.seen_as]

    @property
    def uptime(self) -> str:
        return "" if self.told is None else duration(self.told.uptime)

    @property
    def heard(self) -> str:
        return "" if self.heard_ago is None else duration(self.heard_ago)

    @property
    def milliseconds(self) -> float | None:
        """To the node and back."""
        return None if self.round_trip is None else 1000 * self.round_trip

    @property
    def entries(self) -> int:
        return 0 if self.told is None else self.told.stats.cache_entries + self.told.stats.limit_entries

    @property
    def requests_per_second(self) -> float:
        """In the last five seconds that were counted."""
        steps = [] if self.report is None else self.report.rates.get("requests", [])
        return steps[0] / STEP if steps else 0.0


def observer(reports: Reports) -> str:
    """The node whose heartbeats the page shows: this host's, or the first that answers; empty when none does."""
    return reports.status.asked or next(iter(reports.status.nodes), "")


def rows(reports: Reports) -> list[Row]:
    """Those that answered and those that any of them knows of, by name; at the end those that are gone."""
    name, nodes = observer(reports), reports.status.nodes
    seen = {member.identity.name: member for member in nodes[name].members} if name else {}
    usual, boots = _usual_version(nodes), _boots(reports)
    table = [
        _silent_row(member, seen.get(silent), reports.status.silent.get(silent, ""))
        for silent, member in _last_heard(nodes).items()
        if silent not in nodes
    ] + [
        _row(
            reports.of[told], seen.get(told), is_observer=told == name, round_trip=reports.round_trips.get(told),
            restarted=status.uptime < RECENT and bool(boots.get(told, set()) - {status.identity.boot}),
            odd_version=status.version != usual,
        )
        for told, status in nodes.items()
    ]  # fmt: skip
    return sorted(table, key=lambda row: (row.state in GONE, row.name))


def _row(report: ReportReply, member: MemberStatus | None, **more: Any) -> Row:
    told = report.status
    return Row(
        told.identity.name,
        told.state,
        told.identity.address,
        report,
        seen_as=member.state if member is not None and member.state != told.state else None,
        heard_ago=None if member is None else member.heard_ago,
        **more,
    )


def _silent_row(heard: MemberStatus, seen: MemberStatus | None, why: str) -> Row:
    """As the observer sees it, or else the node that `heard` it last."""
    member = seen or heard
    heard_ago = None if seen is None else seen.heard_ago
    return Row(member.identity.name, member.state, member.identity.address, silent=why, heard_ago=heard_ago)


def _last_heard(nodes: dict[str, StatusReply]) -> dict[str, MemberStatus]:
    """Each member by name, as the node knows it that heard it last."""
    members = [member for status in nodes.values() for member in status.members]
    return {member.identity.name: member for member in sorted(members, key=lambda member: -member.heard_ago)}


def _usual_version(nodes: dict[str, StatusReply]) -> str:
    versions = Counter(status.version for status in nodes.values()).most_common(1)
    return versions[0][0] if versions else ""


def _boots(reports: Reports) -> dict[str, set[bytes]]:
    """The starts of each name that the timelines tell of."""
    boots: dict[str, set[bytes]] = {}
    for report in reports.of.values():
        for moment in report.timeline:
            boots.setdefault(moment.name, set()).add(moment.boot)
    return boots


def views(reports: Reports) -> list[tuple[str, list[str]]]:
    """The epochs of the nodes that answered, and who has which; the most common first."""
    holders: dict[str, list[str]] = {}
    for name, node in reports.status.nodes.items():
        holders.setdefault(f"{node.epoch:016x}", []).append(name)
    return sorted(holders.items(), key=lambda view: (-len(view[1]), view[1]))


def versions(reports: Reports) -> list[str]:
    """Those that are running, the oldest first as text goes."""
    return sorted({status.version for status in reports.status.nodes.values()})
