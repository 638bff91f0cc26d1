"""A limit on requests: which requests count, under which key, and the response if a request is denied.

The decorator and the middleware both use `RequestLimit`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase

from .. import runtime
from ..client.operations import CallEither, Operation
from .hits import ahit, hit
from .keys import (
    ALL,
    USER_KEYS,
    KeyOption,
    RequestFunction,
    group_of_methods,
    load_user,
    read_callable,
    read_key,
    read_methods,
)
from .limits import MAX_COST, Limit, Ratelimited, Rates
from .refunds import CountedHit, LimitCheck, add_refusal, is_refusal, refund_hits, take_counted_hits
from .responses import refuse, with_headers

Rate = Rates | RequestFunction | None
CostOption = int | Callable[[str, HttpRequest], int]
DeductWhen = Callable[[HttpRequest, HttpResponseBase], Any]


@dataclass(kw_only=True, eq=False)
class RequestLimit:
    """The arguments of `cluster_ratelimit`. Raises `ImproperlyConfigured` for a wrong one."""

    key: KeyOption = "ip"
    rate: Rate = None
    method: str | Iterable[str] | None = ALL
    block: bool = True
    algorithm: str = "fixed_window"
    cost: CostOption = 1
    on_unavailable: str | None = None
    exempt: str | RequestFunction | None = None
    dry_run: bool = False
    deduct_when: str | DeductWhen | None = None

    def __post_init__(self) -> None:
        self._get_key, self._methods = read_key(self.key), read_methods(self.method)
        self._get_rate, self._get_cost = read_callable("rate", self.rate), read_callable("cost", self.cost)
        self._is_exempt = _read_optional("exempt", self.exempt)
        self._deduct_when = _read_optional("deduct_when", self.deduct_when)
        fresh = self._deduct_when is not None
        self._hit = partial(hit, dry=self.dry_run, fresh=fresh)
        self._ahit = partial(ahit, dry=self.dry_run, fresh=fresh)
        cost = self.cost
        if self._get_cost is None and (type(cost) is not int or not 0 <= cost <= MAX_COST):
            raise ImproperlyConfigured(f"cost must be an integer from 0 to {MAX_COST}, or a callable, not {cost!r}.")
        # The other arguments are checked now, even if the rate depends on the request.
        varies = self.rate is None or self._get_rate is not None
        parsed = self._limit_of("1/s" if varies else self.rate)
        self._limit = None if varies else parsed

    def check(self, group: str, request: HttpRequest) -> LimitCheck | None:
        """The arguments of a hit for this request; None if the request isn't limited."""
        if self._methods is not None and request.method not in self._methods:
            return None
        if not runtime.get_settings().limits_enabled or (self._is_exempt and self._is_exempt(group, request)):
            return None
        limit = self._limit
        if limit is None:
            rate = self._get_rate(group, request) if self._get_rate is not None else None
            if rate is None:
                return None
            limit = self._limit_of(rate)
        cost = cast(int, self.cost) if self._get_cost is None else self._get_cost(group, request)
        return LimitCheck(limit, group_of_methods(group, self._methods), self._get_key(group, request), cost)

    def _limit_of(self, rate: Any) -> Limit:
        return Limit.parse(rate, self.algorithm, self.on_unavailable)

    def answer(self, group: str, request: HttpRequest, respond: Callable[[], Any]) -> Operation[HttpResponseBase]:
        """Counts the request. Results in the response of `respond()`, which `arun` awaits, or in a refusal."""
        if self.key in USER_KEYS:
            yield load_user(request)
        if not hasattr(request, "limited"):
            request.limited = False  # type: ignore[attr-defined]
        check = self.check(group, request)
        response: HttpResponseBase
        if check is None:
            response = yield CallEither(respond, respond)
            return response
        decision = yield CallEither(self._hit, self._ahit, check)
        if not self.dry_run:
            request.limited = request.limited or not decision.allowed  # type: ignore[attr-defined]
            request.ratelimit = decision  # type: ignore[attr-defined]
        blocked = self.block and not self.dry_run and not decision.allowed
        own = [CountedHit(check, decision, time.monotonic())] if decision.allowed else []
        earlier = take_counted_hits(request)
        try:
            if blocked:
                response = yield from refuse(request, Ratelimited(decision))
            else:
                response = yield CallEither(respond, respond)
        except Exception as error:
            yield from self._refund(request, error, blocked, own, earlier)
            raise
        yield from self._refund(request, response, blocked, own, earlier)
        return response if self.dry_run else with_headers(response, check.limit, decision)

    def _refund(
        self,
        request: HttpRequest,
        outcome: HttpResponseBase | Exception,
        blocked: bool,
        own: list[CountedHit],
        earlier: list[CountedHit],
    ) -> Operation[None]:
        """Refunds all hits if the request was refused, here or by a limit further inside; this limit's own hit if
        `deduct_when` says that the response doesn't count."""
        if blocked:
            add_refusal(request, outcome)
        if is_refusal(request, outcome):
            yield from refund_hits([*earlier, *own])
        elif self._deduct_when and not isinstance(outcome, Exception) and not self._deduct_when(request, outcome):
            yield from refund_hits(own)


def _read_optional(option: str, given: Any) -> Callable[..., Any] | None:
    function = read_callable(option, given)
    if function is None and given is not None:
        raise ImproperlyConfigured(f"{option} must be a callable or its dotted path, not {given!r}.")
    return function
