"""The cache of denials of a process."""

import pytest

from django_clusterstate.ratelimit import Decision, Limit
from django_clusterstate.ratelimit.denial_cache import MAX_AGE, MAX_ENTRIES, DenialCache

LIMIT = Limit.parse("10/m")


def denial(retry_after: float = 60.0) -> Decision:
    return Decision(False, 10, 60.0, 0, 30.0, retry_after, "alpha")


def cached(retry_after: float = 60.0) -> DenialCache:
    """A cache with the denial of a hit of cost 2."""
    denials = DenialCache()
    denials.add(b"k", LIMIT, 2, denial(retry_after), since=100.0)
    return denials


def test_denial_is_cached_until_it_ends_but_not_for_long() -> None:
    assert cached().get(b"k", LIMIT, 2, 100.5) is not None
    assert cached().get(b"k", LIMIT, 2, 100.0 + MAX_AGE) is None
    assert cached(0.25).get(b"k", LIMIT, 2, 100.2) is not None
    assert cached(0.25).get(b"k", LIMIT, 2, 100.25) is None


def test_cached_denial_has_the_times_that_are_left() -> None:
    denied = cached().get(b"k", LIMIT, 2, 100.5)
    assert denied == Decision(False, 10, 60.0, 0, 29.5, 59.5, "alpha")


def test_denial_does_not_cover_cheaper_hits_other_limits_and_other_keys() -> None:
    assert cached().get(b"k", LIMIT, 3, 100.0) is not None
    assert cached().get(b"k", LIMIT, 1, 100.0) is None
    assert cached().get(b"k", Limit.parse("11/m"), 2, 100.0) is None
    assert cached().get(b"other", LIMIT, 2, 100.0) is None


def test_limits_are_compared_by_value() -> None:
    assert cached().get(b"k", Limit.parse("10/m"), 2, 100.0) is not None


def test_denial_is_dropped_and_replaced_by_a_later_one() -> None:
    denials = cached()
    denials.add(b"k", LIMIT, 2, denial(59.0), since=101.0)
    denied = denials.get(b"k", LIMIT, 2, 101.5)
    assert denied is not None
    assert denied.retry_after == pytest.approx(58.5)
    denials.drop(b"k", 101.5)
    denials.drop(b"k", 101.5)
    assert denials.get(b"k", LIMIT, 2, 101.5) is None


def test_denial_of_a_hit_that_was_sent_before_a_reset_is_not_used_though_it_is_added_after() -> None:
    denials = DenialCache()
    denials.drop(b"k", 101.5)
    denials.drop(b"k", 101.0)  # by a thread that was slower
    denials.add(b"k", LIMIT, 2, denial(), since=101.25)
    assert denials.get(b"k", LIMIT, 2, 101.75) is None
    denials.add(b"k", LIMIT, 2, denial(), since=101.5)
    assert denials.get(b"k", LIMIT, 2, 101.75) is not None


def test_hits_denied_from_the_cache_are_reported_once() -> None:
    denials = cached()
    assert denials.take_count(b"k") == 0
    for cost in (1, 2, 3):
        denials.get(b"k", LIMIT, cost, 100.5)
    assert denials.take_count(b"k") == 2
    assert denials.take_count(b"k") == 0


def test_count_of_hits_is_dropped_with_the_denial() -> None:
    denials = DenialCache()
    for number in range(MAX_ENTRIES + 10):
        denials.add(b"%d" % number, LIMIT, 1, denial(), 100.0)
        denials.get(b"%d" % number, LIMIT, 1, 100.0)
    denials.drop(b"11", 100.0)
    assert [denials.take_count(b"%d" % number) for number in (9, 10, 11)] == [0, 1, 0]


def test_cache_keeps_the_latest_denials_up_to_its_maximum() -> None:
    denials = DenialCache()
    for number in range(MAX_ENTRIES + 10):
        denials.add(b"%d" % number, LIMIT, 1, denial(), 100.0)
    assert len(denials) == MAX_ENTRIES
    assert denials.get(b"9", LIMIT, 1, 100.0) is None
    assert denials.get(b"10", LIMIT, 1, 100.0) is not None
