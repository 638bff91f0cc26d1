from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.limits import rate_strings
from django_clusterstate.core.limits.rate_strings import parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", (10, 1.0)),
        ("5/m", (5, 60.0)),
        ("100/h", (100, 3600.0)),
        ("1/d", (1, 86400.0)),
        ("10/30s", (10, 30.0)),
        ("10/2m", (10, 120.0)),
        ("0/s", (0, 1.0)),
        ("5/M", (5, 60.0)),
        ("100/300", (100, 300.0)),
        ("5/min", (5, 60.0)),
        ("5/minute", (5, 60.0)),
        ("5/2hours", (5, 7200.0)),
        ("5/hr", (5, 3600.0)),
        ("5/Day", (5, 86400.0)),
        ("5/30sec", (5, 30.0)),
        ((100, 300), (100, 300.0)),
        ((0, 1), (0, 1.0)),
        ((5, 60.0), (5, 60.0)),
    ],
)
def test_rate_is_hits_per_optional_number_of_units(text: str | tuple[int, float], rate: tuple[int, float]) -> None:
    assert parse_rate(text) == rate


@given(st.from_regex(r"[0-9]{1,4}/[0-9]{0,4}[a-z]{0,8}", fullmatch=True) | st.tuples(st.integers(), st.integers()))
def test_rate_that_is_read_is_what_django_ratelimit_reads(rate: str | tuple[int, int]) -> None:
    _assert_read_alike(rate)


@given(st.integers(0, 999), st.integers(1, 999) | st.just(""), st.sampled_from(sorted(rate_strings._UNITS)))
def test_rate_in_words_is_what_django_ratelimit_reads(hits: int, number: int | str, unit: str) -> None:
    if number or unit:
        assert _assert_read_alike(f"{hits}/{number}{unit}")


def _assert_read_alike(rate: str | tuple[int, int]) -> bool:
    """If it is read at all."""
    split_rate = pytest.importorskip("django_ratelimit.core")._split_rate
    try:
        read = parse_rate(rate)
    except ValueError:
        return False
    assert read == split_rate(rate)
    return True


@pytest.mark.parametrize(
    "text",
    ["", "10", "10/", "/s", "10/w", "10/0s", "-1/s", "1.5/s", "10/s ", "10 / s", "10/1.5s", "٣/s", "9" * 16 + "/s",
     "10/0", "10/month", "10/2weeks", "10/fortnight", "10/\u017f", "10/m\n", "10/mm",
     (-1, 60), (10**15, 60), (1, 0), (1, -1),
     (1, 0.5), (1, 1.5), (1.0, 60), (True, 60), (1, True), (1, 10**14), (1, float("nan")), (1, float("inf")),
     ("1", "60")],
)  # fmt: skip
def test_anything_else_is_refused_with_what_a_rate_looks_like(text: Any) -> None:
    with pytest.raises(ValueError, match=r"a rate is hits/period|a pair is \(hits, whole seconds\)"):
        parse_rate(text)
