"""The members of the cluster and their status, for any process: as `Node.list`, `Node.self` and `Node.ping` in Elixir.

Each function has a twin for asynchronous code, whose name begins with `a`. All raise `Unavailable` if no node answers,
except `ping`, `status`, `local_status`, `problem` and `unready`, whose results say so.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from asgiref.sync import async_to_sync

from . import runtime
from .client.operations import CallEither, CallNode, GetTable, Operation
from .client.routing import RoutingTable, Target, missing_replies
from .core.membership.heartbeat import SERVING, Identity, MemberState
from .exceptions import ClusterStateError, NoCluster, Unavailable
from .runtime import asynchronous, blocking
from .wire import messages as wire

MAX_NAMED = 5  # nodes in one sentence

_PING = wire.request_frame(wire.Ping())
_GET_STATUS = wire.request_frame(wire.GetStatus())


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The status of each node, and of its members as it sees them.

    `asked` is the name of this host's node, empty if it didn't reply. `nodes` are the replies by node name, `silent`
    the reasons by name of each node that didn't reply.
    """

    asked: str = ""
    nodes: dict[str, wire.StatusReply] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, replies: dict[Target, wire.StatusReply], local: Target, silent: dict[str, str]) -> "ClusterStatus":
        """Makes the status from the nodes' replies, and from the reasons, by name, of the nodes that didn't reply.
        `local` is this host's node."""
        by_name: dict[str, wire.StatusReply] = {}
        asked = ""
        for target, status in replies.items():
            name = status.identity.name
            if name in by_name:
                name = f"{name} at {status.identity.address}"
            by_name[name] = status
            asked = name if target is local else asked
        return cls(asked, dict(sorted(by_name.items())), dict(sorted(silent.items())))

    @property
    def agree(self) -> bool:
        """Whether all nodes replied, have the same view, and none is joining."""
        settled = all(status.state is not MemberState.JOINING for status in self.nodes.values())
        return bool(self.nodes) and not self.silent and settled and len(self.epochs) == 1

    @property
    def synced(self) -> bool:
        """Whether each key has been sent to its backup, as far as there is more than one node."""
        return all(status.copies.synced for status in self.nodes.values())

    @property
    def serving(self) -> int:
        """How many of the nodes that replied own keys."""
        return len([status for status in self.nodes.values() if status.state in SERVING])

    @property
    def unreachable(self) -> list[tuple[str, str]]:
        """(sender, receiver) of heartbeats that reach other nodes, but not this receiver."""
        return [
            (member.identity.name, name)
            for name, status in self.nodes.items()
            for member in status.members
            if member.unreachable
        ]

    @property
    def problems(self) -> list[str]:
        """The problems that the nodes report, each once: a name conflict, an unreachable address. Then settings that
        must not differ, and do."""
        reported = dict.fromkeys(problem for status in self.nodes.values() for problem in status.problems)
        return [*reported, *self._different_backups()]

    def _different_backups(self) -> Iterator[str]:
        names: dict[int, list[str]] = {}
        for name, status in self.nodes.items():
            names.setdefault(status.copies.backups, []).append(name)
        if len(names) > 1:
            values = ", ".join(f"{value} on {_listed(names[value])}" for value in sorted(names))
            yield f"the nodes have different values of BACKUPS: {values}; give all the same"

    @property
    def epochs(self) -> set[int]:
        """The epochs of the views of all nodes that replied."""
        return {status.epoch for status in self.nodes.values()}


@blocking
def members() -> Operation[list[Identity]]:
    """The members that serve, sorted by name. Raises `Unavailable` if no node answers or none has joined."""
    table = yield GetTable()
    return list(_joined(table).view.members)


@blocking
def local_node() -> Operation[str]:
    """The name of this host's node. Raises `Unavailable` if it doesn't answer."""
    table: RoutingTable = yield GetTable()
    if not table.local_name:
        raise Unavailable(f"this host's node does not answer at {runtime.get_settings().socket}")
    return table.local_name


