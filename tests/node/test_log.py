"""How seldom a node repeats a log line."""

import pytest

from django_clusterstate.node.log import RateLimitedLog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_line_about_one_subject_is_repeated_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = RateLimitedLog(clock, again=60.0)
    for _ in range(3):
        log.write("refused", "web-2")
        log.write("late", "web-2")
        log.write("refused", "web-3")
    assert caplog.messages == ["refused", "refused (and 1 more since the last such message)"]
    clock.now += 60.0
    log.write("late", "web-2")
    assert caplog.messages[2:] == ["late (and 6 more since the last such message)"]


def test_lines_about_any_subjects_keep_their_distance(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = RateLimitedLog(clock, again=600.0, spacing=1.0)
    for number in range(100):
        log.write(f"stranger {number}")
        clock.now += 0.25
    assert len(caplog.messages) == 25
    assert caplog.messages[1] == "stranger 4 (and 3 more since the last such message)"
