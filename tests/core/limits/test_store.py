import gc
import math
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_clusterstate.core.limits.store import _HEAD, ROW_OVERHEAD, LimitState, LimitStore, _Rings

NOW = 1000.25
AMPLE = 1 << 30
STATE: LimitState = (NOW, 1, 2, 3, 4, 5)


def room_for(entries: int, key: bytes = b"a") -> int:
    return entries * (len(key) + ROW_OVERHEAD)


def keep(ledger: LimitStore, key: bytes, ttl: float, now: float = NOW) -> None:
    ledger.set(key, (now + ttl, *STATE[1:]), now)


def fill(ledger: LimitStore, keys: str, ttl: float = 60.0, now: float = NOW) -> None:
    for key in keys:
        keep(ledger, key.encode(), ttl, now)


def index_of(ledger: LimitStore) -> dict[bytes, int]:
    return {key: row for part in ledger._index for key, row in part.items()}


def present(ledger: LimitStore, keys: str, now: float = NOW) -> str:
    """Without using them."""
    index = index_of(ledger)
    return "".join(key for key in keys if ledger._expires[index.get(key.encode(), _HEAD)] > now)


def ring(rings: _Rings, head: int) -> list[int]:
    rows, row = [], rings.first(head)
    while row != head:
        rows.append(row)
        row = rings.first(row)
    return rows


def check_structure(ledger: LimitStore) -> None:
    index = index_of(ledger)
    assert ledger.bytes <= ledger.max_bytes
    assert ledger.bytes == sum(len(key) + ROW_OVERHEAD for key in index)
    assert ledger.entries == len(index)
    assert {key: ledger._keys[row] for key, row in index.items()} == {key: key for key in index}
    assert sorted(ring(ledger._used, _HEAD)) == sorted(index.values())
    assert sorted(ledger._dues) == sorted(ledger._buckets)
    filed = {row: due for due, head in ledger._buckets.items() for row in ring(ledger._timed, head)}
    assert sorted(filed) == sorted(index.values())
    for row, due in filed.items():
        expires = ledger._expires[row]
        assert due == expires == math.inf or due <= expires + 1 + 0.02 * (expires - NOW)
    rows = [_HEAD, *index.values(), *ledger._buckets.values(), *ledger._free]
    assert sorted(rows) == list(range(len(ledger._keys)))
    columns = (
        ledger._expires, ledger._first, ledger._second, ledger._third, ledger._amount, ledger._count,
    )  # fmt: skip
    assert {len(column) for column in columns} == {len(rows)}
    assert all(not ledger._keys[row] for row in ledger._free)


def assert_empty(ledger: LimitStore) -> None:
    assert (ledger.entries, ledger.bytes) == (0, 0)
    assert not index_of(ledger)
    assert ring(ledger._used, _HEAD) == []


def test_state_is_present_until_its_ttl_is_over() -> None:
    ledger = LimitStore(AMPLE)
    state = (NOW + 10, NOW + 1 / 3, 1 / 5, 1 / 6, 1 / 7, 2**62)
    ledger.set(b"a", state, NOW)
    assert ledger.get(b"a", NOW + 9.99) == state
    assert ledger.get(b"a", NOW + 10) is None
    assert ledger.expirations == 1
    assert_empty(ledger)


@pytest.mark.parametrize("ttl", [math.inf, 1e300])
def test_state_may_last_for_ever(ttl: float) -> None:
    ledger = LimitStore(AMPLE)
    keep(ledger, b"a", ttl)
    assert ledger.expire(NOW + 1e9) == 0
    assert ledger.get(b"a", NOW + 1e9) == (NOW + ttl, *STATE[1:])
    check_structure(ledger)


def test_delete_tells_whether_the_key_was_present() -> None:
    ledger = LimitStore(AMPLE)
    fill(ledger, "ab", ttl=5)
    assert ledger.delete(b"a", NOW)
    assert not ledger.delete(b"a", NOW)
    assert not ledger.delete(b"b", NOW + 5)
    assert ledger.expirations == 1
    assert_empty(ledger)


def test_least_recently_used_goes_first() -> None:
    ledger = LimitStore(room_for(4))
    fill(ledger, "abcd")
    ledger.get(b"a", NOW)
    fill(ledger, "b")
    fill(ledger, "e")
    assert present(ledger, "abcde") == "abde"
    fill(ledger, "fg")
    assert present(ledger, "abdefg") == "befg"
    assert ledger.evictions == 3


def test_dead_rows_make_room_before_live_ones() -> None:
    ledger = LimitStore(room_for(3))
    fill(ledger, "a")
    fill(ledger, "b", ttl=5)
    fill(ledger, "c")
    fill(ledger, "d", now=NOW + 7)
    assert (ledger.evictions, ledger.expirations) == (0, 1)
    fill(ledger, "e", now=NOW + 7)
    assert (ledger.evictions, ledger.expirations) == (1, 1)
    assert present(ledger, "acde", NOW + 7) == "cde"


def test_room_is_made_at_little_cost_when_all_that_was_due_has_been_hit_since() -> None:
    ledger = LimitStore(room_for(100, b"00"))
    for i in range(100):
        keep(ledger, b"%02d" % i, 1)
    for i in range(100):
        keep(ledger, b"%02d" % i, 60)
    keep(ledger, b"xx", 60, NOW + 3)
    assert len(ring(ledger._timed, ledger._buckets[ledger._dues[0]])) == 90
    assert ledger.evictions == 1
    check_structure(ledger)


