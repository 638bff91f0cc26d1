"""How fast counters grew."""

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.counter_history import INTERVAL, INTERVALS, CounterHistory

# Seconds until the next look at a counter, and by how much it has grown until then.
looks = st.lists(st.tuples(st.floats(0.1, 3 * INTERVAL), st.integers(0, 100)), max_size=300)


@given(looks)
def test_intervals_hold_all_that_was_counted_until_the_last_one_ended(looks: list[tuple[float, int]]) -> None:
    rates, now, counter, over = CounterHistory(0.0), 0.0, 0, 0
    counted = 0  # when the last step ended
    for pause, more in looks:
        now, counter = now + pause, counter + more
        rates.sample({"n": counter}, now)
        if int(now // INTERVAL) > over:
            over, counted = int(now // INTERVAL), counter
    steps = rates.all().get("n", [])
    assert len(steps) == min(over, INTERVALS)
    if over <= INTERVALS:
        assert sum(steps) == counted


def test_intervals_come_the_latest_first() -> None:
    rates = CounterHistory(100.0)
    assert rates.all() == {}
    for second, reads in enumerate((1, 3, 3, 4, 4, 10, 10, 10, 10, 10, 11), start=1):
        rates.sample({"a": reads, "b": 2 * reads}, 100.0 + second)
    assert rates.all() == {"a": [6, 4], "b": [12, 8]}


def test_time_in_which_nobody_looked_counts_as_nothing() -> None:
    rates = CounterHistory(0.0)
    rates.sample({"n": 5}, INTERVAL)
    rates.sample({"n": 8}, 4.5 * INTERVAL)
    assert rates.all() == {"n": [0, 0, 3, 5]}
    rates.sample({"n": 9}, 5 * INTERVAL)
    assert rates.all()["n"][0] == 1
    rates.sample({"n": 9}, 1000 * INTERVAL)
    assert rates.all() == {"n": [0] * INTERVALS}
