"""What is due when."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.expiry import Expiry

NOW = 1000.5


def popped(expiry: Expiry[str], now: float) -> set[str]:
    keys = set()
    while (key := expiry.pop(now)) is not None:
        keys.add(key)
    return keys


@pytest.mark.parametrize("ttl", [0.1, 1, 5, 60, 3600, 86400])
def test_a_key_is_due_after_its_time_and_soon_after(ttl: float) -> None:
    expiry: Expiry[str] = Expiry()
    expiry.set("a", NOW + ttl, NOW)
    assert expiry.pop(NOW + ttl) is None
    assert len(expiry) == 1
    assert expiry.pop(NOW + ttl + max(1, 0.016 * ttl)) == "a"
    assert expiry.pop(math.inf) is None
    assert len(expiry) == 0


def test_a_finer_resolution_makes_keys_due_sooner() -> None:
    expiry: Expiry[str] = Expiry(1 / 8)
    for key, ttl in (("a", 2.0), ("b", 2.12), ("c", math.inf)):
        expiry.set(key, NOW + ttl, NOW)
    assert popped(expiry, NOW + 1.99) == set()
    assert popped(expiry, NOW + 2.125) == {"a", "b"}
    assert len(expiry) == 1


def test_the_last_time_that_was_set_counts() -> None:
    expiry: Expiry[str] = Expiry()
    for key, first, then in (("later", 5, 50), ("sooner", 50, 5), ("same", 5, 5)):
        expiry.set(key, NOW + first, NOW)
        expiry.set(key, NOW + then, NOW)
    assert popped(expiry, NOW + 7) == {"sooner", "same"}
    assert popped(expiry, NOW + 52) == {"later"}


def test_a_key_that_was_taken_back_is_never_due() -> None:
    expiry: Expiry[str] = Expiry()
    expiry.set("a", NOW + 1, NOW)
    expiry.set("b", NOW + 1, NOW)
    expiry.discard("a")
    expiry.discard("unknown")
    assert popped(expiry, NOW + 5) == {"b"}
    assert not expiry._buckets
    assert not expiry._heap


def test_what_never_expires_is_never_due() -> None:
    expiry: Expiry[str] = Expiry()
    for key, expires in (("a", math.inf), ("b", 1e308)):
        expiry.set(key, expires, NOW)
    assert expiry.pop(1e300) is None
    assert len(expiry) == 2


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, 0.0, 0.5, 3.0, 300.0]), st.floats(0, 100))))
def test_keys_and_buckets_are_as_many_as_they_should_be(steps: list[tuple[str, float | None, float]]) -> None:
    expiry: Expiry[str] = Expiry()
    now, times = NOW, dict[str, float]()
    for key, ttl, step in steps:
        if ttl is None:
            expiry.discard(key)
            times.pop(key, None)
        else:
            expiry.set(key, now + ttl, now)
            times[key] = now + ttl
        now += step
        for due in popped(expiry, now):
            assert times.pop(due) <= now
        assert len(expiry) == len(times) == sum(map(len, expiry._buckets.values()))
        assert sorted(expiry._heap) == sorted(expiry._buckets)
        assert all(due > now for due in expiry._heap)
    assert popped(expiry, now + 400) == set(times)