@blocking
def owner(key: str | bytes) -> Operation[str]:
    """The name of the node that owns a key. Raises `Unavailable` if no node answers or none has joined.

    The key is your own text, or the result of `ClusterCache.routing_key()` or `ratelimit.routing_key()`.
    """
    ranked: list[str] = yield CallEither(ranking, aranking, (key,))
    return ranked[0]


@blocking
def ranking(key: str | bytes) -> Operation[list[str]]:
    """The names of all members that serve, in the order in which they would own the key. Raises `Unavailable` if no
    node answers or none has joined."""
    table = yield GetTable()
    encoded = key.encode() if isinstance(key, str) else key
    return [target.name for target in _joined(table).ranking(encoded)]


@blocking
def ping(node: str) -> Operation[float | None]:
    """Seconds of a round trip to the node; None if it doesn't reply or isn't a member."""
    table: RoutingTable = yield GetTable()
    target = table.targets.get(node)
    if target is None:
        return None
    start = time.perf_counter()
    try:
        yield CallNode(target, _PING)
    except ClusterStateError:
        return None
    return time.perf_counter() - start


def status() -> ClusterStatus:
    """The status of all nodes. All are queried at once, so those that don't reply cost one deadline together."""
    # By the asyncio client, which also connects to all nodes at once; the blocking client would do so one by one.
    return async_to_sync(astatus)()


async def astatus() -> ClusterStatus:
    """Asynchronous `status()`."""
    client = runtime.get_async_client()
    table = await client.table()
    targets = list({client.routing.local, *table.targets.values()})
    replies = await client.call_each([(target, _GET_STATUS) for target in targets])
    nodes = {
        target: reply for target, reply in zip(targets, replies, strict=True) if isinstance(reply, wire.StatusReply)
    }
    return ClusterStatus.of(nodes, client.routing.local, missing_replies(targets, replies, wire.StatusReply))


@blocking
def local_status() -> Operation[wire.StatusReply | None]:
    """The status of this host's node; None if it doesn't reply."""
    try:
        reply = yield CallNode(runtime.get_routing().local, _GET_STATUS)
    except ClusterStateError:
        return None
    return reply if isinstance(reply, wire.StatusReply) else None


@blocking
def problem() -> Operation[str]:
    """Why this host's node doesn't serve; empty if it does. Ignores the other nodes."""
    status: wire.StatusReply | None = yield CallEither(local_status, alocal_status)
    return _problem_of(status)


@blocking
def unready() -> Operation[str]:
    """Why this host's node doesn't serve, or why a deploy must not stop the next node yet; empty if it may."""
    status: wire.StatusReply | None = yield CallEither(local_status, alocal_status)
    if status is None or status.state not in SERVING or status.copies.synced:
        return _problem_of(status)
    return f"this host's node is not synced: {status.copies.why_not_synced}"


def _problem_of(status: wire.StatusReply | None) -> str:
    if status is None:
        return "this host's node does not answer"
    if status.state in SERVING:
        return ""
    return ": ".join([f"this host's node is {status.state}", *status.problems[:1]])


amembers = asynchronous(members)
alocal_node = asynchronous(local_node)
aowner = asynchronous(owner)
aranking = asynchronous(ranking)
aping = asynchronous(ping)
alocal_status = asynchronous(local_status)
aproblem = asynchronous(problem)
aunready = asynchronous(unready)


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    *first, last = [*names[:MAX_NAMED], *more]
    return f"{', '.join(first)} and {last}" if first else last


def _joined(table: RoutingTable) -> RoutingTable:
    """The table, if it has members. Raises `NoCluster` otherwise."""
    if not table.targets:
        raise NoCluster(
            f"no node answers at {runtime.get_settings().socket}, or none has joined yet. "
            "Start one with: manage.py clusternode"
        )
    return table
