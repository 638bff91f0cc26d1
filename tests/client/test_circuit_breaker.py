"""When requests to a failing node are sent, and the log lines, with the clock in the test's hand."""

import pytest

from django_clusterstate.client.circuit_breaker import FAILURES_TO_OPEN, HALF_OPEN_AFTER
from django_clusterstate.client.routing import Target
from django_clusterstate.exceptions import CircuitOpen
from django_clusterstate.wire.address import TcpAddress

NOW = 1000.0


def open_target() -> Target:
    target = Target("b", TcpAddress("10.0.0.2", 4370))
    for _ in range(FAILURES_TO_OPEN):
        target.failed(NOW, "why")
    return target


def test_breaker_opens_after_failures_in_a_row() -> None:
    target = Target("b", TcpAddress("10.0.0.2", 4370))
    assert [target.failed(NOW, "why") for _ in range(FAILURES_TO_OPEN + 1)] == [False, False, True, False]
    with pytest.raises(
        CircuitOpen, match=r"circuit breaker for node b at 10\.0\.0\.2:4370 is open after 4 failures in a row \(why\)"
    ):
        target.check(NOW + 0.01)


def test_answer_in_between_restarts_the_count() -> None:
    target = Target("b", TcpAddress("10.0.0.2", 4370))
    target.failed(NOW, "why")
    target.failed(NOW, "why")
    target.answered()
    target.failed(NOW, "why")
    target.failed(NOW, "why")
    target.check(NOW)


def test_open_breaker_lets_one_try_in_each_interval() -> None:
    target = open_target()
    with pytest.raises(CircuitOpen):
        target.check(NOW + HALF_OPEN_AFTER - 0.01)
    target.check(NOW + HALF_OPEN_AFTER)
    with pytest.raises(CircuitOpen):
        target.check(NOW + HALF_OPEN_AFTER + 0.01)
    target.check(NOW + 2 * HALF_OPEN_AFTER)


def test_failed_try_keeps_the_breaker_open_without_opening_it_again() -> None:
    target = open_target()
    target.check(NOW + 1)
    assert target.failed(NOW + 1, "why") is False
    with pytest.raises(CircuitOpen):
        target.check(NOW + 1 + HALF_OPEN_AFTER - 0.01)


def test_first_try_may_take_little_of_a_deadline_and_each_further_one_twice_as_long() -> None:
    target = open_target()
    for _ in range(100):
        target.failed(NOW, "why")  # calls that were under way
    tries = [target.check(NOW + turn * HALF_OPEN_AFTER) for turn in range(1, 9)]
    assert tries == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1, 1]
    target.answered()
    assert target.check(NOW + 5) == 1


def test_opening_and_closing_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "django_clusterstate.client"):
        target = open_target()
        target.failed(NOW, "why")
        target.check(NOW + 1)
        target.answered()
        target.answered()
        target.check(NOW + 1)
    assert [record.getMessage() for record in caplog.records] == [
        "circuit breaker for node b at 10.0.0.2:4370 opened after 3 failures in a row (why); "
        "requests to it fail at once and one is tried every 0.5 s",
        "circuit breaker for node b at 10.0.0.2:4370 closed: it is responding again",
    ]
