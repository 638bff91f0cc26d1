import gc
import itertools
import math
import sys
import tracemalloc
from collections import Counter
from contextlib import ExitStack
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_clusterstate.core.cache import lru, namespaces
from django_clusterstate.core.cache import store as store_module
from django_clusterstate.core.cache.entry_keys import slot_of_entry
from django_clusterstate.core.cache.lru import RESOLUTION
from django_clusterstate.core.cache.namespaces import Cursor
from django_clusterstate.core.cache.store import ENTRY_OVERHEAD, CacheStore

NOW = 1000.25
AMPLE = 1 << 30


def store_of(max_bytes: int = AMPLE) -> CacheStore[bytes]:
    return CacheStore(max_bytes, size_of=len)


def room_for(entries: int, key: bytes = b"ns\0a", value: bytes = b"v") -> int:
    return entries * (len(key) + len(value) + ENTRY_OVERHEAD)


def fill(store: CacheStore[bytes], keys: str, ttl: float | None = None, now: float = NOW) -> None:
    for key in keys:
        assert store.set(b"ns\0" + key.encode(), b"v", ttl, now)


def present(store: CacheStore[bytes], keys: str, now: float = NOW) -> str:
    return "".join(key for key in keys if store.peek(b"ns\0" + key.encode(), now))


def keys_of(store: CacheStore[bytes]) -> list[bytes]:
    return [*store._entries.used, *store._entries.copies]


def check_structure(store: CacheStore[bytes], now: float = NOW) -> None:
    assert store.bytes <= store.max_bytes
    assert store.bytes == sum(entry.size for entry in map(store._entries.__getitem__, keys_of(store)))
    by_slot = Counter(map(slot_of_entry, keys_of(store)))
    assert {slot: store.by_slot[slot] for slot in by_slot} == by_slot
    index = store._namespaces
    spaces = [*index._live.values(), *index._cleared.values()]
    buckets = [(bucket.due, serial, bucket) for space in spaces for serial, bucket in space.buckets.items()]
    assert sorted(buckets) == index._schedule
    assert all(space.buckets for space in spaces)
    for space in spaces:
        with_room = {bucket for same_due in space.with_room.values() for bucket in same_due.values()}
        assert {bucket.due for bucket in space.buckets.values()} >= {*space.with_room}
        assert with_room <= {*space.buckets.values()}
        assert all(len(bucket.keys) < namespaces.BUCKET_KEYS for bucket in with_room)
        others = {*space.buckets.values()} - with_room
        live = [bucket for bucket in others if not space.cleared and bucket.due > now]
        assert all(len(bucket.keys) == namespaces.BUCKET_KEYS for bucket in live)
    filed = [key for _, _, bucket in buckets for key in bucket.keys]
    assert sorted(filed) == sorted(keys_of(store))
    for key in keys_of(store):
        entry = store._entries[key]
        assert key is entry.key
        assert key in entry.bucket.keys
        assert entry.bucket is entry.namespace.buckets[entry.bucket.serial]
        assert entry.bucket.due == entry.expires == math.inf or entry.bucket.due > entry.expires
    assert all(0 < len(bucket.keys) <= namespaces.BUCKET_KEYS for _, _, bucket in buckets)


def assert_empty(store: CacheStore[bytes]) -> None:
    index = store._namespaces
    assert (store.entries, store.bytes) == (0, 0)
    assert not any((store._entries, index._live, index._cleared, index._schedule, *store.by_slot))


def test_value_is_present_until_it_expires() -> None:
    store = store_of()
    store.set(b"ns\0a", b"v", 10, NOW)
    assert store.get(b"ns\0a", NOW + 9.99) == b"v"
    assert store.peek(b"ns\0a", NOW + 4) == (b"v", 6.0)
    assert store.get(b"ns\0a", NOW + 10) is None
    assert_empty(store)
    assert store.expirations == 1


