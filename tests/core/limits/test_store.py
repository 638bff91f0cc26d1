import gc
import math
import tracemalloc
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_clusterstate.core.limits.algorithms import LimitState, slot_of_state
from django_clusterstate.core.limits.store import _COPIES, _LRU, ROW_OVERHEAD, LimitStore, _LinkedLists

NOW = 1000.25
AMPLE = 1 << 30
STATE: LimitState = (NOW, 1, 2, 3, 4, 5)


def room_for(entries: int, key: bytes = b"a") -> int:
    return entries * (len(key) + ROW_OVERHEAD)


def keep(store: LimitStore, key: bytes, ttl: float, now: float = NOW) -> None:
    store.set(key, (now + ttl, *STATE[1:]), now)


def fill(store: LimitStore, keys: str, ttl: float = 60.0, now: float = NOW) -> None:
    for key in keys:
        keep(store, key.encode(), ttl, now)


def index_of(store: LimitStore) -> dict[bytes, int]:
    return {key: row for shard in store._index for key, row in shard.items()}


def present(store: LimitStore, keys: str, now: float = NOW) -> str:
    """Without using them."""
    index = index_of(store)
    return "".join(key for key in keys if store._expires[index.get(key.encode(), _LRU)] > now)


def rows_of(lists: _LinkedLists, head: int) -> list[int]:
    rows, row = [], lists.first(head)
    while row != head:
        rows.append(row)
        row = lists.first(row)
    return rows


def check_structure(store: LimitStore) -> None:
    index = index_of(store)
    assert store.bytes <= store.max_bytes
    assert store.bytes == sum(len(key) + ROW_OVERHEAD for key in index)
    assert store.entries == len(index)
    by_slot = Counter(map(slot_of_state, index))
    assert {slot: store._by_slot[slot] for slot in by_slot} == by_slot
    assert {key: store._keys[row] for key, row in index.items()} == {key: key for key in index}
    assert sorted(rows_of(store._usage, _LRU) + rows_of(store._usage, _COPIES)) == sorted(index.values())
    assert sorted(store._due_heap) == sorted(store._buckets)
    filed = {row: due for due, head in store._buckets.items() for row in rows_of(store._wheel, head)}
    assert sorted(filed) == sorted(index.values())
    for row, due in filed.items():
        expires = store._expires[row]
        assert due == expires == math.inf or due <= expires + 1 + 0.02 * (expires - NOW)
    rows = [_LRU, _COPIES, *index.values(), *store._buckets.values(), *store._free]
    assert sorted(rows) == list(range(len(store._keys)))
    assert {len(column) for column in store._columns} == {len(rows)}
    assert all(not store._keys[row] for row in store._free)


def assert_empty(store: LimitStore) -> None:
    assert (store.entries, store.bytes) == (0, 0)
    assert not index_of(store)
    assert not any(store._by_slot)
    assert rows_of(store._usage, _LRU) == rows_of(store._usage, _COPIES) == []


def test_state_is_present_until_it_expires() -> None:
    store = LimitStore(AMPLE)
    state = (NOW + 10, NOW + 1 / 3, 1 / 5, 1 / 6, 1 / 7, 2**62)
    store.set(b"a", state, NOW)
    assert store.get(b"a", NOW + 9.99) == state
    assert store.get(b"a", NOW + 10) is None
    assert store.expirations == 1
    assert_empty(store)


@pytest.mark.parametrize("ttl", [math.inf, 1e300])
def test_state_may_last_for_ever(ttl: float) -> None:
    store = LimitStore(AMPLE)
    keep(store, b"a", ttl)
    assert store.expire(NOW + 1e9) == 0
    assert store.get(b"a", NOW + 1e9) == (NOW + ttl, *STATE[1:])
    check_structure(store)


def test_delete_tells_whether_the_key_was_present() -> None:
    store = LimitStore(AMPLE)
    fill(store, "ab", ttl=5)
    assert store.delete(b"a", NOW)
    assert not store.delete(b"a", NOW)
    assert not store.delete(b"b", NOW + 5)
    assert store.expirations == 1
    assert_empty(store)


def test_least_recently_used_goes_first() -> None:
    store = LimitStore(room_for(4))
    fill(store, "abcd")
    store.get(b"a", NOW)
    fill(store, "b")
    fill(store, "e")
    assert present(store, "abcde") == "abde"
    fill(store, "fg")
    assert present(store, "abdefg") == "befg"
    assert store.evictions == 3


def test_dead_rows_make_room_before_live_ones() -> None:
    store = LimitStore(room_for(3))
    fill(store, "a")
    fill(store, "b", ttl=5)
    fill(store, "c")
    fill(store, "d", now=NOW + 7)
    assert (store.evictions, store.expirations) == (0, 1)
    fill(store, "e", now=NOW + 7)
    assert (store.evictions, store.expirations) == (1, 1)
    assert present(store, "acde", NOW + 7) == "cde"


def test_room_is_made_at_little_cost_when_all_that_was_due_has_been_hit_since() -> None:
    store = LimitStore(room_for(100, b"00"))
    for i in range(100):
        keep(store, b"%02d" % i, 1)
    for i in range(100):
        keep(store, b"%02d" % i, 60)
    keep(store, b"xx", 60, NOW + 3)
    assert len(rows_of(store._wheel, store._buckets[store._due_heap[0]])) == 90
    assert store.evictions == 1
    check_structure(store)


