"""Reports of nodes, for tests of the panel."""

import re
from collections.abc import Mapping
from typing import Any

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership.heartbeat import Identity, MemberState
from django_clusterstate.panel.node_reports import Reports
from django_clusterstate.wire.messages import ReportReply, StatusReply
from django_clusterstate.wire.status import CopiesStatus, MemberStatus, Stats


def node(
    name: str,
    epoch: int = 1,
    *,
    state: MemberState = MemberState.ALIVE,
    members: tuple[MemberStatus, ...] = (),
    version: str = "1",
    weight: float = 1.0,
    uptime: float = 3700.0,
) -> StatusReply:
    stats = Stats(requests=1234, cache_entries=2, cache_bytes=2048, limit_entries=3, cache_owned=2, limit_owned=3)
    return StatusReply(
        epoch, identity(name, weight), state, uptime, False, version, 50 * 2**20, members, stats,
        copies=CopiesStatus(True),
    )  # fmt: skip


def member(name: str, state: MemberState = MemberState.ALIVE, heard_ago: float = 0.25) -> MemberStatus:
    return MemberStatus(identity(name), state, 0, heard_ago, 10.0, 1)


def identity(name: str, weight: float = 1.0) -> Identity:
    host = re.sub(r"[^\w.-]", "-", name)
    return Identity(name, bytes(16), f"{host}.example:4370", weight)


def report(status: StatusReply, **more: Any) -> ReportReply:
    """A report. `more` are its other fields."""
    told: dict[str, Any] = {"timeline": [], "rates": {}, "busiest": [], "denied": [], **more}
    return ReportReply(status.epoch, status, **told)


def reports_of(status: ClusterStatus, told: Mapping[str, ReportReply] | None = None) -> Reports:
    """The reports of all nodes that answered, with the same round-trip time to each."""
    reports = {name: report(node) for name, node in status.nodes.items()} | dict(told or {})
    return Reports(status, reports, dict.fromkeys(reports, 0.001))
