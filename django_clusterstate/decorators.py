"""`@cluster_ratelimit`: the conventions of django-ratelimit, on limits that hold across the cluster.

@cluster_ratelimit(key="ip", rate="10/m")
def login(request): ...
"""

import functools
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.template import TemplateDoesNotExist
from django.template.loader import get_template
from django.utils.functional import LazyObject
from django.utils.module_loading import import_string

from . import conf
from .clientip import client_ip, network_of
from .ratelimit import MAX_COST, Decision, Limit, ahit, hit

ALL = None
TEMPLATE = "429.html"
UNSAFE = ("DELETE", "PATCH", "POST", "PUT")

Key = str | Callable[[str, HttpRequest], Any]
Rate = str | Iterable[str] | Callable[[str, HttpRequest], Any] | None
Cost = int | Callable[[str, HttpRequest], int]
View = TypeVar("View", bound=Callable[..., Any])


def cluster_ratelimit(
    group: str | None = None,
    key: Key = "ip",
    rate: Rate = None,
    method: str | Iterable[str] | None = ALL,
    block: bool = True,
    algorithm: str = "fixed_window",
    cost: Cost = 1,
    on_unavailable: str | None = None,
) -> Callable[[View], View]:
    """Limits how often a view, synchronous or asynchronous, is called. One round trip to the key's owner a request.

    `group`: what is counted together; by default each view by itself.
    `key`: what tells clients apart: "ip", "user", "user_or_ip", "get:x", "post:x", "header:x", a callable
    `(group, request)` or its dotted path.
    `rate`: "10/m", several (`["10/s", "100/h"]`: a hit counts against all or none), a callable `(group, request)` that
    returns one, or its dotted path; "0/s" blocks all, None limits nothing.
    `method`: which requests count: ALL, UNSAFE, one, or several.
    `block`: False only sets `request.limited`, for the view to decide.
    `algorithm`: "fixed_window", "sliding_window" or "token_bucket".
    `cost`: what a request counts for, or a callable `(group, request)`.
    `on_unavailable`: "local", "allow" or "deny", when the key's owner can't be reached.

    A blocked request is answered with 429, `Retry-After` and RateLimit headers, in the form that its client prefers:
    text, JSON, or HTML where the project has a template `429.html`. `request.limited` says whether the
    limit was exceeded, `request.ratelimit` has the `Decision`.
    """
    find_key, find_rate, methods = _key_function(key), _rate_function(rate), _methods(method)
    _check_cost(cost)
    # What is known now is checked now, also when the rate comes with the request.
    parsed = Limit.parse("1/s" if rate is None or find_rate is not None else cast(Any, rate), algorithm, on_unavailable)
    fixed = None if rate is None or find_rate is not None else parsed

    def decorate(view: View) -> View:
        name = group or _name_of(view)

        def question(request: HttpRequest) -> tuple[Limit, str, int] | None:
            """What is to be asked for this request, or None when it isn't limited."""
            if not hasattr(request, "limited"):
                request.limited = False  # type: ignore[attr-defined]
            if methods is not None and request.method not in methods:
                return None
            limit = fixed
            if limit is None:
                found = find_rate(name, request) if find_rate is not None else None
                if found is None:
                    return None
                limit = Limit.parse(found, algorithm, on_unavailable)
            return limit, find_key(name, request), cost(name, request) if callable(cost) else cost

        if iscoroutinefunction(view) or getattr(_instance_of(view), "view_is_async", False):

            @functools.wraps(view)
            async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                if key in _USER_KEYS:
                    await _load_user(request)
                asked = question(request)
                if asked is None:
                    return await cast(Awaitable[HttpResponseBase], view(request, *args, **kwargs))
                limit, value, weight = asked
                decision = await ahit(limit, name, value, weight)
                response = _blocked(request, decision, block=block) or await view(request, *args, **kwargs)
                return _with_headers(response, limit, decision)

            markcoroutinefunction(wrapper)
        else:

            @functools.wraps(view)
            def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                asked = question(request)
                if asked is None:
                    return cast(HttpResponseBase, view(request, *args, **kwargs))
                limit, value, weight = asked
                decision = hit(limit, name, value, weight)
                response = _blocked(request, decision, block=block) or view(request, *args, **kwargs)
                return _with_headers(response, limit, decision)

        return cast(View, wrapper)

    return decorate


# -- answers ----------------------------------------------------------------------------------------------------


def _blocked(request: HttpRequest, decision: Decision, *, block: bool) -> HttpResponse | None:
    """Notes the decision on the request; the 429 if it denies and is to block."""
    request.limited = request.limited or not decision.allowed  # type: ignore[attr-defined]
    request.ratelimit = decision  # type: ignore[attr-defined]
    if decision.allowed or not block:
        return None
    seconds = math.ceil(decision.retry_after)
    response = _refusal(request, decision, f"Too many requests. Try again in {seconds} s.")
    response["Retry-After"] = str(seconds)
    return response


def _refusal(request: HttpRequest, decision: Decision, text: str) -> HttpResponse:
    """In the form that the client prefers, text if it doesn't mind."""
    form = request.get_preferred_type(("text/plain", "text/html", "application/json"))
    if form == "application/json":
        return JsonResponse({"detail": text, "retry_after": math.ceil(decision.retry_after)}, status=429)
    if form == "text/html":
        try:
            # Without the request: its context processors may ask the database, which an asynchronous view must not.
            return HttpResponse(get_template(TEMPLATE).render({"decision": decision, "text": text}), status=429)
        except TemplateDoesNotExist:
            pass
    return HttpResponse(f"{text}\n", content_type="text/plain", status=429)


