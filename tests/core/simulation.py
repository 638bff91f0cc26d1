"""A cluster in one process: real `Membership` objects, a simulated bus, and a clock moved by hand.

Everything random comes from one seeded source, so a seed gives one trace. After every call of a node the
invariants are checked; a broken one raises `Violation`, which names the seed.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count, permutations, product
from random import Random

from django_clusterstate.core import membership as rules
from django_clusterstate.core.membership import Change, Membership, Outcome, Timings
from django_clusterstate.core.messages import GONE, SERVING, Heartbeat, Identity, State, View

TICK = 0.1
JITTER = 0.1
LEAVE_SECONDS = 2.0  # a leaving node serves on for so long
REFUSAL = (0.005, 0.05)  # from the end of a process until a peer's fresh dial is refused
ANSWERS = 20  # from one node to one peer in one second: more is a storm


class Violation(AssertionError):
    """An invariant is broken."""


@dataclass
class Bus:
    """What the network does to a message. `cut` holds the (sender, receiver) pairs whose messages vanish."""

    loss: float = 0.0
    delay: tuple[float, float] = (0.001, 0.005)
    duplicates: float = 0.0
    cut: set[tuple[str, str]] = field(default_factory=set)

    def split(self, *sides: Iterable[str]) -> None:
        """Cuts every way from one side to another."""
        for here, there in permutations([list(side) for side in sides], 2):
            self.cut.update(product(here, there))


@dataclass(eq=False)
class Node:
    """One start of a node, and what the checks remember of what it has seen."""

    name: str
    membership: Membership
    born: int
    running: bool = True
    paused: bool = False
    inbox: list[Heartbeat] = field(default_factory=list)
    held: list[Callable[["Node"], None]] = field(default_factory=list)  # timers that fired in a pause
    ticked: float = 0.0
    judges_from: float = float("-inf")  # it was stopped, and until then what was sent meanwhile may be unread
    view: View | None = None
    view_since: float = 0.0
    evidence: dict[bytes, float] = field(default_factory=dict)
    sequences: dict[bytes, int] = field(default_factory=dict)
    incarnations: dict[bytes, int] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)  # name: the latest start met
    left: set[bytes] = field(default_factory=set)


class Simulation:
    """Nodes on a bus. Acts happen now; `run` moves the clock. Every time is in seconds."""

    def __init__(self, seed: int, bus: Bus | None = None, membership: type[Membership] = Membership) -> None:
        self.seed, self.random, self.now = seed, Random(seed), 1000.0
        self.bus, self.timings = bus or Bus(), Timings()
        self.nodes: dict[str, Node] = {}  # the latest start of each name
        self.changes: list[tuple[float, str, Change]] = []
        self.false_downs: list[tuple[float, str, str]] = []  # when, who said it, of which running node
        self.detections: list[float] = []  # from a crash until a peer says down
        self._membership = membership
        self._starts: dict[bytes, Node] = {}  # by boot
        self._ended: dict[bytes, float] = {}
        self._epochs: dict[frozenset[Identity], int] = {}
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.trace = hashlib.blake2b(digest_size=16)  # of everything that happened

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running]

    def at(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._numbers), act))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = until

    def start(self, *names: str, weight: float = 1.0) -> None:
        for name in names:
            me = Identity(name, self.random.randbytes(16), f"{name}:4370", weight)
            node = Node(name, self._membership(me, self.timings, self.now), len(self._starts), ticked=self.now)
            self.nodes[name] = self._starts[me.boot] = node
        for name in names:
            self._beats(self.nodes[name])
            self._ticks(self.nodes[name])

    def crash(self, name: str, refused: bool = False) -> None:
        """Ends a process. `refused`: its host lives, so that peers who dial it are refused."""
        self._end(node := self.nodes[name])
        for peer in self.running:
            if refused:
                self.at(self.random.uniform(*REFUSAL), partial(self._dial, peer, node))

    def pause(self, name: str, seconds: float) -> None:
        node = self.nodes[name]
        if not node.paused:
            node.paused = True
            self.at(seconds, lambda: self.wake(node))

    def wake(self, node: Node) -> None:
        """Reads what came meanwhile, and only then runs the timers."""
        if not node.running or not node.paused:
            return
        node.paused = False
        inbox, held, node.inbox, node.held = node.inbox, node.held, [], []
        for beat in inbox:
            self._hear(node, beat)
        for timer in held:
            timer(node)

    def heal(self) -> None:
        """Ends every fault of the network, and every pause."""
        self.bus = Bus()
        for node in self.running:
            self.wake(node)

    def converge(self, seconds: float = 8.0, within: float = 3.0) -> float:
        """Heals, runs on, and returns how long it took until all views were one."""
        healed = self.now
        self.heal()
        self.run(seconds)
        want = View.of(n.membership.me for n in self.running if n.membership.state in SERVING)
        for node in self.running:
            self._hold(node.membership.view == want, f"{node.name} has another view {seconds:g} s after the heal")
        took = max((node.view_since for node in self.running), default=healed) - healed
        limit = within + self.timings.heartbeat * (1 + JITTER)
        self._hold(took <= limit, f"one view only {took:.3f} s after the heal")
        return max(took, 0.0)

    def _ticks(self, node: Node) -> None:
        if self._stopped(node, self._ticks):
            return
        self.at(self._about(TICK), lambda: self._ticks(node))
        late = self.now - node.ticked
        if late > rules.STALL:
            patience = self.timings.suspect_after
            node.judges_from = self.now + (self.timings.down_after if late >= patience else patience)
        node.ticked = self.now
        self._check(node, "tick", node.membership.tick(self.now), None)

    def _beats(self, node: Node) -> None:
        if self._stopped(node, self._beats):
            return
        self.at(self._about(self.timings.heartbeat), lambda: self._beats(node))
        self._broadcast(node)

    def _about(self, seconds: float) -> float:
        return seconds * self.random.uniform(1 - JITTER, 1 + JITTER)

    def leave(self, name: str) -> None:
        self._leave(self.nodes[name])

    def _leave(self, node: Node) -> None:
        if not self._stopped(node, self._leave) and node.membership.state not in {State.LEAVING, State.LEFT}:
            self._check(node, "leave", node.membership.leave(), None)
            self._broadcast(node)
            self.at(LEAVE_SECONDS, lambda: self._leave_done(node))

    def _leave_done(self, node: Node) -> None:
        if not self._stopped(node, self._leave_done):
            self._check(node, "leave done", node.membership.leave_done(), None)
            self._broadcast(node)
            self._end(node)

    def _dial(self, peer: Node, node: Node) -> None:
        cut = {(peer.name, node.name), (node.name, peer.name)} & self.bus.cut
        if peer.running and not peer.paused and not cut and not self.nodes[node.name].running:
            me = node.membership.me
            self._check(peer, "refused", peer.membership.refused(me.name, me.boot, self.now), me)

    def _stopped(self, node: Node, timer: Callable[[Node], None]) -> bool:
        if node.running and node.paused:
            node.held.append(timer)
        return node.paused or not node.running

    def _end(self, node: Node) -> None:
        node.running = False
        self._ended[node.membership.me.boot] = self.now

    def _broadcast(self, node: Node) -> None:
        beat = self._beat(node)
        for name in self.nodes:
            self._send(node.name, name, beat)

    def _beat(self, node: Node) -> Heartbeat:
        beat = node.membership.heartbeat(self.now)
        self._hold(len(beat.sightings) <= rules.SIGHTINGS, f"{node.name} names {len(beat.sightings)} members")
        return beat

    def _send(self, sender: str, receiver: str, beat: Heartbeat) -> None:
        for _ in range(2 if self.random.random() < self.bus.duplicates else 1):
            if (sender, receiver) not in self.bus.cut and self.random.random() >= self.bus.loss:
                self.at(self.random.uniform(*self.bus.delay), lambda: self._deliver(receiver, beat))

    def _deliver(self, receiver: str, beat: Heartbeat) -> None:
        node = self.nodes[receiver]
        if node.paused:
            node.inbox.append(beat)
        elif node.running:
            self._hear(node, beat)

    def _hear(self, node: Node, beat: Heartbeat) -> None:
        sender = beat.identity
        if beat.sequence > node.sequences.get(sender.boot, 0):
            node.sequences[sender.boot] = beat.sequence
            node.evidence[sender.boot] = self.now
        outcome = node.membership.heard(beat, self.now)
        if beat.state is State.LEFT:
            node.left.add(sender.boot)
        self._check(node, "heard", outcome, sender)
        if outcome.answer:
            self._answers[turn := (node.name, sender.name, int(self.now))] += 1
            self._hold(self._answers[turn] <= ANSWERS, f"{node.name} floods {sender.name} with answers")
            self._send(node.name, sender.name, self._beat(node))

    def _hold(self, true: bool, otherwise: str) -> None:
        if not true:
            raise Violation(f"{otherwise} (seed {self.seed}, at {self.now - 1000:.3f} s)")

    def _check(self, node: Node, call: str, outcome: Outcome, about: Identity | None) -> None:
        self.trace.update(f"{self.now:.6f} {node.name} {call} {about} {outcome}".encode())
        for change in outcome.changes:
            self.changes.append((self.now, node.name, change))
            self._check_change(node, call, change, about)
        if node.membership.view is not node.view:
            self._check_view(node)
        for name in node.membership.members if call == "tick" or about is None else (about.name,):
            self._check_incarnation(node, name)
        if call == "tick":
            self._check_tables(node)

    def _check_change(self, node: Node, call: str, change: Change, about: Identity | None) -> None:
        who = change.identity
        story = f"{node.name} says {change.old} -> {change.new} of {who.name} after '{call}'"
        self._hold(change.old is not State.LEFT, f"{story}: whoever left stays away")
        node.newest[who.name] = max(node.newest.get(who.name, 0), self._starts[who.boot].born)
        if who.name == node.name:
            return
        if change.new is State.LEFT:
            node.left.add(who.boot)
        if change.new not in GONE:
            return
        if call == "tick":
            silence = self.now - node.evidence[who.boot]
            self._hold(silence >= self.timings.suspect_after, f"{story}: it was heard {silence:.3f} s ago")
            self._hold(self.now >= node.judges_from, f"{story}: it has just woken itself")
        else:
            self._hold(about is not None and about.name == who.name, f"{story}: that was about another")
        if change.new is State.DOWN and call != "heard":
            ended = self._ended.get(who.boot)
            if ended is None:
                self.false_downs.append((self.now, node.name, who.name))
            else:
                self.detections.append(self.now - ended)

    def _check_view(self, node: Node) -> None:
        node.view, node.view_since = node.membership.view, self.now
        epoch = self._epochs.setdefault(frozenset(node.view.members), node.view.epoch)
        self._hold(epoch == node.view.epoch, f"{node.name} has another epoch for an equal view")
        for who in node.view.members:
            newest = node.newest.get(who.name, 0) <= self._starts[who.boot].born
            self._hold(newest, f"a replaced start of {who.name} serves again at {node.name}")
            self._hold(who.boot not in node.left, f"{who.name} has left, but serves again at {node.name}")

    def _check_incarnation(self, node: Node, name: str) -> None:
        me, member = node.membership, node.membership.members.get(name)
        found = [(me.me.boot, me.incarnation)] + ([(member.identity.boot, member.incarnation)] if member else [])
        for boot, incarnation in found:
            last, node.incarnations[boot] = node.incarnations.get(boot, 0), incarnation
            self._hold(incarnation >= last, f"the incarnation of {name} falls at {node.name}")
            truth = self._starts[boot].membership.incarnation
            self._hold(incarnation <= truth, f"{node.name} raises the incarnation of {name}")

    def _check_tables(self, node: Node) -> None:
        members, retired = node.membership.members, node.membership._retired
        gone = sum(member.state in GONE for member in members.values())
        bounded = gone <= rules.TOMBSTONES and len(retired) <= rules.RETIRED_BOOTS
        self._hold(bounded and len(members) < len(self.nodes), f"a table of {node.name} grows without bound")
