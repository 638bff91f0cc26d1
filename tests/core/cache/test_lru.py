"""Which entries go when there is no room: of few the least recently used, of many one of the oldest."""

import gc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.cache.lru import DIVIDED_FROM, JOINED_BELOW, MOMENT, PARTS, Lru


@dataclass
class Entry:
    key: bytes
    used: float


def replace_one(recency: Lru[Entry], now: float) -> float:
    """One goes and another comes; when the one that went was used."""
    used = recency.pop_oldest(now).used
    recency.add(Entry(b"%d" % now, now))
    return used


def filled(number: int) -> Lru[Entry]:
    recency = Lru[Entry]()
    for use in range(number):
        recency.add(Entry(b"%d" % use, use))
    return recency


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_of_few_the_order_of_use_is_exact(uses: list[int]) -> None:
    recency, order = Lru[Entry](), list[bytes]()
    for use, number in enumerate(uses):
        key = b"%d" % number
        if key in recency:
            recency.use(recency[key], use)
        else:
            recency.add(Entry(key, use))
        order = [*(one for one in order if one != key), key]
    assert [recency.pop_oldest(99).key for _ in range(len(recency))] == order


def test_many_are_divided_and_few_are_joined_again_in_exact_order() -> None:
    recency = filled(DIVIDED_FROM - 1)
    assert len(recency.parts) == 1
    recency.add(Entry(b"one more", DIVIDED_FROM))
    assert len(recency.parts) == PARTS
    assert max(map(len, recency.parts)) < 2 * DIVIDED_FROM / PARTS
    assert sorted(recency) == sorted([b"one more", *(b"%d" % use for use in range(DIVIDED_FROM - 1))])
    for use in range(DIVIDED_FROM - JOINED_BELOW):
        key = b"%d" % use
        assert recency.get(key) is recency[key] is recency.pop(key)
        assert recency.get(key) is None
    assert len(recency.parts) == PARTS
    recency.pop(b"one more")
    assert len(recency.parts) == 1
    assert [recency.pop_oldest(DIVIDED_FROM).key for _ in range(len(recency))] == [
        b"%d" % use for use in range(DIVIDED_FROM - JOINED_BELOW, DIVIDED_FROM - 1)
    ]
    assert not list(recency)


def test_the_collector_leaves_alone_what_was_frozen_when_it_was_empty() -> None:
    recency = Lru[Entry]()
    gc.freeze()
    try:
        for use in range(DIVIDED_FROM):
            recency.add(Entry(b"%d" % use, use))
        visited = set(map(id, gc.get_objects()))
        assert len(recency.parts) == PARTS
        assert not visited.intersection(map(id, recency.parts))
    finally:
        gc.unfreeze()


def test_parts_stay_alike_in_size_and_entries_in_age() -> None:
    count = 5000
    recency = filled(count)
    ages = [now - replace_one(recency, now) for now in range(count, 41 * count)]
    sizes = list(map(len, recency.parts))
    assert max(sizes) < 3 * min(sizes)
    assert sorted(ages)[len(ages) // 100] > 0.8 * count


@pytest.mark.parametrize("number", [1, 2, 20, 5000])
def test_all_go_and_the_last_used_goes_last(number: int) -> None:
    recency = filled(number)
    gone = [recency.pop_oldest(number).key for _ in range(number)]
    assert sorted(gone) == sorted(b"%d" % use for use in range(number))
    assert gone[-1] == b"%d" % (number - 1)
    assert not len(recency)


def test_of_many_those_that_go_are_old() -> None:
    recency = filled(20_000)
    first = [recency.pop_oldest(20_000).used for _ in range(10_000)]
    assert sum(use < 10_000 for use in first) > 9_000
    assert max(first) < 15_000


def test_moments_are_shorter_where_entries_go_early() -> None:
    recency = filled(10)
    assert [recency.at(now) for now in (10, 10 + MOMENT / 2, 10 + MOMENT)] == [10, 10, 10 + MOMENT]
    oldest = recency.pop_oldest(10)
    assert recency.lasts == (10 - oldest.used) / 16 < MOMENT
    recency.pop_oldest(1000)
    assert recency.lasts == MOMENT
