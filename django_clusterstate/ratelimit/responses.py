"""How a request is answered that a limit denies, and what headers tell of a limit."""

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
from .limits import Decision, Limit, Ratelimited

TEMPLATE = "429.html"

DRAFT = ("RateLimit-Policy", "RateLimit")
X = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class UnstoredHeaders(ResponseHeaders):
    """The headers of a response to which a limit has added its own. Those are about one client at one moment, so a page
    cache, which stores a pickled or copied response, gets the others only."""

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name.lower() for name in (*DRAFT, *X)}
        return ResponseHeaders, ({name: value for name, value in self.items() if name.lower() not in own},)


def refuse(request: HttpRequest, denial: Ratelimited) -> HttpResponseBase:
    """The answer of the project's LIMITS_VIEW, or else a 429 in the form that the client prefers."""
    path = runtime.get_settings().limits_view
    if not path:
        return _refusal(request, denial)
    view = import_string(path)
    response = (async_to_sync(view) if iscoroutinefunction(view) else view)(request, denial)
    return _for_this_client(response, denial)


async def arefuse(request: HttpRequest, denial: Ratelimited) -> HttpResponseBase:
    """As `refuse`."""
    path = runtime.get_settings().limits_view
    if not path:
        return _refusal(request, denial)
    view = import_string(path)
    response = await (view if iscoroutinefunction(view) else sync_to_async(view))(request, denial)
    return _for_this_client(response, denial)


def _refusal(request: HttpRequest, denial: Ratelimited) -> HttpResponseBase:
    text = str(denial)
    form = request.get_preferred_type(("text/plain", "text/html", "application/json"))
    response = HttpResponse(f"{text}\n", content_type="text/plain", status=429)
    if form == "application/json":
        known = {} if denial.seconds is None else {"retry_after": denial.seconds}
        response = JsonResponse({"detail": text, **known}, status=429)
    elif form == "text/html":
        try:
            # Without the request: its context processors may ask the database, which an asynchronous view must not.
            html = get_template(TEMPLATE).render({"decision": denial.decision, "text": text})
            response = HttpResponse(html, status=429)
        except TemplateDoesNotExist:
            pass
    return _for_this_client(response, denial)


def _for_this_client(response: HttpResponseBase, denial: Ratelimited) -> HttpResponseBase:
    if denial.seconds is not None:
        response.headers.setdefault("Retry-After", str(denial.seconds))
    # A LIMITS_VIEW may answer with a status that caches store, but it answers this client only.
    patch_cache_control(response, no_store=True)
    return response


def with_headers(response: HttpResponseBase, limit: Limit, decision: Decision) -> HttpResponseBase:
    """Adds what LIMITS_HEADERS asks for. What an inner limit has said stays.

    What is no response yet, as frameworks let views return, goes without.
    """
    wanted = runtime.get_settings().limits_headers
    if not isinstance(response, HttpResponseBase) or wanted == "off":
        return response
    if not isinstance(response.headers, UnstoredHeaders):
        response.headers = UnstoredHeaders(response.headers)
    if wanted != "x" and not response.has_header("RateLimit"):
        policies = (
            f'"{_policy_name(rule.limit, rule.period)}";q={rule.limit};w={math.ceil(rule.period)}'
            for rule in limit.rules
        )
        response["RateLimit-Policy"] = ", ".join(policies)
        name = _policy_name(decision.limit, decision.period)
        response["RateLimit"] = f'"{name}";r={decision.remaining};t={math.ceil(decision.reset_after)}'
    if wanted != "draft" and not response.has_header("X-RateLimit-Limit"):
        response["X-RateLimit-Limit"] = str(decision.limit)
        response["X-RateLimit-Remaining"] = str(decision.remaining)
        response["X-RateLimit-Reset"] = str(math.ceil(time.time() + decision.reset_after))
    return response


def _policy_name(limit: int, period: float) -> str:
    return f"{limit}/{math.ceil(period)}s"
