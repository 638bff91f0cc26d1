"""The stores of a node behave towards replication as those of the simulation do, which keeps the rules' invariants."""

import math
import sys
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from django_clusterstate.core.cache.copies import CacheCopies
from django_clusterstate.core.cache.entry_keys import slot_of_entry
from django_clusterstate.core.cache.quotas import CacheStores, Value
from django_clusterstate.core.cache.store import ENTRY_OVERHEAD, CacheStore
from django_clusterstate.core.limits import algorithms
from django_clusterstate.core.limits.algorithms import Algorithm, LimitState, Rule
from django_clusterstate.core.limits.copies import LimitCopies
from django_clusterstate.core.limits.store import ROW_OVERHEAD, LimitStore
from django_clusterstate.core.replication import tombstones
from django_clusterstate.core.replication.messages import Record
from django_clusterstate.core.replication.slots import GROUPS, SlotSet
from django_clusterstate.core.replication.stores import PORTION, Store
from tests.core.replication.simulation import LIMITS, VALUES, Cell, Cells

AMPLE = 1 << 30
NOW = 1000.25
ALL = SlotSet.all()
ENTRY_KEYS = [b"x\0one", b"x\0two", b"y\0one", b"y\0\0\1\2lease\0one"]
STATE_KEYS = [
    algorithms.key_of_state(key, Rule(algorithm, 5, 100.0)) for key in (b"", b"one", b"two") for algorithm in Algorithm
]


class Model(Cells):
    """The store of the simulation, with the keys of real ones."""

    def _clear_version(self, key: bytes) -> int:
        return 0 if self.merges else self.cleared.get(key.partition(b"\0")[0], 0)

    def rule(self, key: bytes) -> Rule:
        return algorithms.rule_of(key)

    def slot(self, key: bytes) -> int:
        return algorithms.slot_of_state(key) if self.merges else slot_of_entry(key)

    def write(self, key: bytes, value: Any, expires: float | None, version: int, now: float) -> None:
        """A change that is made here."""
        self.put(Record(self.kind, key, version), now)
        if value is not None:
            self.tombstones.discard(key)
            self.cells[key] = Cell(version, value, expires, self.generation)


