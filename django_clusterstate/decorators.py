"""`@cluster_ratelimit`: the conventions of django-ratelimit, on limits that hold across the cluster.

@cluster_ratelimit(key="ip", rate="10/m")
def login(request): ...
"""

import functools
import ipaddress
import math
from collections.abc import Awaitable, Callable, Iterable
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from asgiref.sync import markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.module_loading import import_string

from .ratelimit import Decision, Limit, ahit, hit

ALL = None
UNSAFE = ("DELETE", "PATCH", "POST", "PUT")

IPV4_MASK = 32
IPV6_MASK = 64  # what one customer is given, as a rule

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
    `key`: "ip", "user", "user_or_ip", "get:x", "post:x", "header:x", a callable `(group, request)` or its dotted path.
    `rate`: "10/m", several (`["10/s", "100/h"]`: a hit counts against all or none), a callable `(group, request)` that
    returns one, or its dotted path; "0/s" blocks all, None limits nothing.
    `method`: which requests count: ALL, UNSAFE, one, or several.
    `block`: False only sets `request.limited`, for the view to decide.
    `algorithm`: "fixed_window", "sliding_window" or "token_bucket".
    `cost`: what a request counts for, or a callable `(group, request)`.
    `on_unavailable`: "local", "allow" or "deny", when the key's owner can't be reached.

    A blocked request is answered with 429, `Retry-After` and RateLimit headers. `request.limited` says whether the
    limit was exceeded, `request.ratelimit` has the `Decision`.
    """
    fixed = None if rate is None or callable(rate) or _is_path(rate) else Limit.parse(rate, algorithm, on_unavailable)
    methods = (method.upper(),) if isinstance(method, str) else None if method is None else tuple(method)

    def decorate(view: View) -> View:
        name = group or f"{view.__module__}.{view.__qualname__}"
        find_key, find_rate = _key_function(key), _function(rate)

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

        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
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
    response = HttpResponse(f"Too many requests. Try again in {seconds} s.\n", content_type="text/plain", status=429)
    response["Retry-After"] = str(seconds)
    return response


def _with_headers(response: HttpResponseBase, limit: Limit, decision: Decision) -> HttpResponseBase:
    """The fields of draft-ietf-httpapi-ratelimit-headers. Those of an inner limit that blocked stay."""
    if not response.has_header("RateLimit"):
        policies = (f'"{rule.limit}/{rule.period:g}s";q={rule.limit};w={rule.period:g}' for rule in limit.rules)
        response["RateLimit-Policy"] = ", ".join(policies)
        name = next((f"{r.limit}/{r.period:g}s" for r in limit.rules if r.limit == decision.limit), "limit")
        response["RateLimit"] = f'"{name}";r={decision.remaining};t={math.ceil(decision.reset_after)}'
    return response


# -- keys and rates -----------------------------------------------------------------------------------------------


def _is_path(rate: object) -> bool:
    return isinstance(rate, str) and "/" not in rate


def _function(given: Any) -> Callable[[str, HttpRequest], Any] | None:
    """The callable itself, or that at a dotted path, imported when it is first needed."""
    if callable(given):
        return cast(Callable[[str, HttpRequest], Any], given)
    if _is_path(given):
        return lambda group, request: import_string(given)(group, request)  # noqa: PLW0108 - imported when first used
    return None


def _key_function(key: Key) -> Callable[[str, HttpRequest], str]:
    if callable(key):
        return lambda group, request: str(key(group, request))
    if key in _KEYS:
        return _KEYS[key]
    kind, colon, name = key.partition(":")
    if colon and kind in _VALUES and name:
        value = _VALUES[kind]
        return lambda _, request: value(request, name)
    if "." in key:
        return lambda group, request: str(import_string(key)(group, request))
    raise ImproperlyConfigured(
        f"{key!r} is no key: use 'ip', 'user', 'user_or_ip', 'get:NAME', 'post:NAME', 'header:NAME', a callable "
        "(group, request) or its dotted path."
    )


@functools.lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What is limited for a client's address: itself for IPv4, its /64 for IPv6; IPv4 mapped into IPv6 is IPv4.

    Raises `ValueError` for what is no address.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed), IPV6_MASK), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def _ip(group: str, request: HttpRequest) -> str:
    address = request.META.get("REMOTE_ADDR", "")
    try:
        return network_of(address)
    except ValueError:
        raise ImproperlyConfigured(
            f"REMOTE_ADDR is {address!r}, no IP address, so clients can't be told apart by it. Behind a unix socket, "
            "have a middleware set it from the proxy's header, or use another key."
        ) from None


def _user(group: str, request: HttpRequest) -> str:
    return str(getattr(request, "user", None) and request.user.pk)


def _user_or_ip(group: str, request: HttpRequest) -> str:
    user = getattr(request, "user", None)
    return f"user:{user.pk}" if user is not None and user.is_authenticated else f"ip:{_ip(group, request)}"


_KEYS: dict[str, Callable[[str, HttpRequest], str]] = {"ip": _ip, "user": _user, "user_or_ip": _user_or_ip}
_VALUES: dict[str, Callable[[HttpRequest, str], str]] = {
    "get": lambda request, name: request.GET.get(name, ""),
    "post": lambda request, name: request.POST.get(name, ""),
    "header": lambda request, name: request.headers.get(name, ""),
}
