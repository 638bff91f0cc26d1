"""What nodes say of each other, in their status and in their logs."""

import datetime
import re
from collections.abc import Iterable
from pathlib import Path

from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.wire.messages import StatusReply
from testproject.processes import LocalCluster, wait_until

SECONDS = 60.0

_CHANGE = re.compile(r"(\S+ \S+) \w+ (?:node|peer) (\S+) \(\S+\) .*; (\w+) -> (\w+), ")


def status_of(cluster: LocalCluster, name: str) -> StatusReply:
    """Raises `AssertionError` when it doesn't answer."""
    status = cluster.status(name)
    assert status is not None, f"{name} does not answer"
    return status


def states(cluster: LocalCluster, of: str, by: Iterable[str]) -> set[MemberState | None]:
    """What these nodes hold that one for; None stands for one that doesn't answer, or doesn't know it."""
    found: set[MemberState | None] = set()
    for name in by:
        status = cluster.status(name)
        members = {} if status is None else {member.identity.name: member.state for member in status.members}
        found.add(members.get(of))
    return found


def until_all_say(
    cluster: LocalCluster, state: MemberState, of: str, by: Iterable[str], seconds: float = SECONDS
) -> float:
    """Seconds until all these nodes say so."""
    by = tuple(by)
    return wait_until(lambda: states(cluster, of, by) == {state}, seconds, f"all say {state} of {of}")


def changes(log: Path) -> list[tuple[float, str, str, str]]:
    """(wall-clock time, member, from, to) of each change that a node has logged."""
    found = []
    for match in _CHANGE.finditer(log.read_text(errors="replace")):
        when = datetime.datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        found.append((when, match[2], match[3], match[4]))
    return found


def moves(cluster: LocalCluster, to: MemberState) -> list[str]:
    """The changes to a state in the logs of all nodes."""
    return [
        f"{name}: {member} {old} -> {new}"
        for name in cluster.processes
        for _, member, old, new in changes(cluster.folder / f"{name}.log")
        if new == to
    ]


def lines(cluster: LocalCluster, name: str, containing: str) -> list[str]:
    """The lines of a node's log with this text."""
    return [line for line in cluster.processes[name].output().splitlines() if containing in line]


def unreachable(cluster: LocalCluster) -> set[tuple[str, str]]:
    """Pairs: the first cannot reach the second, by what that one says."""
    return {
        (member.identity.name, name)
        for name in cluster.names
        for member in status_of(cluster, name).members
        if member.unreachable
    }
