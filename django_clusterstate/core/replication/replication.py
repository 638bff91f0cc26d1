"""The copies of one node: what it executes itself, what it sends to others, and what it takes in. The rules are in the
docstring of the package. Times are monotonic seconds of this node."""

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

from .. import rendezvous_hashing
from ..membership.heartbeat import Identity, View
from .hand_over import NO_EPOCH, Joiner, Leaver, Statements
from .inboxes import Inboxes
from .messages import (
    Ack,
    Batch,
    Busy,
    Clear,
    Filled,
    FillEnd,
    FillStart,
    GiveBack,
    Leaving,
    Left,
    Message,
    Missing,
    Settled,
    TakeOver,
    Yours,
)
from .outboxes import Outboxes
from .placement import Placement
from .slots import SlotSet
from .stores import Store
from .tombstones import Clears
from .versions import HybridClock

MAX_HOPS: Final = 4  # times that a request is forwarded
REPORT_AGAIN: Final = 0.2  # seconds between two reports of missing slots


class Replication:
    """The copies of the node `me`, whose entries are in `stores`, by kind. `send(boot, message)` sends a message over
    the connection to an instance, in order; an `Ack` over the one from it.

    `valid_since`: for each slot, the generation from which on its entries here are good; older ones are absent.
    `complete`: the slots of which this node holds all entries.
    """

    def __init__(
        self,
        me: Identity,
        stores: Sequence[Store],
        send: Callable[[bytes, Message], None],
        now: float,
        backups: int = 1,
    ) -> None:
        self.clock = HybridClock(me.boot)
        self.placement = Placement(me, backups)
        self.outboxes = Outboxes(self.placement, stores, self.clock, send)
        self.inboxes = Inboxes(self.placement, stores, self.clock, self.outboxes.changed)
        self.joiner = Joiner(self.placement, self.outboxes, now)
        self.leaver: Leaver | None = None
        self.valid_since = array("L", [0]) * rendezvous_hashing.SLOTS
        self.complete = SlotSet()
        self._stores = stores
        self._send = send
        self._settled_by = Statements()
        self._clears = Clears()
        self._reports_at = now
        self.plan_due = False  # at the next tick, before which `prepare()` may be called
        self._has_dropped = False  # what isn't held, since the view changed
        self._complete_before: SlotSet | None = None  # it was declared down, until the winners are known
        self.generation = 0
        self._begin_generation()

    # -- what this node executes ----------------------------------------------------------------------------

    def destination(self, slot: int, hops: int, merges: bool, is_reached: Callable[[bytes], bool]) -> bytes | None:
        """The instance that executes a request for a slot, which has been forwarded `hops` times: this one, or one to
        which it has to be forwarded; None if the request fails. `merges`: see `Store`.

        If the owner isn't reached, another node executes it only if it has the slot, or its result is merged with the
        owner's.
        """
        placement = self.placement
        if placement.owns[slot]:
            return placement.me.boot
        owner, me = placement.owner(slot), placement.me.boot
        if owner is None or (owner.boot == me and self._complete_before is not None):
            return None  # nobody, or this node has renounced the slot, and the view doesn't say so yet
        if owner.boot == me or (hops < MAX_HOPS and is_reached(owner.boot)):
            return owner.boot
        is_held = slot in placement.held
        if not placement.serving or self._complete_before is not None or not (is_held or merges):
            return None
        self.outboxes.has_strays = self.outboxes.has_strays or not is_held
        return me

    def changed(self, kind: int, key: bytes) -> None:
        """A request has changed a key."""
        self.outboxes.changed(((kind, key),))

    def clear(self, namespace: bytes, version: int, now: float) -> int:
        """Makes entries of a namespace up to a version (0: now) absent, here and at all peers. Returns the version."""
        version = version or self.clock.next(now)
        self.clock.receive(version, now)
        if self._clears.add(namespace, version):
            for store in self._stores:
                store.clear(namespace, version, now)
            self.outboxes.post(Clear(namespace, version))
        return version

    def flush_to(self, boot: bytes, now: float) -> bool:
        """Sends an instance all changes that it has to get, before a request is forwarded to it; False if too many."""
        self.outboxes.now = now
        return self.outboxes.flush(boot)

    # -- connections and members ----------------------------------------------------------------------------

    def opened(self, boot: bytes, now: float) -> None:
        """There is a connection to an instance."""
        self.outboxes.now = now
        outbox = self.outboxes.get(boot)
        outbox.open = True
        for namespace, version in self._clears.all().items():
            outbox.post(Clear(namespace, version))
        if self.leaver is not None:
            self.leaver.opened(boot)
        self._plan(now)

    def closed(self, boot: bytes) -> None:
        """The connection to an instance is lost."""
        self.outboxes.closed(boot)

    def disconnected(self, boot: bytes) -> None:
        """The connection from an instance is lost, which may have forgotten what this node has told it."""
        self.inboxes.closed(boot)
        self.outboxes.tell_again(boot)

    def prepare(self, view: View, joining: Iterable[Identity] = (), leaving: Collection[bytes] = ()) -> Iterator[None]:
        """Computes what `update()`, or with leaving instances `leave()`, needs, in steps of a few milliseconds.
        Otherwise these take up to 30 ms for a member that comes or goes, and a second for a hundred."""
        return self.placement.prepare(view, joining, leaving)

    def update(self, view: View, joining: Iterable[Identity], now: float) -> None:
        """Takes in the view, and the members that join."""
        before = self.placement.boots
        known = self.placement.update(view, joining)
        # A connection may be opened before its node's first heartbeat comes.
        self.outboxes.drop_unknown(known | (self.outboxes.open.keys() - before))
        self._plan(now)
        for boot in before - self.placement.boots:
            self._settled_by.forget(boot)  # it says so again when it is back, perhaps in a view of the same epoch

    def declared_down(self, now: float) -> None:
        """Others have declared this node down and have served its keys: it joins again. Until
        `yield_to()`, it sends no copies and takes in none, since it doesn't know which of its own count."""
        self._complete_before = self.complete | self.placement.owned | (self._complete_before or SlotSet())
        self.complete = SlotSet()
        self.placement.renounce()
        self.outboxes.paused = True
        self.inboxes.refuse()
        self.joiner.begin_epoch(now)  # those that have filled this node are asked again for what it drops

    def yield_to(self, winners: frozenset[bytes], now: float) -> None:
        """Drops the entries of this node, which was declared down and whose keys the winners, by boot ID, have served;
        but not those that no winner had. If there are no winners, all entries count."""
        if self._complete_before is None:
            return
        stale = self.placement.yield_to(self._complete_before, winners) if winners else SlotSet()
        self._complete_before = None
        self._begin_generation()
        for slot in stale:
            self.valid_since[slot] = self.generation
        for store in self._stores:
            store.forget(stale)
        self.outboxes.paused = False
        self.joiner.progress = now
        self._plan(now)

    def leave(self, seconds: float, now: float) -> Leaver:
        """This node hands over what it owns, and leaves within `seconds`."""
        self.leaver = Leaver(self.placement, self.outboxes, now, seconds)
        self._plan(now)
        return self.leaver

    def _plan(self, now: float) -> None:
        """Finds out what this node has to hold, and what others have to get from it."""
        self.outboxes.now = now
        self.plan_due = False
        self.inboxes.cleaner.end_delays()
        placement = self.placement
        had, epoch = self.complete | placement.owned, placement.epoch
        wanted = placement.plan()
        if placement.epoch != epoch:
            self.outboxes.begin_epoch()
            self.joiner.begin_epoch(now)
            self._has_dropped = False
            self._reports_at = now  # before it asks to take over
            self.inboxes.cleaner.begin(SlotSet())
        self.complete = (had & placement.held) | placement.owned
        self._begin_generation()
        for slot in had - self.complete:
            self.valid_since[slot] = self.generation
        self.outboxes.want(wanted)
        self.inboxes.end_stale_fills()

    def _begin_generation(self) -> None:
        self.generation += 1
        for store in self._stores:
            store.generation = self.generation

    # -- messages -------------------------------------------------------------------------------------------

    def receive(self, boot: bytes, message: Message, now: float) -> None:
        """Takes in a message of an instance."""
        self.outboxes.now = now
        taken_in = True
        match message:
            case Ack():
                self.clock.receive(message.clock, now)
                self.outboxes.acknowledged(boot, message.refused)
                return
            case Filled() | Missing() | Settled() | TakeOver() | Yours() | Busy() | GiveBack():
                self._notice(boot, message, now)
                return
            case Batch() | FillStart() | FillEnd() if self._complete_before is not None:
                taken_in = False
            case Batch():
                self.joiner.note_progress(boot, now)
                taken_in = self.inboxes.batch(boot, message, now)
            case FillStart():
                self.joiner.note_fill(boot, now)
                self._start_fill(boot, message, now)
            case FillEnd():
                taken_in = self.inboxes.end_fill(boot, self._lacked_by(boot))
                if taken_in:
                    self._clean()
                    return
            case Clear():
                self.clear(message.namespace, message.version, now)
            case Leaving():
                self.placement.leaving.add(boot)
                self.plan_due = True
                self.inboxes.cleaner.delay_ack(boot)  # the sender hands over once all have planned for that
                return
            case Left():
                self.placement.reclaim(boot, self.outboxes.get(boot).filled)
                self.placement.depart(boot)
                self._plan(now)
        if not self.inboxes.cleaner.queue_ack(boot, taken_in):
            self._send(boot, Ack(self.clock.last(), refused=not taken_in))

    def _notice(self, boot: bytes, message: Message, now: float) -> None:
        """Takes in a message that has no `Ack`."""
        match message:
            case Filled():
                self.joiner.progress = now
                self.joiner.filled(boot, message.epoch)
            case Missing():
                self.outboxes.get(boot).refill(message.slots)
            case Settled():
                self._settled_by.note(boot, message.epoch)
            case TakeOver():
                self._hand_over(boot, message, now)
            case Yours() if not self.placement.serving:
                if self.joiner.take(boot, message, now):
                    self._plan(now)
                    self.outboxes.get(boot).take_as_filled(message.slots)
            case Busy() if not self.placement.serving:
                self.joiner.progress = now
                if self.joiner.wait_for(message):
                    self._plan(now)
            case GiveBack():
                self.placement.handed.pop(boot, None)
                self._plan(now)

    def _start_fill(self, boot: bytes, start: FillStart, now: float) -> None:
        self.clock.receive(start.clock, now)
        self.inboxes.start_fill(boot, start)
        taken = self.placement.taken.get(boot)
        if start.owned and taken is not None and taken & start.slots:
            # A node doesn't fill slots that it has handed over, so it has taken these back.
            self.placement.taken[boot] = taken - start.slots
            self._plan(now)

    def _lacked_by(self, boot: bytes) -> SlotSet:
        """Slots of which an instance may lack entries that are here."""
        outbox = self.outboxes.by_boot.get(boot)
        return self.placement.all_ceded - (SlotSet() if outbox is None else outbox.filled)

    def _clean(self) -> None:
        """Goes on with dropping what fills haven't confirmed."""
        for boot, taken_in, slots in self.inboxes.clean(self._lacked_by):
            self.complete = self.complete | (slots & self.placement.held)
            self._send(boot, Ack(self.clock.last(), refused=not taken_in))

    def _hand_over(self, boot: bytes, request: TakeOver, now: float) -> None:
        """A joining node asks for its slots. It asks again if it gets no answer."""
        placement, outbox = self.placement, self.outboxes.by_boot.get(boot)
        joiner = placement.joining.get(boot)
        if joiner is None or outbox is None or not placement.serving or request.epoch != placement.epoch:
            return
        if not outbox.is_filled or (self.leaver is not None and boot not in placement.handed):
            return  # a node that leaves waits only for one that has taken over a part
        if others := [placement.joining[other].name for other in placement.handed if other != boot]:
            self._send(boot, Busy(min(others)))
            return
        if not self.outboxes.flush(boot):
            return
        self._send(boot, Yours(request.epoch, request.turn, placement.hand_over(joiner)))
        self._plan(now)

    # -- the passing of time --------------------------------------------------------------------------------

    def send_changes(self, now: float) -> Iterator[None]:
        """Sends what has changed, in steps, as `tick()` does. To be called while `prepare()` holds that up."""
        self.outboxes.now = now
        return self.outboxes.pump()

    def tick(self, now: float) -> Iterator[None]:
        """Sends what has changed, goes on with joining or leaving, and then with fills, in steps; about every 10 ms."""
        self.outboxes.now = now
        if self._complete_before is not None:
            others = self.placement.boots - {self.placement.me.boot}
            if self.placement.serving or (others and self.joiner.is_stuck(now)):
                self.yield_to(others, now)
        if self.plan_due:
            self._plan(now)
        yield from self.outboxes.pump()
        now = self.outboxes.now
        if changed := self.inboxes.changed_by_others(self.placement.boots):
            self.complete = (self.complete - changed) | self.placement.owned
            self._reports_at = now
        self._report_missing(now)
        if self.leaver is not None:
            if self.leaver.depart(self._is_settled, now):
                self._plan(now)
            self.leaver.tick(self._all_settled, now)
        elif not self.placement.serving:
            self.joiner.tick(now)
        self._report_filled()
        if not self._has_dropped and not self.placement.ceded and self._is_settled:
            self.placement.remember()
            self.inboxes.forget_changes(self.placement.boots)
            self._has_dropped = True
            self.inboxes.cleaner.begin(SlotSet.all() - self.placement.held)
        yield from self.outboxes.fill()
        yield
        self._clean()
        yield
        if not self.inboxes.cleaner.idle:
            self.inboxes.drop_unheld(self.outboxes.unacknowledged())

    def _report_filled(self) -> None:
        """Says which instances hold all that they have to hold, and whether all backups do."""
        epoch = self.placement.epoch
        owns = settled = self.placement.serving and (self.leaver is None or not self.leaver.departed)
        for boot, outbox in self.outboxes.by_boot.items():
            filled = outbox.open and outbox.is_filled
            if owns and filled and outbox.told_filled != epoch:
                outbox.told_filled = epoch
                self._send(boot, Filled(epoch))
            settled = settled and (filled or boot in self.placement.joining or not outbox.wanted)
        if settled:
            self.placement.ceded.clear()
        said = epoch if settled else NO_EPOCH
        self._settled_by.note(self.placement.me.boot, said)
        for boot, outbox in self.outboxes.open.items():
            if outbox.told_settled != said:
                outbox.told_settled = said
                self._send(boot, Settled(said))

    def _report_missing(self, now: float) -> None:
        """Asks owners that take this node for filled for slots that it lacks: now and then, since they answer at once
        where they don't see this node as a holder."""
        if now < self._reports_at:
            return
        self._reports_at = now + REPORT_AGAIN
        for boot, slots in self.placement.by_owner(self.placement.held - self.complete).items():
            if self.joiner.is_filled_by(boot) and self.outboxes.is_open(boot):
                self.joiner.lacks(boot)
                self._send(boot, Missing(slots))

    @property
    def synced(self) -> bool:
        """Whether this node serves and holds all that it has to, and all that serve have filled backups."""
        return self._is_settled and not self.placement.held - self.complete

    @property
    def idle(self) -> bool:
        """Whether nothing is to be sent or handed over, so that `tick()` may be called more rarely."""
        return self.synced and self.leaver is None and not self.outboxes.lag and self.inboxes.cleaner.idle

    @property
    def _is_settled(self) -> bool:
        return self.placement.serving and self._all_settled

    @property
    def _all_settled(self) -> bool:
        return all(self._settled_by.has_said(boot, self.placement.epoch) for boot in self.placement.boots)
