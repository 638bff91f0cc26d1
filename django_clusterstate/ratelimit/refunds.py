"""Hits that a request has counted, and their refund when another limit refuses the request.

A limit around a view still runs when the view's response comes, and judges by the response: a view may call other
views, and respond although one of them was refused. The throttle of a framework has returned by then. So its hits are
stored on the framework's request, and the next limit that checks that request takes them over.
"""

import time
from typing import Any, NamedTuple

from ..client.operations import CallEither, Operation
from .hits import arefund, refund
from .limits import Decision, Limit

REFUSED_STATUSES = (403, 429)  # into which Django and frameworks turn a refusal that is raised


class LimitCheck(NamedTuple):
    """The arguments of a hit for one request. `group` includes the methods, if only some count."""

    limit: Limit
    group: str
    key: str
    cost: int


class CountedHit(NamedTuple):
    """A hit that was allowed, and when, in monotonic seconds of this process."""

    check: LimitCheck
    decision: Decision
    at: float


def add_counted_hit(request: Any, counted: CountedHit) -> None:
    """Stores a throttle's hit on its framework's request, since several may be made from one request of Django."""
    _list_of(request, "_clusterstate_counted").append(counted)


def take_counted_hits(request: Any) -> list[CountedHit]:
    """The throttles' hits that no limit has taken over yet."""
    stored = _list_of(request, "_clusterstate_counted")
    taken = list(stored)
    stored.clear()
    return taken


def add_refusal(request: Any, outcome: Any) -> None:
    """Stores the response or the exception with which a limit refuses the request. A throttle stores any exception,
    since its framework has yet to raise its own."""
    _list_of(django_request(request), "_clusterstate_refusals").append(outcome)


def is_refusal(request: Any, outcome: Any) -> bool:
    """Whether a view's outcome is the refusal of a limit. A response made from an exception is recognized by its
    status."""
    refusals = _list_of(django_request(request), "_clusterstate_refusals")
    if any(one is outcome for one in refusals):
        return True
    raised = any(isinstance(one, Exception) for one in refusals)
    return raised and getattr(outcome, "status_code", None) in REFUSED_STATUSES


def django_request(request: Any) -> Any:
    """Django's own request, if a framework has wrapped it."""
    return getattr(request, "_request", request)


def refund_hits(hits: list[CountedHit]) -> Operation[None]:
    for one in hits:
        yield CallEither(refund, arefund, (one.decision, *one.check, time.monotonic() - one.at))


def _list_of(request: Any, name: str) -> list[Any]:
    """A list stored on the request. getattr() would also find Django's, through a framework's request."""
    stored: list[Any] = vars(request).setdefault(name, [])
    return stored
