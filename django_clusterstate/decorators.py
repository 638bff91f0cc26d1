"""`@cluster_ratelimit`: the conventions of django-ratelimit, on limits that hold across the cluster.

@cluster_ratelimit(key="ip", rate="10/m")
def login(request): ...
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, TypeVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import method_decorator

from . import runtime
from .client.operations import CallEither, Operation
from .ratelimit.hits import ahit, apeek, hit, peek
from .ratelimit.keys import ALL, UNSAFE, USER_KEYS, KeyOption, RequestFunction, load_user
from .ratelimit.request_limit import CostOption, DeductWhen, Rate, RequestLimit
from .runtime import asynchronous, blocking

__all__ = ["ALL", "UNSAFE", "aget_usage", "ais_ratelimited", "cluster_ratelimit", "get_usage", "is_ratelimited"]

ViewFunction = TypeVar("ViewFunction", bound=Callable[..., Any])


def cluster_ratelimit(  # noqa: PLR0913 - the vocabulary of its users
    group: str | None = None,
    key: KeyOption = "ip",
    rate: Rate = None,
    method: str | Iterable[str] | None = ALL,
    block: bool = True,
    *,
    algorithm: str = "fixed_window",
    cost: CostOption = 1,
    on_unavailable: str | None = None,
    exempt: str | RequestFunction | None = None,
    dry_run: bool = False,
    deduct_when: str | DeductWhen | None = None,
) -> Callable[[ViewFunction], ViewFunction]:
    """Limits how often a view, synchronous or asynchronous, is called. Takes one round trip to the key's owner.

    `group`: views of one group count together; by default each view counts on its own.
    `key`: identifies the client: "ip", "user", "user_or_ip", "get:x", "post:x", "header:x", a callable
    `(group, request)` or its dotted path.
    `rate`: "10/m", (10, 60), several (`["10/s", "100/h"]`: a hit counts against all or none), a callable
    `(group, request)` that returns one, or its dotted path; "0/s" blocks all, None limits nothing.
    `method`: the methods that count: ALL, UNSAFE, one, or several. Limits with different methods count apart.
    `block`: False only sets `request.limited`, and leaves the decision to the view.
    `algorithm`: "fixed_window", "sliding_window" or "token_bucket".
    `cost`: hits that a request counts for, or a callable `(group, request)`.
    `on_unavailable`: "local", "allow" or "deny": the policy while the key's owner can't be reached.
    `exempt`: a callable `(group, request)` that returns whether the request isn't limited.
    `dry_run`: True counts requests and reports denials in the nodes' statistics, but never denies.
    `deduct_when`: a callable `(request, response)`; the hit is refunded unless it returns true.

    A blocked request gets a response with status 429, `Retry-After` and RateLimit headers, in the content type that the
    client prefers: text, JSON, or HTML if the project has a template `429.html`; the setting LIMITS_VIEW replaces it.
    Limits around this one whose view returns that response refund their hits. `request.limited` is whether the limit
    was exceeded, `request.ratelimit` the `Decision`. Raises `ImproperlyConfigured` for a wrong argument.
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

    def decorate(view: ViewFunction) -> ViewFunction:
        if isinstance(view, type):
            return cast(ViewFunction, method_decorator(decorate, name="dispatch")(view))
        name = group or _name_of(view)
        if iscoroutinefunction(view) or getattr(_instance_of(view), "view_is_async", False):

            @functools.wraps(view)
            async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                answer = limit.answer(name, request, lambda: view(request, *args, **kwargs))
                return await runtime.arun(answer)

            markcoroutinefunction(wrapper)
        else:

            @functools.wraps(view)
            def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
                answer = limit.answer(name, request, lambda: view(request, *args, **kwargs))
                return runtime.run(answer)

        return cast(ViewFunction, wrapper)

    return decorate


# -- the functions of django-ratelimit ----------------------------------------------------------------------------


class Usage(TypedDict):
    """The use of a limit by a key: hits counted, hits allowed, whether one more is denied, and seconds until all hits
    are available again."""

    count: int
    limit: int
    should_limit: bool
    time_left: int


@blocking
def get_usage(
    request: HttpRequest,
    group: str | None = None,
    fn: Callable[..., Any] | None = None,
    key: KeyOption = "ip",
    rate: Rate = None,
    method: str | Iterable[str] | None = ALL,
    increment: bool = False,
) -> Operation[Usage | None]:
    """The use of a limit by the request's key; with `increment` this request counts. None if it isn't limited."""
    limit, group = RequestLimit(key=key, rate=rate, method=method), _group(group, fn)
    if limit.key in USER_KEYS:
        yield load_user(request)
    check = limit.check(group, request)
    if check is None:
        return None
    decision = yield CallEither(hit, ahit, check) if increment else CallEither(peek, apeek, check)
    return {
        "count": decision.limit - decision.remaining,
        "limit": decision.limit,
        "should_limit": not decision.allowed,
        "time_left": math.ceil(decision.reset_after),
    }


@blocking
def is_ratelimited(request: HttpRequest, *args: Any, **kwargs: Any) -> Operation[bool]:
    """Whether one more request is denied, or, with `increment`, this one. Takes the arguments of `get_usage()`."""
    usage = yield CallEither(
        functools.partial(get_usage, **kwargs), functools.partial(aget_usage, **kwargs), (request, *args)
    )
    limited = usage is not None and usage["should_limit"]
    if kwargs.get("increment", False):
        request.limited = getattr(request, "limited", False) or limited  # type: ignore[attr-defined]
    return limited


aget_usage, ais_ratelimited = asynchronous(get_usage), asynchronous(is_ratelimited)


# As attributes, since django-ratelimit has them there.
_function: Any
for _function in (cluster_ratelimit, get_usage, aget_usage, is_ratelimited, ais_ratelimited):
    _function.ALL, _function.UNSAFE = ALL, UNSAFE


# -- group names -----------------------------------------------------------------------------------------------------


def _group(group: str | None, fn: Callable[..., Any] | None) -> str:
    if group is None and fn is None:
        raise ImproperlyConfigured("get_usage() and is_ratelimited() need a group, or the function that is limited.")
    return group or _name_of(cast(Callable[..., Any], fn))


def _name_of(view: Callable[..., Any]) -> str:
    """The default group of a view. A class-based view has the name of its class, since all share View's functions."""
    view_class = getattr(view, "view_class", None)
    if view_class is not None:
        return f"{view_class.__module__}.{view_class.__qualname__}"
    instance = _instance_of(view)
    if instance is not None:
        return f"{type(instance).__module__}.{type(instance).__qualname__}.{view.__name__}"
    if not hasattr(view, "__qualname__"):
        raise ImproperlyConfigured(f"{view!r} has no name to use as its group; give cluster_ratelimit a group.")
    return f"{view.__module__}.{view.__qualname__}"


def _instance_of(view: Callable[..., Any]) -> Any:
    """The object of a bound method; None for a function. `method_decorator` passes a partial of a method."""
    return getattr(getattr(view, "func", view), "__self__", None)
