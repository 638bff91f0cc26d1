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
from .client.operations import CallEither, Operation
from .ratelimit import Ratelimited
from .ratelimit.request_limit import RequestLimit
from .ratelimit.responses import refuse
from .ratelimit.throttles import with_throttle_headers

Limits = list[tuple[re.Pattern[str], str, RequestLimit]]


class ClusterRatelimitMiddleware:
    """Applies the setting LIMITS to all requests. Place it after AuthenticationMiddleware if the key of a limit is the
    user.

    Each limit of LIMITS whose path matches counts the request, in their order, until one denies it; those before it
    then refund their hits. A `Ratelimited` that a view raises becomes a response with status 429. Responses of views
    with throttles of a framework get their RateLimit headers here.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._limits = read_limits(runtime.get_settings().limits)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        matching = [(group, limit) for pattern, group, limit in self._limits if pattern.match(request.path)]
        return self._respond(request, matching)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        if not isinstance(exception, Ratelimited):
            return None
        return runtime.run(refuse(request, exception))

    def _respond(
        self, request: HttpRequest, limits: Sequence[tuple[str, RequestLimit]]
    ) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        operation = self._answer(request, limits)
        return runtime.arun(operation) if self._is_async else runtime.run(operation)

    def _answer(self, request: HttpRequest, limits: Sequence[tuple[str, RequestLimit]]) -> Operation[HttpResponseBase]:
        if not limits:
            response = yield CallEither(self._get_response, self._get_response, (request,))
            return with_throttle_headers(request, response)
        (group, limit), *others = limits
        return (yield from limit.answer(group, request, lambda: self._respond(request, others)))


def read_limits(entries: Sequence[Mapping[str, Any]]) -> Limits:
    """Parses the setting LIMITS. Raises `ImproperlyConfigured`, which names the entry and what is wrong with it."""
    limits: Limits = []
    for number, entry in enumerate(entries):
        options = dict(entry)
        path, group = options.pop("path", "/"), options.pop("group", None)
        try:
            limits.append((re.compile(path), group or path, RequestLimit(**options)))
        except (ImproperlyConfigured, TypeError, re.error) as error:
            raise ImproperlyConfigured(f"CLUSTERSTATE['LIMITS'][{number}]: {error}") from error
    return limits
