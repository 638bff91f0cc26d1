"""Coordinates for charts in SVG. Pure.

Values are finite and not negative, and scaled to the largest one. A coordinate is text: a template would format a
number for the reader's language, which SVG doesn't understand.
"""

from collections.abc import Sequence
from typing import NamedTuple

FILLED = 0.8  # of the width for a bar; the rest is the gap to the next one
LEAST = 1.0  # so that any value above 0 can be seen


class Bar(NamedTuple):
    """A `rect` that stands on the lower edge."""

    x: str
    y: str
    width: str
    height: str


def bars(values: Sequence[float], width: float, height: float) -> list[Bar]:
    """A bar for each value, from left to right. A zero has a bar of no height."""
    step = width / max(1, len(values))
    return [
        Bar(_text(index * step), _text(height - length), _text(step * FILLED), _text(length))
        for index, length in enumerate(_scaled(values, height, min(LEAST, height)))
    ]


def lengths(values: Sequence[float], longest: float) -> list[str]:
    """The length of a horizontal bar for each value, 0 for a zero."""
    return [_text(length) for length in _scaled(values, longest, min(LEAST, longest))]


def line(values: Sequence[float], width: float, height: float) -> str:
    """The `points` of a `polyline` from the left edge to the right one. A single value makes a horizontal line."""
    heights = _scaled(values, height)
    if len(heights) == 1:
        heights *= 2
    step = width / max(1, len(heights) - 1)
    return " ".join(f"{_text(index * step)},{_text(height - y)}" for index, y in enumerate(heights))


def _scaled(values: Sequence[float], longest: float, least: float = 0.0) -> list[float]:
    most = max(values, default=0)
    return [max(least, value / most * longest) if value else 0.0 for value in values]


def _text(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