def test_value_without_ttl_stays() -> None:
    store = store_of()
    store.set(b"ns\0a", b"v", None, NOW)
    assert store.peek(b"ns\0a", NOW + 1e9) == (b"v", None)
    assert store.expire(NOW + 1e9) == 0


@pytest.mark.parametrize("ttl", [0, -1])
def test_ttl_of_zero_or_less_deletes(ttl: float) -> None:
    store = store_of()
    fill(store, "ab")
    assert store.set(b"ns\0a", b"w", ttl, NOW)
    assert store.touch(b"ns\0b", ttl, NOW)
    assert store.add(b"ns\0c", b"w", ttl, NOW)
    assert_empty(store)


def test_value_too_large_is_refused_and_the_older_one_dropped() -> None:
    store = store_of(room_for(2))
    fill(store, "ab")
    large = bytes(2 * room_for(1))
    assert not store.set(b"ns\0a", large, None, NOW)
    assert not store.replace(b"ns\0b", large, NOW)
    assert not store.add(b"ns\0c", large, None, NOW)
    assert_empty(store)
    assert store.evictions == 0


def test_add_stores_only_where_nothing_is_present() -> None:
    store = store_of()
    assert store.add(b"ns\0a", b"v", 5, NOW)
    assert not store.add(b"ns\0a", b"w", 5, NOW + 4)
    assert store.add(b"ns\0a", b"w", 5, NOW + 5)
    assert store.get(b"ns\0a", NOW + 9) == b"w"


def test_replace_keeps_the_ttl() -> None:
    store = store_of()
    assert not store.replace(b"ns\0a", b"v", NOW)
    store.set(b"ns\0a", b"v", 10, NOW)
    assert store.replace(b"ns\0a", b"longer", NOW + 4)
    assert store.peek(b"ns\0a", NOW + 4) == (b"longer", 6.0)
    assert not store.replace(b"ns\0a", b"v", NOW + 10)


def test_touch_gives_another_ttl() -> None:
    store = store_of()
    assert not store.touch(b"ns\0a", 5, NOW)
    store.set(b"ns\0a", b"v", 1, NOW)
    assert store.touch(b"ns\0a", 500, NOW)
    assert store.expire(NOW + 400) == 0
    assert store.touch(b"ns\0a", None, NOW + 400)
    assert store.peek(b"ns\0a", NOW + 501) == (b"v", None)
    check_structure(store)


def test_delete_tells_whether_the_key_was_present() -> None:
    store = store_of()
    fill(store, "ab", ttl=5)
    assert store.delete(b"ns\0a", NOW)
    assert not store.delete(b"ns\0a", NOW)
    assert not store.delete(b"ns\0b", NOW + 5)
    assert_empty(store)


def test_least_recently_used_goes_first() -> None:
    store = store_of(room_for(4))
    fill(store, "abcd")
    store.get(b"ns\0a", NOW + RESOLUTION)
    store.peek(b"ns\0b", NOW + RESOLUTION)
    store.replace(b"ns\0c", b"w", NOW + RESOLUTION)
    store.touch(b"ns\0d", None, NOW + RESOLUTION)
    fill(store, "e")
    assert present(store, "abcde") == "acde"
    fill(store, "fg")
    assert present(store, "acdefg") == "defg"
    assert store.evictions == 3


@pytest.mark.parametrize("held", [200, 2 * lru.SPLIT_FROM])
@pytest.mark.parametrize("a_second", [1, 10, 1000, 100_000])
def test_an_entry_that_is_read_stays_however_fast_others_go(a_second: int, held: int) -> None:
    store = store_of(room_for(held, b"ns\0%08d" % 0))
    hot = held // 2
    for number in range(3 * held):
        now = NOW + number / a_second
        assert store.set(b"ns\0%08d" % number, b"v", None, now)
        assert number < hot or store.get(b"ns\0%08d" % hot, now)
    assert store.evictions == 2 * held


