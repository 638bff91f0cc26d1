"""The most frequent keys, against an exact count."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.top_keys import KeyCount, SpaceSaving, TopKeys

streams = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), max_size=300)


@given(streams, st.integers(1, 20))
def test_counts_are_bounds_and_no_frequent_key_is_missing(stream: list[tuple[int, int]], capacity: int) -> None:
    summary, exact = SpaceSaving[int](capacity), Counter[int]()
    for key, times in stream:
        summary.add(key, times)
        exact[key] += times
        assert len(set(summary.keys)) <= 2 * capacity
    for key in range(61):
        _, count, error = summary.count(key)
        assert count - error <= exact[key] <= count
    missing = exact.keys() - set(summary.keys)
    assert all(exact[key] * capacity <= exact.total() for key in missing)


@given(streams, st.integers(1, 20), st.integers(0, 300))
def test_counts_are_bounds_across_a_rotation(stream: list[tuple[int, int]], capacity: int, rotation: int) -> None:
    top, exact = TopKeys[int](capacity), Counter[int]()
    for number, (key, times) in enumerate(stream):
        if number == rotation:
            top.rotate()
        top.add(key, times)
        exact[key] += times
    for key, count, error in top.top(1000):
        assert count - error <= exact[key] <= count


@given(streams)
def test_with_room_for_all_the_counts_are_exact(stream: list[tuple[int, int]]) -> None:
    top, exact = TopKeys[int](64), Counter[int]()
    for number, (key, times) in enumerate(stream):
        if number == len(stream) // 2:
            top.rotate()
        top.add(key, times)
        exact[key] += times
    assert {one.key: one.times for one in top.top(1000)} == exact
    assert all(one.error == 0 for one in top.top(1000))
    assert [one.times for one in top.top(3)] == [count for _, count in exact.most_common(3)]


def test_what_came_before_the_last_turn_but_one_is_forgotten() -> None:
    top = TopKeys[str](8)
    top.add("old", 100)
    top.rotate()
    top.add("new", 2)
    assert top.top(1) == [KeyCount("old", 100, 0)]
    top.rotate()
    assert top.top(5) == [KeyCount("new", 2, 0)]


def test_a_flood_of_new_keys_doesnt_hide_the_frequent_ones() -> None:
    top = TopKeys[int](32)
    for number in range(20_000):
        top.add(number)
        if number % 20 == 0:
            top.add(-1)
    assert top.top(1)[0].key == -1
