"""The cluster as any process sees it: what distributed Erlang knows as `Node.list`, `Node.self` and `Node.ping`.

Each function has an `a…` twin for asynchronous code. They raise `Unavailable` when no node answers, but `ping`,
`status`, `local_status` and `problem`, which say it in their answers.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from asgiref.sync import async_to_sync

from . import runtime
from .client.routing import RoutingTable, Target, silence
from .core.membership.messages import SERVING, Identity, MemberState
from .exceptions import ClusterStateError, Unavailable
from .wire import messages as wire
from .wire.framing import frame

_PING = frame(wire.encode(wire.Ping()))
_GET_STATUS = frame(wire.encode(wire.GetStatus()))


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What each node says of itself and of its members.

    `asked` is this host's node, empty if it doesn't answer; `silent` says of each node that didn't answer, why.
    """

    asked: str = ""
    nodes: dict[str, wire.StatusReply] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, table: RoutingTable, nodes: Iterable[wire.StatusReply], silent: dict[str, str]) -> "ClusterStatus":
        """What was answered, in order. `table` says which is this host's node."""
        by_name: dict[str, wire.StatusReply] = {}
        for status in nodes:
            name = status.identity.name
            by_name[f"{name} at {status.identity.address}" if name in by_name else name] = status
        asked = table.local_name if table.local_name in by_name else ""
        return cls(asked, dict(sorted(by_name.items())), dict(sorted(silent.items())))

    @property
    def agree(self) -> bool:
        """Whether all nodes answered, all have the same view, and none is still joining."""
        settled = all(status.state is not MemberState.JOINING for status in self.nodes.values())
        return bool(self.nodes) and not self.silent and settled and len(self.epochs) == 1

    @property
    def serving(self) -> int:
        """How many nodes that answered own keys."""
        return sum(status.state in SERVING for status in self.nodes.values())

    @property
    def unreachable(self) -> list[tuple[str, str]]:
        """(from, to) of members whose heartbeats don't reach a node, while others hear them."""
        return [
            (member.identity.name, name)
            for name, status in self.nodes.items()
            for member in status.members
            if member.unreachable
        ]

    @property
    def problems(self) -> list[str]:
        """What the nodes say is wrong, each problem once: two nodes of one name, addresses that others don't reach."""
        return list(dict.fromkeys(problem for status in self.nodes.values() for problem in status.problems))

    @property
    def epochs(self) -> set[int]:
        """Those of the views of all nodes that answered."""
        return {status.epoch for status in self.nodes.values()}


def members() -> list[Identity]:
    """The members that serve, by name."""
    return list(_known(runtime.get_client().table()).view.members)


async def amembers() -> list[Identity]:
    return list(_known(await runtime.get_async_client().table()).view.members)


def local_node() -> str:
    """The name of this host's node."""
    return _local_name(runtime.get_client().table())


async def alocal_node() -> str:
    return _local_name(await runtime.get_async_client().table())


def owner(key: str | bytes) -> str:
    """The name of the node that owns a key.

    The key is text of your own, or what `ClusterCache.routing_key()` and `ratelimit.routing_key()` return.
    """
    return ranking(key)[0]


async def aowner(key: str | bytes) -> str:
    return (await aranking(key))[0]


def ranking(key: str | bytes) -> list[str]:
    """The names of all members that serve, in the order in which they would own the key."""
    return _ranking(runtime.get_client().table(), key)


async def aranking(key: str | bytes) -> list[str]:
    return _ranking(await runtime.get_async_client().table(), key)


def ping(node: str) -> float | None:
    """Seconds to the node and back; None when it doesn't answer or isn't a member."""
    client = runtime.get_client()
    target = client.table().targets.get(node)
    if target is None:
        return None
    start = time.perf_counter()
    try:
        client.call_node(target, _PING)
    except ClusterStateError:
        return None
    return time.perf_counter() - start


async def aping(node: str) -> float | None:
    client = runtime.get_async_client()
    target = (await client.table()).targets.get(node)
    if target is None:
        return None
    start = time.perf_counter()
    try:
        await client.call_node(target, _PING)
    except ClusterStateError:
        return None
    return time.perf_counter() - start


async def astatus() -> ClusterStatus:
    """Asks every node, all at once: what doesn't answer costs one deadline."""
    client = runtime.get_async_client()
    table = await client.table()
    targets: list[Target] = list({client.routing.local, *table.targets.values()})
    replies = await client.call_each([(target, _GET_STATUS) for target in targets])
    nodes = [reply for reply in replies if isinstance(reply, wire.StatusReply)]
    return ClusterStatus.of(table, nodes, silence(targets, replies, wire.StatusReply))


def status() -> ClusterStatus:
    """As `astatus`."""
    return async_to_sync(astatus)()


async def alocal_status() -> wire.StatusReply | None:
    """What this host's node says of itself and of its members; None when it doesn't answer."""
    client = runtime.get_async_client()
    try:
        reply = await client.call_node(client.routing.local, _GET_STATUS)
    except ClusterStateError:
        return None
    return reply if isinstance(reply, wire.StatusReply) else None


def local_status() -> wire.StatusReply | None:
    """As `alocal_status`."""
    client = runtime.get_client()
    try:
        reply = client.call_node(client.routing.local, _GET_STATUS)
    except ClusterStateError:
        return None
    return reply if isinstance(reply, wire.StatusReply) else None


async def aproblem() -> str:
    """Why this host's node doesn't serve, in a few words; empty when it does. Says nothing of the other nodes."""
    return _problem(await alocal_status())


def problem() -> str:
    """As `aproblem`."""
    return _problem(local_status())


def _problem(status: wire.StatusReply | None) -> str:
    if status is None:
        return "this host's node doesn't answer"
    if status.state in SERVING:
        return ""
    return ": ".join([f"this host's node is {status.state}", *status.problems[:1]])


def _known(table: RoutingTable) -> RoutingTable:
    if not table.targets:
        raise Unavailable(
            f"no node answers at {runtime.get_settings().socket}, or none has joined yet. "
            "Start one with: manage.py clusternode"
        )
    return table


def _local_name(table: RoutingTable) -> str:
    if not table.local_name:
        raise Unavailable(f"this host's node doesn't answer at {runtime.get_settings().socket}")
    return table.local_name


def _ranking(table: RoutingTable, key: str | bytes) -> list[str]:
    whole = key.encode() if isinstance(key, str) else key
    return [target.name for target in _known(table).ranking(whole)]
