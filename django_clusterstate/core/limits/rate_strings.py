"""Rates as text: "10/m" is ten hits a minute. The grammar is django-ratelimit's. Pure."""

import re
from typing import Final


def parse_rate(rate: str | tuple[int, float]) -> tuple[int, float]:
    """(limit, period in seconds) of "10/s", "100/h", "5/2m", "10/30" (seconds) or "5/minute", or of such a pair.

    The grammar is django-ratelimit's: N/[k]{s,m,h,d}, with words for the units, or N/k. Case-insensitive. `ValueError`
    for anything else, `TypeError` for a value that is neither text nor a pair.
    """
    if isinstance(rate, tuple):
        return _checked(*rate)
    match = _RATE.fullmatch(rate)
    unit = _UNITS.get(match[3].lower()) if match and (match[2] or match[3]) else None
    if match is None or unit is None or (period := int(match[2] or 1) * unit) == 0:
        raise ValueError(
            f"{rate!r} is not a rate; a rate is hits/period, the period a number of seconds, or a number (optional) of "
            "s, m, h or d: '10/s', '100/h', '5/30s', '20/2m'"
        )
    return int(match[1]), float(period)


def _checked(limit: int, period: float) -> tuple[int, float]:
    known = type(limit) is int and type(period) in (int, float)
    if not known or not 0 <= limit < 10**15 or not 1 <= period < 10**14 or period % 1:
        raise ValueError(f"{(limit, period)!r} is not a rate; a pair is (hits, whole seconds): (100, 300)")
    return limit, float(period)


# The digits are bounded, as a pair's numbers, so that a limit fits the wire's 64-bit integers.
_RATE: Final = re.compile(r"([0-9]{1,15})/([0-9]{0,9})([a-z]*)", re.IGNORECASE)
_WORDS: Final = {
    1: " s sec secs second seconds",  # the first is empty: "10/30" is in seconds
    60: "m min mins minute minutes",
    3600: "h hr hrs hour hours",
    86400: "d day days",
}
_UNITS: Final = {word: seconds for seconds, words in _WORDS.items() for word in words.split(" ")}
