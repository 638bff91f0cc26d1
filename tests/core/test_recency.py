"""Which entries go when there is no room: in one part the least recently used, in many one of the oldest."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.recency import PARTS, Recency


@dataclass
class Entry:
    key: bytes
    used: float


def filled(parts: int, number: int) -> Recency[Entry]:
    recency = Recency[Entry](parts)
    for use in range(number):
        key = b"%d" % use
        recency.of(key)[key] = Entry(key, use)
    return recency


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_in_one_part_the_order_of_use_is_exact(uses: list[int]) -> None:
    recency, order = Recency[Entry](1), list[bytes]()
    for use, number in enumerate(uses):
        key = b"%d" % number
        recency.of(key)[key] = Entry(key, use)
        recency.of(key).move_to_end(key)
        order = [*(one for one in order if one != key), key]
    assert [recency.pop_oldest().key for _ in range(len(recency))] == order


@pytest.mark.parametrize("number", [1, 2, 20, 5000])
def test_in_many_parts_all_go_and_the_last_used_goes_last(number: int) -> None:
    recency = filled(PARTS, number)
    last = b"%d" % (number - 1)
    gone = [recency.pop_oldest().key for _ in range(number)]
    assert sorted(gone) == sorted(b"%d" % use for use in range(number))
    assert gone[-1] == last
    assert not len(recency)


def test_in_many_parts_those_that_go_are_old() -> None:
    recency = filled(PARTS, 20_000)
    first = [recency.pop_oldest().used for _ in range(10_000)]
    assert sum(use < 10_000 for use in first) > 9_000
    assert max(first) < 15_000


def test_an_entry_in_use_stays() -> None:
    recency, use = filled(PARTS, 200), 1000
    for number in range(10_000):
        use += 1
        hot = recency[b"7"]
        hot.used = use
        recency.of(b"7").move_to_end(b"7")
        recency.pop_oldest()
        key = b"new %d" % number
        recency.of(key)[key] = Entry(key, use)
    assert b"7" in recency
