"""States of limits on two nodes: sent with durations in place of instants, and merged where both have counted."""

import math
from typing import Final

from .algorithms import Algorithm, LimitState, Rule

# How many of a state's numbers are instants, from the first on.
_INSTANTS: Final = {Algorithm.FIXED_WINDOW: 1, Algorithm.SLIDING_WINDOW: 4, Algorithm.TOKEN_BUCKET: 2}


def shifted(algorithm: Algorithm, state: LimitState, seconds: float) -> LimitState:
    """The state with its instants later by `seconds`: `-now` makes them durations, and the `now` of another node makes
    those instants of its clock."""
    first, second, third, fourth = (seconds if place < _INSTANTS[algorithm] else 0.0 for place in range(4))
    return (state[0] + first, state[1] + second, state[2] + third, state[3] + fourth, state[4], state[5])


def merged(rule: Rule, one: LimitState, other: LimitState, now: float) -> LimitState:
    """A state that allows no hit which either of the two denies. Hits that both have counted count once."""
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        return max(one, other, key=lambda state: _debt(rule, state, now))
    return (
        max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]),
        max(one[4], other[4]), max(one[5], other[5]),
    )  # fmt: skip


def _debt(rule: Rule, state: LimitState, now: float) -> float:
    """Hits that haven't been refilled; less than 0 if the bucket has been full for a while."""
    owed = state[4] - (now - state[1]) * rule.limit / rule.period
    return owed if owed > 0 else -math.inf
