"""When a requester polls for a reply, and that polling in vain costs little."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.wire import busy_polling
from django_clusterstate.wire.busy_polling import (
    CACHED_FOR,
    MAX_REST,
    MIN_REST,
    BusyPoll,
    Processors,
    has_cpu_quota,
    idle_processor,
    make_is_idle,
    never,
)

ANSWERS = 50_000


def always(now: float) -> bool:
    return True


def polls(polling: BusyPoll, comes_in_time: Callable[[int], bool], answers: int = ANSWERS) -> list[bool]:
    """Whether each poll succeeded, for a number of replies that arrive at one moment."""
    results = []
    for number in range(answers):
        if polling.should_poll(0.0):
            results.append(comes_in_time(number))
            if results[-1]:
                polling.succeeded()
            else:
                polling.failed()
    return results


def test_node_that_replies_fast_is_always_polled() -> None:
    assert polls(BusyPoll(always), lambda _: True, 1000) == [True] * 1000


def test_node_that_replies_slowly_is_hardly_ever_polled() -> None:
    assert len(polls(BusyPoll(always), lambda _: False)) < 7 + ANSWERS / MAX_REST


def test_polling_resumes_soon_after_a_single_failure() -> None:
    missed = [number == 500 for number in range(1000)]
    assert len(polls(BusyPoll(always), lambda number: not missed[number], 1000)) == 1000 - MIN_REST


def test_node_that_becomes_fast_is_polled_again() -> None:
    polling = BusyPoll(always)
    assert not any(polls(polling, lambda _: False))
    found = polls(polling, lambda _: True)
    assert all(found)
    assert len(found) >= ANSWERS - MAX_REST


@given(st.lists(st.booleans(), max_size=300))
def test_failures_in_a_row_are_ever_farther_apart(outcomes: list[bool]) -> None:
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


def test_nothing_is_polled_while_no_processor_is_idle() -> None:
    assert polls(BusyPoll(never), lambda _: True) == []


class System:
    """Reports by turns that a processor is idle and that none is, after some time."""

    def __init__(self, takes: float) -> None:
        self.now = 0.0
        self.asked = 0
        self._takes = takes

    def idle_processor(self) -> bool:
        self.now += self._takes
        self.asked += 1
        return self.asked % 2 == 1


@pytest.mark.parametrize(("takes", "believed"), [(0.0, CACHED_FOR), (1e-6, CACHED_FOR), (0.005, 0.5)])
def test_result_of_a_check_is_used_for_long_enough(takes: float, believed: float) -> None:
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
def test_process_with_one_processor_has_no_idle_one() -> None:
    assert not idle_processor()


def test_process_with_more_processors_than_are_used_has_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(100_000))
    assert idle_processor()


QUOTAS = [
    ("0::/\n", {}, False),
    ("0::/\n", {"cpu.max": "max 100000\n"}, False),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, True),
    ("0::/system.slice/site.service\n", {"system.slice/site.service/cpu.max": "max 100000\n"}, False),
    ("0::/system.slice/site.service\n", {"system.slice/site.service/cpu.max": "20000 100000\n"}, True),
    ("0::/pod/container\n", {"pod/container/cpu.max": "max 100000\n", "pod/cpu.max": "200000 100000\n"}, True),
    ("0::/on/the/host\n", {"cpu.max": "50000 100000\n"}, True),  # a container without a cgroup namespace
    ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, False),
    ("4:cpu,cpuacct:/docker/1\n", {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "50000\n"}, True),
    ("5:memory:/docker/1\n", {"memory/docker/1/cpu.cfs_quota_us": "50000\n"}, False),
    ("0::/\n", {"cpu.max": ""}, False),
]


@pytest.mark.parametrize(("groups", "files", "limited"), QUOTAS)
def test_cpu_quota_is_read_from_the_files_of_the_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], limited: bool
) -> None:
    cgroup_of, mount = tmp_path / "cgroup", tmp_path / "mount"
    cgroup_of.write_text(groups)
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    assert has_cpu_quota(cgroup_of, mount) == limited


def test_system_without_control_groups_has_no_cpu_quota(tmp_path: Path) -> None:
    assert not has_cpu_quota(tmp_path / "missing", tmp_path)


@pytest.mark.parametrize(
    ("setting", "quota", "polling"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_busy_polling_is_off_by_the_setting_and_under_a_cpu_quota(
    monkeypatch: pytest.MonkeyPatch, setting: bool, quota: bool, polling: bool
) -> None:
    monkeypatch.setattr(busy_polling, "has_cpu_quota", lambda: quota)
    assert (make_is_idle(busy_poll=setting) is not never) == polling
