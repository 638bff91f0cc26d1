"""States of limits that two nodes have counted."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from django_clusterstate.core.limits.algorithms import Algorithm, LimitState, Rule, decide
from django_clusterstate.core.limits.copies import merged, shifted

PERIOD = 10.0

rules = st.builds(Rule, st.sampled_from(Algorithm), st.integers(1, 20), st.just(PERIOD))
# The seconds between hits, and their costs.
hits = st.lists(st.tuples(st.floats(0, 4), st.integers(1, 3)), min_size=1, max_size=40)


def counted(rule: Rule, sequence: list[tuple[float, int]], state: LimitState | None = None) -> LimitState | None:
    """The state after hits that end at PERIOD * 10."""
    now = PERIOD * 10 - sum(pause for pause, _ in sequence)
    for pause, cost in sequence:
        now += pause
        decision, after, _ = decide(rule, state, cost, now)
        if decision.allowed:
            state = after
    return state


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Rule, LimitState, LimitState]:
    """A rule, and two states of a key under it."""
    rule = draw(rules)
    one, other = counted(rule, draw(hits)), counted(rule, draw(hits))
    assume(one is not None and other is not None)
    assert one is not None
    assert other is not None
    return rule, one, other


@given(pairs(), st.floats(0, PERIOD * 2), st.integers(1, 5))
def test_what_either_denies_is_denied(pair: tuple[Rule, LimitState, LimitState], later: float, cost: int) -> None:
    rule, one, other = pair
    both = merged(rule, one, other, PERIOD * 10)
    now = PERIOD * 10 + later
    least = min(decide(rule, state, 0, now)[0].remaining for state in (one, other))
    assert decide(rule, both, 0, now)[0].remaining <= least
    if decide(rule, both, cost, now)[0].allowed:
        assert all(decide(rule, state, cost, now)[0].allowed for state in (one, other))


@given(pairs())
def test_merging_knows_no_order_and_changes_nothing_twice(pair: tuple[Rule, LimitState, LimitState]) -> None:
    rule, one, other = pair
    now = PERIOD * 10
    both = merged(rule, one, other, now)
    assert merged(rule, one, one, now) == one
    assert merged(rule, both, other, now) == both
    assert decide(rule, both, 0, now)[0] == decide(rule, merged(rule, other, one, now), 0, now)[0]


def test_a_window_that_ends_soon_and_is_full_does_not_make_room_in_one_that_ends_later() -> None:
    rule = Rule(Algorithm.FIXED_WINDOW, 100, 60.0)  # history 10
    soon, later = (101.0, 0.0, 0.0, 0.0, 0.0, 100), (159.0, 0.0, 0.0, 0.0, 0.0, 99)
    for both in (merged(rule, soon, later, 100.0), merged(rule, later, soon, 100.0)):
        assert decide(rule, both, 0, 102.0)[0].remaining <= 1


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_state_decides_alike_on_a_node_with_another_clock(algorithm: Algorithm) -> None:
    rule = Rule(algorithm, 5, PERIOD)
    state = counted(rule, [(0.0, 1), (3.0, 2), (1.0, 1)])
    assert state is not None
    here, there = PERIOD * 10, 7.0
    moved = shifted(algorithm, shifted(algorithm, state, -here), there)
    for later in (0.0, 2.0, 8.0, 20.0):
        ours, theirs = decide(rule, state, 1, here + later)[0], decide(rule, moved, 1, there + later)[0]
        assert (ours.allowed, ours.remaining) == (theirs.allowed, theirs.remaining)
        assert ours.retry_after == pytest.approx(theirs.retry_after, abs=1e-6)
