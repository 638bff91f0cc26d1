"""What tests of faults share: a note of each measured figure."""

from collections.abc import Callable

import pytest


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Notes a measured figure."""

    def note(what: str, value: object) -> None:
        record_property(what, value)
        print(f"\n  {what}: {value}", end="", flush=True)

    return note
