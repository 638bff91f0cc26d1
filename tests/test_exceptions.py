"""Which exceptions a signal handler raised."""

import signal
from collections.abc import Callable

import pytest

from django_clusterstate.exceptions import raised_by_signal
from tests.timelimits import HANDLERS, SoftTimeLimit, handling, raises


def caught(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("name", HANDLERS)
def test_what_a_signal_handler_raises_is_known_by_its_traceback(name: str) -> None:
    with handling(HANDLERS[name]):
        assert raised_by_signal(caught(lambda: signal.raise_signal(signal.SIGALRM)))


def test_what_is_raised_from_that_is_known_too() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGALRM)
        except SoftTimeLimit as error:
            raise ValueError("the library's own") from error

    with handling(raises):
        assert raised_by_signal(caught(work))


def test_what_is_raised_otherwise_is_none_of_it() -> None:
    assert not raised_by_signal(caught(lambda: raises(signal.SIGALRM, None)))
    assert not raised_by_signal(caught(lambda: 1 / 0))
    assert not raised_by_signal(ValueError())


def test_what_is_raised_while_a_limit_is_handled_is_none_of_it() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGALRM)
        except SoftTimeLimit:
            raise ValueError("of the handling")  # noqa: B904

    with handling(raises):
        assert not raised_by_signal(caught(work))
