"""Numbers as what a template needs to draw them as SVG. Pure.

All are scaled to the largest value; values are finite and not negative. A coordinate is text, since a template writes
a number in the way of its reader's language, and SVG knows only one.
"""

from collections.abc import Sequence
from typing import NamedTuple

FILLED = 0.8  # of the room of a bar; the rest keeps it apart from the next one
LEAST = 1.0  # what isn't zero can be seen


class Bar(NamedTuple):
    """A `rect` that stands on the lower edge."""

    x: str
    y: str
    width: str
    height: str


def bars(values: Sequence[float], width: float, height: float) -> list[Bar]:
    """A bar for each value, from left to right. That of a zero has no height."""
    room = width / max(1, len(values))
    return [
        Bar(_text(index * room), _text(height - tall), _text(room * FILLED), _text(tall))
        for index, tall in enumerate(_scaled(values, height, min(LEAST, height)))
    ]


def lengths(values: Sequence[float], longest: float) -> list[str]:
    """How long a lying bar of each value is. That of a zero has no length."""
    return [_text(length) for length in _scaled(values, longest, min(LEAST, longest))]


def line(values: Sequence[float], width: float, height: float) -> str:
    """The `points` of a `polyline` from the left edge to the right one. A single value is a level line."""
    tall = _scaled(values, height)
    if len(tall) == 1:
        tall *= 2
    step = width / max(1, len(tall) - 1)
    return " ".join(f"{_text(index * step)},{_text(height - y)}" for index, y in enumerate(tall))


def _scaled(values: Sequence[float], longest: float, least: float = 0.0) -> list[float]:
    most = max(values, default=0)
    return [max(least, value / most * longest) if value else 0.0 for value in values]


def _text(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
