"""The parts of replication, each alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core import rendezvous_hashing
from django_clusterstate.core.limits import algorithms
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.limits.copies import LimitCopies
from django_clusterstate.core.limits.store import LimitStore
from django_clusterstate.core.membership.heartbeat import Identity, View
from django_clusterstate.core.rendezvous_hashing import Rendezvous, slot_of
from django_clusterstate.core.replication import tombstones
from django_clusterstate.core.replication.hand_over import NO_EPOCH, NO_PROGRESS, Joiner
from django_clusterstate.core.replication.inboxes import Inboxes
from django_clusterstate.core.replication.messages import (
    Ack,
    Batch,
    Filled,
    FillStart,
    Leaving,
    Message,
    Record,
    RecordKey,
    Settled,
    TakeOver,
    Yours,
    size_of,
)
from django_clusterstate.core.replication.outbox import (
    BATCH,
    BATCH_BYTES,
    FLUSHED,
    MAX_BYTES_IN_FLIGHT,
    MAX_IN_FLIGHT,
    MAX_PENDING,
    RETRY,
    SLICE,
    WINDOW,
    Outbox,
)
from django_clusterstate.core.replication.outboxes import Outboxes
from django_clusterstate.core.replication.placement import Placement
from django_clusterstate.core.replication.replication import Replication
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.core.replication.stores import Store, portions
from django_clusterstate.core.replication.tombstones import Tombstones
from django_clusterstate.core.replication.versions import HybridClock
from tests.core.replication.simulation import LIMITS, VALUES, Cells, few_slots

A, B, C = (Identity(name, name.encode() * 16, f"{name}:4370") for name in "abc")
SLOTS = st.sets(st.integers(0, rendezvous_hashing.SLOTS - 1), max_size=50)


# -- versions -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=2))
def test_versions_of_one_node_grow_whatever_its_clock_does(times: list[float]) -> None:
    clock = HybridClock(b"a" * 16)
    versions = [clock.next(now) for now in times]
    assert versions == sorted(set(versions))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_version_that_follows_a_received_one_is_greater(here: float, there: float) -> None:
    one, other = HybridClock(b"a" * 16), HybridClock(b"b" * 16)
    received = one.next(here)
    other.receive(received, there)
    assert other.next(there) > received


def test_two_nodes_give_different_versions_at_the_same_time() -> None:
    assert HybridClock(b"a" * 16).next(5.0) != HybridClock(b"b" * 16).next(5.0)


# -- sets of slots ------------------------------------------------------------------------------------------------


@given(SLOTS, SLOTS)
def test_sets_of_slots_are_sets(one: set[int], other: set[int]) -> None:
    first, second = SlotSet(one), SlotSet(other)
    assert set(first | second) == one | other
    assert set(first & second) == one & other
    assert set(first - second) == one - other
    assert list(first) == sorted(one)
    assert (len(first), bool(first)) == (len(one), bool(one))
    assert (first == second) == (one == other)
    assert all(slot in first for slot in one)
    assert not any(slot in first for slot in other - one)


@given(SLOTS)
def test_sets_of_slots_travel_as_bytes(slots: set[int]) -> None:
    assert set(SlotSet.from_bytes(SlotSet(slots).to_bytes())) == slots
    assert set(SlotSet.of_flags(SlotSet(slots).flags())) == slots


@pytest.mark.parametrize("length", [0, 8191, 8193])
def test_bytes_of_another_length_are_no_set_of_slots(length: int) -> None:
    assert len(SlotSet().to_bytes()) == 8192
    with pytest.raises(ValueError, match="8192 bytes, not"):
        SlotSet.from_bytes(bytes(length))


# -- deletes ------------------------------------------------------------------------------------------------------


def test_deletes_are_remembered_for_a_time_and_the_floor_says_since_when() -> None:
    deletes = Tombstones()
    deletes.add(b"one", 10, 0.0)
    deletes.add(b"two", 20, 20.0)
    deletes.expire(tombstones.SECONDS + 1)
    assert (deletes.version(b"one"), deletes.version(b"two"), deletes.floor) == (0, 20, 10)


def test_a_bounded_number_of_deletes_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "MAX_KEYS", 3)
    deletes = Tombstones()
    for number in range(1, 6):
        deletes.add(b"%d" % number, number, 0.0)
    assert (len(deletes), deletes.floor) == (3, 2)


# -- what is received ---------------------------------------------------------------------------------------------


class Receiver:
    """The node `a`, which sees `b` or another as the owner of all slots."""

    def __init__(self, owner: Identity = B, limits: Sequence[Store] = ()) -> None:
        self.cells = Cells(VALUES)
        self.placement = placement = Placement(A)
        placement.update(View.of([owner]), [])
        placement.plan()
        self.changed: list[Any] = []
        self.inboxes = Inboxes(placement, [self.cells, *limits], HybridClock(A.boot), self.changed.extend)

    def receive(self, key: bytes, version: int, value: bytes | None, sender: Identity = B) -> bool:
        return self.inboxes.batch(sender.boot, Batch(version, (Record(0, key, version, value),)), 1.0)

    def value(self, key: bytes) -> Any:
        cell = self.cells.cells.get(key)
        return None if cell is None else cell.value


def test_of_two_batches_that_come_late_together_the_newer_state_stays() -> None:
    receiver = Receiver()  # history 1
    receiver.receive(b"key", 10, b"v1")
    receiver.receive(b"key", 11, b"v2")
    assert receiver.value(b"key") == b"v2"


@pytest.mark.parametrize("later", [b"v2", None])
def test_a_delayed_write_of_a_leaver_replaces_nothing_newer(later: bytes | None) -> None:
    receiver = Receiver()  # history 2
    receiver.receive(b"key", 20, later, sender=B)
    receiver.receive(b"key", 10, b"v1", sender=C)
    assert receiver.value(b"key") == later


def test_an_owner_keeps_a_stricter_state_than_the_newer_one_of_another() -> None:
    key = algorithms.key_of_state(b"key", Rule(Algorithm.TOKEN_BUCKET, 50, 3600.0))
    limits = LimitCopies(LIMITS, LimitStore(1 << 20, on_write=lambda *_: 1))
    receiver = Receiver(owner=A, limits=[limits])
    for version, debt in ((10, 50.0), (20, 44.0)):
        batch = Batch(version, (Record(LIMITS, key, version, (3600.0, 0.0, 0.0, 0.0, debt, 0), 3600.0),))
        assert receiver.inboxes.batch(B.boot, batch, 1.0)
    assert limits.record(key, 1.0).value[4] == 50.0
    assert limits.version(key) > 20  # so that its backup takes it over
    assert receiver.changed == [(LIMITS, key)] * 2


def test_a_batch_older_than_the_memory_of_deletes_is_refused() -> None:
    receiver = Receiver()
    receiver.cells.tombstones.floor = 100
    assert not receiver.receive(b"key", 99, b"value")
    assert receiver.value(b"key") is None
    assert receiver.receive(b"key", 101, b"value")


def test_a_fill_drops_only_what_is_older_and_in_its_slots_and_not_confirmed() -> None:
    receiver = Receiver()
    keys = [b"key-%d" % number for number in range(20)]
    slots = SlotSet(slot_of(key) for key in keys[:10])
    for key in keys:
        receiver.receive(key, 5, b"old")
    receiver.inboxes.start_fill(B.boot, FillStart(slots, 100, owned=True))
    receiver.receive(keys[0], 5, b"old")  # confirmed
    receiver.receive(keys[1], 200, b"new", sender=C)  # written since
    assert receiver.inboxes.end_fill(B.boot, SlotSet())
    assert [*receiver.inboxes.clean(lambda boot: SlotSet())] == [(B.boot, True, slots)]
    left = {key for key in keys if receiver.value(key) is not None}
    assert left == {keys[0], keys[1], *(key for key in keys[10:] if slot_of(key) not in slots)}


def test_a_slot_that_another_changes_during_a_fill_is_not_complete_after_it() -> None:
    receiver, slots = Receiver(), SlotSet([slot_of(b"key"), slot_of(b"other")])
    receiver.inboxes.start_fill(B.boot, FillStart(slots, 100, owned=True))
    receiver.receive(b"key", 200, b"newer", sender=C)
    assert receiver.inboxes.changed_by_others({B.boot}) == SlotSet([slot_of(b"key")])
    assert receiver.inboxes.end_fill(B.boot, SlotSet())
    (_, taken_in, complete), *_ = receiver.inboxes.clean(lambda boot: SlotSet())
    assert (taken_in, complete) == (True, SlotSet([slot_of(b"other")]))
    assert receiver.value(b"key") == b"newer"


def test_a_slot_of_which_entries_were_dropped_during_its_fill_is_not_complete() -> None:
    receiver = Receiver()
    slots = SlotSet([slot_of(b"key"), slot_of(b"other")])
    receiver.placement.held = SlotSet([slot_of(b"other")])
    receiver.inboxes.start_fill(B.boot, FillStart(slots, 100, owned=True))
    receiver.receive(b"key", 200, b"value")
    receiver.inboxes.cleaner.begin(SlotSet.all())
    receiver.inboxes.drop_unheld(lambda _: False)
    assert receiver.value(b"key") is None
    assert receiver.inboxes.end_fill(B.boot, SlotSet())
    ((_, taken_in, complete),) = receiver.inboxes.clean(lambda boot: SlotSet())
    assert (taken_in, complete) == (True, SlotSet([slot_of(b"other")]))


def test_a_fill_of_slots_that_are_not_held_any_more_is_forgotten() -> None:
    receiver = Receiver()
    receiver.inboxes.start_fill(B.boot, FillStart(SlotSet([1]), 100, owned=True))
    receiver.placement.held = SlotSet([2])
    receiver.inboxes.end_stale_fills()
    assert not receiver.inboxes.end_fill(B.boot, SlotSet())


def test_what_others_changed_before_all_was_settled_is_not_filled_again_when_they_are_gone() -> None:
    receiver = Receiver()
    receiver.receive(b"key", 200, b"value", sender=C)
    receiver.inboxes.forget_changes({B.boot, C.boot})
    assert not receiver.inboxes.changed_by_others({B.boot})


def test_a_fill_by_another_than_the_owner_drops_nothing() -> None:
    receiver = Receiver()
    receiver.receive(b"key", 5, b"old")
    slots = SlotSet([slot_of(b"key")])
    for owned in (True, False):
        receiver.inboxes.start_fill(C.boot, FillStart(slots, 100, owned=owned))
        assert receiver.inboxes.end_fill(C.boot, SlotSet()) is not owned
        assert not any(slots for _, _, slots in receiver.inboxes.clean(lambda boot: SlotSet()))
    assert receiver.value(b"key") == b"old"


# -- what is sent -------------------------------------------------------------------------------------------------


class Peer:
    """An outbox, and what it has sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.keys: dict[bytes, bytes] = {}
        self.outbox = Outbox(
            self.sent.append,
            lambda record_key: Record(record_key[0], record_key[1], 1, self.keys.get(record_key[1])),
            self.keys_in,
            lambda: 1,
        )
        self.outbox.open = True

    def keys_in(self, slots: SlotSet) -> Iterator[Sequence[RecordKey]]:
        for some in portions([*self.keys], lambda key: slot_of(key) in slots):
            yield [(0, key) for key in some]

    def acknowledge(self, *, refused: bool = False) -> None:
        self.outbox.acknowledged(refused, 0.0)

    def records(self) -> list[Record]:
        return [record for message in self.sent if isinstance(message, Batch) for record in message.records]


