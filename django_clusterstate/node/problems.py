"""Problems of the cluster that don't pass by themselves, as one node sees them.

They are shown in its log, its status and the panel. All nodes that see a problem describe it with the same text.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..core.membership.heartbeat import GONE, MemberState
from ..core.membership.joining import WaitReason
from ..core.membership.membership import Membership

MAX_PROBLEMS = 20
MAX_NAMED = 5  # peers in one sentence


class Misdirected(NamedTuple):
    """The node `found` answers at the address that a peer advertises, and last did so at `seen`."""

    address: str
    found: str
    seen: float


def problems(membership: Membership, misdirected: Mapping[str, Misdirected], now: float) -> list[str]:
    """At most `MAX_PROBLEMS` sentences. `misdirected` has the peers whose address leads to another node, by name."""
    found = [
        f"two running nodes have the name {conflict.name}: the one at {conflict.holder} keeps it, the one at "
        f"{conflict.other} owns no keys; give each node its own CLUSTERSTATE_NODE_NAME"
        for conflict in membership.name_conflicts(now)
    ]
    found += [
        f"node {peer.name} advertises {peer.address}, which is reachable only from its own host, while other "
        "nodes advertise addresses that every host can reach; it owns no keys until its CLUSTERSTATE_BIND or "
        "CLUSTERSTATE_ADVERTISE is set"
        for peer in membership.joining.refused_loopbacks(membership.members, membership.state)
    ]
    found += [
        f"node {name} advertises {wrong.address}, but {wrong.found} answers there, so {name} is unreachable: set its "
        "CLUSTERSTATE_ADVERTISE to an address of its own"
        for name, wrong in misdirected.items()
    ]
    if membership.state is MemberState.JOINING:
        found += _waits(membership, now)
    return found[:MAX_PROBLEMS]


def _waits(membership: Membership, now: float) -> Iterator[str]:
    """Why this node still joins, if that lasts."""
    me, reason = membership.me, membership.wait_reason(now)
    if reason is WaitReason.DAMPED:
        damping = membership.damping
        times = f" {damping.times} times in short succession" if damping.times > 1 else ""
        yield (
            f"node {me.name} was cut off or paused{times}: it owns no keys until others have received its heartbeats "
            f"without a gap for {damping.seconds:g} s; check its network, and whether it gets enough CPU time"
        )
    if reason is WaitReason.UNREACHED and now - membership.started >= membership.timings.down_after:
        peers = [member.identity for member in membership.members.values() if member.state not in GONE]
        heard = ", ".join(map(str, peers[:MAX_NAMED])) or "none, but has connected to some"
        yield (
            f"node {me.name} is still joining: no other node has connected to it at {me.address}; check that address "
            f"(CLUSTERSTATE_ADVERTISE) and the firewalls between the hosts. It receives heartbeats from: {heard}"
        )
