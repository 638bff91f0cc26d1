"""The stores of a node behave towards replication as those of the simulation do, which keeps the rules' invariants."""

import sys
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from django_clusterstate.core.cache.copies import CacheCopies
from django_clusterstate.core.cache.entry_keys import slot_of_entry
from django_clusterstate.core.cache.quotas import CacheStores, Value
from django_clusterstate.core.cache.store import CacheStore
from django_clusterstate.core.limits import algorithms
from django_clusterstate.core.limits.algorithms import Algorithm, LimitState, Rule
from django_clusterstate.core.limits.copies import LimitCopies
from django_clusterstate.core.limits.store import LimitStore
from django_clusterstate.core.replication.messages import Record
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.core.replication.stores import Store
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
    def lose(self, data: st.DataObject) -> None:
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
        assert {*self.model.cells} <= {*self.copies.keys(ALL)} <= {*self.keys}
        for key in self.model.cells:
            assert key in self.copies.keys(SlotSet([self.model.slot(key)]))


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

    @rule(key=names, state=states)
    def merge(self, key: bytes, state: LimitState) -> None:
        record = Record(LIMITS, key, 1, state, state[0])
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