def test_a_large_value_in_a_large_store_takes_the_reserve_which_is_freed_in_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "_LARGE", 0)
    monkeypatch.setattr(store_module, "_AT_ONCE", 3)
    store = store_of(room_for(1600))
    full = room_for(1500)
    assert store.max_bytes - full == store.max_bytes // store_module._RESERVE_PART

    def write(key: bytes, value: bytes = b"v") -> int:
        before = store.entries
        assert store.set(b"ns\0" + key, value, None, NOW)
        assert store.bytes <= store.max_bytes
        return before + 1 - store.entries

    pushed_out = [write(bytes([number >> 8, number & 255, 0])) for number in range(1600)]
    assert set(pushed_out) == {0, 1}
    assert full - room_for(2) < store.bytes <= full
    assert write(b"large", bytes(room_for(90))) == 3
    assert store.bytes > full
    assert [write(b"next"), write(b"next but one")] == [3, 3]
    assert store.expire(NOW, 20) == 20
    assert store.expire(NOW, 1000) < 1000
    assert full - room_for(2) < store.bytes <= full
    assert write(b"another", bytes(room_for(90))) == 3
    assert write(b"third", bytes(room_for(90))) > 60  # the reserve is used up
    assert all(store.get(b"ns\0" + key, NOW) for key in (b"large", b"another", b"third"))


def test_growing_value_pushes_out_others_not_itself() -> None:
    store = store_of(room_for(3))
    fill(store, "abc")
    assert store.replace(b"ns\0a", bytes(room_for(1)), NOW)
    assert present(store, "abc") == "ac"
    assert store.set(b"ns\0a", bytes(room_for(3) - ENTRY_OVERHEAD - 4), None, NOW)
    assert present(store, "abc") == "a"
    assert store.bytes == store.max_bytes


def test_dead_entries_make_room_before_live_ones() -> None:
    store = store_of(room_for(4))
    fill(store, "a")
    store.set(b"nt\0b", b"v", None, NOW)
    fill(store, "c", ttl=5)
    fill(store, "d")
    store.clear(b"nt", NOW)
    fill(store, "e")
    assert (store.evictions, store.expirations) == (0, 0)
    fill(store, "f", now=NOW + 6)
    assert (store.evictions, store.expirations) == (0, 1)
    fill(store, "g", now=NOW + 6)
    assert (store.evictions, store.expirations) == (1, 1)
    assert present(store, "acdefg", NOW + 6) == "defg"


def test_expire_keeps_to_its_budget() -> None:
    store = store_of()
    for i in range(100):
        store.set(b"ns\0%d" % i, b"v", 1 + i / 20, NOW)
    assert store.expire(NOW + 60, 0) == 0
    assert store.expire(NOW + 60, 30) == 30
    check_structure(store)
    assert store.expire(NOW + 60) == 70
    assert store.expirations == 100
    assert_empty(store)


@pytest.mark.parametrize("ttl", [1, 59, 300, 86_400, 31_536_000, 1e12, 1e300])
def test_due_entry_is_reclaimed_within_a_second_or_2_percent_of_its_ttl(ttl: float) -> None:
    store = store_of()
    store.set(b"ns\0a", b"v", ttl, NOW)
    assert store.expire(NOW + ttl * 0.999) == 0
    assert store.expire(NOW + ttl * 1.02 + 1) == 1
    assert_empty(store)


def test_buckets_are_few_however_many_ttls_there_are() -> None:
    store = store_of()
    for i in range(20_000):
        store.set(b"ns\0%d" % i, b"v", i * 1567 % 31_536_000 + 1, NOW + i / 100)
    assert len(store._namespaces._schedule) < 2500