class AgainstCells(RuleBasedStateMachine):
    """A store with the same operations as the model: made here, and received."""

    kind: int
    keys: list[bytes]
    copies: Store
    ttls = st.sampled_from([0.5, 1.0, 60.0, 5000.0])

    @initialize()
    def start(self) -> None:
        self.lost = dict.fromkeys(range(1 << 16), 0)
        self.model = Model(self.kind)
        self.changed: list[bytes] = []
        self.versions = count(1000, 10)
        self.last = 1000
        self.now = NOW
        self.copies = self.make()
        self.begin_generation()

    def make(self) -> Store:
        raise NotImplementedError

    def wrote(self, key: bytes, now: float) -> int:
        assert now == self.now
        self.changed.append(key)
        self.last = next(self.versions)
        return self.last

    def is_valid(self, key: bytes, generation: int) -> bool:
        return generation >= self.lost[self.model.slot(key)]

    def live(self, key: bytes) -> Cell | None:
        return self.model.live(key, self.now, self.lost[self.model.slot(key)])

    def made(self, key: bytes, value: Any, expires: float | None = None) -> None:
        """The last operation has changed a key here."""
        assert self.changed == [key]
        self.changed.clear()
        self.model.write(key, value, expires, self.last, self.now)

    def receive(self, key: bytes, value: Any, ttl: float | None, back: int) -> None:
        """A record comes, with a version that may be older than the one here; it is merged as `Inboxes` does."""
        version = max(self.last - back, 1) if back else next(self.versions)
        record = Record(self.kind, key, version, value, ttl)
        self.copies.check(record)
        held = self.copies.version(key)
        assert held == self.model.version(key)
        if version > held:
            self.copies.put(record, self.now)
            self.model.put(record, self.now)
        else:
            self.copies.confirm(key)
            self.model.confirm(key)
        assert not self.changed

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.keys))
        self.copies.drop(key)
        self.model.drop(key)

    @rule()
    def begin_generation(self) -> None:
        self.copies.generation += 1
        self.model.generation = self.copies.generation

    @rule(data=st.data())
    def yield_to(self, data: st.DataObject) -> None:
        """Entries of some slots here may be older than elsewhere."""
        self.begin_generation()
        for key in data.draw(st.sets(st.sampled_from(self.keys))):
            self.lost[self.model.slot(key)] = self.copies.generation

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Entries of some slots don't count."""
        self.begin_generation()
        slots = SlotSet(map(self.model.slot, data.draw(st.sets(st.sampled_from(self.keys)))))
        for slot in slots:
            self.lost[slot] = self.copies.generation
        self.copies.forget(slots)
        self.model.forget(slots)

    @rule(seconds=st.sampled_from([0.1, 1.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def records_and_keys_are_alike(self) -> None:
        for key in self.keys:
            there, here = self.model.record(key, self.now), self.copies.record(key, self.now)
            if key in self.model.cells and self.copies.version(key) < self.model.cells[key].version:
                # A read has reclaimed an entry that had expired, or was invalid.
                assert self.live(key) is None
                del self.model.cells[key]
                there = self.model.record(key, self.now)
            assert (here.version, here.value) == (there.version, there.value)
            assert self.model.merges or here.ttl == there.ttl
        assert {*self.model.cells} <= {*chain.from_iterable(self.copies.keys(ALL))} <= {*self.keys}
        for key in self.model.cells:
            assert key in chain.from_iterable(self.copies.keys(SlotSet([self.model.slot(key)])))


class CacheAgainstCells(AgainstCells):
    kind = VALUES
    keys = ENTRY_KEYS
    names = st.sampled_from(keys)
    values = st.one_of(st.binary(max_size=20), st.integers(-(2**63), 2**63 - 1))
    ttls = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 60.0, 5000.0]))
    some = st.one_of(ttls, st.sampled_from([0.0, -1.0]))

    def make(self) -> Store:
        def store() -> CacheStore[Value]:
            return CacheStore(AMPLE, size_of=sys.getsizeof, is_valid=self.is_valid, on_write=self.wrote)

        self.stores = CacheStores(store(), {b"y": store()})
        return CacheCopies(VALUES, self.stores)

    def expires(self, ttl: float | None) -> float | None:
        return None if ttl is None else self.now + ttl

    @rule(key=names)
    def get(self, key: bytes) -> None:
        cell = self.live(key)
        assert self.stores.get(key, self.now) == (None if cell is None else cell.value)

    @rule(key=names, value=values, ttl=some, absent=st.booleans())
    def set(self, key: bytes, value: Value, ttl: float | None, absent: bool) -> None:
        store = self.stores.of(key)
        if absent:
            present = self.live(key) is not None
            assert store.add(key, value, ttl, self.now) is not present
            if present:
                return
        else:
            assert store.set(key, value, ttl, self.now)
        self.made(key, None if ttl is not None and ttl <= 0 else value, self.expires(ttl))

    @rule(key=names, value=values)
    def replace(self, key: bytes, value: Value) -> None:
        cell = self.live(key)
        assert self.stores.of(key).replace(key, value, self.now) is (cell is not None)
        if cell is not None:
            self.made(key, value, cell.expires)

    @rule(key=names, ttl=some)
    def touch(self, key: bytes, ttl: float | None) -> None:
        cell = self.live(key)
        assert self.stores.of(key).touch(key, ttl, self.now) is (cell is not None)
        if cell is not None:
            self.made(key, None if ttl is not None and ttl <= 0 else cell.value, self.expires(ttl))

    @rule(key=names)
    def delete(self, key: bytes) -> None:
        assert self.stores.of(key).delete(key, self.now) is (self.live(key) is not None)
        self.made(key, None)

    @rule(key=names, value=st.one_of(st.none(), values), ttl=ttls, back=st.integers(0, 40))
    def receive_one(self, key: bytes, value: Value | None, ttl: float | None, back: int) -> None:
        self.receive(key, value, None if value is None else ttl, back)

    @rule(namespace=st.sampled_from([b"x", b"y"]), back=st.integers(0, 40))
    def clear(self, namespace: bytes, back: int) -> None:
        version = max(self.last - back, 1)
        self.copies.clear(namespace, version, self.now)
        self.model.clear(namespace, version, self.now)

    @rule()
    def expire(self) -> None:
        self.stores.expire(self.now, 1000)
        self.model.tombstones.expire(self.now)


