"""What a requester knows and decides: who owns a key, whom to ask for the view, whom to leave alone for now. Pure.

Times are monotonic seconds given by the caller.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.hrw import Rendezvous
from ..core.membership.messages import NO_VIEW, Identity, View
from ..exceptions import CircuitOpen, ClusterStateError
from ..wire.address import Address, parse_tcp
from ..wire.framing import frame
from ..wire.handshake import Hello
from ..wire.messages import GetView, Reply, ViewReply, encode
from ..wire.status import RequesterStats

VIEW_MAX_AGE = 1.0  # a view older than this is asked for again before the next operation
VIEW_MIN_AGE = 0.05  # but not more often than this while the nodes' views differ
FAILURES_TO_OPEN = 3
HALF_OPEN_AFTER = 0.5  # seconds in which a failing node costs nobody any time; then one may try
FIRST_TRY = 32  # the first such try may take this part of a deadline, each further one twice as long

MAX_DOUBTS = 64
MAX_SOURCES = 6  # nodes that are asked for one view, at most: a caller waits meanwhile
MAX_CONTACTS = 8  # nodes that are remembered of those that a node named which doesn't serve itself
MAX_WAITS = 65536  # exchanges between two requests for the view whose time is kept: more than a process can have
GET_VIEW = frame(encode(GetView()))


class CircuitBreaker:
    """Whether what fails again and again is left alone for now. Its `str()` names it."""

    __slots__ = ("failures", "retry_at", "tries", "why")

    def __init__(self) -> None:
        self.failures = 0
        self.retry_at = 0.0
        self.tries = 0  # since the breaker opened
        self.why = ""  # it failed last

    def check(self, now: float) -> float:
        """The share of a deadline that a call may take.

        Raises `CircuitOpen` while the breaker is open. When it half-opens, the first to come tries for all, and isn't
        made to wait long: a node that is near answers at once or not at all, and one that is far after a few tries.
        """
        if not self.is_open:
            return 1.0
        if now < self.retry_at:
            why = f": {self.why}" if self.why else ""
            raise CircuitOpen(f"{self} has failed {self.failures} times in a row and is left alone for now{why}")
        self.retry_at = now + HALF_OPEN_AFTER
        self.tries += 1
        return 1 / max(1, FIRST_TRY >> (self.tries - 1))

    @property
    def is_open(self) -> bool:
        """Whether it has failed so often that it is left alone."""
        return self.failures >= FAILURES_TO_OPEN

    def failed(self, now: float, why: str = "") -> bool:
        """Counts a failure. True when it is the one that opens the breaker."""
        self.failures += 1
        self.why = why
        self.retry_at = now + HALF_OPEN_AFTER
        return self.failures == FAILURES_TO_OPEN

    def answered(self) -> bool:
        """Forgets the failures. True when that closes the breaker."""
        was_open = self.is_open
        self.failures = self.tries = 0
        return was_open


class Target(CircuitBreaker):
    """One start of a node to talk to, and its circuit breaker. `pool` holds idle connections of the blocking client.

    Without a name it is whichever node answers at the address, without a boot id whichever start.
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


class RoutingTable:
    """What follows from one view. Never changed, only replaced: a thread works with the old or the new one.

    `local_serves`: the local node has said that it serves. If it doesn't, a member of its name is another node, or
    another start of it, and is reached by its own address.
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

    def ranking(self, key: bytes) -> list[Target]:
        """All nodes in the order in which they would own the key."""
        return [self.targets[name] for name in self._rendezvous.ranking(key)]

    def substitutes(self, key: bytes, local: Target) -> list[Target]:
        """Who counts a limit while the key's owner can't be reached, in this order.

        First the next in the ranking that hasn't failed us: so those who can't reach the owner count at one node, and
        at the one that owns the key if the owner is down. Then the local node.
        """
        ranking = self.ranking(key)
        heirs = [node for node in ranking[1:] if not node.failures]
        return [node for node in dict.fromkeys((*heirs[:1], local)) if node not in ranking[:1]]

    def group(self, keys: Sequence[bytes]) -> list[tuple[Target, list[bytes]]]:
        """The keys by owner; none when there is no owner."""
        groups: dict[Target, list[bytes]] = {}
        for key in keys:
            owner = self.owner(key)
            if owner is not None:
                groups.setdefault(owner, []).append(key)
        return list(groups.items())


@dataclass(frozen=True, slots=True)
class Learned:
    """What one answer brought.

    `taken`: it is the view now. `contacts`: nodes that serve, by the word of one that doesn't; one of them is to be
    asked. `unused`: targets that aren't needed any more, to be closed.
    """

    taken: bool
    contacts: list[Target] = field(default_factory=list)
    unused: list[Target] = field(default_factory=list)


class PendingStats:
    """What was counted and not told yet. A process's requesters share it: who asks for the view next tells it."""

    def __init__(self) -> None:
        self.tally = RequesterStats()

    def take(self) -> RequesterStats:
        taken, self.tally = self.tally, RequesterStats()
        return taken

    def put_back(self, taken: RequesterStats) -> None:
        """Nobody has heard of it."""
        self.tally = self.tally.plus(taken)