@pytest.mark.parametrize("ttl", [None, 1e6])
def test_buckets_are_no_more_than_the_most_keys_have_needed(ttl: float | None) -> None:
    store = store_of()
    full = namespaces.BUCKET_KEYS
    for batch in range(10):  # of each a few keys stay, all over the buckets
        names = [b"ns\0%d-%d" % (batch, i) for i in range(18 * full)]
        for key in names:
            store.set(key, b"v", ttl, NOW)
        for i, key in enumerate(names):
            if i % 100:
                store.delete(key, NOW)
        check_structure(store)
    assert len(store._namespaces._schedule) <= 20
    for batch in range(10):
        for i in range(0, 18 * full, 100):
            store.delete(b"ns\0%d-%d" % (batch, i), NOW)
    assert_empty(store)


# -- scan -------------------------------------------------------------------------------------------------------


def scanned(store: CacheStore[bytes], prefix: bytes = b"ns\0", now: float = NOW) -> list[bytes]:
    """The keys, as they come."""
    found, cursor = store.scan(prefix, None, now)
    while cursor is not None:
        assert [type(part) for part in cursor] == [float, int]  # so that it can be sent
        more, cursor = store.scan(prefix, cursor, now)
        found += more
    return found


@pytest.mark.parametrize("ttl", [None, 300])
def test_scan_finds_each_key_once_in_bounded_steps(ttl: float | None) -> None:
    store = store_of()
    names = [b"ns\0%d" % i for i in range(2000)]
    for i, key in enumerate(names):
        store.set(key, b"v", ttl, NOW + i / 100)
    assert sorted(scanned(store, now=NOW + 20)) == sorted(names)
    assert len(store.scan(b"ns\0", None, NOW + 20)[0]) <= namespaces.BUCKET_KEYS


def test_scan_keeps_to_its_namespace_and_prefix() -> None:
    store = store_of()
    for key in (b"ns\0a1", b"ns\0a2", b"ns\0b1", b"ns2\0a1", b"n\0a1"):
        store.set(key, b"v", None, NOW)
    assert sorted(scanned(store)) == [b"ns\0a1", b"ns\0a2", b"ns\0b1"]
    assert sorted(scanned(store, b"ns\0a")) == [b"ns\0a1", b"ns\0a2"]
    assert scanned(store, b"unknown\0") == scanned(store, b"ns\0c") == []


def test_scan_finds_nothing_that_is_dead() -> None:
    store = CacheStore[bytes](AMPLE, size_of=len, is_valid=lambda key, generation: key != b"ns\0stale")
    for key in (b"ns\0stale", b"ns\0good"):
        store.set(key, b"v", None, NOW)
    store.set(b"ns\0expired", b"v", 1, NOW)
    store.generation += 1
    assert scanned(store, now=NOW + 1) == [b"ns\0good"]
    store.clear(b"ns", NOW)
    assert scanned(store) == []
    store.set(b"ns\0new", b"v", None, NOW)
    assert scanned(store) == [b"ns\0new"]


def test_scan_passes_a_bounded_number_of_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "SCANNED_BUCKETS", 10)
    store = store_of()
    for i in range(100):
        store.set(b"other\0%d" % i, b"v", i + 1, NOW)
    store.set(b"ns\0a", b"v", None, NOW)
    assert store.scan(b"ns\0", None, NOW) == (
        [],
        (float(store._namespaces._schedule[9][0]), store._namespaces._schedule[9][1]),
    )
    assert scanned(store) == [b"ns\0a"]


@pytest.mark.parametrize("ttl", [1e300, sys.float_info.max, math.inf])
def test_scan_goes_on_after_any_ttl(ttl: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "SCANNED_BUCKETS", 1)
    store = store_of()
    for i, each in enumerate((1, ttl, None)):
        store.set(b"ns\0%d" % i, b"v", each, NOW)
    assert len(scanned(store)) == 3


@pytest.mark.parametrize("cursor", [(math.nan, 5), (-math.inf, -1), (math.inf, 2**63 - 1), (1e308, -(2**63))])
def test_scan_takes_any_cursor(cursor: Cursor) -> None:
    store = store_of()
    fill(store, "ab")
    assert set(store.scan(b"ns\0", cursor, NOW)[0]) <= {b"ns\0a", b"ns\0b"}


