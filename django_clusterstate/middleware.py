"""`ClusterRatelimitMiddleware`: limits for whole sites, by path and method, from one setting.

CLUSTERSTATE = {"LIMITS": [{"path": "/api/", "method": "POST", "key": "user_or_ip", "rate": "100/m"}]}
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase

from . import runtime
from .ratelimit import Ratelimited
from .ratelimit.request_limit import RequestLimit
from .ratelimit.responses import refuse
from .ratelimit.throttles import with_throttle_headers

Limits = list[tuple[re.Pattern[str], str, RequestLimit]]


class ClusterRatelimitMiddleware:
    """Behind AuthenticationMiddleware, if a limit's key asks for the user.

    Each limit of LIMITS that a request's path matches counts it, in their order, until one denies; those before it
    then give back what they have counted. `Ratelimited`, raised by a view, is answered with 429 too. What the throttles
    of a framework have counted gets its RateLimit headers here.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._limits = read_limits(runtime.get_settings().limits)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._aanswer(request, self._matching(request))
        return self._answer(request, self._matching(request))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        return refuse(request, exception) if isinstance(exception, Ratelimited) else None

    def _matching(self, request: HttpRequest) -> list[tuple[str, RequestLimit]]:
        return [(group, limit) for pattern, group, limit in self._limits if pattern.match(request.path)]

    def _answer(self, request: HttpRequest, limits: Sequence[tuple[str, RequestLimit]]) -> HttpResponseBase:
        if not limits:
            return with_throttle_headers(request, self._get_response(request))
        (group, limit), *others = limits
        return limit.answer(group, request, lambda: self._answer(request, others))

    async def _aanswer(self, request: HttpRequest, limits: Sequence[tuple[str, RequestLimit]]) -> HttpResponseBase:
        if not limits:
            return with_throttle_headers(request, await self._get_response(request))
        (group, limit), *others = limits
        return await limit.aanswer(group, request, lambda: self._aanswer(request, others))


def read_limits(entries: Sequence[Mapping[str, Any]]) -> Limits:
    """The limits of a LIMITS setting. Raises `ImproperlyConfigured`, which names the entry and what is wrong."""
    limits: Limits = []
    for number, entry in enumerate(entries):
        options = dict(entry)
        path, group = options.pop("path", "/"), options.pop("group", None)
        try:
            limits.append((re.compile(path), group or path, RequestLimit(**options)))
        except (ImproperlyConfigured, TypeError, re.error) as error:
            raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS'][{number}]: {error}") from error
    return limits
