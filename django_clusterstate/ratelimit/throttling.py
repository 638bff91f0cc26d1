"""What the throttles of frameworks share: several are asked about one request, and one that blocks lets off the others.

A framework asks all of them, whatever the first has said, and each for its wait where it blocks. Only then is a denial
known to count: a throttle of a project's own may overrule it.
"""

from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponseBase

from .answers import with_headers
from .counted import Question, give_back, note, take_all
from .counting import hit, peek
from .limit import Decision, Limit


class Answer(NamedTuple):
    """What one throttle has said of a request."""

    limit: Limit
    decision: Decision


def throttle(request: Any, question: Question) -> Decision:
    """Counts a request, or only looks where it is blocked already."""
    # Noted at the framework's own request, where it has one: a view may call others, whose throttles are to count.
    blocked = getattr(request, "_clusterstate_blocked", False)
    decision = (peek if blocked else hit)(*question)
    if decision.allowed and not blocked:
        note(_unwrapped(request), question, decision)
    _remember(_unwrapped(request), Answer(question.limit, decision))
    return decision


def block(request: Any) -> None:
    """Gives back what a request has counted that its framework blocks."""
    request._clusterstate_blocked = True
    for counted in take_all(_unwrapped(request)):
        give_back(counted)


def with_throttle_headers(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Adds what LIMITS_HEADERS asks for, of the throttle that blocks for longest, or else has the least left."""
    answer: Answer | None = getattr(request, "_clusterstate_throttle", None)
    return response if answer is None else with_headers(response, *answer)


def _remember(request: Any, answer: Answer) -> None:
    """Keeps what the response's headers are to say."""
    noted: Answer | None = getattr(request, "_clusterstate_throttle", None)
    if noted is None or _weight(answer.decision) > _weight(noted.decision):
        request._clusterstate_throttle = answer


def _weight(decision: Decision) -> tuple[float, int]:
    return decision.retry_after, -decision.remaining


def _unwrapped(request: Any) -> Any:
    """Django's request, on which all limits note what they count."""
    return getattr(request, "_request", request)