@pytest.mark.parametrize("filling", [False, True])
def test_large_records_are_sent_in_several_messages(filling: bool) -> None:
    peer = Peer()
    peer.keys = {b"%d" % number: bytes(BATCH_BYTES // 3 * number) for number in range(5)}
    if filling:
        peer.outbox.want(SlotSet.all(), SlotSet.all())
    else:
        peer.outbox.add([(0, key) for key in peer.keys], 0.0)
    while len(peer.records()) < len(peer.keys):
        before = len(peer.sent)
        peer.outbox.pump(0.0)
        assert len(peer.sent) > before
        while peer.outbox.busy:
            peer.acknowledge()
    assert {record.key: record.value for record in peer.records()} == peer.keys
    for batch in [message for message in peer.sent if isinstance(message, Batch)]:
        assert len(batch.records) == 1 or sum(map(size_of, batch.records)) <= BATCH_BYTES


def test_changes_are_sent_as_they_are_by_then() -> None:
    peer = Peer()
    peer.outbox.add([(0, b"key")], 0.0)
    peer.keys[b"key"] = b"latest"
    peer.outbox.pump(0.0)
    assert [record.value for record in peer.records()] == [b"latest"]


def test_what_a_lost_connection_had_not_acknowledged_has_changed_again() -> None:
    peer = Peer()
    peer.outbox.add([(0, b"one")], 0.0)
    peer.outbox.pump(0.0)
    peer.outbox.add([(0, b"two")], 0.0)
    assert set(peer.outbox.closed()) == {(0, b"one"), (0, b"two")}
    assert not peer.outbox.lag


def test_what_a_peer_refuses_is_sent_again() -> None:
    peer = Peer()
    peer.outbox.add([(0, b"key")], 0.0)
    peer.outbox.pump(0.0)
    peer.acknowledge(refused=True)
    peer.outbox.pump(RETRY)
    assert [record.key for record in peer.records()] == [b"key", b"key"]


def test_a_fill_that_a_peer_refuses_makes_the_lag_no_older() -> None:
    peer = Peer()
    peer.keys = {b"%d" % number: b"value" for number in range(3)}
    peer.outbox.want(SlotSet.all(), SlotSet.all())
    peer.outbox.add([(0, b"changed")], 100.0)
    peer.outbox.pump(100.0)
    peer.outbox.add([(0, b"waits")], 100.0)
    while peer.outbox.busy:
        peer.acknowledge(refused=True)
    assert peer.outbox.age(101.0) == 1.0


def test_no_more_is_sent_at_once_than_a_bounded_number_of_messages() -> None:
    peer = Peer()
    peer.outbox.add([(0, b"%d" % number) for number in range((FLUSHED + 1) * BATCH)], 0.0)
    assert not peer.outbox.flush()
    assert len(peer.sent) == FLUSHED
    assert peer.outbox.flush()
    assert len(peer.records()) == (FLUSHED + 1) * BATCH


@pytest.mark.parametrize(("size", "most"), [(1, MAX_IN_FLIGHT), (MAX_BYTES_IN_FLIGHT // 4, 4)])
def test_no_more_is_on_its_way_than_a_bounded_number_of_messages_and_bytes(size: int, most: int) -> None:
    peer = Peer()
    for number in range(most):
        key = b"%d" % number
        peer.keys[key] = bytes(size)
        peer.outbox.add([(0, key)], 0.0)
        assert peer.outbox.flush()
    peer.outbox.add([(0, b"one more")], 0.0)
    assert not peer.outbox.flush()
    peer.acknowledge()
    assert peer.outbox.flush()


def test_a_change_is_unacknowledged_until_each_peer_has_taken_it_in() -> None:
    outboxes = Outboxes(Placement(A), [], HybridClock(A.boot), lambda *_: None)
    peer, key = Peer(), (0, b"key")
    outboxes.by_boot[B.boot] = peer.outbox
    peer.outbox.add([key], 0.0)
    assert outboxes.unacknowledged()(key)
    peer.outbox.pump(0.0)
    assert outboxes.unacknowledged()(key)
    peer.acknowledge()
    assert not outboxes.unacknowledged()(key)
    outboxes.changed([key])
    assert outboxes.unacknowledged()(key)


def test_the_lag_is_as_old_as_the_first_change_that_is_not_acknowledged() -> None:
    peer = Peer()
    assert peer.outbox.age(1.0) == 0.0
    peer.outbox.add([(0, b"one"), (0, b"hot")], 1.0)
    peer.outbox.add([(0, b"hot")], 2.0)
    assert peer.outbox.age(2.5) == 1.5  # though the hot key changes all the time
    peer.outbox.pump(2.5)
    peer.outbox.add([(0, b"two")], 3.0)
    peer.outbox.pump(3.0)
    peer.acknowledge(refused=True)
    assert peer.outbox.age(4.0) == 3.0
    peer.acknowledge()
    peer.outbox.pump(4.0)
    peer.acknowledge()
    assert (peer.outbox.age(5.0), peer.outbox.lag) == (0.0, 0)
    peer.outbox.add([(0, b"three")], 6.0)
    assert peer.outbox.age(6.5) == 0.5


def test_what_is_known_of_peers_that_are_gone_is_how_often_they_were_behind() -> None:
    outboxes = Outboxes(Placement(A), [], HybridClock(A.boot), lambda *_: None)
    outboxes.get(B.boot).want(SlotSet([1, 2, 3]), SlotSet())
    outboxes.get(B.boot).add([(0, b"%d" % number) for number in range(MAX_PENDING + 1)], 0.0)
    assert (outboxes.behind, outboxes.unfilled) == (1, 3)
    outboxes.drop_unknown({A.boot})
    assert (outboxes.behind, outboxes.unfilled) == (1, 0)


def test_a_window_of_messages_is_sent_and_no_more_before_they_are_acknowledged() -> None:
    peer = Peer()
    for number in range(WINDOW + 5):
        peer.outbox.add([(0, b"%d" % number)], 0.0)
        peer.outbox.pump(0.0)
    assert len(peer.sent) == WINDOW


@pytest.mark.parametrize(("changes", "messages"), [(SLICE, 1), (3 * SLICE, 3), (50 * SLICE, WINDOW)])
def test_changes_are_sent_a_few_at_a_time_or_so_many_that_the_window_takes_all(changes: int, messages: int) -> None:
    peer = Peer()
    peer.outbox.add([(0, b"%d" % number) for number in range(changes)], 0.0)
    while peer.outbox.pump_changes(0.0):
        pass
    assert (len(peer.sent), len(peer.records())) == (messages, changes)


def test_a_fill_goes_on_however_many_changes_there_are() -> None:
    peer = Peer()
    peer.keys = {b"%d" % number: b"value" for number in range(1000)}
    peer.outbox.want(SlotSet.all(), SlotSet.all())
    for number in range(10_000):
        peer.outbox.add([(0, b"changed %d" % (number % 7))], 0.0)
        while peer.outbox.pump_changes(0.0):
            pass
        peer.outbox.pump(0.0)
        peer.acknowledge()  # one at a time: the peer is slow
        if peer.outbox.is_filled:
            return
    pytest.fail("it is never filled")


def test_changes_take_the_whole_window_of_a_peer_that_is_filled() -> None:
    peer = Peer()
    peer.outbox.add([(0, b"%d" % number) for number in range(10_000)], 0.0)
    while peer.outbox.pump_changes(0.0):
        pass
    assert len(peer.sent) == WINDOW


def test_changes_of_many_peers_are_sent_in_turn() -> None:
    outboxes = Outboxes(Placement(A), [], HybridClock(A.boot), lambda *_: None)
    peers = [Peer() for _ in range(5)]
    for number, peer in enumerate(peers):
        outboxes.by_boot[b"%d" % number] = peer.outbox
        peer.outbox.add([(0, b"%d" % number) for number in range(2 * SLICE)], 0.0)
    steps = outboxes.pump()
    for _ in peers:
        next(steps)
    assert [len(peer.sent) for peer in peers] == [1] * len(peers)
    list(steps)
    assert not any(peer.outbox.lag - len(list(peer.outbox.on_their_way)) for peer in peers)


def test_a_peer_knows_what_was_posted_when_it_acknowledges_that_and_not_what_was_sent_before() -> None:
    peer = Peer()
    peer.outbox.add([(0, b"key")], 0.0)
    peer.outbox.pump(0.0)
    peer.outbox.post(Leaving())
    peer.acknowledge()
    assert not peer.outbox.knows_all
    peer.acknowledge()
    assert peer.outbox.knows_all


def test_a_peer_is_filled_once_all_ends_are_acknowledged() -> None:
    peer = Peer()
    slots = SlotSet(range(600))
    peer.keys = {b"%d" % number: b"value" for number in range(300_000) if slot_of(b"%d" % number) in slots}
    peer.outbox.want(slots, slots)
    acknowledged = 0
    while not peer.outbox.is_filled:
        peer.outbox.pump(0.0)
        assert acknowledged < len(peer.sent)
        peer.acknowledge()
        acknowledged += 1
    assert acknowledged == len(peer.sent)
    assert {record.key for record in peer.records()} == peer.keys.keys()


def test_a_peer_that_is_behind_is_told_again_when_it_is_filled() -> None:
    peer = Peer()
    slots, many = SlotSet([1, 2]), [(0, b"%d" % number) for number in range(MAX_PENDING + 1)]
    ways: list[Callable[[], None]] = [
        lambda: peer.outbox.want(slots, slots),
        lambda: peer.outbox.add(many, 0.0),
        lambda: peer.outbox.refill(SlotSet([1])),
    ]
    for make_incomplete in ways:
        peer.outbox.told_filled = 5
        make_incomplete()
        assert (peer.outbox.is_filled, peer.outbox.told_filled) == (False, -1)
        while not peer.outbox.is_filled:
            peer.outbox.pump(0.0)
            peer.acknowledge()


def test_a_joining_node_that_is_filled_again_is_not_filled() -> None:
    node = Replication(A, [Cells(VALUES)], lambda *_: None, 0.0)
    node.update(View.of([B]), [], 0.0)
    node.receive(B.boot, Filled(View.of([B]).epoch), 0.0)
    assert node.joiner.is_filled_by(B.boot)
    node.receive(B.boot, FillStart(SlotSet([1]), 1, owned=True), 0.0)
    assert not node.joiner.is_filled_by(B.boot)


def test_a_leave_is_acknowledged_once_it_is_in_the_plan() -> None:
    sent: list[Message] = []
    node = Replication(A, [Cells(VALUES)], lambda _, message: sent.append(message), 0.0)
    node.update(View.of([A, B, C]), [], 0.0)
    node.receive(B.boot, Leaving(), 0.0)
    node.receive(B.boot, Batch(1, ()), 0.0)
    assert not [message for message in sent if isinstance(message, Ack)]
    kept = node.placement.held
    list(node.tick(0.0))
    assert [message.refused for message in sent if isinstance(message, Ack)] == [False, False]
    assert node.placement.held - kept


def test_slots_that_are_not_wanted_meanwhile_count_as_lacking() -> None:
    peer = Peer()
    slots = SlotSet([1, 2])
    peer.outbox.want(slots, slots)
    peer.outbox.pump(0.0)
    peer.outbox.want(SlotSet([1]), SlotSet([1]))
    peer.outbox.want(slots, slots)
    while peer.outbox.busy:
        peer.acknowledge()
    assert list(peer.outbox.filled) == [1]


# -- joining ------------------------------------------------------------------------------------------------------


def test_a_joining_node_takes_over_when_it_is_filled_under_the_present_view() -> None:
    placement = Placement(A)  # history 17
    placement.update(View.of([B]), [])
    placement.plan()
    sent: list[tuple[bytes, Message]] = []
    outboxes = Outboxes(placement, [], HybridClock(A.boot), lambda boot, message: sent.append((boot, message)))
    outboxes.get(B.boot).open = True
    joiner = Joiner(placement, outboxes, 0.0)
    joiner.filled(B.boot, View.of([B, C]).epoch)
    joiner.tick(1.0)
    assert not sent
    assert not joiner.may_serve
    joiner.filled(B.boot, placement.epoch)
    joiner.tick(1.0)
    assert sent == [(B.boot, TakeOver(placement.epoch, 0))]
    assert joiner.take(B.boot, Yours(placement.epoch, 0, SlotSet([1])), 1.0)
    joiner.tick(1.0)
    assert joiner.may_serve


def test_a_joining_node_does_not_take_what_was_handed_over_before_it_gave_all_back() -> None:
    placement = Placement(A)
    placement.update(View.of([B]), [])
    placement.plan()
    joiner = Joiner(placement, Outboxes(placement, [], HybridClock(A.boot), lambda *_: None), 0.0)
    stale = Yours(placement.epoch, placement.turn, SlotSet([1]))
    placement.give_back()
    assert not joiner.take(B.boot, stale, 1.0)
    assert not placement.taken
    assert joiner.take(B.boot, Yours(placement.epoch, placement.turn, SlotSet([1])), 1.0)
    assert placement.taken


def test_a_joining_node_that_nobody_fills_serves_all_the_same() -> None:
    placement = Placement(A)
    placement.update(View.of([B]), [])
    placement.plan()
    joiner = Joiner(placement, Outboxes(placement, [], HybridClock(A.boot), lambda *_: None), 0.0)
    joiner.tick(NO_PROGRESS)
    assert not joiner.may_serve
    joiner.tick(NO_PROGRESS + 0.1)
    assert joiner.may_serve


# -- what is settled ----------------------------------------------------------------------------------------------


class Settling:
    """The node `a`, which has given others all that they have to hold."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.cells = Cells(0)
        self.replication = Replication(A, [self.cells], lambda boot, message: self.sent.append(message), 0.0)

    @property
    def told(self) -> list[int]:
        """The epochs for which it has said that it is settled."""
        return [message.epoch for message in self.sent if isinstance(message, Settled)]

    def see(self, *members: Identity) -> None:
        self.replication.update(View.of(members), [], 0.0)
        for other in set(members) - {A}:
            self.replication.opened(other.boot, 0.0)
            self.replication.outboxes.get(other.boot).take_as_filled(SlotSet.all())
        self.replication.complete = self.replication.placement.held
        list(self.replication.tick(0.0))

    def synced(self) -> bool:
        return self.replication.synced

    def hear(self, epoch: int, *others: Identity) -> None:
        for other in others or [B]:
            self.replication.receive(other.boot, Settled(epoch), 0.0)
        list(self.replication.tick(0.0))


def test_what_a_node_said_before_it_was_gone_does_not_count_in_a_view_of_the_same_epoch() -> None:
    with few_slots():
        node, epoch = Settling(), View.of([A, B]).epoch
        node.see(A, B)
        node.hear(epoch)
        assert node.synced()
        node.see(A)
        node.see(A, B)
        assert not node.synced()
        node.hear(epoch)
        assert node.synced()


def test_a_node_whose_backup_lacks_slots_again_takes_back_that_it_is_settled() -> None:
    with few_slots():
        node, epoch = Settling(), View.of([A, B]).epoch
        node.see(A, B)
        node.hear(epoch)
        node.replication.outboxes.get(B.boot).filled = SlotSet()
        list(node.replication.tick(0.0))
        assert node.told == [epoch, NO_EPOCH]
        assert not node.synced()
        node.replication.outboxes.get(B.boot).take_as_filled(SlotSet.all())
        list(node.replication.tick(0.0))
        assert node.told == [epoch, NO_EPOCH, epoch]


def test_a_node_drops_what_it_does_not_hold_whenever_a_view_of_the_same_epoch_is_in_place() -> None:
    with few_slots():
        node, epoch = Settling(), View.of([A, B, C]).epoch
        node.see(A, B, C)
        key = next(
            key for key in map(b"%d".__mod__, range(1000)) if slot_of(key) not in node.replication.placement.held
        )
        for _ in range(2):
            node.cells.put(Record(0, key, 1, b"value"), 0.0)
            node.see(A, B)
            node.see(A, B, C)
            assert node.cells.cells
            node.hear(epoch, B, C)
            assert not node.cells.cells


def test_what_a_departing_owner_has_not_got_goes_to_the_owner_after_it() -> None:
    with few_slots():
        placement = Placement(A)
        placement.update(View.of([A]), [])
        placement.plan()
        placement.update(View.of([A, B, C]), [])
        ceded = placement.plan()[B.boot].ceded
        filled = SlotSet(sorted(ceded)[::2])
        placement.reclaim(B.boot, filled)
        placement.depart(B.boot)
        placement.plan()
        assert not placement.ceded[C.boot] & filled
        assert set(placement.ceded[C.boot] | placement.owned) >= set(ceded - filled)


# -- giving way ---------------------------------------------------------------------------------------------------


def in_place(placement: Placement, *members: Identity) -> None:
    """All nodes hold what they have to hold in a view of these members."""
    placement.update(View.of(members), [])
    placement.plan()
    placement.remember()


def test_a_node_that_gives_way_keeps_what_no_winner_held() -> None:
    with few_slots():
        placement, hashing = Placement(A), Rendezvous({"a": 1.0, "b": 1.0, "c": 1.0})
        in_place(placement, A, B, C)
        lost = placement.yield_to(SlotSet.all(), frozenset([C.boot]))
        assert set(lost) == {slot for slot in SlotSet.all() if "c" in hashing.holders(slot)}


def test_a_winner_that_a_node_has_lost_sight_of_before_the_others_still_counts() -> None:
    with few_slots():
        placement = Placement(A)
        in_place(placement, A, B, C)
        placement.update(View.of([A, B]), [])
        placement.plan()
        in_place(placement, A)
        lost = placement.yield_to(SlotSet.all(), frozenset([B.boot, C.boot]))
        assert set(lost) == set(SlotSet.all())


def test_an_instance_of_an_earlier_view_is_not_taken_for_a_winner_of_its_name() -> None:
    with few_slots():
        placement = Placement(A)
        earlier = Identity("c", b"e" * 16, "c:4370")
        in_place(placement, A, B, earlier)
        in_place(placement, A, B)
        lost = placement.yield_to(SlotSet.all(), frozenset([C.boot]))
        assert not lost


def test_a_node_that_knows_of_no_settled_view_keeps_all_that_it_had() -> None:
    with few_slots():
        placement = Placement(A)
        placement.update(View.of([A, B]), [])
        placement.plan()
        assert set(placement.yield_to(SlotSet([1, 2]), frozenset([B.boot]))) == set(SlotSet.all()) - {1, 2}
