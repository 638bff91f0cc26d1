"""Formatting of rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.limits.rate_strings import parse_rate
from django_clusterstate.panel import formatting


@given(st.integers(0, 10**15 - 1), st.integers(1, 10**8), st.sampled_from("smhd"), st.sampled_from(Algorithm))
def test_formatted_rate_can_be_parsed_again(limit: int, number: int, unit: str, algorithm: Algorithm) -> None:
    rule = Rule(algorithm, *parse_rate(f"{limit}/{number}{unit}"))
    assert Rule(algorithm, *parse_rate(formatting.rate(rule))) == rule


@pytest.mark.parametrize(
    ("period", "text"),
    [(1.0, "5/s"), (30.0, "5/30s"), (60.0, "5/m"), (7200.0, "5/2h"), (86400.0, "5/d"), (0.25, "5/0.25s")],
)
def test_rate_is_formatted_with_the_largest_unit(period: float, text: str) -> None:
    assert formatting.rate(Rule(Algorithm.FIXED_WINDOW, 5, period)) == text