def test_scan_finds_a_key_whose_ttl_is_renewed_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "SCANNED_BUCKETS", 1)
    store = store_of()
    fill(store, "abc", ttl=60)
    fill(store, "xyz", ttl=600)
    found, cursor, now = [], None, NOW
    while True:
        more, cursor = store.scan(b"ns\0", cursor, now)
        found += more
        if cursor is None or now > NOW + 50:
            break
        now += 0.3
        fill(store, "abcxyz", ttl=60 + (now - NOW), now=now)
    assert {key[-1:] for key in found} >= {b"a", b"b", b"c"}


def test_clear_empties_one_namespace_only() -> None:
    store = store_of()
    for key in (b"ns\0a", b"ns\0b", b"nt\0a", b"n\0a", b"ns2\0a"):
        store.set(key, b"v", 60, NOW)
    store.clear(b"ns", NOW)
    store.clear(b"unknown", NOW)
    assert present(store, "ab") == ""
    assert all(store.get(key, NOW) for key in (b"nt\0a", b"n\0a", b"ns2\0a"))
    assert store.expirations == 0


def test_clear_all_empties_each_namespace() -> None:
    store = store_of()
    keys = (b"ns\0a", b"nt\0a", b"n\0a")
    for key in keys:
        store.set(key, b"v", 60, NOW)
    store.clear_all(NOW)
    assert not any(store.get(key, NOW) for key in keys)
    store.set(b"ns\0b", b"v", 60, NOW)
    assert present(store, "ab") == "b"
    store.clear_all(NOW)
    assert store.expire(NOW) == 1
    assert_empty(store)


def test_cleared_entries_hold_memory_until_reclaimed() -> None:
    store = store_of()
    fill(store, "abc")
    fill(store, "def", ttl=60)
    store.clear(b"ns", NOW)
    assert store.entries == 6
    assert store.expire(NOW, 4) == 4
    assert store.expire(NOW) == 2
    assert_empty(store)
    assert (store.evictions, store.expirations) == (0, 0)


def test_cleared_namespace_is_filled_anew() -> None:
    store = store_of()
    fill(store, "abc", ttl=60)
    store.clear(b"ns", NOW)
    fill(store, "ad", ttl=60)
    check_structure(store)
    assert store.expire(NOW) == 2
    assert present(store, "abcd") == "ad"


def test_clearing_again_and_again_leaves_nothing_behind() -> None:
    store = store_of()
    for _ in range(100):
        fill(store, "a", ttl=60)
        store.clear(b"ns", NOW)
    assert store.entries == len(store._namespaces._cleared) == len(store._namespaces._schedule) == 1
    assert store.expire(NOW) == 1
    assert_empty(store)


@pytest.mark.parametrize("ttl", [None, 300])
@pytest.mark.parametrize("count", [5_000, 30_000])
def test_entry_overhead_is_real_memory(ttl: float | None, count: int) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        versions = itertools.count(2**60)
        store: CacheStore[bytes] = CacheStore(AMPLE, size_of=sys.getsizeof, on_write=lambda *_: next(versions))
        for i in range(count):
            store.set(b"namespace\0%08d" % i, bytes(50), ttl, i / 1000)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    overhead = used / count - (store.bytes / count - ENTRY_OVERHEAD)
    assert overhead == pytest.approx(ENTRY_OVERHEAD, rel=0.3)


keys = st.builds(lambda ns, rest: ns + b"\0" + rest, st.sampled_from([b"x", b"y"]), st.sampled_from([b"1", b"2", b"3"]))
values = st.binary(max_size=200)
ttls = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5, 1.0, 60.0, 200.0, 5000.0]))


