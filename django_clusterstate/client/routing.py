"""The cluster as a process knows it, for both of its clients: view, owners, circuit breakers, counts not yet reported.

No I/O except to close connections. Times are seconds of the monotonic clock, given by the caller.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ..core.membership.heartbeat import NO_VIEW, Identity, View
from ..core.rendezvous_hashing import Rendezvous
from ..exceptions import ClusterStateError, ConnectionLost, NoCluster, Unavailable, Unreachable
from ..wire.address import Address, parse_tcp
from ..wire.handshake import Hello, OtherInstance
from ..wire.messages import GetView, Reply, UnavailableReply, ViewReply, request_frame
from ..wire.status import RequesterStats
from .circuit_breaker import HALF_OPEN_AFTER, CircuitBreaker
from .forks import PerProcess

VIEW_MAX_AGE = 1.0  # seconds after which the view is requested again before the next operation
VIEW_MIN_AGE = 0.05  # seconds between two requests for the view, while the nodes' views differ

MAX_FAILING = 64  # members named in a request for the view
MAX_SOURCES = 6  # nodes that are sent a request for one view: a caller waits meanwhile
MAX_CONTACTS = 8  # nodes remembered of those that a joining or leaving node names
MAX_LATENCIES = 65536  # exchanges between two requests for the view whose latency is kept: more than are possible
GET_VIEW = request_frame(GetView())


class _NoPool(deque[Any]):
    """The pool of a node that has left: closes the connections that are returned to it."""

    def append(self, connection: Any) -> None:
        connection.close()


class Target(CircuitBreaker):
    """An instance of a node that requests are sent to, its circuit breaker, and the blocking client's idle connections.

    An empty name means whichever node answers at the address, an empty boot ID whichever instance of it.
    """

    __slots__ = ("address", "hello", "name", "pool")

    def __init__(self, name: str, address: Address, boot: bytes = b"") -> None:
        super().__init__()
        self.name = name
        self.address = address
        self.hello = Hello(expected_name=name, expected_boot=boot)
        self.pool: deque[Any] = deque()

    def __str__(self) -> str:
        return f"node {self.name} at {self.address}" if self.name else f"the local node at {self.address}"

    def close_pool(self) -> None:
        """Closes the idle connections."""
        _close_all(self.pool)

    def retire(self) -> None:
        """Closes the idle connections, and each one that is in use when it becomes idle."""
        idle, self.pool = self.pool, _NoPool()
        _close_all(idle)


def _close_all(pool: deque[Any]) -> None:
    with contextlib.suppress(IndexError):  # also raised if another thread takes the last one
        while True:
            pool.pop().close()


class RoutingTable:
    """The owners of all keys in one view. Never changed, only replaced, so a thread uses either the old or the new one.

    `local_serves`: this host's node is a member. While it isn't, a member with its name is another node, or another
    instance of it, and is reached at its own address.
    """

    __slots__ = ("_rendezvous", "local_name", "local_serves", "targets", "view")

    def __init__(self, view: View, local_name: str, targets: dict[str, Target], *, local_serves: bool = True) -> None:
        self.view = view
        self.local_name = local_name
        self.local_serves = local_serves
        self.targets = targets
        self._rendezvous = Rendezvous({member.name: member.weight for member in view.members})

    def owner(self, key: bytes) -> Target | None:
        name = self._rendezvous.owner(key)
        return None if name is None else self.targets[name]

    def require_owner(self, key: bytes) -> Target:
        """The owner of a key. Raises `NoCluster` if there is none."""
        name = self._rendezvous.owner(key)
        if name is None:
            raise NoCluster
        return self.targets[name]

    def ranking(self, key: bytes) -> list[Target]:
        """All nodes in the order in which they would own the key."""
        return [self.targets[name] for name in self._rendezvous.ranking(key)]

    def fallback_targets(self, key: bytes, local: Target) -> list[Target]:
        """The nodes that count a limit while the key's owner can't be reached, in this order.

        First the next in the ranking without failures: so all requesters that can't reach the owner count at one node,
        which owns the key if the owner is down. Then this host's node.
        """
        ranking = self.ranking(key)
        healthy = [node for node in ranking[1:] if not node.failures]
        candidates = dict.fromkeys((*healthy[:1], local))
        return [node for node in candidates if node not in ranking[:1]]

    def group(self, keys: Sequence[bytes]) -> list[tuple[Target, list[bytes]]]:
        """The keys by owner; empty when there is no owner."""
        groups: dict[Target, list[bytes]] = {}
        for key in keys:
            owner = self.owner(key)
            if owner is not None:
                groups.setdefault(owner, []).append(key)
        return list(groups.items())


class LoopClient(Protocol):
    """A client with connections that belong to event loops, which only it can close."""

    def retire(self, target: Target) -> None:
        """Closes the connections to a node that is no longer needed."""

    def abandon(self) -> None:
        """Leaves all connections to the parent process, in a forked child."""


class Routing(PerProcess):
    """The view of the cluster, the circuit breakers, and the counts that are not yet reported: one for a process.

    `local` is this host's node: it gets the requests for the view, and is reached by its own socket when it owns a key.
    """

    def __init__(self, local: Address) -> None:
        self.local = Target("", local)
        self.table = RoutingTable(NO_VIEW, "", {})
        self.refresh_at = 0.0  # from then on the next operation requests the view first
        self.stats = RequesterStats()  # counted, and not yet reported to a node
        # Seconds that each exchange took since the last report. They are sorted into a histogram once a second: doing
        # so at each exchange would cost three times as much, 3 % of the exchange.
        self.latencies: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._requested_at = 0.0
        self._contacts: dict[str, Target] = {}
        self._loop_clients: weakref.WeakSet[LoopClient] = weakref.WeakSet()
        self._lock = threading.RLock()  # reentrant for signal handlers
        super().__init__()

    def attach(self, client: LoopClient) -> None:
        """Registers a client, which is called when its connections to a node are no longer needed."""
        self._loop_clients.add(client)

    def close_pools(self) -> None:
        """Closes all idle connections of the blocking client."""
        for target in self._used():
            target.close_pool()

    def uses(self, target: Target) -> bool:
        """Whether requests are sent to the node from now on."""
        return target in self._used()

    def _used(self) -> set[Target]:
        return {self.local, *self.table.targets.values(), *self._contacts.values()}

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a thread of the parent may hold the other one
        self.close_pools()
        for client in self._loop_clients:
            client.abandon()
        self.stats = RequesterStats()  # the parent reports its own
        self.latencies.clear()

    # -- results of exchanges -------------------------------------------------------------------------------

    def answered(self, target: Target, epoch: int, began: float, ended: float) -> None:
        """Takes note of a reply, and of the epoch that it came with."""
        self.latencies.append(ended - began)
        if target.failures:
            target.answered()
        if epoch != self.table.view.epoch:
            self._refresh_soon(began)

    def owner_unavailable(self, target: Target, reply: UnavailableReply) -> Unavailable:
        """The error to raise where a node can't reach the owner of the keys. It has not failed itself."""
        self.stats.failures += 1
        if reply.sent:
            return ConnectionLost(f"{target} forwarded the request to the owner of its keys, which has not replied")
        return Unreachable(f"{target} does not own the keys, and cannot reach their owner")

    def failed(self, target: Target, error: ClusterStateError, began: float, ended: float) -> ClusterStateError:
        """Takes note of a failure. Returns the same error with the name of the node, to be raised.

        A node that was restarted since the view was made has not failed: the next view names its new instance.
        """
        if isinstance(error, OtherInstance):
            self._refresh_soon(began)
        else:
            self.latencies.append(ended - began)
            self.stats.failures += 1
            opened = target.failed(began, str(error))
            if opened and target is not self.local:
                self.refresh_at = min(self.refresh_at, began)  # the request for the view names the failing node
        return type(error)(f"{target}: {error}")

    def _refresh_soon(self, now: float) -> None:
        self.refresh_at = min(self.refresh_at, max(now, self._requested_at + VIEW_MIN_AGE))

    # -- keeping the view -----------------------------------------------------------------------------------

    def view_request(self) -> tuple[bytes, RequesterStats]:
        """The framed request for the view, with the failing members and the counts since the last one; and the counts.

        Concurrent requests report different counts. Pass counts that no node can have received to `put_back()`.
        """
        self.reset_if_forked()  # before the lock, which a thread of the parent may hold
        with self._lock:
            no_stats, no_latencies = RequesterStats(), deque[float](maxlen=MAX_LATENCIES)
            # After these calls, during which a signal handler may report the same counts.
            stats, self.stats = self.stats, no_stats
            latencies, self.latencies = self.latencies, no_latencies
        stats.add_latencies(list(latencies))
        counted = stats != RequesterStats()
        failing = [name for name, target in self.table.targets.items() if target.is_open and target is not self.local]
        if not counted and not failing:
            return GET_VIEW, stats
        return request_frame(GetView(failing[:MAX_FAILING], stats if counted else None)), stats

    def put_back(self, stats: RequesterStats) -> None:
        """Adds counts that no node has received to those of the next report."""
        with self._lock:
            self.stats = self.stats.plus(stats)

    def sources(self, now: float) -> list[Target]:
        """The nodes to request the view from, in this order: the local node, then two others of the last view."""
        self._requested_at = now
        if self.table.targets:
            self.refresh_at = now + HALF_OPEN_AFTER  # meanwhile other threads use the view that there is
        others = [target for target in self.table.targets.values() if target is not self.local]
        return [self.local, *_fewest_failures(others)[:2]]

    def more_sources(self, sources: Sequence[Target]) -> list[Target]:
        """The first two nodes named by those without a view that aren't among the sources, as far as there is room."""
        new = [target for target in _fewest_failures(self._contacts.values()) if target not in sources]
        return new[: min(2, MAX_SOURCES - len(sources))]

    def learn(self, reply: ViewReply, source: Target, now: float) -> bool:
        """Takes note of a reply. True if it has the view that is used from now on.

        A view without the node that sends it comes from a node that joins or leaves, and may lack members: it never
        replaces the view that there is, and its members are only further nodes to request the view from.
        """
        serves = any(member.name == reply.name for member in reply.members)
        with self._lock:  # what one thread learns is built on what another one did, never on what it replaced
            self._learn(reply, source, now, serves)
        return serves

    def found_no_member(self, now: float) -> None:
        """Called after a request for the view that only nodes that join or leave have replied to."""
        with self._lock:
            if not self.table.targets:
                self.refresh_at = now + VIEW_MIN_AGE

    def _learn(self, reply: ViewReply, source: Target, now: float, serves: bool) -> None:
        old = self.table
        local = (reply.name, serves) if source is self.local else (old.local_name, old.local_serves)
        known = {**self._contacts, **old.targets}
        contacts: dict[str, Target] = {}
        if serves:
            view = old.view if reply.epoch == old.view.epoch else View(reply.members, reply.epoch)
        else:
            members = [member for member in reply.members if member.name != local[0]][:MAX_CONTACTS]
            contacts = {member.name: _target(member, known) for member in members}
            view = old.view
        self._tabulate(view, *local, known)
        self._contacts = contacts
        if self.table.targets:  # from now on other threads use the table
            self.refresh_at = now + (VIEW_MAX_AGE if serves else HALF_OPEN_AFTER)
        self._close_unused(known)

    def _tabulate(self, view: View, local_name: str, local_serves: bool, known: dict[str, Target]) -> None:
        old = self.table
        if view is old.view and (local_name, local_serves) == (old.local_name, old.local_serves):
            return
        targets = {
            member.name: self.local if local_serves and member.name == local_name else _target(member, known)
            for member in view.members
        }
        self.local.name = local_name
        self.table = RoutingTable(view, local_name, targets, local_serves=local_serves)

    def _close_unused(self, known: dict[str, Target]) -> None:
        for target in set(known.values()) - self._used():
            target.retire()
            for client in list(self._loop_clients):
                client.retire(target)


def _fewest_failures(targets: Iterable[Target]) -> list[Target]:
    return sorted(targets, key=lambda target: target.failures)


def _target(member: Identity, known: dict[str, Target]) -> Target:
    """The known target of a member, with its breaker and connections; a new one if it has moved or was restarted."""
    made = Target(member.name, parse_tcp(member.address), member.boot)
    target = known.get(member.name)
    return target if target is not None and (target.address, target.hello) == (made.address, made.hello) else made


def missing_replies(
    targets: Sequence[Target],
    replies: Sequence[Reply | ClusterStateError],
    wanted: type[Reply] | tuple[type[Reply], ...],
) -> dict[str, str]:
    """The names of the nodes that didn't send the wanted reply, and why."""
    return {
        target.name or str(target.address): (
            str(reply) if isinstance(reply, ClusterStateError) else f"{target} answered with {type(reply).__name__}"
        )
        for target, reply in zip(targets, replies, strict=True)
        if not isinstance(reply, wanted)
    }