def _with_headers(response: HttpResponseBase, limit: Limit, decision: Decision) -> HttpResponseBase:
    """The fields of draft-ietf-httpapi-ratelimit-headers. Those of an inner limit that blocked stay.

    What is no response yet, as frameworks let views return, goes without.
    """
    if isinstance(response, HttpResponseBase) and not response.has_header("RateLimit"):
        policies = (
            f'"{_policy_name(rule.limit, rule.period)}";q={rule.limit};w={math.ceil(rule.period)}'
            for rule in limit.rules
        )
        response["RateLimit-Policy"] = ", ".join(policies)
        name = _policy_name(decision.limit, decision.period)
        response["RateLimit"] = f'"{name}";r={decision.remaining};t={math.ceil(decision.reset_after)}'
    return response


def _policy_name(limit: int, period: float) -> str:
    return f"{limit}/{math.ceil(period)}s"


# -- keys and rates -----------------------------------------------------------------------------------------------


def _name_of(view: Callable[..., Any]) -> str:
    """What is counted together by default. Class-based views go by their class: they share View's own functions."""
    view_class = getattr(view, "view_class", None)
    if view_class is not None:
        return f"{view_class.__module__}.{view_class.__qualname__}"
    instance = _instance_of(view)
    if instance is not None:
        return f"{type(instance).__module__}.{type(instance).__qualname__}.{view.__name__}"
    if not hasattr(view, "__qualname__"):
        raise ImproperlyConfigured(f"{view!r} has no name to count it under: give cluster_ratelimit a group.")
    return f"{view.__module__}.{view.__qualname__}"


def _instance_of(view: Callable[..., Any]) -> Any:
    """Whose method it is, if any: `method_decorator` hands us a partial of one."""
    return getattr(getattr(view, "func", view), "__self__", None)


def _methods(method: str | Iterable[str] | None) -> frozenset[str] | None:
    if method is None:
        return None
    given = [method] if isinstance(method, str) else list(method)
    if not given or not all(isinstance(one, str) and one.isalpha() and one not in ("ALL", "UNSAFE") for one in given):
        raise ImproperlyConfigured(
            f"method is 'GET' or another, several of them, or ALL or UNSAFE of {__name__}, not {method!r}."
        )
    return frozenset(one.upper() for one in given)


def _check_cost(cost: Cost) -> None:
    if callable(cost):
        _check_synchronous("cost", cost)
    elif type(cost) is not int or not 0 <= cost <= MAX_COST:
        raise ImproperlyConfigured(f"cost is an integer from 0 to {MAX_COST}, or a callable, not {cost!r}.")


def _check_synchronous(what: str, function: Callable[..., Any]) -> None:
    if iscoroutinefunction(function):
        raise ImproperlyConfigured(f"a callable {what} must be an ordinary function, not a coroutine function.")


def _rate_function(rate: Rate) -> Callable[[str, HttpRequest], Any] | None:
    """The callable itself, or that at a dotted path; None for a rate that is given as such."""
    if callable(rate):
        _check_synchronous("rate", rate)
        return rate
    return _at_path("rate", rate) if _is_path(rate) else None


def _is_path(given: object) -> bool:
    return isinstance(given, str) and "." in given and all(part.isidentifier() for part in given.split("."))


def _at_path(what: str, path: Any) -> Callable[[str, HttpRequest], Any]:
    """The callable at a dotted path, imported when it is first needed: views are often what it imports itself."""

    def function(group: str, request: HttpRequest) -> Any:
        found = import_string(path)
        _check_synchronous(what, found)
        return found(group, request)

    return function


def _key_function(key: Key) -> Callable[[str, HttpRequest], str]:
    if callable(key):
        _check_synchronous("key", key)
        return lambda group, request: str(key(group, request))
    if isinstance(key, str):
        if key in _KEYS:
            return _KEYS[key]
        kind, _, name = key.partition(":")
        if kind in _VALUES and name:
            value = _VALUES[kind]
            return lambda _, request: f"{key}:{value(request, name)}"
        if _is_path(key):
            found = _at_path("key", key)
            return lambda group, request: str(found(group, request))
    raise ImproperlyConfigured(
        f"{key!r} is no key: use 'ip', 'user', 'user_or_ip', 'get:NAME', 'post:NAME', 'header:NAME', a callable "
        "(group, request) or its dotted path."
    )


def _ip(group: str, request: HttpRequest) -> str:
    address = client_ip(request.META, conf.get_settings().trusted_proxies)
    try:
        return f"ip:{network_of(address)}"
    except ValueError:
        raise ImproperlyConfigured(
            f"The client's address is {address!r}, no IP address, so clients can't be told apart by it. Behind a unix "
            "socket, set CLUSTERSTATE['TRUSTED_PROXIES'], or use another key."
        ) from None


async def _load_user(request: HttpRequest) -> None:
    """`request.user` asks the database when it is first used, which must not happen on the event loop."""
    user = getattr(request, "user", None)
    if isinstance(user, LazyObject):
        await sync_to_async(bool)(user)


def _user(group: str, request: HttpRequest) -> str:
    return f"user:{getattr(request, 'user', None) and request.user.pk}"


def _user_or_ip(group: str, request: HttpRequest) -> str:
    user = getattr(request, "user", None)
    return f"user:{user.pk}" if user is not None and user.is_authenticated else _ip(group, request)


_KEYS: dict[str, Callable[[str, HttpRequest], str]] = {"ip": _ip, "user": _user, "user_or_ip": _user_or_ip}
_USER_KEYS = ("user", "user_or_ip")
_VALUES: dict[str, Callable[[HttpRequest, str], str]] = {
    "get": lambda request, name: request.GET.get(name, ""),
    "post": lambda request, name: request.POST.get(name, ""),
    "header": lambda request, name: request.headers.get(name, ""),
}