class LimitsAgainstCells(AgainstCells):
    kind = LIMITS
    keys = STATE_KEYS
    names = st.sampled_from(keys)
    numbers = st.floats(0, 100)
    states = st.tuples(st.sampled_from([0.5, 1.0, 60.0, 100.0]), *[numbers] * 4, st.integers(0, 2**63 - 1))

    def make(self) -> Store:
        self.store = LimitStore(AMPLE, is_valid=self.is_valid, on_write=self.wrote)
        return LimitCopies(LIMITS, self.store)

    @rule(key=names)
    def get(self, key: bytes) -> None:
        cell = self.live(key)
        assert self.store.get(key, self.now) == (None if cell is None else cell.value)

    @rule(key=names, state=states)
    def set(self, key: bytes, state: LimitState) -> None:
        state = self.now + state[0], *state[1:]
        self.store.set(key, state, self.now)
        self.made(key, state, state[0])

    @rule(key=names)
    def delete(self, key: bytes) -> None:
        assert self.store.delete(key, self.now) is (self.live(key) is not None)
        self.made(key, None)

    @rule(key=names, state=st.one_of(st.none(), states), back=st.integers(0, 40))
    def receive_one(self, key: bytes, state: LimitState | None, back: int) -> None:
        self.receive(key, state, None if state is None else state[0], back)

    @rule(key=names, state=states, back=st.integers(-40, 40))
    def merge(self, key: bytes, state: LimitState, back: int) -> None:
        record = Record(LIMITS, key, max(self.last - back, 1), state, state[0])
        here, there = self.copies.merged(record, self.now), self.model.merged(record, self.now)
        if key in self.model.cells and self.model.record(key, self.now).value is None:
            there = None  # what has expired counts no more
        assert (here and here.value) == (there and there.value)

    @rule()
    def expire(self) -> None:
        self.store.expire(self.now)
        self.model.tombstones.expire(self.now)


CacheAgainstCells.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
LimitsAgainstCells.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestCacheCopies = CacheAgainstCells.TestCase
TestLimitCopies = LimitsAgainstCells.TestCase


# -- what each store does by itself ---------------------------------------------------------------------------------


def cache_of(
    max_bytes: int = AMPLE, owns: Callable[[bytes], bool] = lambda _: True
) -> tuple[CacheStore[Value], CacheCopies]:
    numbers = count(1000)
    store: CacheStore[Value] = CacheStore(
        max_bytes, size_of=sys.getsizeof, owns=owns, on_write=lambda *_: next(numbers)
    )
    return store, CacheCopies(VALUES, CacheStores(store, {}))


def limits_of(max_bytes: int = AMPLE, owns: Callable[[bytes], bool] = lambda _: True) -> tuple[LimitStore, LimitCopies]:
    numbers = count(1000)
    store = LimitStore(max_bytes, owns=owns, on_write=lambda *_: next(numbers))
    return store, LimitCopies(LIMITS, store)


def entry(number: int, version: int = 1, value: Value | None = b"v") -> Record:
    return Record(VALUES, b"ns\0%03d" % number, version, value)


def state(number: int, version: int = 1) -> Record:
    key = algorithms.key_of_state(b"%03d" % number, Rule(Algorithm.FIXED_WINDOW, 5, 100.0))
    return Record(LIMITS, key, version, (60.0, 0.0, 0.0, 0.0, 0.0, 3))


def test_copied_entries_are_evicted_in_order_before_those_that_are_used_here() -> None:
    room = 10 * (len(entry(0).key) + sys.getsizeof(b"v") + ENTRY_OVERHEAD)
    store, copies = cache_of(room, lambda key: not 5 <= int(key[-3:]) < 10)
    for number in range(5):
        store.set(entry(number).key, b"v", None, NOW)
    for number in range(5, 10):
        copies.put(entry(number), NOW)
    copies.put(entry(5, 2), NOW)  # written again by its owner
    assert store.get(entry(6).key, NOW)  # used here
    for number in range(10, 13):
        store.set(entry(number).key, b"v", None, NOW)
    left = {int(key[-3:]) for key in chain.from_iterable(copies.keys(ALL))}
    assert left == {0, 1, 2, 3, 4, 5, 6, 10, 11, 12}
    assert (store.copies_evicted, store.evictions) == (3, 0)
    store.set(entry(13).key, b"v", None, NOW)
    store.set(entry(14).key, b"v", None, NOW)
    assert (store.copies_evicted, store.evictions) == (4, 1)


def test_copied_states_are_evicted_in_order_before_those_that_are_used_here() -> None:
    store, copies = limits_of(10 * (len(state(0).key) + ROW_OVERHEAD), lambda key: not 5 <= int(key[:3]) < 10)

    def use(number: int) -> None:
        store.set(state(number).key, (NOW + 60, 0, 0, 0, 0, 1), NOW)

    for number in range(5):
        use(number)
    for number in range(5, 10):
        copies.put(state(number), NOW)
    copies.put(state(5, 2), NOW)
    assert store.get(state(6).key, NOW)
    for number in range(10, 13):
        use(number)
    left = {int(key[:3]) for key in chain.from_iterable(copies.keys(ALL))}
    assert left == {0, 1, 2, 3, 4, 5, 6, 10, 11, 12}
    assert (store.copies_evicted, store.evictions) == (3, 0)
    use(13)
    use(14)
    assert (store.copies_evicted, store.evictions) == (4, 1)


