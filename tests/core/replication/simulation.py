"""A simulated cluster that also holds data: the nodes of the membership's simulation, each with real `Replication`.

Requesters on each host set, delete, count, lock and hit limits meanwhile, by the views that they have. What they were
answered is compared with what a single memory would have answered.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from unittest import mock

from django_clusterstate.core import rendezvous_hashing
from django_clusterstate.core.limits.algorithms import Algorithm, LimitState, Rule, decide
from django_clusterstate.core.limits.copies import merged, shifted
from django_clusterstate.core.membership.heartbeat import Identity, MemberState, View
from django_clusterstate.core.membership.members import Effects
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.core.rendezvous_hashing import Rendezvous, slot_of
from django_clusterstate.core.replication import outbox
from django_clusterstate.core.replication.messages import Ack, Message, Record
from django_clusterstate.core.replication.replication import Replication
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.core.replication.tombstones import Tombstones
from tests.core.membership.simulation import Bus, Node, Simulation

SLOTS = 64
FLUSH = 0.01  # seconds between two ticks of the copies
STEP = 0.002  # seconds between two steps of a tick, at most
OFFSET = 1e6  # seconds by which the clocks of nodes differ, at most: each counts from its machine's start
PREPARE = 0.2  # seconds for which a node computes what follows from members that come and go, at most
DRAIN = 10.0
DEADLINE = 1.0  # seconds that a requester waits
STALL = 5.0  # seconds for which nothing is acknowledged until a connection is lost
LIMIT = 20
VALUES, LIMITS = 0, 1


def rule_of(key: bytes) -> Rule:
    """The rule of a limit: one algorithm after the other."""
    return Rule(Algorithm(key[-1] % len(Algorithm)), LIMIT, 36_000.0)


@contextmanager
def few_slots() -> Iterator[None]:
    """64 slots, which are enough for some hundred keys, in fills of 8: so a peer gets many, as it does of all slots."""
    hashing = mock.patch.multiple(rendezvous_hashing, SLOTS=SLOTS, _MASK=SLOTS - 1)
    with hashing, mock.patch.object(outbox, "FILL_SLOTS", SLOTS // 8):
        yield


@dataclass(slots=True)
class Cell:
    version: int
    value: Any
    expires: float | None
    generation: int


class Cells:
    """A store of values, or of limits (which merge)."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.merges = kind == LIMITS
        self.generation = 0
        self.cells: dict[bytes, Cell] = {}
        self.tombstones = Tombstones()
        self.cleared: dict[bytes, int] = {}

    @property
    def floor(self) -> int:
        return self.tombstones.floor

    def slot(self, key: bytes) -> int:
        return slot_of(key)

    def _clear_version(self, key: bytes) -> int:
        return self.cleared.get(key.partition(b":")[0], 0)

    def version(self, key: bytes) -> int:
        cell = self.cells.get(key)
        known = max(self.tombstones.version(key), self._clear_version(key))
        return known if cell is None else max(cell.version, known)

    def live(self, key: bytes, now: float, lost: int) -> Cell | None:
        cell = self.cells.get(key)
        if cell is None or cell.generation < lost or cell.version <= self._clear_version(key):
            return None
        return None if cell.expires is not None and cell.expires <= now else cell

    def record(self, key: bytes, now: float) -> Record:
        cell = self.cells.get(key)
        if cell is None or cell.version <= self._clear_version(key):
            return Record(self.kind, key, self.version(key))
        if cell.expires is not None and cell.expires <= now:
            return Record(self.kind, key, self.version(key))
        ttl = None if cell.expires is None else cell.expires - now
        value = self._shifted(key, cell.value, -now)
        return Record(self.kind, key, cell.version, value, ttl)

    def check(self, record: Record) -> None:
        pass

    def put(self, record: Record, now: float) -> None:
        if record.value is None:
            self.cells.pop(record.key, None)
            self.tombstones.add(record.key, record.version, now)
        else:
            self.tombstones.discard(record.key)
            value = self._shifted(record.key, record.value, now)
            expires = None if record.ttl is None else now + record.ttl
            self.cells[record.key] = Cell(record.version, value, expires, self.generation)

    def confirm(self, key: bytes) -> None:
        if key in self.cells:
            self.cells[key].generation = self.generation

    def merged(self, record: Record, now: float) -> Record | None:
        cell = self.cells.get(record.key)
        if cell is None:
            return None
        both = merged(self.rule(record.key), self._shifted(record.key, record.value, now), cell.value, now)
        if both == cell.value and record.version < cell.version:
            return None
        return Record(self.kind, record.key, 0, self._shifted(record.key, both, -now), both[0] - now)

    def _shifted(self, key: bytes, value: Any, seconds: float) -> Any:
        return shifted(self.rule(key).algorithm, value, seconds) if self.merges else value

    def rule(self, key: bytes) -> Rule:
        return rule_of(key)

    def drop(self, key: bytes) -> None:
        self.cells.pop(key, None)

    def forget(self, slots: SlotSet) -> None:
        for keys in self.keys(slots):
            for key in keys:
                del self.cells[key]
        self.tombstones.forget(lambda key: self.slot(key) in slots)

    def keys(self, slots: SlotSet) -> Iterable[list[bytes]]:
        yield [key for key in self.cells if self.slot(key) in slots]

    def clear(self, namespace: bytes, version: int, now: float) -> None:
        self.cleared[namespace] = max(version, self.cleared.get(namespace, 0))
        for key in [key for key in self.cells if self.cells[key].version <= self._clear_version(key)]:
            del self.cells[key]


