"""When a requester looks for an answer, and that it costs nobody much where that is no use."""

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.wire.busy_polling import (
    BELIEVED_FOR,
    MAX_REST,
    MIN_REST,
    BusyPoll,
    Processors,
    idle_processor,
    never,
)

ANSWERS = 50_000


def always(now: float) -> bool:
    return True


def looks(polling: BusyPoll, comes_in_time: Callable[[int], bool], answers: int = ANSWERS) -> list[bool]:
    """Whether each look found the answer, of so many answers at one moment."""
    results = []
    for number in range(answers):
        if polling.should_poll(0.0):
            results.append(comes_in_time(number))
            if results[-1]:
                polling.succeeded()
            else:
                polling.failed()
    return results


def test_who_always_finds_looks_always() -> None:
    assert looks(BusyPoll(always), lambda _: True, 1000) == [True] * 1000


def test_who_never_finds_hardly_ever_looks() -> None:
    assert len(looks(BusyPoll(always), lambda _: False)) < 7 + ANSWERS / MAX_REST


def test_a_single_miss_is_soon_made_up_for() -> None:
    missed = [number == 500 for number in range(1000)]
    assert len(looks(BusyPoll(always), lambda number: not missed[number], 1000)) == 1000 - MIN_REST


def test_who_is_near_again_is_found_again() -> None:
    polling = BusyPoll(always)
    assert not any(looks(polling, lambda _: False))
    found = looks(polling, lambda _: True)
    assert all(found)
    assert len(found) >= ANSWERS - MAX_REST


@given(st.lists(st.booleans(), max_size=300))
def test_misses_in_a_row_are_ever_farther_apart(outcomes: list[bool]) -> None:
    polling = BusyPoll(always)
    rests = []
    for found in outcomes:
        rest = 0
        while not polling.should_poll(0.0):
            rest += 1
        rests.append(rest)
        if found:
            polling.succeeded()
        else:
            polling.failed()
    due = MIN_REST
    for found, rest in zip(outcomes, rests[1:], strict=False):
        assert rest == (0 if found else due)
        due = MIN_REST if found else min(MAX_REST, 4 * due)


def test_where_no_processor_is_idle_nobody_looks() -> None:
    assert looks(BusyPoll(never), lambda _: True) == []


class System:
    """Says by turns that a processor is idle and that none is, and takes its time."""

    def __init__(self, takes: float) -> None:
        self.now = 0.0
        self.asked = 0
        self._takes = takes

    def idle_processor(self) -> bool:
        self.now += self._takes
        self.asked += 1
        return self.asked % 2 == 1


@pytest.mark.parametrize(("takes", "believed"), [(0.0, BELIEVED_FOR), (1e-6, BELIEVED_FOR), (0.005, 0.5)])
def test_what_the_system_said_is_believed_for_long_enough(takes: float, believed: float) -> None:
    system = System(takes)
    processors = Processors(system.idle_processor, lambda: system.now)
    for number in range(1, 5):
        said = processors.idle(system.now)
        assert (said, system.asked) == (number % 2 == 1, number)
        for part in (0.1, 0.5, 0.99):
            assert processors.idle(system.now + part * believed) == said
        system.now += believed * 1.0001
    assert system.asked == 4


@pytest.fixture
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_processor")
def test_whoever_has_one_processor_has_no_idle_one() -> None:
    assert not idle_processor()


def test_whoever_has_more_than_anybody_uses_has_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(100_000))
    assert idle_processor()
