"""What nodes might tell, for tests of what is shown of it."""

import re
from collections.abc import Mapping
from typing import Any

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.messages import Identity, State
from django_clusterstate.panel.reports import Reports
from django_clusterstate.wire.messages import Report, Status
from django_clusterstate.wire.status import MemberStatus, Stats


def node(
    name: str,
    epoch: int = 1,
    *,
    state: State = State.ALIVE,
    members: tuple[MemberStatus, ...] = (),
    version: str = "1",
    weight: float = 1.0,
    uptime: float = 3700.0,
) -> Status:
    stats = Stats(requests=1234, cache_entries=2, cache_bytes=2048, limit_entries=3)
    return Status(epoch, identity(name, weight), state, uptime, False, version, 50 * 2**20, members, stats)


def member(name: str, state: State = State.ALIVE, heard_ago: float = 0.25) -> MemberStatus:
    return MemberStatus(identity(name), state, 0, heard_ago, 10.0, 1)


def identity(name: str, weight: float = 1.0) -> Identity:
    host = re.sub(r"[^\w.-]", "-", name)
    return Identity(name, bytes(16), f"{host}.example:4370", weight)


def report(status: Status, **more: Any) -> Report:
    """`more` are fields of a report."""
    told: dict[str, Any] = {"timeline": [], "rates": {}, "busiest": [], "denied": [], **more}
    return Report(status.epoch, status, **told)


def reports_of(status: ClusterStatus, told: Mapping[str, Report] | None = None) -> Reports:
    """Those of all nodes that answered, with an alike round trip to each."""
    reports = {name: report(node) for name, node in status.nodes.items()} | dict(told or {})
    return Reports(status, reports, dict.fromkeys(reports, 0.001))
