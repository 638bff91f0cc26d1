"""What a node has no reason to hold goes some entries at a time."""

import pytest

from django_clusterstate.core.rendezvous_hashing import slot_of
from django_clusterstate.core.replication import cleaning, stores
from django_clusterstate.core.replication.cleaning import Cleaner, Filling
from django_clusterstate.core.replication.messages import FillStart, Record, RecordKey
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.core.replication.stores import portions
from tests.core.replication.simulation import Cells

BOOT, OTHER = b"a" * 16, b"b" * 16
KEYS = [b"key-%d" % number for number in range(20)]
ALL = SlotSet.all()


class Portioned(Cells):
    def keys(self, slots: SlotSet) -> list[list[bytes]]:
        return list(portions([*self.cells], lambda key: slot_of(key) in slots))


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Portioned:
    """Twenty entries, of which some are read at a time."""
    monkeypatch.setattr(stores, "PORTION", 3)
    monkeypatch.setattr(cleaning, "MAX_READ", 1)
    cells = Portioned(0)
    for key in KEYS:
        cells.put(Record(0, key, 5, b"value"), 1.0)
    return cells


def nothing_waits(_: RecordKey) -> bool:
    return False


def ended(cleaner: Cleaner, *, owned: bool = True) -> Filling:
    filling = Filling(FillStart(ALL, 100, owned))
    cleaner.add(BOOT, filling)
    return filling


def test_a_fill_is_acknowledged_when_the_rest_is_dropped_and_later_messages_after_it(cells: Portioned) -> None:
    cleaner = Cleaner([cells])
    assert not cleaner.queue_ack(BOOT, taken_in=True)
    filling = ended(cleaner)
    filling.confirmed.add((0, KEYS[7]))
    assert cleaner.queue_ack(BOOT, taken_in=True)
    assert cleaner.queue_ack(BOOT, taken_in=False)
    assert not cleaner.queue_ack(OTHER, taken_in=True)
    steps = 0
    while not (acknowledged := [*cleaner.drop_unconfirmed()]):
        steps += 1
        assert len(cells.cells) == max(20 - 3 * steps, 0) + (steps > 2)
    assert acknowledged == [(BOOT, filling), (BOOT, True), (BOOT, False)]
    assert steps == 7
    assert [*cells.cells] == [KEYS[7]]
    assert cleaner.idle


def test_what_comes_while_the_rest_of_a_fill_is_dropped_stays(cells: Portioned) -> None:
    cleaner = Cleaner([cells])
    ended(cleaner)
    assert not [*cleaner.drop_unconfirmed()]
    cleaner.confirm(BOOT, (0, KEYS[10]))
    cells.put(Record(0, KEYS[11], 200, b"newer"), 1.0)
    while not cleaner.idle:
        list(cleaner.drop_unconfirmed())
    assert {*cells.cells} == {KEYS[10], KEYS[11]}


def test_a_fill_by_another_than_the_owner_drops_nothing(cells: Portioned) -> None:
    cleaner = Cleaner([cells])
    filling = ended(cleaner, owned=False)
    assert [*cleaner.drop_unconfirmed()] == [(BOOT, filling)]
    assert len(cells.cells) == 20


def test_fills_that_do_not_count_any_longer_are_refused_in_order(cells: Portioned) -> None:
    cleaner = Cleaner([cells])
    ended(cleaner)
    cleaner.queue_ack(BOOT, taken_in=True)
    cleaner.refuse()
    assert [ended for _ in range(2) for ended in cleaner.drop_unconfirmed()] == [(BOOT, False), (BOOT, True)]
    assert len(cells.cells) == 20


def test_entries_that_are_not_held_go_in_steps_unless_they_are_held_again(cells: Portioned) -> None:
    cleaner = Cleaner([cells])
    cleaner.begin(ALL)
    held = SlotSet([slot_of(KEYS[4])])
    for step in range(1, 8):
        cleaner.drop_unheld(held, nothing_waits)
        assert len(cells.cells) == max(20 - 3 * step, 0) + (step > 1)
    while not cleaner.idle:
        cleaner.drop_unheld(held, nothing_waits)
    cleaner.begin(SlotSet())
    cleaner.drop_unheld(SlotSet(), nothing_waits)
    assert [*cells.cells] == [KEYS[4]]


def test_an_entry_that_is_not_held_stays_until_its_change_has_been_sent(cells: Portioned) -> None:
    cleaner = Cleaner([cells])
    cleaner.begin(ALL)
    while not cleaner.idle:
        cleaner.drop_unheld(SlotSet(), lambda key: key == (0, KEYS[4]))
    assert [*cells.cells] == [KEYS[4]]