class AgainstPlainDict(RuleBasedStateMachine):
    """The store against a dict. A small store may have evicted a key: then, and only then, a miss is right
    too."""

    model: dict[bytes, tuple[bytes, float]]

    @initialize(
        small=st.booleans(), large=st.booleans(), divided=st.sampled_from([1, 3, 4096]), joined=st.integers(0, 2)
    )
    def start(self, small: bool, large: bool, divided: int, joined: int) -> None:
        # As small as the examples are, which would never reach the real ones.
        self.bounds = ExitStack()
        self.bounds.enter_context(mock.patch.multiple(lru, SPLIT_FROM=divided, MERGE_BELOW=joined))
        self.bounds.enter_context(mock.patch.multiple(store_module, _AT_ONCE=1, _LARGE=0 if large else 2**62))
        self.bounds.enter_context(mock.patch.multiple(namespaces, BUCKET_KEYS=2, SCANNED_BUCKETS=2))
        self.small = small
        self.store = store_of(3 * ENTRY_OVERHEAD + 300 if small else AMPLE)
        self.model = {}
        self.lasting: dict[bytes, float] = {}  # keys that the scan must find, and when their buckets are due
        self.found: set[bytes] = set()
        self.cursor: Cursor | None = None
        self.now = NOW

    def expected(self, key: bytes) -> tuple[bytes, float] | None:
        """What the model holds, after forgetting what a small store has evicted."""
        held = self.model.get(key)
        if held is None or held[1] <= self.now:
            self.model.pop(key, None)
            return None
        if self.small and self.store._entries.get(key) is None:
            assert self.store.evictions
            del self.model[key]
            return None
        return held

    def put(self, key: bytes, value: bytes, ttl: float | None) -> None:
        expires = math.inf if ttl is None else self.now + ttl
        self.model[key] = (value, expires)

    def due(self, key: bytes) -> float:
        return self.store._entries[key].bucket.due if self.expected(key) else -math.inf

    @invariant()
    def what_is_dropped_or_due_earlier_may_escape_the_scan(self) -> None:
        self.lasting = {key: self.due(key) for key, due in self.lasting.items() if self.due(key) >= max(due, 0)}

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        held = self.expected(key)
        assert self.store.get(key, self.now) == (held[0] if held else None)

    @rule(key=keys)
    def peek(self, key: bytes) -> None:
        held = self.expected(key)
        ttl = None if held is None or held[1] == math.inf else held[1] - self.now
        assert self.store.peek(key, self.now) == ((held[0], ttl) if held else None)

    @rule(key=keys, value=values, ttl=ttls)
    def set(self, key: bytes, value: bytes, ttl: float | None) -> None:
        assert self.store.set(key, value, ttl, self.now)
        self.put(key, value, ttl)

    @rule(key=keys, value=values, ttl=ttls)
    def add(self, key: bytes, value: bytes, ttl: float | None) -> None:
        absent = self.expected(key) is None
        assert self.store.add(key, value, ttl, self.now) is absent
        if absent:
            self.put(key, value, ttl)

    @rule(key=keys, value=values)
    def replace(self, key: bytes, value: bytes) -> None:
        held = self.expected(key)
        assert self.store.replace(key, value, self.now) is (held is not None)
        if held:
            self.model[key] = (value, held[1])

    @rule(key=keys, ttl=ttls)
    def touch(self, key: bytes, ttl: float | None) -> None:
        held = self.expected(key)
        assert self.store.touch(key, ttl, self.now) is (held is not None)
        if held:
            self.put(key, held[0], ttl)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        held = self.expected(key)
        assert self.store.delete(key, self.now) is (held is not None)
        self.model.pop(key, None)

    @rule(namespace=st.sampled_from([b"x", b"y"]))
    def clear(self, namespace: bytes) -> None:
        self.store.clear(namespace, self.now)
        self.model = {k: v for k, v in self.model.items() if not k.startswith(namespace)}

    @rule(seconds=st.sampled_from([0.1, 1.0, 50.0, 1e4]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(budget=st.integers(0, 4))
    def expire(self, budget: int) -> None:
        before = self.store.entries
        dropped = self.store.expire(self.now, budget)
        assert dropped == before - self.store.entries <= budget

    @rule(namespace=st.sampled_from([b"x", b"y"]), rest=st.sampled_from([b"", b"1"]))
    def scan_from_the_beginning(self, namespace: bytes, rest: bytes) -> None:
        prefix = namespace + b"\0" + rest
        wanted = [key for key in [*self.model] if key.startswith(prefix) and self.expected(key)]
        assert sorted(scanned(self.store, prefix, self.now)) == sorted(wanted)

    @rule(namespace=st.sampled_from([b"x", b"y"]))
    def begin_a_scan(self, namespace: bytes) -> None:
        self.prefix, self.found = namespace + b"\0", set()
        self.lasting = {key: self.due(key) for key in [*self.model] if key.startswith(self.prefix)}
        self.go_on(None)

    @precondition(lambda self: self.cursor is not None)
    @rule()
    def go_on_with_the_scan(self) -> None:
        self.go_on(self.cursor)

    def go_on(self, cursor: Cursor | None) -> None:
        more, self.cursor = self.store.scan(self.prefix, cursor, self.now)
        assert all(self.expected(key) for key in more)
        assert len(more) <= 2
        self.found.update(more)
        if self.cursor is None:
            assert self.found >= {key for key, due in self.lasting.items() if due > 0}

    @precondition(lambda self: not self.small)
    @invariant()
    def nothing_is_evicted_without_need(self) -> None:
        assert self.store.evictions == 0

    @invariant()
    def structure_holds(self) -> None:
        check_structure(self.store, self.now)

    def teardown(self) -> None:
        for namespace in (b"x", b"y"):
            self.store.clear(namespace, self.now)
        self.store.expire(self.now)
        assert_empty(self.store)
        self.bounds.close()


AgainstPlainDict.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestStoreBehavesAsADict = AgainstPlainDict.TestCase


# -- entries from before a change ---------------------------------------------------------------------------------


def test_entry_of_an_earlier_generation_is_validated_once_and_absent_if_invalid() -> None:
    asked: list[tuple[bytes, int]] = []

    def is_valid(key: bytes, generation: int) -> bool:
        asked.append((key, generation))
        return key == b"ns\0good"

    store = CacheStore[bytes](AMPLE, size_of=len, is_valid=is_valid)
    store.set(b"ns\0good", b"v", None, NOW)
    store.set(b"ns\0old", b"v", None, NOW)
    store.set(b"ns\0new", b"v", None, NOW)
    assert not asked
    store.generation = 7
    store.set(b"ns\0new", b"v", None, NOW)
    for _ in range(2):
        assert store.get(b"ns\0good", NOW) == b"v"
        assert store.get(b"ns\0old", NOW) is None
        assert store.get(b"ns\0new", NOW) == b"v"
    assert asked == [(b"ns\0good", 0), (b"ns\0old", 0)]
    check_structure(store)


@pytest.mark.parametrize("operation", ["add", "replace", "touch", "delete", "peek"])
def test_no_operation_finds_an_entry_that_is_not_good_any_more(operation: str) -> None:
    store = CacheStore[bytes](AMPLE, size_of=len, is_valid=lambda key, generation: False)
    store.set(b"ns\0a", b"old", None, NOW)
    store.generation += 1
    results = {
        "add": lambda: store.add(b"ns\0a", b"new", None, NOW),
        "replace": lambda: not store.replace(b"ns\0a", b"new", NOW),
        "touch": lambda: not store.touch(b"ns\0a", None, NOW),
        "delete": lambda: not store.delete(b"ns\0a", NOW),
        "peek": lambda: store.peek(b"ns\0a", NOW) is None,
    }
    assert results[operation]()
