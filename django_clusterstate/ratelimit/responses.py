"""The response to a request that a limit denies, and the RateLimit headers of any response."""

import functools
import math
import time
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.http.response import ResponseHeaders
from django.template import TemplateDoesNotExist
from django.template.loader import get_template
from django.utils.cache import patch_cache_control
from django.utils.module_loading import import_string

from .. import runtime
from ..client.operations import CallEither, Operation
from ..core.limits.algorithms import Rule
from .limits import Decision, Limit, Ratelimited

TEMPLATE = "429.html"

DRAFT = ("RateLimit-Policy", "RateLimit")
X = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class HeadersOutsideCaches(ResponseHeaders):
    """The headers of a response to which a limit has added its own. A page cache, which stores a pickled or copied
    response, gets only the others, since those of a limit are valid for one client at one moment."""

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name.lower() for name in (*DRAFT, *X)}
        return ResponseHeaders, ({name: value for name, value in self.items() if name.lower() not in own},)


def refuse(request: HttpRequest, denial: Ratelimited) -> Operation[HttpResponseBase]:
    """The response of the project's LIMITS_VIEW, or a 429 in the content type that the client prefers."""
    path = runtime.get_settings().limits_view
    response: HttpResponseBase
    if path:
        view = import_string(path)
        if iscoroutinefunction(view):
            response = yield CallEither(async_to_sync(view), view, (request, denial))
        else:
            response = yield CallEither(view, sync_to_async(view), (request, denial))
    else:
        response = _too_many(request, denial)
    if denial.seconds is not None:
        response.headers.setdefault("Retry-After", str(denial.seconds))
    # A LIMITS_VIEW may respond with a status that caches store, but its response is for this client only.
    patch_cache_control(response, no_store=True)
    return response


def _too_many(request: HttpRequest, denial: Ratelimited) -> HttpResponse:
    text = str(denial)
    content_type = request.get_preferred_type(("text/plain", "text/html", "application/json"))
    if content_type == "application/json":
        retry_after = {} if denial.seconds is None else {"retry_after": denial.seconds}
        return JsonResponse({"detail": text, **retry_after}, status=429)
    if content_type == "text/html":
        try:
            # Without the request: its context processors may query the database, which an async view must not do.
            html = get_template(TEMPLATE).render({"decision": denial.decision, "text": text})
            return HttpResponse(html, status=429)
        except TemplateDoesNotExist:
            pass
    return HttpResponse(f"{text}\n", content_type="text/plain", status=429)


def with_headers(response: HttpResponseBase, limit: Limit, decision: Decision) -> HttpResponseBase:
    """Adds the headers that LIMITS_HEADERS names, but keeps those of a limit further inside.

    A value that a framework has yet to turn into a response is returned unchanged.
    """
    wanted = runtime.get_settings().limits_headers
    if not isinstance(response, HttpResponseBase) or wanted == "off":
        return response
    if not isinstance(response.headers, HeadersOutsideCaches):
        response.headers = HeadersOutsideCaches(response.headers)
    if wanted != "x" and not response.has_header("RateLimit"):
        response["RateLimit-Policy"] = _policy_header(limit.rules)
        name = _policy_name(decision.limit, decision.period)
        response["RateLimit"] = f'"{name}";r={decision.remaining};t={math.ceil(decision.reset_after)}'
    if wanted != "draft" and not response.has_header("X-RateLimit-Limit"):
        response["X-RateLimit-Limit"] = str(decision.limit)
        response["X-RateLimit-Remaining"] = str(decision.remaining)
        response["X-RateLimit-Reset"] = str(math.ceil(time.time() + decision.reset_after))
    return response


@functools.lru_cache(1024)
def _policy_header(rules: tuple[Rule, ...]) -> str:
    return ", ".join(
        f'"{_policy_name(rule.limit, rule.period)}";q={rule.limit};w={math.ceil(rule.period)}' for rule in rules
    )


def _policy_name(limit: int, period: float) -> str:
    return f"{limit}/{math.ceil(period)}s"
