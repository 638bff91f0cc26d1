import math
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.limits import algorithms
from django_clusterstate.core.limits.algorithms import (
    TOLERANCE,
    Algorithm,
    LimitState,
    Rule,
    RuleDecision,
    decide,
    decide_all,
)

FIXED, SLIDING, BUCKET = Algorithm
START = 12_345.678

every_algorithm = pytest.mark.parametrize("algorithm", list(Algorithm))


class Key:
    """A key at its owner: keeps the state as a node's store would."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.state: LimitState | None = None
        self.until = 0.0

    def hit(self, now: float, cost: int = 1) -> RuleDecision:
        known = self.state if now < self.until else None
        decision, state, ttl = decide(self.rule, known, cost, now)
        if decision.allowed:
            self.state, self.until = state, now + ttl
        else:
            assert state == known
        return decision


# Times are multiples of 1/64 s and periods whole seconds: exact in doubles, so the models needn't know of
# tolerance.
Hits: TypeAlias = list[tuple[int, int]]
hits: st.SearchStrategy[Hits] = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 4)), max_size=60)
limits = st.integers(1, 12)
periods = st.integers(1, 10)


def admitted_by(rule: Rule, some: Hits) -> list[bool]:
    key, now, answers = Key(rule), 1000.0, []
    for ticks, cost in some:
        now += ticks / 64
        answers.append(key.hit(now, cost).allowed)
    return answers


def fixed_model(limit: int, period: int) -> Callable[[Fraction, int], bool]:
    log: list[tuple[Fraction, int]] = []
    opened = [Fraction(-period)]

    def hit(now: Fraction, cost: int) -> bool:
        start = opened[0] if now < opened[0] + period else now
        if sum(c for t, c in log if t >= start) + cost > limit:
            return False
        opened[0] = start
        log.append((now, cost))
        return True

    return hit


def sliding_model(limit: int, period: int) -> Callable[[Fraction, int], bool]:
    """With every hit at hand: `run` began at most a period ago, `before` ended before that, `log` has them all."""
    log: list[tuple[Fraction, int]] = []
    before: list[tuple[Fraction, int]] = []
    run: list[tuple[Fraction, int]] = []

    arrivals = [Fraction(0)]

    def arrival() -> Fraction:
        """Until when an even rate takes for the hits so far, wherever one begins to count."""
        return max(at + sum(c for t, c in log if t >= at) * Fraction(period, limit) for at, _ in log)

    def hit(now: Fraction, cost: int) -> bool:
        edge = before[-1][0] if before else run[0][0] if run else now
        if now >= edge + period:
            before[:], run[:] = run, []
            arrivals[0] = arrival() if log else now
            if before and now >= before[-1][0] + period:
                before.clear()
        share = 0
        if before:
            brought = math.ceil((arrivals[0] + period - now) * Fraction(limit, period)) - 1
            share = min(sum(c for _, c in before), max(brought, 0))
        if share + sum(c for _, c in run) + cost > limit:
            return False
        run.append((now, cost))
        log.append((now, cost))
        return True

    return hit


def bucket_model(limit: int, period: int) -> Callable[[Fraction, int], bool]:
    tokens, last = [Fraction(limit)], [Fraction(0)]

    def hit(now: Fraction, cost: int) -> bool:
        tokens[0] = min(Fraction(limit), tokens[0] + (now - last[0]) * limit / period)
        last[0] = now
        if cost > tokens[0]:
            return False
        tokens[0] -= cost
        return True

    return hit


MODELS = {FIXED: fixed_model, SLIDING: sliding_model, BUCKET: bucket_model}


@every_algorithm
@given(limit=limits, period=periods, some=hits)
def test_admits_exactly_what_the_slow_model_admits(algorithm: Algorithm, limit: int, period: int, some: Hits) -> None:
    model, now, expected = MODELS[algorithm](limit, period), Fraction(1000), []
    for ticks, cost in some:
        now += Fraction(ticks, 64)
        expected.append(model(now, cost))
    assert admitted_by(Rule(algorithm, limit, float(period)), some) == expected


Admitted: TypeAlias = list[tuple[float, int]]


def admitted_hits(rule: Rule, some: list[tuple[float, int]]) -> Admitted:
    """When, and how many at once, of hits so many periods apart."""
    key, now, admitted = Key(rule), START, []
    for wait, cost in some:
        now += wait * rule.period
        if key.hit(now, cost).allowed:
            admitted.append((now, cost))
    return admitted


def most_in(admitted: Admitted, period: float) -> int:
    """The most in any span of a period, which has its beginning and not its end."""
    return max(
        (sum(cost for at, cost in admitted[i:] if at < first + period - 3 * TOLERANCE)
         for i, (first, _) in enumerate(admitted)),
        default=0,
    )  # fmt: skip


# Many that come in bursts and many that come evenly, since a bound is reached by both in turn.
waits = st.one_of(st.floats(0, 1.2), st.just(0.0), st.sampled_from([0.5, 0.999, 1.0]), st.floats(0, 0.1))
patterns = st.lists(st.tuples(waits, st.integers(1, 4)), max_size=80)


@pytest.mark.parametrize(("algorithm", "bound"), [(FIXED, 2), (SLIDING, 1), (BUCKET, 2)])
@given(limit=limits, period=st.floats(0.1, 100), some=patterns)
def test_hits_admitted_in_any_period_are_bounded(
    algorithm: Algorithm, bound: int, limit: int, period: float, some: list[tuple[float, int]]
) -> None:
    assert most_in(admitted_hits(Rule(algorithm, limit, period), some), period) <= bound * limit


@given(limits, st.floats(0.1, 100), patterns)
def test_a_bucket_admits_at_most_a_burst_and_what_flows_in_within_any_interval(
    limit: int, period: float, some: list[tuple[float, int]]
) -> None:
    admitted = admitted_hits(Rule(BUCKET, limit, period), some)
    for i, (first, _) in enumerate(admitted):
        spent = 0
        for last, cost in admitted[i:]:
            spent += cost
            assert spent <= limit + (last - first + 2 * TOLERANCE) * limit / period


@every_algorithm
@given(
    st.integers(1, 1000), st.one_of(st.integers(1, 86400), st.floats(0.1, 1000)), st.floats(1, 3) | st.just(1.0),
    st.floats(0, 1e8),
)  # fmt: skip
def test_client_that_keeps_to_the_rate_is_never_denied(
    algorithm: Algorithm, limit: int, period: float, slowness: float, start: float
) -> None:
    key = Key(Rule(algorithm, limit, float(period)))
    for i in range(min(5 * limit, 2000)):
        assert key.hit(start + i * slowness * period / limit).allowed


@every_algorithm
@given(limits, st.floats(0.1, 100), st.lists(st.floats(1, 3) | st.just(1.0), max_size=80))
def test_client_with_uneven_hits_that_are_never_closer_is_never_denied(
    algorithm: Algorithm, limit: int, period: float, slowness: list[float]
) -> None:
    key, now = Key(Rule(algorithm, limit, period)), START
    for each in slowness:
        assert key.hit(now).allowed
        now += each * period / limit


@every_algorithm
@given(
    limits, st.integers(1, 86400), patterns, st.lists(st.integers(0, 3), min_size=1, max_size=10), st.booleans()
)  # fmt: skip
def test_client_that_honors_retry_after_gets_the_limit_per_period_in_the_long_run(
    algorithm: Algorithm, limit: int, period: int, some: list[tuple[float, int]], pauses: list[int], rounds: bool
) -> None:
    """After any other hits. Retry-After is in whole seconds, rounded up, so each wait may cost up to a second."""
    key, now = Key(Rule(algorithm, limit, float(period))), START
    for wait, cost in some:
        now += wait * period
        key.hit(now, cost)
    began, passed, waits = now, 0, 0
    while now < began + 20 * period:
        decision = key.hit(now)
        if decision.allowed:
            passed += 1
        else:
            assert decision.retry_after <= period + TOLERANCE
            now += math.ceil(decision.retry_after - TOLERANCE) if rounds else decision.retry_after
            waits += rounds
    assert passed >= limit * 20 * (1 - waits / 20 / period) - limit


@every_algorithm
@pytest.mark.parametrize(("limit", "period"), [(1, 86400), (1, 1), (5, 60), (5, 7), (3, 10), (100, 3600)])
def test_client_that_honors_retry_after_from_the_beginning_loses_nothing(
    algorithm: Algorithm, limit: int, period: int
) -> None:
    """One hit a day under 1/d. Rounding up costs nothing here: the hits that left the window had come together."""
    key, now, passed = Key(Rule(algorithm, limit, float(period))), START, 0
    while now < START + 20 * period - 0.5:
        decision = key.hit(now)
        passed += decision.allowed
        now += math.ceil(decision.retry_after - TOLERANCE)
    assert passed >= 20 * limit


@every_algorithm
@given(limits, st.floats(0.1, 1000), patterns, st.integers(1, 12))
def test_retry_after_is_at_most_the_period(
    algorithm: Algorithm, limit: int, period: float, some: list[tuple[float, int]], cost: int
) -> None:
    key, now = Key(Rule(algorithm, limit, period)), START
    for wait, each in some:
        now += wait * period
        key.hit(now, each)
        assert decide(key.rule, key.state, cost, now)[0].retry_after <= period + TOLERANCE


@pytest.mark.parametrize(("algorithm", "admitted"), [(FIXED, 199), (SLIDING, 99), (BUCKET, 104)])
def test_bursts_on_both_sides_of_a_turn(algorithm: Algorithm, admitted: int) -> None:
    """Of two bursts 4 s apart; a window that the first hit opened ends between them. A log would admit 100."""
    key = Key(Rule(algorithm, 100, 100.0))
    key.hit(0.0)
    assert sum(key.hit(at).allowed for at in (98.0, 102.0) for _ in range(200)) == admitted


@pytest.mark.parametrize(("algorithm", "after"), [(FIXED, 100), (SLIDING, 1), (BUCKET, 99)])
def test_a_burst_and_then_an_even_rate(algorithm: Algorithm, after: int) -> None:
    """Within a period, which only the sliding window takes as one; 1 follows in the place of the very first."""
    key = Key(Rule(algorithm, 100, 100.0))
    key.hit(0.0)
    burst = sum(key.hit(99.0).allowed for _ in range(200))
    later = sum(key.hit(99.0 + n / 10).allowed for n in range(1, 1000))
    assert (burst, later) == (100 if algorithm == BUCKET else 99, after)


@every_algorithm
@given(
    limit=st.integers(1, 50),
    period=st.floats(0.1, 1000),
    some=st.lists(st.tuples(st.floats(0, 1.5), st.integers(0, 9)), max_size=30),
    part=st.floats(0, 1),
)
def test_retry_after_is_the_earliest_time_the_same_cost_passes(
    algorithm: Algorithm, limit: int, period: float, some: list[tuple[float, int]], part: float
) -> None:
    key, now = Key(Rule(algorithm, limit, period)), START
    for wait, other in some:
        now += wait * period
        key.hit(now, other)
    remaining = key.hit(now, 1).remaining
    cost = remaining + 1 + round(part * (limit - remaining - 1))
    denied = key.hit(now, cost)
    assert not denied.allowed
    assert denied.retry_after > 0
    assert decide(key.rule, key.state, cost, now + denied.retry_after)[0].allowed
    slightly = 1e-4 * max(period, 1)
    if denied.retry_after > slightly:
        assert not decide(key.rule, key.state, cost, now + denied.retry_after - slightly)[0].allowed


@every_algorithm
@given(
    limit=st.integers(1, 50),
    period=st.floats(0.1, 1000),
    some=st.lists(st.tuples(st.floats(0, 1.5), st.integers(0, 9)), max_size=30),
)
def test_remaining_reset_and_ttl_are_true(
    algorithm: Algorithm, limit: int, period: float, some: list[tuple[float, int]]
) -> None:
    key, now = Key(Rule(algorithm, limit, period)), START
    for wait, cost in some:
        now += wait * period
        key.hit(now, cost)
    peek, state, ttl = decide(key.rule, key.state, 0, now)
    assert peek.allowed
    assert state == key.state
    assert 0 <= peek.remaining <= limit
    assert ttl == peek.reset_after <= 2 * period
    if peek.remaining:
        after = decide(key.rule, state, peek.remaining, now)[0]
        assert after.allowed
        assert after.remaining == 0
    assert not decide(key.rule, state, peek.remaining + 1, now)[0].allowed
    assert decide(key.rule, state, 0, now + peek.reset_after)[0].remaining == limit


@every_algorithm
@pytest.mark.parametrize(("limit", "period"), [(1, 1.0), (3, 0.7), (7, 60.0), (10, 1 / 3), (1000, 1.0)])
@pytest.mark.parametrize("now", [0.0, 0.1, START, 1e8 + 1 / 3])
def test_exactly_the_limit_passes_at_once_and_again_when_all_is_reset(
    algorithm: Algorithm, limit: int, period: float, now: float
) -> None:
    key = Key(Rule(algorithm, limit, period))
    for _ in range(4):
        decisions = [key.hit(now) for _ in range(limit + 3)]
        assert [d.allowed for d in decisions] == [True] * limit + [False] * 3
        assert [d.remaining for d in decisions[:limit]] == list(range(limit))[::-1]
        now += decisions[-1].reset_after


def test_bucket_is_full_again_a_period_after_it_was_emptied() -> None:
    key = Key(Rule(BUCKET, 10, 0.3))
    now = START
    for _ in range(1000):
        assert [key.hit(now).allowed for _ in range(11)] == [True] * 10 + [False]
        now += 0.3


def test_bucket_under_lasting_load_does_not_drift() -> None:
    key = Key(Rule(BUCKET, 3, 0.1))
    admitted = sum(key.hit(START + i / 100).allowed for i in range(100_000))
    assert admitted == pytest.approx(30_000 + 3, abs=1)


def test_bucket_refills_one_hit_each_emission_interval() -> None:
    key = Key(Rule(BUCKET, 5, 10.0))
    for _ in range(5):
        key.hit(START)
    denied = key.hit(START)
    assert denied.retry_after == pytest.approx(2.0)
    assert denied.reset_after == pytest.approx(10.0)
    assert key.hit(START + 2).allowed
    assert not key.hit(START + 2).allowed


def test_fixed_window_opens_at_the_first_hit() -> None:
    key = Key(Rule(FIXED, 2, 10.0))
    assert key.hit(3.0) == RuleDecision(True, 2, 1, 10.0, 0.0)
    assert key.hit(9.0) == RuleDecision(True, 2, 0, 4.0, 0.0)
    assert key.hit(10.0) == RuleDecision(False, 2, 0, 3.0, 3.0)
    assert key.hit(13.0) == RuleDecision(True, 2, 1, 10.0, 0.0)


def test_sliding_window_has_a_burst_leave_at_once_and_even_hits_one_by_one() -> None:
    burst = Key(Rule(SLIDING, 10, 10.0))
    assert burst.hit(100.0, 10) == RuleDecision(True, 10, 0, 10.0, 0.0)
    assert burst.hit(109.0, 1) == RuleDecision(False, 10, 0, 1.0, 1.0)
    assert burst.hit(110.0, 10).allowed
    even = Key(Rule(SLIDING, 10, 10.0))
    assert [even.hit(100.0 + n).remaining for n in range(10)] == list(range(10))[::-1]
    assert [even.hit(110.0 + n).remaining for n in range(10)] == [0] * 10
    assert even.hit(119.0, 1).retry_after == pytest.approx(1.0)
    assert even.hit(119.0, 4).retry_after == pytest.approx(4.0)


def test_sliding_window_denies_some_of_what_comes_in_lumps_close_to_the_limit() -> None:
    """In percent of pages of five hits, by hits per minute under a limit of 60. A log would deny none."""
    pages = {}
    for rate in (30, 45, 54, 60):
        key = Key(Rule(SLIDING, 60, 60.0))
        tries = [START + page * 300 / rate + 0.01 * n for page in range(20 * rate) for n in range(5)]
        pages[rate] = round(100 * sum(not key.hit(now).allowed for now in tries) / len(tries))
    assert pages == {30: 0, 45: 0, 54: 5, 60: 7}


@every_algorithm
def test_limit_of_zero_denies_everything(algorithm: Algorithm) -> None:
    for cost in (0, 1):
        assert decide(Rule(algorithm, 0, 5.0), None, cost, START) == (
            RuleDecision(False, 0, 0, 0.0, 5.0),
            None,
            0.0,
        )


@every_algorithm
def test_cost_above_the_limit_never_passes_and_costs_nothing(algorithm: Algorithm) -> None:
    rule = Rule(algorithm, 5, 7.0)
    assert decide(rule, None, 6, START) == (RuleDecision(False, 5, 5, 0.0, 7.0), None, 0.0)
    key = Key(rule)
    key.hit(START, 2)
    denied = key.hit(START, 6)
    assert (denied.allowed, denied.remaining, denied.retry_after) == (False, 3, 7.0)


@every_algorithm
def test_denied_hits_consume_nothing(algorithm: Algorithm) -> None:
    quiet, noisy = Key(Rule(algorithm, 5, 10.0)), Key(Rule(algorithm, 5, 10.0))
    quiet.hit(START, 4)
    noisy.hit(START, 4)
    for i in range(100):
        assert not noisy.hit(START + i / 1000, 3).allowed
    assert noisy.hit(START + 0.1, 0) == quiet.hit(START + 0.1, 0)


@every_algorithm
def test_peek_changes_nothing_and_passes_even_when_exhausted(algorithm: Algorithm) -> None:
    key = Key(Rule(algorithm, 2, 10.0))
    assert decide(key.rule, None, 0, START) == (RuleDecision(True, 2, 2, 0.0, 0.0), None, 0.0)
    key.hit(START, 2)
    assert key.hit(START + 1, 0).allowed
    assert key.hit(START + 1, 0).remaining == 0


@every_algorithm
def test_state_of_an_older_larger_limit_leaves_nothing_remaining(algorithm: Algorithm) -> None:
    _, state, _ = decide(Rule(algorithm, 100, 10.0), None, 100, START)
    decision, _, _ = decide(Rule(algorithm, 5, 10.0), state, 1, START)
    assert (decision.allowed, decision.remaining) == (False, 0)


@every_algorithm
def test_rate_above_the_clocks_resolution_still_admits_the_limit_only(algorithm: Algorithm) -> None:
    key = Key(Rule(algorithm, 10**9, 1.0))
    assert key.hit(START, 10**9).allowed
    assert not key.hit(START).allowed


rules = st.lists(st.builds(Rule, st.sampled_from(Algorithm), st.integers(0, 6), st.floats(0.5, 5)), max_size=4)


class Table:
    """A store that forgets nothing."""

    def __init__(self) -> None:
        self.states: dict[bytes, LimitState] = {}

    def get(self, key: bytes, now: float) -> LimitState | None:
        return self.states.get(key)

    def set(self, key: bytes, state: LimitState, now: float) -> None:
        self.states[key] = state

    def delete(self, key: bytes, now: float) -> bool:
        return self.states.pop(key, None) is not None


@given(
    st.lists(st.builds(Rule, st.sampled_from(Algorithm), limits, periods.map(float)), min_size=1, max_size=3),
    hits,
    st.integers(1, 4),
)
def test_peek_returns_the_decision_of_a_hit_and_changes_nothing(rules: list[Rule], some: Hits, cost: int) -> None:
    store, now = Table(), 1000.0
    for ticks, weight in some:
        now += ticks / 64
        algorithms.hit(store, b"key", rules, weight, now)
    before = dict(store.states)
    peeked = algorithms.peek(store, b"key", rules, cost, now)
    assert store.states == before
    would, _ = algorithms.hit(store, b"key", rules, cost, now)
    assert [one.allowed for one in peeked] == [one.allowed for one in would]
    assert [one.retry_after for one in peeked] == [one.retry_after for one in would]
    if all(one.allowed for one in would):
        assert all(then.remaining <= one.remaining - cost for one, then in zip(peeked, would, strict=True))


@given(st.lists(st.builds(Rule, st.sampled_from(Algorithm), limits, periods.map(float)), min_size=1, max_size=3))
def test_reset_forgets_a_key_under_these_rules_only(rules: list[Rule]) -> None:
    store, other = Table(), Rule(FIXED, 13, 1.0)
    for key in (b"key", b"another"):
        algorithms.hit(store, key, [*rules, other], 1, 1000.0)
    full = algorithms.peek(Table(), b"key", [*rules, other], 1, 1000.0)
    algorithms.reset(store, b"key", rules, 1000.0)
    now = algorithms.peek(store, b"key", [*rules, other], 1, 1000.0)
    assert now[:-1] == full[:-1]
    assert now[-1].remaining == 12
    assert algorithms.peek(store, b"another", rules, 1, 1000.0)[0].remaining < rules[0].limit


@given(rules, st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3)), max_size=20), st.integers(1, 4))
def test_refund_at_once_leaves_no_trace(some: list[Rule], attempts: list[tuple[float, int]], cost: int) -> None:
    table, now = Table(), START
    for wait, each in attempts:
        now += wait
        algorithms.hit(table, b"k", some, each, now)
        before = algorithms.peek(table, b"k", some, 1, now)
        if algorithms.hit(table, b"k", some, cost, now)[1]:
            algorithms.refund(table, b"k", some, cost, now, now)
        after = algorithms.peek(table, b"k", some, 1, now)
        assert [(d.allowed, d.remaining) for d in after] == [(d.allowed, d.remaining) for d in before]


@every_algorithm
@given(limits, periods, st.lists(st.tuples(st.integers(0, 64), st.integers(1, 3), st.booleans()), max_size=60))
def test_refunds_never_admit_more_than_the_limit(
    algorithm: Algorithm, limit: int, period: int, some: list[tuple[int, int, bool]]
) -> None:
    """Counting only hits that weren't given back: a bucket's burst and the refill at most, in any interval; in a period
    twice the limit (fixed), or the limit (sliding)."""
    rule, table, now = Rule(algorithm, limit, float(period)), Table(), START
    kept: list[tuple[float, int]] = []
    given: list[tuple[float, int]] = []  # to be given back one hit later
    for ticks, cost, gives_back in some:
        now += ticks / 64
        if algorithms.hit(table, b"k", [rule], cost, now)[1]:
            (given if gives_back else kept).append((now, cost))
        while len(given) > 1:
            at, back = given.pop(0)
            algorithms.refund(table, b"k", [rule], back, at, now)
    refill = limit / period if algorithm == BUCKET else 0.0
    burst = 2 * limit if algorithm == FIXED else limit
    for i, (first, _) in enumerate(kept):
        spent = 0
        for last, cost in kept[i:]:
            if algorithm == BUCKET or last - first < period - 3 * TOLERANCE:
                spent += cost
                assert spent <= burst + (last - first) * refill + 1e-3


@every_algorithm
def test_refund_of_what_no_longer_counts_credits_nothing(algorithm: Algorithm) -> None:
    rule, table = Rule(algorithm, 3, 10.0), Table()
    algorithms.hit(table, b"k", [rule], 3, START)
    later = START + 30
    algorithms.hit(table, b"k", [rule], 2, later)
    algorithms.refund(table, b"k", [rule], 3, START, later)
    assert algorithms.peek(table, b"k", [rule], 1, later)[0].remaining == 1


@every_algorithm
@given(limits, periods, hits, st.integers(1, 4), st.integers(0, 2000))
def test_denial_holds_for_as_long_as_it_says_whatever_others_do(
    algorithm: Algorithm, limit: int, period: int, some: Hits, cost: int, ticks: int
) -> None:
    """What a requester may answer from its own memory: the same cost or more, denied until `retry_after` has passed."""
    rule = Rule(algorithm, limit, float(period))
    key, now, denied_until = Key(rule), START, 0.0
    for wait, each in some:
        now += wait / 64
        if now < denied_until - TOLERANCE:
            assert not decide(rule, key.state if now < key.until else None, cost, now)[0].allowed
        key.hit(now, each)
        decision, _, _ = decide(rule, key.state if now < key.until else None, cost, now)
        if not decision.allowed:
            denied_until = max(denied_until, now + min(decision.retry_after, ticks / 64))


@given(rules, st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3)), max_size=20))
def test_hit_counts_in_all_rules_or_in_none(some: list[Rule], attempts: list[tuple[float, int]]) -> None:
    states: list[LimitState | None] = [None] * len(some)
    now = START
    for wait, cost in attempts:
        now += wait
        single = [decide(rule, state, cost, now) for rule, state in zip(some, states, strict=True)]
        decisions, counted = decide_all(some, states, cost, now)
        assert [d.allowed for d in decisions] == [d.allowed for d, _, _ in single]
        if all(d.allowed for d in decisions):
            assert counted == [(state, ttl) for _, state, ttl in single]
            states = [state for state, _ in counted]
        else:
            assert counted is None
            for rule, state, decision in zip(some, states, decisions, strict=True):
                assert decision.remaining == decide(rule, state, 0, now)[0].remaining


def test_rule_that_would_have_allowed_shows_what_remains_uncounted() -> None:
    decisions, counted = decide_all([Rule(FIXED, 5, 10.0), Rule(BUCKET, 0, 10.0)], [None, None], 1, START)
    assert counted is None
    assert decisions == [RuleDecision(True, 5, 5, 0.0, 0.0), RuleDecision(False, 0, 0, 0.0, 10.0)]


def test_one_state_per_rule_is_required() -> None:
    with pytest.raises(ValueError, match="zip"):
        decide_all([Rule(FIXED, 5, 10.0)], [], 1, START)


def test_rules_and_decisions_travel_as_arrays() -> None:
    assert msgspec.json.encode(Rule(SLIDING, 5, 60.0)) == b"[1,5,60.0]"
    assert msgspec.json.decode(b"[true,5,4,60.0,0.0]", type=RuleDecision) == RuleDecision(True, 5, 4, 60.0, 0.0)