def test_a_key_alone_over_the_bound_is_not_kept() -> None:
    ledger = LimitStore(ROW_OVERHEAD)
    fill(ledger, "a")
    assert_empty(ledger)


def test_expire_keeps_to_its_budget() -> None:
    ledger = LimitStore(AMPLE)
    for i in range(100):
        keep(ledger, b"%d" % i, 1 + i / 20)
    assert ledger.expire(NOW + 60, 0) == 0
    assert ledger.expire(NOW + 60, 30) == 30
    assert ledger.entries == 70
    check_structure(ledger)
    assert ledger.expire(NOW + 60) == 70
    assert ledger.expirations == 100
    assert_empty(ledger)
    assert not ledger._buckets


@pytest.mark.parametrize("ttl", [1, 59, 300, 86_400, 31_536_000, 1e12, 1e300])
def test_due_row_is_reclaimed_within_a_second_or_2_percent_of_its_ttl(ttl: float) -> None:
    ledger = LimitStore(AMPLE)
    keep(ledger, b"a", ttl)
    assert ledger.expire(NOW + ttl * 0.999) == 0
    assert ledger.expire(NOW + ttl * 1.02 + 1) == 1
    assert_empty(ledger)


@pytest.mark.parametrize(("first", "then"), [(10, 1000), (1000, 10)])
def test_a_row_with_another_ttl_is_reclaimed_at_its_new_time(first: float, then: float) -> None:
    ledger = LimitStore(AMPLE)
    fill(ledger, "a", ttl=first)
    fill(ledger, "a", ttl=then)
    for second in range(int(then)):
        ledger.expire(NOW + second)
        assert ledger.entries == 1
    check_structure(ledger)
    ledger.expire(NOW + then * 1.02 + 1)
    assert_empty(ledger)


def test_buckets_are_few_however_many_ttls_there_are() -> None:
    ledger = LimitStore(AMPLE)
    for i in range(20_000):
        keep(ledger, b"%d" % i, i * 1567 % 31_536_000 + 1, NOW + i / 100)
    assert len(ledger._buckets) < 2500


def test_rows_are_used_again() -> None:
    ledger = LimitStore(AMPLE)
    for turn in range(50):
        now = NOW + turn * 100
        fill(ledger, "abcdefgh", now=now)
        ledger.expire(now + 70)
        assert_empty(ledger)
    assert len(ledger._keys) < 12


@pytest.mark.parametrize("count", [5_000, 30_000, 100_000])
def test_row_overhead_is_real_memory(count: int) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        ledger = LimitStore(AMPLE)
        for i in range(count):
            ledger.set(b"a limit of %08d" % i, (300.0 + i, 1.5 * i, 2.5 * i, 3.5 * i, i, i), i / 1000)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    overhead = used / count - (ledger.bytes / count - ROW_OVERHEAD)
    assert overhead == pytest.approx(ROW_OVERHEAD, rel=0.3)


keys = st.sampled_from([b"1", b"2", b"3", b"four"])
numbers = st.floats(allow_nan=False)
states = st.tuples(numbers, numbers, numbers, numbers, numbers, st.integers(0, 2**63 - 1))
ttls = st.sampled_from([0.5, 1.0, 60.0, 200.0, 5000.0, math.inf])


class AgainstPlainDict(RuleBasedStateMachine):
    """The ledger against a dict. A small one may have evicted a key: then, and only then, a miss is right too."""

    model: dict[bytes, tuple[LimitState, float]]

    @initialize(small=st.booleans())
    def start(self, small: bool) -> None:
        self.small = small
        self.ledger = LimitStore(3 * ROW_OVERHEAD if small else AMPLE)
        self.model = {}
        self.now = NOW

    def expected(self, key: bytes) -> LimitState | None:
        """What the model holds, after forgetting what a small ledger has evicted."""
        held = self.model.get(key)
        if held is None or held[1] <= self.now:
            self.model.pop(key, None)
            return None
        if self.small and key not in index_of(self.ledger):
            assert self.ledger.evictions
            del self.model[key]
            return None
        return held[0]

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self.ledger.get(key, self.now) == self.expected(key)

    @rule(key=keys, state=states, ttl=ttls)
    def set(self, key: bytes, state: LimitState, ttl: float) -> None:
        state = (self.now + ttl, *state[1:])
        self.ledger.set(key, state, self.now)
        self.model[key] = (state, self.now + ttl)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        present = self.expected(key) is not None
        assert self.ledger.delete(key, self.now) is present
        self.model.pop(key, None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 50.0, 1e4]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(budget=st.integers(0, 4))
    def expire(self, budget: int) -> None:
        before = self.ledger.entries
        looked_at = self.ledger.expire(self.now, budget)
        assert before - self.ledger.entries <= looked_at <= budget

    @precondition(lambda self: not self.small)
    @invariant()
    def nothing_is_evicted_without_need(self) -> None:
        assert self.ledger.evictions == 0

    @invariant()
    def structure_holds(self) -> None:
        check_structure(self.ledger)

    def teardown(self) -> None:
        self.ledger.expire(self.now)
        for key in index_of(self.ledger):
            self.ledger.delete(key, self.now)
        assert_empty(self.ledger)


AgainstPlainDict.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLedgerBehavesAsADict = AgainstPlainDict.TestCase