@pytest.mark.parametrize("number", [10, 200])
def test_copies_never_push_out_what_is_used_here(number: int) -> None:
    room = 10 * (len(entry(0).key) + sys.getsizeof(b"v") + ENTRY_OVERHEAD)
    store, copies = cache_of(room, lambda key: int(key[-3:]) < 9)
    for used in range(9):
        store.set(entry(used).key, b"v", None, NOW)
    for copied in range(10, 10 + number):
        copies.put(entry(copied), NOW)
        assert store.bytes <= store.max_bytes
    assert (store.entries, store.copies_evicted, store.evictions) == (10, number - 1, 0)


def test_an_entry_that_was_copied_here_and_is_owned_by_now_counts_as_evicted() -> None:
    owned: set[bytes] = set()
    store, copies = cache_of(2 * (len(entry(0).key) + sys.getsizeof(b"v") + ENTRY_OVERHEAD), owned.__contains__)
    for number in range(3):
        copies.put(entry(number), NOW)
    assert (store.copies_evicted, store.evictions) == (1, 0)
    owned.add(entry(1).key)
    copies.put(entry(3), NOW)
    assert (store.copies_evicted, store.evictions) == (1, 1)


def test_entries_are_owned_by_the_slots_of_their_keys() -> None:
    numbers = range(100)
    owned = SlotSet([slot_of_entry(entry(number).key) for number in numbers[:40]])
    cache, copies = cache_of()
    for number in numbers:
        copies.put(entry(number), NOW)
        cache.get(entry(number // 2).key, NOW)  # used here, which makes no difference
    assert CacheStores(cache, {}).owned(owned.flags()) == 40
    limits, limit_copies = limits_of()
    for number in numbers:
        limit_copies.put(state(number), NOW)
        limits.get(state(number // 2).key, NOW)
    owned = SlotSet([algorithms.slot_of_state(state(number).key) for number in numbers[:40]])
    assert limits.owned(owned.flags()) == 40


def test_an_entry_newer_than_a_clear_that_comes_late_stays_though_it_is_cleared_again_later() -> None:
    store, copies = cache_of()
    store.set(b"ns\0old", b"v", 60, NOW)  # version 1000
    store.set(b"ns\0new", b"v", 60, NOW)
    store.set(b"ns\0newest", b"v", 60, NOW)
    copies.clear(b"ns", 1000, NOW)
    assert [store.get(b"ns\0" + name, NOW) for name in (b"old", b"new")] == [None, b"v"]
    copies.clear(b"ns", 1001, NOW)
    store.expire(NOW)
    assert [store.get(b"ns\0" + name, NOW) for name in (b"new", b"newest")] == [None, b"v"]
    assert store.scan(b"ns\0", None, NOW)[0] == [b"ns\0newest"]
    assert store.entries == 1
    assert copies.version(b"ns\0another") == 1001


def test_a_bounded_number_of_clears_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "MAX_CLEARS", 3)
    _, copies = cache_of()
    for number in range(1, 6):
        copies.clear(b"%d" % number, number, NOW)
    assert [copies.version(b"%d\0key" % number) for number in range(1, 6)] == [0, 0, 3, 4, 5]
    assert copies.floor == 2


def test_old_deletes_are_forgotten_within_the_budget() -> None:
    store, _ = cache_of()
    limits, _ = limits_of()
    for number in range(100):
        store.delete(entry(number).key, NOW)
        limits.delete(state(number).key, NOW)
    late = NOW + tombstones.SECONDS
    for each in (store, limits):
        assert [each.expire(late, 60) for _ in range(3)] == [60, 40, 0]
        assert each.floor == 1099


def test_without_versions_nothing_is_remembered() -> None:
    store: CacheStore[Value] = CacheStore(AMPLE, size_of=sys.getsizeof)
    store.set(b"ns\0key", b"v", None, NOW)
    store.delete(b"ns\0key", NOW)
    store.clear(b"ns", NOW)
    limits = LimitStore(AMPLE)
    limits.delete(b"key", NOW)
    assert (store.version(b"ns\0key"), limits.version(b"key")) == (0, 0)


def test_a_copy_that_is_too_large_leaves_no_older_one() -> None:
    store, copies = cache_of(1000)
    copies.put(entry(1), NOW)
    copies.put(entry(1, 2, bytes(2000)), NOW)
    assert store.entries == 0
    assert copies.version(entry(1).key) == 2


def test_keys_are_found_by_their_slots_in_stores_of_many() -> None:
    store, copies = cache_of()
    limits, states = limits_of()
    for number in range(5000):  # so that the entries are in shards
        store.set(b"ns\0%d" % number, b"v", None, NOW)
        limits.set(state(number).key, (NOW + 60, 0, 0, 0, 0, 1), NOW)
    store.set(b"ns\0\0\x01\x02lease\0key", b"v", None, NOW)
    copies.put(entry(5001), NOW)
    some = SlotSet([258, *(slot for slot in ALL if slot % 5 == 0)])
    for adapter in (copies, states):
        every = [*chain.from_iterable(adapter.keys(ALL))]
        assert len(every) == len({*every}) == (5002 if adapter is copies else 5000)
        wanted = [key for key in every if adapter.slot(key) in some]
        assert sorted(chain.from_iterable(adapter.keys(some))) == sorted(wanted)
        assert sorted(
            key for group in range(GROUPS) for keys in adapter.keys(some.of_group(group)) for key in keys
        ) == sorted(wanted)
        assert all(len(keys) <= PORTION for keys in adapter.keys(ALL))


@given(st.sets(st.integers(0, (1 << 16) - 1), max_size=50))
def test_a_set_of_slots_is_that_of_its_groups(slots: set[int]) -> None:
    some = SlotSet(slots)
    assert some.groups == sorted({slot % GROUPS for slot in slots})
    assert {slot for group in some.groups for slot in some.of_group(group)} == slots


RULE = Rule(Algorithm.FIXED_WINDOW, 5, 100.0)
STATE = (60.0, 0.0, 0.0, 0.0, 0.0, 3)


@pytest.mark.parametrize(
    "record",
    [
        Record(VALUES, bytes(1025), 1, b"v"),
        Record(VALUES, b"ns\0key", 1, "text"),
        Record(VALUES, b"ns\0key", 1, 1.5),
        Record(VALUES, b"ns\0key", 1, True),
        Record(VALUES, b"ns\0key", 1, 2**63),
        Record(VALUES, b"ns\0key", 1, [1]),
        Record(VALUES, b"ns\0key", 1, b"v", 0.0),
        Record(VALUES, b"ns\0key", 1, b"v", math.nan),
    ],
)
def test_a_malformed_entry_is_refused(record: Record) -> None:
    with pytest.raises(ValueError, match="copied entry"):
        cache_of()[1].check(record)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (bytes(16), STATE),
        (bytes(1025) + state(0).key[3:], STATE),
        (b"key" + b"\x09" + state(0).key[4:], STATE),
        (algorithms.key_of_state(b"key", Rule(Algorithm.FIXED_WINDOW, 0, 100.0)), STATE),
        (algorithms.key_of_state(b"key", Rule(Algorithm.FIXED_WINDOW, 2**54, 100.0)), STATE),
        (algorithms.key_of_state(b"key", Rule(Algorithm.FIXED_WINDOW, 5, math.nan)), STATE),
        (algorithms.key_of_state(b"key", Rule(Algorithm.FIXED_WINDOW, 5, -1.0)), STATE),
        *(
            (algorithms.key_of_state(b"key", RULE), value)
            for value in (
                b"state", 5, STATE[:5], (*STATE, 1), (None, *STATE[1:]), (math.nan, *STATE[1:]), (math.inf, *STATE[1:]),
                (0.0, *STATE[1:]), (-1.0, *STATE[1:]), (200.0, *STATE[1:]), (60.0, math.inf, *STATE[2:]),
                (*STATE[:4], -1.0, 3), (*STATE[:5], -1), (*STATE[:5], 2**63), (*STATE[:5], 3.0), (*STATE[:5], True),
            )
        ),
    ],
)  # fmt: skip
def test_a_malformed_state_is_refused(key: bytes, value: Any) -> None:
    with pytest.raises(ValueError, match="limit|Algorithm"):
        limits_of()[1].check(Record(LIMITS, key, 1, value))


@pytest.mark.parametrize("value", [STATE, [*STATE], None])
def test_a_state_may_be_a_list_and_a_record_may_be_a_delete(value: Any) -> None:
    limits_of()[1].check(Record(LIMITS, state(0).key, 1, value))
    cache_of()[1].check(Record(VALUES, b"key", 1, None))
