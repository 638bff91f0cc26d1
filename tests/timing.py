"""Assertions on seconds: made by `make timing`, where a test has the machine to itself, and only there.

A test that makes one has the marker `timing`. `make test` runs it too, without its upper bounds: a busy machine delays
everything, and shortens nothing. With `timing(alone=True)` it runs in `make timing` only.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_measuring = False
_marked = False


def is_left(left: float, seconds: float, start: float) -> bool:
    """Whether that is left of a time that began after `start`, a time of the monotonic clock; however long ago."""
    return seconds - (time.monotonic() - start) <= left <= seconds


def check_seconds(seconds: float, *, below: float, at_least: float = 0.0) -> None:
    """Asserts that something took so long."""
    assert _marked, "a test that asserts seconds needs the marker `timing`"
    assert seconds >= at_least
    assert seconds < below or not _measuring


@contextmanager
def takes(*, below: float, at_least: float = 0.0) -> Iterator[None]:
    """Asserts that its block takes so long."""
    start = time.monotonic()
    yield
    check_seconds(time.monotonic() - start, below=below, at_least=at_least)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--timing", action="store_true", help="run the tests that assert seconds, and make the assertions")


def pytest_configure(config: pytest.Config) -> None:
    global _measuring  # noqa: PLW0603 - as pytest's own options
    _measuring = config.getoption("--timing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _marked  # noqa: PLW0603
    _marked = item.get_closest_marker("timing") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected: list[pytest.Item] = []
    deselected: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("timing")
        wanted = marker is not None if _measuring else not (marker and marker.kwargs.get("alone"))
        (selected if wanted else deselected).append(item)
    config.hook.pytest_deselected(items=deselected)
    items[:] = selected