def test_a_key_alone_over_the_bound_is_not_kept() -> None:
    store = LimitStore(ROW_OVERHEAD)
    fill(store, "a")
    assert_empty(store)


def test_expire_keeps_to_its_budget() -> None:
    store = LimitStore(AMPLE)
    for i in range(100):
        keep(store, b"%d" % i, 1 + i / 20)
    assert store.expire(NOW + 60, 0) == 0
    assert store.expire(NOW + 60, 30) == 30
    assert store.entries == 70
    check_structure(store)
    assert store.expire(NOW + 60) == 70
    assert store.expirations == 100
    assert_empty(store)
    assert not store._buckets


@pytest.mark.parametrize("ttl", [1, 59, 300, 86_400, 31_536_000, 1e12, 1e300])
def test_due_row_is_reclaimed_within_a_second_or_2_percent_of_its_ttl(ttl: float) -> None:
    store = LimitStore(AMPLE)
    keep(store, b"a", ttl)
    assert store.expire(NOW + ttl * 0.999) == 0
    assert store.expire(NOW + ttl * 1.02 + 1) == 1
    assert_empty(store)


@pytest.mark.parametrize(("first", "then"), [(10, 1000), (1000, 10)])
def test_a_row_with_another_ttl_is_reclaimed_at_its_new_time(first: float, then: float) -> None:
    store = LimitStore(AMPLE)
    fill(store, "a", ttl=first)
    fill(store, "a", ttl=then)
    for second in range(int(then)):
        store.expire(NOW + second)
        assert store.entries == 1
    check_structure(store)
    store.expire(NOW + then * 1.02 + 1)
    assert_empty(store)


def test_buckets_are_few_however_many_ttls_there_are() -> None:
    store = LimitStore(AMPLE)
    for i in range(20_000):
        keep(store, b"%d" % i, i * 1567 % 31_536_000 + 1, NOW + i / 100)
    assert len(store._buckets) < 2500


def test_rows_are_reused() -> None:
    store = LimitStore(AMPLE)
    for turn in range(50):
        now = NOW + turn * 100
        fill(store, "abcdefgh", now=now)
        store.expire(now + 70)
        assert_empty(store)
    assert len(store._keys) < 12


@pytest.mark.parametrize("count", [5_000, 30_000, 100_000])
def test_row_overhead_is_real_memory(count: int) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        store = LimitStore(AMPLE)
        for i in range(count):
            store.set(b"a limit of %08d" % i, (300.0 + i, 1.5 * i, 2.5 * i, 3.5 * i, i, i), i / 1000)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    overhead = used / count - (store.bytes / count - ROW_OVERHEAD)
    assert overhead == pytest.approx(ROW_OVERHEAD, rel=0.3)


keys = st.sampled_from([b"1", b"2", b"3", b"four"])
numbers = st.floats(allow_nan=False)
states = st.tuples(numbers, numbers, numbers, numbers, numbers, st.integers(0, 2**63 - 1))
ttls = st.sampled_from([0.5, 1.0, 60.0, 200.0, 5000.0, math.inf])


class AgainstPlainDict(RuleBasedStateMachine):
    """The store against a dict. A small one may have evicted a key: then, and only then, a miss is right too."""

    model: dict[bytes, tuple[LimitState, float]]

    @initialize(small=st.booleans())
    def start(self, small: bool) -> None:
        self.small = small
        self.store = LimitStore(3 * ROW_OVERHEAD if small else AMPLE)
        self.model = {}
        self.now = NOW

    def expected(self, key: bytes) -> LimitState | None:
        """What the model holds, after forgetting what a small store has evicted."""
        held = self.model.get(key)
        if held is None or held[1] <= self.now:
            self.model.pop(key, None)
            return None
        if self.small and key not in index_of(self.store):
            assert self.store.evictions
            del self.model[key]
            return None
        return held[0]

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self.store.get(key, self.now) == self.expected(key)

    @rule(key=keys, state=states, ttl=ttls)
    def set(self, key: bytes, state: LimitState, ttl: float) -> None:
        state = (self.now + ttl, *state[1:])
        self.store.set(key, state, self.now)
        self.model[key] = (state, self.now + ttl)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        present = self.expected(key) is not None
        assert self.store.delete(key, self.now) is present
        self.model.pop(key, None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 50.0, 1e4]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(budget=st.integers(0, 4))
    def expire(self, budget: int) -> None:
        before = self.store.entries
        looked_at = self.store.expire(self.now, budget)
        assert before - self.store.entries <= looked_at <= budget

    @precondition(lambda self: not self.small)
    @invariant()
    def nothing_is_evicted_without_need(self) -> None:
        assert self.store.evictions == 0

    @invariant()
    def structure_holds(self) -> None:
        check_structure(self.store)

    def teardown(self) -> None:
        self.store.expire(self.now)
        for key in index_of(self.store):
            self.store.delete(key, self.now)
        assert_empty(self.store)


AgainstPlainDict.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLedgerBehavesAsADict = AgainstPlainDict.TestCase
