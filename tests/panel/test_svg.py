"""The numbers of pictures."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.panel import svg

VALUES = st.lists(st.integers(0, 2**64) | st.floats(0, 1e300), max_size=80)
SIZES = st.floats(1, 2000)
NEAR = 0.011  # each coordinate is rounded to hundredths
NUMBER = re.compile(r"\d+(\.\d{1,2})?")


@given(VALUES, SIZES, SIZES)
def test_bars_stand_on_the_edge_side_by_side_within_the_picture(
    values: list[float], width: float, height: float
) -> None:
    bars = svg.bars(values, width, height)
    assert len(bars) == len(values)
    assert all(NUMBER.fullmatch(text) for bar in bars for text in bar)
    ends = 0.0
    for bar in bars:
        x, y, wide, tall = map(float, bar)
        assert y + tall == pytest.approx(height, abs=NEAR)
        assert x >= ends - NEAR
        ends = x + wide
    assert ends <= width + NEAR


@given(VALUES, SIZES, SIZES)
def test_bars_are_as_tall_as_their_values(values: list[float], width: float, height: float) -> None:
    tall = [float(bar.height) for bar in svg.bars(values, width, height)]
    assert [one > 0 for one in tall] == [value > 0 for value in values]
    by_value = [one for _, one in sorted(zip(values, tall, strict=True))]
    assert by_value == sorted(by_value)
    for value, one in zip(values, tall, strict=True):
        if value:
            expected = max(svg.LEAST, value / max(values) * height)
            assert one == pytest.approx(min(expected, height), abs=NEAR)


@given(VALUES, SIZES)
def test_lengths_are_the_heights_of_bars_that_lie(values: list[float], longest: float) -> None:
    assert svg.lengths(values, longest) == [bar.height for bar in svg.bars(values, 100, longest)]


@given(VALUES, SIZES, SIZES)
def test_line_runs_from_edge_to_edge_through_all_values(values: list[float], width: float, height: float) -> None:
    points = [tuple(point.split(",")) for point in svg.line(values, width, height).split()]
    assert all(NUMBER.fullmatch(text) for point in points for text in point)
    assert len(points) == (2 if len(values) == 1 else len(values))
    if points:
        assert float(points[0][0]) == 0
        assert float(points[-1][0]) == pytest.approx(width, abs=NEAR)
    for value, (_, y) in zip(values, points, strict=False):
        expected = height - (value / max(values) * height if value else 0)
        assert float(y) == pytest.approx(expected, abs=NEAR)


@given(VALUES, SIZES, SIZES)
def test_same_numbers_are_the_same_picture(values: list[float], width: float, height: float) -> None:
    assert svg.bars(values, width, height) == svg.bars(list(values), width, height)
    assert svg.line(values, width, height) == svg.line(list(values), width, height)


def test_nothing_to_draw() -> None:
    assert svg.bars([], 100, 10) == []
    assert svg.lengths([], 100) == []
    assert svg.line([], 100, 10) == ""


def test_zeros_lie_on_the_edge() -> None:
    assert svg.bars([0, 0], 100, 10) == [("0", "10", "40", "0"), ("50", "10", "40", "0")]
    assert svg.line([0, 0], 100, 10) == "0,10 100,10"


def test_single_value_fills_the_picture() -> None:
    assert svg.bars([7], 100, 10) == [("0", "0", "80", "10")]
    assert svg.line([7], 100, 10) == "0,0 100,0"


def test_some_values() -> None:
    assert svg.bars([1, 0, 4], 30, 20) == [("0", "15", "8", "5"), ("10", "20", "8", "0"), ("20", "0", "8", "20")]
    assert svg.lengths([3, 1, 0], 10) == ["10", "3.33", "0"]
    assert svg.line([1, 2, 4], 30, 20) == "0,15 15,10 30,0"


def test_what_is_not_zero_is_seen() -> None:
    assert svg.lengths([1_000_000, 1], 100) == ["100", "1"]
