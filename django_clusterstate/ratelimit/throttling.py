"""What the throttles of frameworks share: several are asked about one request, and one that blocks lets off the others.

A framework asks all of them, whatever the first has said, and each for its wait where it blocks. Only then is a denial
known to count: a throttle of a project's own may overrule it.
"""

import time
from typing import Any

from .counting import hit, peek
from .limit import Decision
from .requestlimit import Counted, Question, _counted, _refund, _take_all


def throttle(request: Any, question: Question) -> Decision:
    """Counts a request, or only looks where it is blocked already."""
    # Noted at the framework's own request, where it has one: a view may call others, whose throttles are to count.
    if getattr(request, "_clusterstate_blocked", False):
        return peek(*question)
    decision = hit(*question)
    if decision.allowed:
        _counted(_unwrapped(request)).append(Counted(question, decision, time.monotonic()))
    return decision


def block(request: Any) -> None:
    """Gives back what a request has counted that its framework blocks."""
    request._clusterstate_blocked = True
    for counted in _take_all(_unwrapped(request)):
        _refund(counted)


def _unwrapped(request: Any) -> Any:
    """Django's request, on which all limits note what they count."""
    return getattr(request, "_request", request)
