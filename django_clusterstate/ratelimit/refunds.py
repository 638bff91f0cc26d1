"""What a request has counted, and what it gives back: that of which nothing came but the refusal of another limit.

A limit around a view is still there when its response comes, and judges by that: a view may call others, and answer
though one of them is refused. A throttle is asked and gone, so its hits are noted on its framework's request, and the
next limit that is asked about that takes them over.
"""

import time
from typing import Any, NamedTuple

from .hits import arefund, refund
from .limits import Decision, Limit

RAISED_STATUSES = (403, 429)  # what Django makes of a refusal that is raised, and what frameworks make of a throttle's


class LimitCheck(NamedTuple):
    """What is asked for one request. `group` is that which is counted: with the methods, if not all count."""

    limit: Limit
    group: str
    key: str
    cost: int


class CountedHit(NamedTuple):
    """A hit that the request has passed, and when that was known, on this process's monotonic clock."""

    question: LimitCheck
    decision: Decision
    at: float


def note(request: Any, counted: CountedHit) -> None:
    """Adds a throttle's hit, at its framework's own request: others may be made of the same one of Django's."""
    _list_of(request, "_clusterstate_counted").append(counted)


def take_all(request: Any) -> list[CountedHit]:
    """The throttles' hits that nobody has taken before."""
    noted = _list_of(request, "_clusterstate_counted")
    taken = list(noted)
    noted.clear()
    return taken


def note_refusal(request: Any, outcome: Any) -> None:
    """Remembers the response by which a limit blocks, or the exception. For a throttle that is any: its framework has
    yet to raise its own."""
    _list_of(unwrapped(request), "_clusterstate_refusals").append(outcome)


def is_refusal(request: Any, outcome: Any) -> bool:
    """Whether a view's response is that of a limit that blocks. One made of an exception is known by its status."""
    refusals = _list_of(unwrapped(request), "_clusterstate_refusals")
    if any(one is outcome for one in refusals):
        return True
    raised = any(isinstance(one, Exception) for one in refusals)
    return raised and getattr(outcome, "status_code", None) in RAISED_STATUSES


def unwrapped(request: Any) -> Any:
    """Django's own request, where a framework has one around it."""
    return getattr(request, "_request", request)


def _list_of(request: Any, name: str) -> list[Any]:
    """One kept on the request, to be changed. Not by getattr(): a framework's request has all that Django's has."""
    found: list[Any] = vars(request).setdefault(name, [])
    return found


def give_back(hits: list[CountedHit]) -> None:
    for one in hits:
        refund(one.decision, *one.question, ago=time.monotonic() - one.at)


async def agive_back(hits: list[CountedHit]) -> None:
    for one in hits:
        await arefund(one.decision, *one.question, ago=time.monotonic() - one.at)
