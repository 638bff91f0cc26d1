"""What the throttles of frameworks share: several are asked about one request, and one that blocks lets off the others.

A framework asks all of them, whatever the first has said, and each for its wait where it blocks. Only then is a denial
known to count: a throttle of a project's own may overrule it.
"""

import functools
import inspect
import time
import warnings
from typing import Any, Final, NamedTuple

from django.http import HttpRequest, HttpResponseBase

from .hits import hit, peek
from .limits import Decision, Limit, Ratelimited
from .refunds import CountedHit, LimitCheck, give_back, note, note_refusal, take_all, unwrapped
from .responses import with_headers

# Attributes of the frameworks' own throttles that have no effect here, and why.
UNUSED: Final = {
    "cache": "hits are counted by the nodes (or in LIMITS_STORAGE), not in a cache",
    "timer": "hits are counted by the clock of the node that owns their key",
}


class Answer(NamedTuple):
    """What one throttle has said of a request."""

    limit: Limit
    decision: Decision


def warn_of_unused(throttle: type, base: type) -> None:
    """Warns of a class that sets an attribute of no effect, or has it from a mixin. `base` is this project's own."""
    for name, reason in UNUSED.items():
        value = inspect.getattr_static(throttle, name)
        known = (inspect.getattr_static(one, name) for one in throttle.__bases__ if issubclass(one, base))
        if all(value is not one for one in known):
            warnings.warn(
                f"{throttle.__module__}.{throttle.__qualname__}.{name} has no effect: {reason}.", stacklevel=3
            )


@functools.lru_cache(1024)
def limit_of(hits: int, seconds: float, algorithm: str, on_unavailable: str | None) -> Limit:
    """The limit of a throttle, by what its `parse_rate()` has returned. Raises `ImproperlyConfigured`."""
    return Limit.parse((hits, seconds), algorithm, on_unavailable)


def wait_of(decision: Decision) -> float:
    """Seconds until the next request may pass. For one that is allowed, those by which the requests that remain would
    be apart, as the frameworks' own throttles say then."""
    return decision.reset_after / (decision.remaining + 1) if decision.allowed else decision.retry_after


def throttle(request: Any, question: LimitCheck) -> Decision:
    """Counts a request, or only looks where it is blocked already."""
    # Noted at the framework's own request, where it has one: a view may call others, whose throttles are to count.
    blocked = getattr(request, "_clusterstate_blocked", False)
    decision = (peek if blocked else hit)(*question)
    if decision.allowed and not blocked:
        note(request, CountedHit(question, decision, time.monotonic()))
    _remember(unwrapped(request), Answer(question.limit, decision))
    return decision


def block(request: Any) -> None:
    """Gives back what throttles have counted of a request that its framework blocks. Limits around see to theirs."""
    request._clusterstate_blocked = True
    note_refusal(request, Ratelimited())
    give_back(take_all(request))


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