@dataclass(frozen=True, slots=True)
class Request:
    name: str
    key: bytes
    value: Any = None


def kind_of(request: Request) -> int:
    return LIMITS if request.name in ("hit", "reset") else VALUES


@dataclass(slots=True)
class Forwarded:
    """A request that a node sends on, and who waits for the reply."""

    request: Request
    hops: int
    reply: Callable[[Any], None]


UNAVAILABLE = object()


@dataclass(eq=False, slots=True)
class Pipe:
    """A connection, in order each way. `out`: from the node that has dialed."""

    dialer: Node
    acceptor: Node
    broken: bool = False
    out: deque[Any] = field(default_factory=deque)
    back: deque[Any] = field(default_factory=deque)
    due_out: float = 0.0
    due_back: float = 0.0
    stalled: float = 0.0
    waiting: dict[int, Forwarded] = field(default_factory=dict)


class Data:
    """What a node holds."""

    def __init__(self, sim: "DataSimulation", node: Node) -> None:
        self.node = node
        self._sim = sim
        self._offset = Random(node.boot).uniform(0, OFFSET)
        self.stores = self._make_stores()
        self.replication = sim.make(node.membership.me, self.stores, partial(sim.transmit, node), self.now, sim.backups)
        self.seen: tuple[int, frozenset[bytes]] = (0, frozenset())
        self.change: tuple[View, list[Identity]] | None = None  # of the members, which the node takes in a little later
        self.prepared = False

    @property
    def now(self) -> float:
        """The time on the clock of this node."""
        return self._sim.now + self._offset

    def _make_stores(self) -> list[Any]:
        return [Cells(VALUES), Cells(LIMITS)]

    def live(self, now: float) -> list[tuple[int, bytes, int, Any]]:
        """Kind, key, version and value of all entries that are present. The value of a limit is None."""
        return [
            (store.kind, key, cell.version, cell.value if store.kind == VALUES else None)
            for store in self.stores
            for key in store.cells
            if (cell := store.live(key, now, self.replication.valid_since[store.slot(key)])) is not None
        ]

    def execute(self, request: Request, now: float) -> Any:
        """The reply of the node that executes a request."""
        replication, kind = self.replication, kind_of(request)
        store, key = self.stores[kind], request.key
        cell = store.live(key, now, replication.valid_since[store.slot(key)])
        value = None if cell is None else cell.value
        if request.name == "get":
            return value
        version = replication.clock.next(now)
        generation = replication.generation

        def put(new: Any, ttl: float | None = None) -> None:
            if new is None:
                store.cells.pop(key, None)
                store.tombstones.add(key, version, now)
            else:
                store.tombstones.discard(key)
                store.cells[key] = Cell(version, new, None if ttl is None else now + ttl, generation)
            replication.changed(kind, key)

        argument = rule_of(key) if request.name == "hit" else request.value
        reply, new, ttl = RESULTS[request.name](value, argument, now)
        if new is not UNCHANGED:
            put(new, ttl)
        return reply


