"""A cluster in one process: real `Membership` objects, a simulated bus, and a clock moved by hand.

Everything random comes from one seeded source, so a seed gives one trace. After every call of a node the
invariants are checked; a broken one raises `Violation`, which names the seed.
"""

import hashlib
import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, permutations, product, takewhile
from math import ceil
from random import Random

from django_clusterstate.core.membership import gossip
from django_clusterstate.core.membership import membership as rules
from django_clusterstate.core.membership.heartbeat import GONE, SERVING, Heartbeat, Identity, MemberState, View
from django_clusterstate.core.membership.joining import WaitReason
from django_clusterstate.core.membership.members import TOMBSTONES, Change, Effects, Member, Timings
from django_clusterstate.core.membership.membership import TICK, Membership

JITTER = 0.1
LEAVE_SECONDS = 2.0  # a leaving node serves on for so long
REFUSAL = (0.005, 0.05)  # from the end of a process until a peer's fresh dial is refused
RETRANSMISSION = 1.0  # seconds after a cut until TCP tries again, at most
RENEW = 1.0  # seconds after which a node notes which links are open
ANSWERS = 20  # from one node to one peer in one second: more is a storm
NOTHING = Effects()


class Violation(AssertionError):
    """An invariant is broken."""


@dataclass
class Bus:
    """What the network does to a message. `cut` holds the (sender, receiver) pairs whose messages vanish, `undialed`
    the (dialer, host) pairs that can't make a link: an address that others don't reach. `faulty`: by sender, the share
    of its messages that is lost. `keeps`: the share of what is cut that comes in the end, as over TCP, before what is
    sent by then.

    A node reads once in `grain` seconds all that has come to it: that halves the cost of a large cluster, since what
    belongs to one node is then used together, and so is found in the processor's cache.
    """

    loss: float = 0.0
    delay: tuple[float, float] = (0.001, 0.005)
    duplicates: float = 0.0
    grain: float = 0.0
    cut: set[tuple[str, str]] = field(default_factory=set)
    undialed: set[tuple[str, str]] = field(default_factory=set)
    faulty: dict[str, float] = field(default_factory=dict)
    keeps: float = 0.0
    kept: defaultdict[tuple[str, str], list[Heartbeat]] = field(default_factory=lambda: defaultdict(list))
    late: dict[tuple[str, str], float] = field(default_factory=dict)  # until when such a way brings what was kept

    def split(self, *sides: Iterable[str]) -> None:
        """Cuts every way from one side to another."""
        for here, there in permutations([list(side) for side in sides], 2):
            self.cut.update(product(here, there))


@dataclass(eq=False, slots=True)
class Node:
    """An instance of a node, and what the checks remember of what it has seen. `name` is that of its host, which is its
    own as well, unless two hosts are given one."""

    name: str
    membership: Membership
    born: int
    begun: float
    running: bool = True
    paused: bool = False
    inbox: list[Heartbeat] = field(default_factory=list)
    held: list[Callable[["Node"], None]] = field(default_factory=list)  # timers that fired in a pause
    ticked: float = 0.0
    renews_at: float = 0.0
    judges_from: float = float("-inf")  # it was stopped, and until then what was sent meanwhile may be unread
    view: View | None = None
    view_since: float = 0.0
    evidence: dict[bytes, float] = field(default_factory=dict)
    awake: dict[bytes, float] = field(default_factory=dict)  # the same, later by each pause of this node since then
    sequences: dict[bytes, int] = field(default_factory=dict)
    incarnations: dict[bytes, int] = field(default_factory=dict)
    replaced: set[bytes] = field(default_factory=set)  # instances of a name before one that was met
    left: set[bytes] = field(default_factory=set)
    links: dict[bytes, "Node"] = field(default_factory=dict)  # by boot: who answers at the addresses that it dialed
    dialing: set[bytes] = field(default_factory=set)

    @property
    def boot(self) -> bytes:
        return self.membership.me.boot