class Routing:
    """The view and what follows from it, for all threads of a process.

    `local` is the node of this host: it is asked for the view, and reached by its own socket when it owns a key.
    """

    def __init__(self, local: Address, untold: PendingStats | None = None) -> None:
        self.local = Target("", local)
        self.untold = untold or PendingStats()
        self.table = RoutingTable(NO_VIEW, "", {})
        self.epoch = NO_VIEW.epoch
        self.refresh_at = 0.0  # from then on the view is to be asked for before the next operation
        self._asked_at = 0.0
        self._contacts: dict[str, Target] = {}
        # Seconds that each exchange took since the view was last asked for. They are sorted once a second: at each
        # exchange that would cost three times as much as to keep them, 3 % of the exchange.
        self.waits: deque[float] = deque(maxlen=MAX_WAITS)

    def count_anew(self) -> None:
        """Forgets what was counted and not told yet, as in a forked child, whose parent will tell it."""
        self.untold.take()
        self.waits.clear()

    # -- keeping the view -----------------------------------------------------------------------------------

    def noticed(self, epoch: int, now: float) -> None:
        """A reply came with another epoch than ours: the view is to be asked for before long."""
        if epoch != self.epoch:
            self.refresh_at = min(self.refresh_at, max(now, self._asked_at + VIEW_MIN_AGE))

    def restarted(self, now: float) -> None:
        """A node has been restarted since the view was made: another view is to be asked for before long."""
        self.refresh_at = min(self.refresh_at, max(now, self._asked_at + VIEW_MIN_AGE))

    def failed(self, target: Target, now: float, why: str = "") -> bool:
        """Counts a failure of a call. True when it opens the breaker; then the local node is told before long."""
        self.untold.tally.failures += 1
        opened = target.failed(now, why)
        if opened and target is not self.local:
            self.refresh_at = min(self.refresh_at, now)
        return opened

    def view_request(self) -> tuple[bytes, RequesterStats]:
        """The request for the view, with the members that fail us and what was counted since the last one: that is to
        be put back if no node can have heard it. So of all who ask at once, each tells something else."""
        counted = self.untold.take()
        waits, self.waits = self.waits, deque(maxlen=MAX_WAITS)
        counted.add_latencies(list(waits))
        tally = None if counted == RequesterStats() else counted
        doubts = [name for name, target in self.table.targets.items() if target.is_open and target is not self.local]
        return frame(encode(GetView(doubts[:MAX_DOUBTS], tally))) if doubts or tally else GET_VIEW, counted

    def sources(self, now: float) -> list[Target]:
        """Whom to ask for the view, in this order: the local node, then others of the last view. Whoever asks appends
        the contacts that `learn` returns (see `also_ask`)."""
        self._asked_at = now
        if self.table.targets:
            self.refresh_at = now + HALF_OPEN_AFTER  # meanwhile the other threads go on with what we have
        others = [target for target in self.table.targets.values() if target is not self.local]
        return [self.local, *_best(others)[:2]]

    def learn(self, viewed: ViewReply, source: Target, now: float) -> Learned:
        """Takes in an answer.

        A view without the node that gives it is that of a node which joins or leaves, and may lack any number of
        members: it never replaces ours, it only says whom else to ask.
        """
        old = self.table
        serves = any(member.name == viewed.name for member in viewed.members)
        local = (viewed.name, serves) if source is self.local else (old.local_name, old.local_serves)
        known = {**self._contacts, **old.targets}
        if not serves:
            self.refresh_at = now + (HALF_OPEN_AFTER if old.targets else VIEW_MIN_AGE)
            members = [member for member in viewed.members if member.name != local[0]][:MAX_CONTACTS]
            self._contacts = {member.name: _target(member, known) for member in members}
            self._tabulate(old.view, *local, known)
            return Learned(False, _best(self._contacts.values()), self._unused(known))
        self.refresh_at = now + VIEW_MAX_AGE
        self._contacts = {}
        view = old.view if viewed.epoch == self.epoch else View(viewed.members, viewed.epoch)
        self._tabulate(view, *local, known)
        self.epoch = viewed.epoch
        return Learned(True, [], self._unused(known))

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

    def _unused(self, known: dict[str, Target]) -> list[Target]:
        kept = {self.local, *self.table.targets.values(), *self._contacts.values()}
        return [target for target in dict.fromkeys(known.values()) if target not in kept]


def also_ask(sources: list[Target], learned: Learned) -> None:
    """Appends the first two contacts that aren't among the sources, as far as there is room."""
    new = [target for target in learned.contacts if target not in sources]
    sources += new[: min(2, MAX_SOURCES - len(sources))]


def _best(targets: Iterable[Target]) -> list[Target]:
    return sorted(targets, key=lambda target: target.failures)


def _target(member: Identity, known: dict[str, Target]) -> Target:
    """The target that is known for a member, with its breaker and connections, or a new one if it has moved or was
    restarted."""
    made = Target(member.name, parse_tcp(member.address), member.boot)
    target = known.get(member.name)
    return target if target is not None and (target.address, target.hello) == (made.address, made.hello) else made


def named(target: Target, error: ClusterStateError) -> ClusterStateError:
    """The same error, with the name of the node that it concerns."""
    return type(error)(f"{target}: {error}")


def silence(
    targets: Sequence[Target],
    replies: Sequence[Reply | ClusterStateError],
    wanted: type[Reply] | tuple[type[Reply], ...],
) -> dict[str, str]:
    """Which nodes didn't give the wanted answer, by name, and why."""
    return {
        target.name or str(target.address): (
            str(reply) if isinstance(reply, ClusterStateError) else f"{target} answered with {type(reply).__name__}"
        )
        for target, reply in zip(targets, replies, strict=True)
        if not isinstance(reply, wanted)
    }