UNCHANGED = object()

# By request: its reply, the new value of the key (None: deleted), and the seconds until it expires.
RESULTS: dict[str, Callable[[Any, Any, float], tuple[Any, Any, float | None]]] = {
    "set": lambda old, new, now: (True, new, None),
    "touch": lambda old, new, now: (old is not None, UNCHANGED if old is None else old, new),
    "delete": lambda old, new, now: (old is not None, None, None),
    "incr": lambda old, new, now: ((old or 0) + 1, (old or 0) + 1, None),
    "add": lambda old, new, now: (old is None, new if old is None else UNCHANGED, None),
    "unlock": lambda old, new, now: (old == new, None if old == new else UNCHANGED, None),
    "hit": lambda old, new, now: _hit(new, old, now),
    "reset": lambda old, new, now: (True, None, None),
}


def _hit(rule: Rule, state: LimitState | None, now: float) -> tuple[bool, Any, float | None]:
    decision, after, _ = decide(rule, state, 1, now)
    if not decision.allowed or after is None:
        return False, UNCHANGED, None
    return True, after, after[0] - now


class DataSimulation(Simulation):
    """Nodes that hold data. `request()` is what a requester on a host does."""

    membership: type[Membership] = Membership
    forwards = True  # a variant executes whatever it is asked
    backups = 1
    holds: type[Data] = Data

    def __init__(self, seed: int, bus: Bus | None = None, make: type[Replication] = Replication) -> None:
        super().__init__(seed, bus, self.membership)
        self.make = make
        self.data: dict[bytes, Data] = {}
        self.pipes: dict[tuple[bytes, bytes], Pipe] = {}
        self.views: dict[str, View] = {}  # of the requesters of each host
        self.hashings: dict[int, Rendezvous] = {}
        self.messages: Counter[str] = Counter()
        self.unreachable: set[tuple[str, str]] = set()  # a host, and a node that its requesters can't reach
        self._ids = iter(range(10**12))
        self._steps = Random(seed)

    # -- nodes ----------------------------------------------------------------------------------------------

    def start(self, *hosts: str, weight: float = 1.0, name: str = "") -> None:
        for host in hosts:
            me = Identity(name or host, self.random.randbytes(16), f"{host}:4370", weight)
            membership = self._membership(me, self.timings, self.now, must_be_reached=True, rejoins=True)
            membership.joining.filled = False
            node = Node(host, membership, len(self._instances), self.now, ticked=self.now)
            self.nodes[host] = self._instances[me.boot] = node
            self._namesakes[me.name].append(node)
            self.data[me.boot] = self.holds(self, node)
        for host in hosts:
            self._beats(self.nodes[host])
            self._ticks(self.nodes[host])
            self._flushes(self.nodes[host])

    def crash(self, name: str, refused: bool = True) -> None:
        node = self.nodes[name]
        super().crash(name, refused)
        for pipe in list(self.pipes.values()):
            if node in (pipe.dialer, pipe.acceptor):
                if refused:
                    self.at(self.random.uniform(0.0005, 0.002), partial(self._break, pipe))
                else:
                    self.at(STALL, partial(self._break, pipe))

    def leave(self, name: str) -> None:
        node = self.nodes[name]
        self._update(node)
        data = self.data[node.boot]
        data.replication.leave(DRAIN, data.now)

    def _leave_done(self, node: Node) -> None:
        if self._stopped(node, self._leave_done):
            return
        leaver = self.data[node.boot].replication.leaver
        if leaver is not None and not leaver.done:
            self.at(FLUSH, lambda: self._leave_done(node))
            return
        super()._leave_done(node)
        for pipe in list(self.pipes.values()):
            if node in (pipe.dialer, pipe.acceptor):
                self.at(self.random.uniform(0.0005, 0.002), partial(self._break, pipe))

    def _flushes(self, node: Node) -> None:
        if self._stopped(node, self._flushes):
            return
        data, membership = self.data[node.boot], node.membership
        replication = data.replication
        if (data.change or replication.plan_due) and not data.prepared:
            data.prepared = True
            self._prepares(node, self.now + self._steps.uniform(0, PREPARE))
            return
        data.prepared = False
        self._update(node)
        self._break_forgotten(node)
        replication.joiner.damped = membership.joining.is_damped(membership.members, self.now)
        self._go_on(replication.tick(data.now), node)
        leaver = replication.leaver
        if leaver is not None and leaver.may_leave and node.membership.state is MemberState.ALIVE:
            self._leave(node)

    def _prepares(self, node: Node, until: float) -> None:
        """Computes, and sends what has changed meanwhile."""
        if self._stopped(node, lambda _: self._prepares(node, until)):
            return
        data = self.data[node.boot]
        for _ in data.replication.send_changes(data.now):
            pass
        if self.now >= until:
            self._flushes(node)
        else:
            self.at(FLUSH, lambda: self._prepares(node, until))

    def _break_forgotten(self, node: Node) -> None:
        """Peers that were gone for a moment are connected again."""
        outboxes = self.data[node.boot].replication.outboxes
        for pipe in list(self.pipes.values()):
            if pipe.dialer is node and not outboxes.is_open(pipe.acceptor.boot):
                self._break(pipe)

    def _update(self, node: Node) -> None:
        data = self.data[node.boot]
        if data.change is not None:
            change, data.change = data.change, None
            data.replication.update(*change, data.now)
        self._note_progress(node)

    def _note_progress(self, node: Node) -> None:
        data = self.data[node.boot]
        node.membership.joining.filled = data.change is None and data.replication.joiner.may_serve

    def _go_on(self, steps: Iterator[None], node: Node) -> None:
        """Makes the next step; between two, others may act."""
        data = self.data[node.boot]
        data.replication.outboxes.now = data.now
        more = next(steps, self) is None
        self._note_progress(node)
        if more:
            self.at(self._steps.uniform(0, STEP), lambda: self._step(steps, node))
        else:
            self.at(self._about(FLUSH), lambda: self._flushes(node))

    def _step(self, steps: Iterator[None], node: Node) -> None:
        if not self._stopped(node, lambda _: self._step(steps, node)):
            self._go_on(steps, node)

    def _check(self, node: Node, call: str, effects: Effects, about: Identity | None) -> None:
        super()._check(node, call, effects, about)
        data, membership = self.data[node.boot], node.membership
        if effects.declared_down:
            self._update(node)
            data.replication.declared_down(data.now)
        joining = [m.identity for m in membership.members.values() if m.state is MemberState.JOINING]
        seen = membership.view.epoch, frozenset(identity.boot for identity in joining)
        if seen != data.seen:
            data.seen = seen
            data.change = membership.view, joining
            if not data.replication.placement.boots:
                self._update(node)
        if effects.winners:
            self._update(node)
            data.replication.yield_to(effects.winners, data.now)
        self._note_progress(node)
        for change in effects.changes:
            if change.new is MemberState.DOWN:
                pipe = self.pipes.get((node.boot, change.identity.boot))
                if pipe is not None:
                    self._break(pipe)

    # -- connections ----------------------------------------------------------------------------------------

    def _complete_handshake(self, node: Node, to: Node) -> None:
        super()._complete_handshake(node, to)
        if (node.boot, to.boot) not in self.pipes and node.running and to.running:
            self.pipes[node.boot, to.boot] = Pipe(node, to)
            data = self.data[node.boot]
            data.replication.opened(to.boot, data.now)

    def _break(self, pipe: Pipe) -> None:
        if pipe.broken:
            return
        pipe.broken = True
        self.pipes.pop((pipe.dialer.boot, pipe.acceptor.boot), None)
        pipe.dialer.links.pop(pipe.acceptor.boot, None)
        if pipe.dialer.running:
            self.data[pipe.dialer.boot].replication.closed(pipe.acceptor.boot)
            for forwarded in pipe.waiting.values():
                forwarded.reply(UNAVAILABLE)
        if pipe.acceptor.running:
            self.data[pipe.acceptor.boot].replication.disconnected(pipe.dialer.boot)
        if pipe.dialer.running and pipe.acceptor.running:
            self.at(0.05, partial(self._link, pipe.dialer, pipe.acceptor))

    def transmit(self, node: Node, boot: bytes, message: Message) -> None:
        """Sends a message of `Replication`: an `Ack` on the connection that it answers."""
        self.messages[type(message).__name__] += 1
        if isinstance(message, Ack):
            pipe = self.pipes.get((boot, node.boot))
            if pipe is not None:
                self._post_back(pipe, message)
        else:
            pipe = self.pipes.get((node.boot, boot))
            if pipe is not None:
                self._post_out(pipe, message)

    def _post_out(self, pipe: Pipe, message: Any) -> None:
        pipe.out.append(message)
        pipe.due_out = max(pipe.due_out, self.now + self._delay(pipe))
        self.at(pipe.due_out - self.now, partial(self._arrive, pipe, False))

    def _post_back(self, pipe: Pipe, message: Any) -> None:
        pipe.back.append(message)
        pipe.due_back = max(pipe.due_back, self.now + self._delay(pipe))
        self.at(pipe.due_back - self.now, partial(self._arrive, pipe, True))

    def _delay(self, pipe: Pipe) -> float:
        slow = self.slow.get(pipe.dialer.name, 0.0) + self.slow.get(pipe.acceptor.name, 0.0)
        return self.random.uniform(*self.bus.delay) + slow

    def _arrive(self, pipe: Pipe, back: bool) -> None:
        """The oldest message in one direction arrives, unless the network or the receiver holds it up."""
        queue, to = (pipe.back, pipe.dialer) if back else (pipe.out, pipe.acceptor)
        if pipe.broken or not queue or not to.running:
            return
        if to.paused or self._is_cut(pipe.dialer, pipe.acceptor):
            pipe.stalled = pipe.stalled or self.now
            if self._is_cut(pipe.dialer, pipe.acceptor) and self.now - pipe.stalled > STALL:
                self._break(pipe)
            else:
                self.at(0.02, partial(self._arrive, pipe, back))
            return
        pipe.stalled = 0.0
        message = queue.popleft()
        if isinstance(message, Forwarded):
            self.serve(to, message.request, message.hops, message.reply)
        elif back and not isinstance(message, Ack):
            number, value = message
            forwarded = pipe.waiting.pop(number, None)
            if forwarded is not None:
                forwarded.reply(value)
        else:
            peer = pipe.acceptor if back else pipe.dialer
            data = self.data[to.boot]
            data.replication.receive(peer.boot, message, data.now)

    # -- requests -------------------------------------------------------------------------------------------

    def serve(self, node: Node, request: Request, hops: int, reply: Callable[[Any], None]) -> None:
        """What a node does with a request."""
        data = self.data[node.boot]
        replication = data.replication
        merges = kind_of(request) == LIMITS
        is_open = replication.outboxes.is_open
        boot = replication.destination(slot_of(request.key), hops, merges, is_open) if self.forwards else node.boot
        if boot is None:
            reply(UNAVAILABLE)
        elif boot == node.boot:
            reply(data.execute(request, data.now))
        else:
            self._forward(node, boot, request, hops, reply)

    def _forward(self, node: Node, to: bytes, request: Request, hops: int, reply: Callable[[Any], None]) -> None:
        self.messages["forwarded"] += 1
        data = self.data[node.boot]
        if not data.replication.flush_to(to, data.now):
            reply(UNAVAILABLE)
            return
        pipe = self.pipes[node.boot, to]
        number = next(self._ids)

        def answer(value: Any) -> None:
            if not pipe.broken:
                self._post_back(pipe, (number, value))

        pipe.waiting[number] = Forwarded(request, hops, reply)
        self._post_out(pipe, Forwarded(request, hops + 1, answer))

    def request(self, host: str, request: Request, on_reply: Callable[[Any], None]) -> None:
        """Sends a request of a process on this host, by the view that it has. `on_reply` gets `UNAVAILABLE` if no node
        answers in time: it may have been executed, or not."""
        view = self.views.get(host)
        if view is None or not view.members:
            self._refresh(host)
            view = self.views.get(host)
        if view is None or not view.members:
            on_reply(UNAVAILABLE)
            return
        self._try(host, view, request, self._hashing_of(view).ranking(request.key)[:2], on_reply)

    def _try(self, host: str, view: View, request: Request, names: list[str], on_reply: Callable[[Any], None]) -> None:
        if not names:
            on_reply(UNAVAILABLE)
            return
        owner = next(member for member in view.members if member.name == names[0])
        node = self.nodes[owner.address.partition(":")[0]]  # whichever instance listens there
        if not node.running or (host, node.name) in self.unreachable:
            self._refresh(host)
            self.at(0.001, partial(self._try, host, view, request, names[1:], on_reply))
            return
        answered = False

        def answer(epoch: int, value: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                if epoch != view.epoch:
                    self._refresh(host)
                on_reply(value)

        def expire() -> None:
            answer(view.epoch, UNAVAILABLE)
            self._refresh(host)

        def arrive() -> None:
            if not node.running:
                answer(0, UNAVAILABLE)
            elif node.paused:
                node.held.append(lambda _: arrive())
            else:
                self.serve(node, request, 0, replied)

        def replied(value: Any) -> None:
            delay = self.random.uniform(*self.bus.delay)
            self.at(delay, lambda: answer(node.membership.view.epoch, value))

        self.at(self.random.uniform(*self.bus.delay), arrive)
        self.at(DEADLINE, expire)

    def _refresh(self, host: str) -> None:
        """The processes of a host get the view of its node, or of another where that doesn't serve."""
        nodes = [self.nodes[host], *self.running] if host in self.nodes else self.running
        for node in nodes:
            if node.running and not node.paused and node.membership.state is MemberState.ALIVE:
                self.views[host] = node.membership.view
                return

    def _hashing_of(self, view: View) -> Rendezvous:
        hashing = self.hashings.get(view.epoch)
        if hashing is None:
            hashing = self.hashings[view.epoch] = Rendezvous({m.name: m.weight for m in view.members})
        return hashing

    # -- what holds once all is settled ---------------------------------------------------------------------

    def settle(self, seconds: float = 20.0) -> float:
        """Runs until all nodes are synced; returns the seconds that it took."""
        start = self.now
        while not all(self.data[node.boot].replication.synced for node in self.running):
            self._hold(self.now - start < seconds, f"not synced: {self.unsynced()}")
            self.run(0.05)
        self.run(0.2)
        return self.now - start

    def unsynced(self) -> str:
        parts = []
        for node in self.running:
            replication = self.data[node.boot].replication
            if not replication.synced:
                missing = {
                    self._instances[boot].name: len(box.wanted - box.filled)
                    for boot, box in replication.outboxes.by_boot.items()
                    if box.wanted - box.filled
                }
                parts.append(f"{node.name} {node.membership.state} lacks {missing}")
        return "; ".join(parts)

    def check_copies(self) -> None:
        """Each live key is on its owner and its backup, if there are any, equal, and nowhere else."""
        names = {node.membership.me.name: self.data[node.boot] for node in self.running}
        hashing = Rendezvous(dict.fromkeys(names, 1.0))
        found: defaultdict[tuple[int, bytes], dict[str, tuple[int, Any]]] = defaultdict(dict)
        for name, data in names.items():
            for kind, key, version, value in data.live(data.now):
                found[kind, key][name] = version, value
        for (kind, key), copies in found.items():
            slot = next(iter(names.values())).stores[kind].slot(key)
            holders = {name for name in hashing.holders(slot)[: 1 + self.backups] if name is not None}
            self._hold(copies.keys() == holders, f"key {key!r} is on {sorted(copies)}, not on {sorted(holders)}")
            self._hold(len(set(copies.values())) == 1, f"copies of {key!r} of kind {kind} differ: {copies}")