class Simulation:
    """Nodes on a bus. Acts happen now; `run` moves the clock. Every time is in seconds."""

    rejoins = False

    def __init__(self, seed: int, bus: Bus | None = None, membership: type[Membership] = Membership) -> None:
        self.seed, self.random, self.now = seed, Random(seed), 1000.0
        self.bus, self.timings = bus or Bus(), Timings()
        self.nodes: dict[str, Node] = {}  # the latest instance of each name
        self.changes: list[tuple[float, str, Change]] = []
        self.view_changes: list[tuple[float, str, int]] = []  # when, who has a new one, and its epoch
        self.recorded: deque[Heartbeat] = deque(maxlen=500)  # what was sent to everybody
        self.superseded = 0  # instances whose process has begun another
        self.false_downs: list[tuple[float, str, str]] = []  # when, who said it, of which running node
        self.detections: list[float] = []  # from a crash until a peer says down
        self.slow: dict[str, float] = {}  # by how much more everything that this node sends or hears is late
        self.sent = self.named = self.heard = 0  # messages, members named in them, messages heard from others
        self._membership = membership
        self._instances: dict[bytes, Node] = {}  # by boot
        self._ended: dict[bytes, float] = {}
        self._namesakes: defaultdict[str, list[Node]] = defaultdict(list)  # all instances of a name
        self._epochs: dict[int, int] = {}  # by the hash of who serves: a thousand nodes have a million views
        self._answers: Counter[tuple[str, str]] = Counter()  # in this second
        self._second = 0
        self._queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self._numbers = count()
        self.trace = hashlib.blake2b(digest_size=16)  # of everything that happened

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running]

    def at(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, 0, next(self._numbers), act))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, _, act = heapq.heappop(self._queue)
            act()
        self.now = until

    def start(self, *hosts: str, weight: float = 1.0, name: str = "") -> None:
        """Starts a node on each host, with the name of its host or this one."""
        for host in hosts:
            me = Identity(name or host, self.random.randbytes(16), f"{host}:4370", weight)
            membership = self._membership(me, self.timings, self.now, must_be_reached=True, rejoins=self.rejoins)
            node = Node(host, membership, len(self._instances), self.now, ticked=self.now)
            self.nodes[host] = self._instances[me.boot] = node
            self._namesakes[me.name].append(node)
        for host in hosts:
            self._beats(self.nodes[host])
            self._ticks(self.nodes[host])

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
        kept = self.bus.kept
        self.bus = Bus()
        for way, beats in kept.items():
            self.bus.late[way] = self.now + self.random.uniform(0, RETRANSMISSION)
            for beat in beats:
                self._post(self.bus.late[way], way[1], beat)
        self.slow.clear()
        for node in self.running:
            self.wake(node)

    def converge(self, seconds: float = 8.0, within: float = 3.0) -> float:
        """Heals, runs on, and returns how long it took until all views were one."""
        healed = self.now
        self.heal()
        self.run(seconds)
        want = View.of(n.membership.me for n in self.running if n.membership.state in SERVING)
        members = [node for node in self.running if not self._has_no_name(node)]
        for node in members:
            self._hold(node.membership.view == want, f"{node.name} has another view {seconds:g} s after the heal")
        took = max((node.view_since for node in members), default=healed) - healed
        limit = within + self.timings.heartbeat * (1 + JITTER)
        self._hold(took <= limit, f"one view only {took:.3f} s after the heal")
        return max(took, 0.0)

    def _has_no_name(self, node: Node) -> bool:
        """Whether it doesn't serve since another node has its name."""
        membership = node.membership
        return membership.state is MemberState.JOINING and membership.wait_reason(self.now) is WaitReason.NAME_TAKEN

    def _ticks(self, node: Node) -> None:
        if self._stopped(node, self._ticks):
            return
        self.at(self._about(TICK), lambda: self._ticks(node))
        late = self.now - node.ticked
        if late > TICK + rules.STALL:
            patience = self.timings.suspect_after
            node.judges_from = self.now + (self.timings.down_after if late >= patience else patience)
            node.awake = {boot: min(self.now, heard + late) for boot, heard in node.awake.items()}
        node.ticked = self.now
        if self.now >= node.renews_at:
            node.renews_at = self.now + RENEW
            self._renew_links(node)
        self._check(node, "tick", node.membership.tick(self.now), None)

    def _renew_links(self, node: Node) -> None:
        for boot, peer in list(node.links.items()):
            if not peer.running:
                del node.links[boot]
            elif not self._is_cut(node, peer):
                node.membership.still_linked(boot, self.now)

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
        if not self._stopped(node, self._leave) and node.membership.state not in {
            MemberState.LEAVING,
            MemberState.LEFT,
        }:
            self._check(node, "leave", node.membership.leave(), None)
            self._broadcast(node)
            self.at(LEAVE_SECONDS, lambda: self._leave_done(node))

    def _leave_done(self, node: Node) -> None:
        if not self._stopped(node, self._leave_done):
            self._check(node, "leave done", node.membership.leave_done(), None)
            self._broadcast(node)
            self._end(node)

    def _dial(self, peer: Node, node: Node) -> None:
        """A peer dials afresh the address of a process that has ended."""
        if not peer.running or peer.paused or self._is_cut(peer, node):
            return
        me, new = node.membership.me, self.nodes[node.name]
        if not new.running:
            self._check(peer, "refused", peer.membership.refused(me.name, me.boot, self.now), me)
        elif not new.paused:
            self._complete_handshake(peer, new)

    def _link(self, node: Node, to: Node) -> None:
        """Dials a node that was heard, unless there is a link; what fails is tried again when it is heard again."""
        if to.boot not in node.links and to.boot not in node.dialing:
            node.dialing.add(to.boot)
            self.at(self.random.uniform(*REFUSAL), partial(self._dialed, node, to))

    def _dialed(self, node: Node, to: Node) -> None:
        node.dialing.discard(to.boot)
        cut = self._is_cut(node, to) or (node.name, to.name) in self.bus.undialed
        if all(one.running and not one.paused for one in (node, to)) and not cut:
            self._complete_handshake(node, to)

    def _complete_handshake(self, node: Node, to: Node) -> None:
        node.links[to.boot] = to
        me, you, now = node.membership.me, to.membership.me, self.now
        self._check(node, "met", node.membership.identified(you.name, you.boot, now, you.address), you)
        self._check(to, "reached", to.membership.reached_by(me.name, me.boot, now), me)

    def _is_cut(self, one: Node, other: Node) -> bool:
        return bool({(one.name, other.name), (other.name, one.name)} & self.bus.cut)

    def _stopped(self, node: Node, timer: Callable[[Node], None]) -> bool:
        if node.running and node.paused:
            node.held.append(timer)
        return node.paused or not node.running

    def _end(self, node: Node) -> None:
        node.running = False
        self._ended[node.boot] = self.now

    def _broadcast(self, node: Node) -> None:
        self.recorded.append(beat := self._beat(node))
        self._send(node.name, self.nodes, beat)

    def _beat(self, node: Node, answer_to: Identity | None = None) -> Heartbeat:
        beat = node.membership.heartbeat(self.now, answer_to=answer_to)
        self._hold(len(beat.observations) <= gossip.OBSERVATIONS, f"{node.name} names {len(beat.observations)} members")
        self.sent += 1
        self.named += len(beat.observations)
        return beat

    def _send(self, sender: str, receivers: Iterable[str], beat: Heartbeat) -> None:
        chance, uniform, bus, slow = self.random.random, self.random.uniform, self.bus, self.slow.get
        loss = bus.faulty.get(sender, bus.loss)
        for receiver in receivers:
            for _ in range(2 if chance() < bus.duplicates else 1):
                if chance() >= loss and (sender, receiver) not in bus.cut:
                    due = self.now + uniform(*bus.delay) + slow(sender, 0.0) + slow(receiver, 0.0)
                    self._post(max(due, bus.late.get((sender, receiver), 0.0)), receiver, beat)
                elif bus.keeps and chance() < bus.keeps:
                    bus.kept[sender, receiver].append(beat)

    def _post(self, due: float, receiver: str, beat: Heartbeat) -> None:
        if self.bus.grain:
            due = ceil(due / self.bus.grain) * self.bus.grain
        act: Callable[[], None] = partial(self._deliver, receiver, beat)
        heapq.heappush(self._queue, (due, self.nodes[receiver].born, next(self._numbers), act))

    def _deliver(self, receiver: str, beat: Heartbeat) -> None:
        node = self.nodes[receiver]
        if node.paused:
            node.inbox.append(beat)
        elif node.running:
            self._hear(node, beat)

    def _hear(self, node: Node, beat: Heartbeat) -> None:
        sender = beat.identity
        self.heard += sender.boot != node.boot
        if beat.sequence > node.sequences.get(sender.boot, 0):
            node.sequences[sender.boot] = beat.sequence
            node.evidence[sender.boot] = node.awake[sender.boot] = self.now
        effects = node.membership.heard(beat, self.now)
        if beat.state is MemberState.LEFT:
            node.left.add(sender.boot)
        self._check(node, "heard", effects, sender)
        if effects.superseded:
            self._supersede(node)
            return
        if effects.dial:
            self._link(node, self._instances[sender.boot])
        if effects.answer:
            self._answer(node, sender)

    def _supersede(self, node: Node) -> None:
        """Its process ends this instance, and begins another."""
        self._check(node, "over", node.membership.leave_done(), None)
        self._broadcast(node)
        self._end(node)
        self.superseded += 1
        self.at(self.random.uniform(0.05, 0.2), lambda: self._begin_next(node))

    def _begin_next(self, node: Node) -> None:
        if self.nodes[node.name] is node:
            self.start(node.name, name=node.membership.me.name)

    def replay(self) -> None:
        """Somebody repeats a recorded heartbeat to everybody."""
        beat = self.random.choice(self.recorded)
        for host in self.nodes:
            self._post(self.now + self.random.uniform(*self.bus.delay), host, beat)

    def _answer(self, node: Node, sender: Identity) -> None:
        to = self._instances[sender.boot].name
        if self._second != (second := int(self.now)):
            self._second = second
            self._answers.clear()
        self._answers[node.name, to] += 1
        self._hold(self._answers[node.name, to] <= ANSWERS, f"{node.name} floods {to} with answers")
        self._send(node.name, [to], self._beat(node, sender))

    def _hold(self, true: bool, otherwise: str) -> None:
        if not true:
            raise Violation(f"{otherwise} (seed {self.seed}, at {self.now - 1000:.3f} s)")

    def _check(self, node: Node, call: str, effects: Effects, about: Identity | None) -> None:
        what = "" if effects == NOTHING else effects
        self.trace.update(f"{self.now:.6f} {node.name} {call} {about and about.name} {what}".encode())
        for change in effects.changes:
            self.changes.append((self.now, node.name, change))
            self._check_change(node, call, change, about)
        if node.membership.view is not node.view:
            self._check_view(node)
        members = node.membership.members
        if about is None:
            self._check_incarnations(node, members.values())
            self._check_tables(node)
        else:
            self._check_incarnations(node, (members[about.name],) if about.name in members else ())

    def _check_change(self, node: Node, call: str, change: Change, about: Identity | None) -> None:
        who = change.identity
        story = f"{node.name} says {change.old} -> {change.new} of {who.name} after '{call}'"
        self._hold(change.old is not MemberState.LEFT, f"{story}: a node that left stays away")
        node.replaced.update(instance.boot for instance in self._earlier(who))
        if who.boot == node.boot:
            return
        if change.new is MemberState.LEFT:
            node.left.add(who.boot)
        if change.new not in GONE:
            return
        if call == "tick":
            silence = self.now - node.evidence[who.boot]
            self._hold(silence >= self.timings.suspect_after, f"{story}: it was heard {silence:.3f} s ago")
            awake = self.now - node.awake[who.boot]
            judges = self.now >= node.judges_from or awake >= self.timings.down_after
            self._hold(judges, f"{story}: it has just woken itself")
        else:
            self._hold(about is not None and about.name == who.name, f"{story}: that was about another")
        if change.new is MemberState.DOWN and call != "heard":
            ended = self._ended.get(who.boot)
            if ended is None:
                self.false_downs.append((self.now, node.name, who.name))
            else:
                self.detections.append(self.now - ended)

    def _earlier(self, who: Identity) -> Iterator[Node]:
        """The instances of this name that had ended before this one began."""
        begun = self._instances[who.boot].begun
        for instance in takewhile(lambda instance: instance.boot != who.boot, self._namesakes[who.name]):
            if self._ended.get(instance.boot, begun) < begun:
                yield instance

    def _check_view(self, node: Node) -> None:
        before, node.view, node.view_since = node.view, node.membership.view, self.now
        if before is None or before.epoch != node.view.epoch:
            self.view_changes.append((self.now, node.name, node.view.epoch))
        serving = frozenset([who.boot for who in node.view.members])
        epoch = self._epochs.setdefault(hash(serving), node.view.epoch)
        self._hold(epoch == node.view.epoch, f"{node.name} has another epoch for an equal view")
        for boot in serving & node.replaced:
            self._hold(False, f"a replaced instance of {self._instances[boot].name} serves again at {node.name}")
        for boot in serving & self._ended.keys():
            gone = self._ended[boot] < node.begun
            self._hold(not gone, f"{self._instances[boot].name} serves at {node.name}, which has begun after its end")
        names = Counter(who.name for who in node.view.members)
        self._hold(len(names) == len(serving), f"{node.name} has two members of one name")
        for boot in serving & node.left:
            self._hold(False, f"{self._instances[boot].name} has left, but serves again at {node.name}")

    def _check_incarnations(self, node: Node, members: Iterable[Member]) -> None:
        """At the last look no incarnation was above the truth, which never falls: only a change is looked at."""
        me, seen = node.membership, node.incarnations.get
        found = [(m.identity, m.incarnation) for m in members if seen(m.identity.boot) != m.incarnation]
        for who, incarnation in ((me.me, me.incarnation), *found):
            last, node.incarnations[who.boot] = node.incarnations.get(who.boot, 0), incarnation
            self._hold(incarnation >= last, f"the incarnation of {who.name} falls at {node.name}")
            truth = self._instances[who.boot].membership.incarnation
            self._hold(incarnation <= truth, f"{node.name} raises the incarnation of {who.name}")

    def _check_tables(self, node: Node) -> None:
        members, retired = node.membership.members, node.membership._retired
        bounded = len(members) < len(self.nodes) and len(retired) <= rules.RETIRED_BOOTS
        if len(members) > TOMBSTONES:
            gone = sum(member.state in GONE for member in members.values())
            bounded = bounded and gone <= TOMBSTONES
        self._hold(bounded, f"a table of {node.name} grows without bound")
