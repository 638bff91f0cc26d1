"""A limit on requests: which of them it counts, for whom, and what becomes of those that it denies.

The decorator and the middleware are thin faces of `RequestLimit`.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponseBase

from .. import runtime
from .hits import ahit, hit
from .keys import ALL, USER_KEYS, Asked, Key, callable_of, counted_group, key_of, load_user, methods_of
from .limits import MAX_COST, Decision, Limit, Ratelimited, Rates
from .refunds import CountedHit, LimitCheck, agive_back, give_back, is_refusal, note_refusal, take_all
from .responses import arefuse, refuse, with_headers

Rate = Rates | Asked | None
Cost = int | Callable[[str, HttpRequest], int]
Deducts = Callable[[HttpRequest, HttpResponseBase], Any]


class Passage(NamedTuple):
    """A request at a limit: its own hit, if that was allowed, and those of the throttles that were asked before."""

    request: HttpRequest
    blocked: bool
    own: list[CountedHit]
    others: list[CountedHit]


@dataclass(kw_only=True, eq=False)
class RequestLimit:
    """The arguments of `cluster_ratelimit`, checked. Raises `ImproperlyConfigured`, which says what is wrong."""

    key: Key = "ip"
    rate: Rate = None
    method: str | Iterable[str] | None = ALL
    block: bool = True
    algorithm: str = "fixed_window"
    cost: Cost = 1
    on_unavailable: str | None = None
    exempt: str | Asked | None = None
    dry_run: bool = False
    deduct_when: str | Deducts | None = None

    def __post_init__(self) -> None:
        self._find_key, self._methods = key_of(self.key), methods_of(self.method)
        self._find_rate, self._find_cost = callable_of("rate", self.rate), callable_of("cost", self.cost)
        self._exempts, self._deducts = _optional("exempt", self.exempt), _optional("deduct_when", self.deduct_when)
        cost = self.cost
        if self._find_cost is None and (type(cost) is not int or not 0 <= cost <= MAX_COST):
            raise ImproperlyConfigured(f"cost is an integer from 0 to {MAX_COST}, or a callable, not {cost!r}.")
        # What is known now is checked now, also when the rate comes with the request.
        varies = self.rate is None or self._find_rate is not None
        parsed = self._limit_of("1/s" if varies else self.rate)
        self._limit = None if varies else parsed

    def question(self, group: str, request: HttpRequest) -> LimitCheck | None:
        """What is to be asked for this request; None when it isn't limited."""
        if self._methods is not None and request.method not in self._methods:
            return None
        if not runtime.get_settings().limits_enabled or (self._exempts is not None and self._exempts(group, request)):
            return None
        limit = self._limit
        if limit is None:
            rate = self._find_rate(group, request) if self._find_rate is not None else None
            if rate is None:
                return None
            limit = self._limit_of(rate)
        cost = cast(int, self.cost) if self._find_cost is None else self._find_cost(group, request)
        return LimitCheck(limit, counted_group(group, self._methods), self._find_key(group, request), cost)

    def _limit_of(self, rate: Any) -> Limit:
        return Limit.parse(rate, self.algorithm, self.on_unavailable)

    def answer(self, group: str, request: HttpRequest, respond: Callable[[], HttpResponseBase]) -> HttpResponseBase:
        """Counts the request. Its response, or the refusal."""
        question = self._asked(group, request)
        if question is None:
            return respond()
        decision = hit(*question, dry=self.dry_run, fresh=self._deducts is not None)
        passage = self._passage(request, question, decision)
        try:
            response = refuse(request, Ratelimited(decision)) if passage.blocked else respond()
        except Exception as error:
            give_back(self._uncounted(passage, error))
            raise
        give_back(self._uncounted(passage, response))
        return response if self.dry_run else with_headers(response, question.limit, decision)

    async def aanswer(
        self, group: str, request: HttpRequest, respond: Callable[[], Awaitable[HttpResponseBase]]
    ) -> HttpResponseBase:
        """As `answer`."""
        if self.key in USER_KEYS:
            await load_user(request)
        question = self._asked(group, request)
        if question is None:
            return await respond()
        decision = await ahit(*question, dry=self.dry_run, fresh=self._deducts is not None)
        passage = self._passage(request, question, decision)
        try:
            response = await (arefuse(request, Ratelimited(decision)) if passage.blocked else respond())
        except Exception as error:
            await agive_back(self._uncounted(passage, error))
            raise
        await agive_back(self._uncounted(passage, response))
        return response if self.dry_run else with_headers(response, question.limit, decision)

    def _asked(self, group: str, request: HttpRequest) -> LimitCheck | None:
        if not hasattr(request, "limited"):
            request.limited = False  # type: ignore[attr-defined]
        return self.question(group, request)

    def _passage(self, request: HttpRequest, question: LimitCheck, decision: Decision) -> Passage:
        """Notes the decision on the request."""
        if not self.dry_run:
            request.limited = request.limited or not decision.allowed  # type: ignore[attr-defined]
            request.ratelimit = decision  # type: ignore[attr-defined]
        own = [CountedHit(question, decision, time.monotonic())] if decision.allowed else []
        blocked = self.block and not self.dry_run and not decision.allowed
        return Passage(request, blocked, own, take_all(request))

    def _uncounted(self, passage: Passage, outcome: HttpResponseBase | Exception) -> list[CountedHit]:
        """What is given back: all if the request was blocked, here or by a limit whose refusal the view's outcome is;
        the own hit if the view's response isn't to count."""
        if passage.blocked:
            note_refusal(passage.request, outcome)
        if is_refusal(passage.request, outcome):
            return [*passage.others, *passage.own]
        if self._deducts is None or isinstance(outcome, Exception) or self._deducts(passage.request, outcome):
            return []
        return passage.own


def _optional(what: str, given: Any) -> Callable[..., Any] | None:
    function = callable_of(what, given)
    if function is None and given is not None:
        raise ImproperlyConfigured(f"{what} is a callable or its dotted path, not {given!r}.")
    return function
