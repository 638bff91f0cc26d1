"""`@cluster_ratelimit`: the conventions of django-ratelimit, on limits that hold across the cluster.

@cluster_ratelimit(key="ip", rate="10/m")
def login(request): ...
"""

import functools
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypedDict, TypeVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import method_decorator

from .ratelimit import Decision, ahit, apeek, hit, peek
from .ratelimit.keys import ALL, UNSAFE, USER_KEYS, Asked, Key, load_user
from .ratelimit.request_limit import Cost, Deducts, Rate, RequestLimit

__all__ = ["ALL", "UNSAFE", "aget_usage", "ais_ratelimited", "cluster_ratelimit", "get_usage", "is_ratelimited"]

View = TypeVar("View", bound=Callable[..., Any])


def cluster_ratelimit(  # noqa: PLR0913 - the vocabulary of its users
    group: str | None = None,
    key: Key = "ip",
    rate: Rate = None,
    method: str | Iterable[str] | None = ALL,
    block: bool = True,
    *,
    algorithm: str = "fixed_window",
    cost: Cost = 1,
    on_unavailable: str | None = None,
    exempt: str | Asked | None = None,
    dry_run: bool = False,
    deduct_when: str | Deducts | None = None,
) -> Callable[[View], View]:
    """Limits how often a view, synchronous or asynchronous, is called. One round trip to the key's owner a request.

    `group`: what is counted together; by default each view by itself.
    `key`: what tells clients apart: "ip", "user", "user_or_ip", "get:x", "post:x", "header:x", a callable
    `(group, request)` or its dotted path.
    `rate`: "10/m", (10, 60), several (`["10/s", "100/h"]`: a hit counts against all or none), a callable
    `(group, request)` that returns one, or its dotted path; "0/s" blocks all, None limits nothing.
    `method`: which requests count: ALL, UNSAFE, one, or several. Limits with different methods count apart.
    `block`: False only sets `request.limited`, for the view to decide.
    `algorithm`: "fixed_window", "sliding_window" or "token_bucket".
    `cost`: what a request counts for, or a callable `(group, request)`.
    `on_unavailable`: "local", "allow" or "deny", when the key's owner can't be reached.
    `exempt`: a callable `(group, request)` that says which requests aren't limited.
    `dry_run`: True counts, and shows denials in the statistics of the nodes, but nobody else notices.
    `deduct_when`: a callable `(request, response)`; the hit is given back unless it says that it is to count.

    A blocked request is answered with 429, `Retry-After` and RateLimit headers, in the form that its client prefers:
    text, JSON, or HTML where the project has a template `429.html`; or by the setting LIMITS_VIEW. Limits around this
    one whose response that becomes give back what they have counted. `request.limited` says whether the limit was
    exceeded, `request.ratelimit` has the `Decision`.
    """
    limit = RequestLimit(
        key=key,
        rate=rate,
        method=method,
        block=block,
        algorithm=algorithm,
        cost=cost,
        on_unavailable=on_unavailable,
        exempt=exempt,
        dry_run=dry_run,
        deduct_when=deduct_when,
    )

    def decorate(view: View) -> View:
        if isinstance(view, type):
            return cast(View, method_decorator(decorate, name="dispatch")(view))
        name = group or _name_of(view)
        if iscoroutinefunction(view) or getattr(_instance_of(view), "view_is_async", False):

            @functools.wraps(view)
            async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                def respond() -> Awaitable[HttpResponseBase]:
                    return cast(Awaitable[HttpResponseBase], view(request, *args, **kwargs))

                return await limit.aanswer(name, request, respond)

            markcoroutinefunction(wrapper)
        else:

            @functools.wraps(view)
            def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                return limit.answer(name, request, lambda: view(request, *args, **kwargs))

        return cast(View, wrapper)

    return decorate


# -- without a view, as django-ratelimit has it -------------------------------------------------------------------


class Usage(TypedDict):
    """What a key has used of a limit: hits counted, hits allowed, whether one more is too many, seconds until all is
    available again."""

    count: int
    limit: int
    should_limit: bool
    time_left: int


def get_usage(
    request: HttpRequest,
    group: str | None = None,
    fn: Callable[..., Any] | None = None,
    key: Key = "ip",
    rate: Rate = None,
    method: str | Iterable[str] | None = ALL,
    increment: bool = False,
) -> Usage | None:
    """What the request's key has used, counting this request if it is to `increment`. None if it isn't limited."""
    question = RequestLimit(key=key, rate=rate, method=method).question(_group(group, fn), request)
    return None if question is None else _usage((hit if increment else peek)(*question))


async def aget_usage(
    request: HttpRequest,
    group: str | None = None,
    fn: Callable[..., Any] | None = None,
    key: Key = "ip",
    rate: Rate = None,
    method: str | Iterable[str] | None = ALL,
    increment: bool = False,
) -> Usage | None:
    """As `get_usage`."""
    if key in USER_KEYS:
        await load_user(request)
    question = RequestLimit(key=key, rate=rate, method=method).question(_group(group, fn), request)
    return None if question is None else _usage(await (ahit if increment else apeek)(*question))


def is_ratelimited(request: HttpRequest, *args: Any, **kwargs: Any) -> bool:
    """Whether one more request, or this one if it is to `increment`, is too many. The arguments of `get_usage`."""
    return _noted(request, get_usage(request, *args, **kwargs), increment=kwargs.get("increment", False))


async def ais_ratelimited(request: HttpRequest, *args: Any, **kwargs: Any) -> bool:
    """As `is_ratelimited`."""
    return _noted(request, await aget_usage(request, *args, **kwargs), increment=kwargs.get("increment", False))


# As attributes, since django-ratelimit has them there.
_function: Any
for _function in (cluster_ratelimit, get_usage, aget_usage, is_ratelimited, ais_ratelimited):
    _function.ALL, _function.UNSAFE = ALL, UNSAFE


def _usage(decision: Decision) -> Usage:
    return {
        "count": decision.limit - decision.remaining,
        "limit": decision.limit,
        "should_limit": not decision.allowed,
        "time_left": math.ceil(decision.reset_after),
    }


def _noted(request: HttpRequest, usage: Usage | None, *, increment: bool) -> bool:
    limited = usage is not None and usage["should_limit"]
    if increment:
        request.limited = getattr(request, "limited", False) or limited  # type: ignore[attr-defined]
    return limited


# -- names --------------------------------------------------------------------------------------------------------


def _group(group: str | None, fn: Callable[..., Any] | None) -> str:
    if group is None and fn is None:
        raise ImproperlyConfigured("get_usage() and is_ratelimited() need a group, or the function that is limited.")
    return group or _name_of(cast(Callable[..., Any], fn))


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
