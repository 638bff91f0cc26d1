"""The shared part of the throttles for Django REST framework and django-ninja.

A framework calls all throttles of a view, even if the first denies. A throttle class of the project may overrule a
denial, so a request is blocked only when the framework calls `wait()` of its throttles. The hits that the other
throttles have counted are then refunded.
"""

import functools
import inspect
import time
import warnings
from typing import Any, Final, NamedTuple

from django.http import HttpRequest, HttpResponseBase

from .. import runtime
from . import refunds
from .hits import hit, peek
from .limits import Decision, Limit, Ratelimited
from .refunds import CountedHit, LimitCheck
from .responses import with_headers

# Attributes of the frameworks' own throttles that have no effect here, and the reason.
UNUSED_ATTRIBUTES: Final = {
    "cache": "hits are counted by the nodes (or in LIMITS_STORAGE), not in a cache",
    "timer": "hits are counted by the clock of the node that owns their key",
}


class ThrottleResult(NamedTuple):
    """The decision of one throttle on a request."""

    limit: Limit
    decision: Decision


def warn_of_unused_attributes(throttle: type, base: type) -> None:
    """Warns if a throttle class sets or inherits an attribute that has no effect here. `base` is this package's."""
    for name, reason in UNUSED_ATTRIBUTES.items():
        value = inspect.getattr_static(throttle, name)
        known = (inspect.getattr_static(one, name) for one in throttle.__bases__ if issubclass(one, base))
        if all(value is not one for one in known):
            warnings.warn(
                f"{throttle.__module__}.{throttle.__qualname__}.{name} has no effect: {reason}.", stacklevel=3
            )


@functools.lru_cache(1024)
def throttle_limit(hits: int, seconds: float, algorithm: str, on_unavailable: str | None) -> Limit:
    """The limit of a throttle from the result of its `parse_rate()`. Raises `ImproperlyConfigured`."""
    return Limit.parse((hits, seconds), algorithm, on_unavailable)


def seconds_to_wait(decision: Decision) -> float:
    """Seconds until the next request may pass. If the last request was allowed, the average interval between the
    remaining requests, as in the frameworks' own throttles."""
    return decision.reset_after / (decision.remaining + 1) if decision.allowed else decision.retry_after


def throttle(request: Any, check: LimitCheck) -> Decision:
    """Counts a request, or only peeks if it is blocked already."""
    # Stored on the framework's own request, if there is one: a view may call others, whose throttles must count.
    blocked = getattr(request, "_clusterstate_blocked", False)
    decision = peek(*check) if blocked else hit(*check)
    if decision.allowed and not blocked:
        refunds.add_counted_hit(request, CountedHit(check, decision, time.monotonic()))
    _store_result(refunds.django_request(request), ThrottleResult(check.limit, decision))
    return decision


def block(request: Any) -> None:
    """Refunds the hits that throttles have counted of a request that its framework blocks. Limits around the view
    refund their own."""
    request._clusterstate_blocked = True
    refunds.add_refusal(request, Ratelimited())
    runtime.run(refunds.refund_hits(refunds.take_counted_hits(request)))


def with_throttle_headers(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Adds the headers that LIMITS_HEADERS names, for the throttle that blocks for longest, or, if none does, for the
    one with the least remaining."""
    result: ThrottleResult | None = getattr(request, "_clusterstate_throttle", None)
    return response if result is None else with_headers(response, *result)


def _store_result(request: Any, result: ThrottleResult) -> None:
    stored: ThrottleResult | None = getattr(request, "_clusterstate_throttle", None)
    if stored is None or _strictness(result.decision) > _strictness(stored.decision):
        request._clusterstate_throttle = result


def _strictness(decision: Decision) -> tuple[float, int]:
    return decision.retry_after, -decision.remaining
