"""The order of eviction: of a few entries the least recently used, of many one of the least recently used."""

import gc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.cache.lru import MERGE_BELOW, RESOLUTION, SHARDS, SPLIT_FROM, Lru


@dataclass
class Entry:
    key: bytes
    used: float


def replace_one(lru: Lru[Entry], now: float) -> float:
    """One goes and another comes; when the one that went was used."""
    used = lru.pop_oldest(now).used
    lru.add(Entry(b"%d" % now, now))
    return used


def filled(number: int) -> Lru[Entry]:
    lru = Lru[Entry]()
    for use in range(number):
        lru.add(Entry(b"%d" % use, use))
    return lru


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_of_few_the_order_of_use_is_exact(uses: list[int]) -> None:
    lru, order = Lru[Entry](), list[bytes]()
    for use, number in enumerate(uses):
        key = b"%d" % number
        if key in lru:
            lru.use(lru[key], use)
        else:
            lru.add(Entry(key, use))
        order = [*(one for one in order if one != key), key]
    assert [lru.pop_oldest(99).key for _ in range(len(lru))] == order


def test_many_are_split_and_few_are_merged_again_in_exact_order() -> None:
    lru = filled(SPLIT_FROM - 1)
    assert len(lru.shards) == 1
    lru.add(Entry(b"one more", SPLIT_FROM))
    assert len(lru.shards) == SHARDS
    assert max(map(len, lru.shards)) < 2 * SPLIT_FROM / SHARDS
    assert sorted(lru) == sorted([b"one more", *(b"%d" % use for use in range(SPLIT_FROM - 1))])
    for use in range(SPLIT_FROM - MERGE_BELOW):
        key = b"%d" % use
        assert lru.get(key) is lru[key] is lru.pop(key)
        assert lru.get(key) is None
    assert len(lru.shards) == SHARDS
    lru.pop(b"one more")
    assert len(lru.shards) == 1
    assert [lru.pop_oldest(SPLIT_FROM).key for _ in range(len(lru))] == [
        b"%d" % use for use in range(SPLIT_FROM - MERGE_BELOW, SPLIT_FROM - 1)
    ]
    assert not list(lru)


def test_the_collector_leaves_alone_what_was_frozen_when_it_was_empty() -> None:
    lru = Lru[Entry]()
    gc.freeze()
    try:
        for use in range(SPLIT_FROM):
            lru.add(Entry(b"%d" % use, use))
        visited = set(map(id, gc.get_objects()))
        assert len(lru.shards) == SHARDS
        assert not visited.intersection(map(id, lru.shards))
    finally:
        gc.unfreeze()


def test_shards_stay_alike_in_size_and_entries_in_age() -> None:
    count = 5000
    lru = filled(count)
    ages = [now - replace_one(lru, now) for now in range(count, 41 * count)]
    sizes = list(map(len, lru.shards))
    assert max(sizes) < 3 * min(sizes)
    assert sorted(ages)[len(ages) // 100] > 0.8 * count


@pytest.mark.parametrize("number", [1, 2, 20, 5000])
def test_all_go_and_the_last_used_goes_last(number: int) -> None:
    lru = filled(number)
    gone = [lru.pop_oldest(number).key for _ in range(number)]
    assert sorted(gone) == sorted(b"%d" % use for use in range(number))
    assert gone[-1] == b"%d" % (number - 1)
    assert not len(lru)


def test_of_many_those_that_go_are_old() -> None:
    lru = filled(20_000)
    first = [lru.pop_oldest(20_000).used for _ in range(10_000)]
    assert sum(use < 10_000 for use in first) > 9_000
    assert max(first) < 15_000


def test_the_coarse_clock_is_finer_where_entries_go_early() -> None:
    lru = filled(10)
    assert [lru.coarse(now) for now in (10, 10 + RESOLUTION / 2, 10 + RESOLUTION)] == [10, 10, 10 + RESOLUTION]
    oldest = lru.pop_oldest(10)
    assert lru.resolution == (10 - oldest.used) / 16 < RESOLUTION
    lru.pop_oldest(1000)
    assert lru.resolution == RESOLUTION
