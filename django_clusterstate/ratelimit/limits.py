"""What a limit is, what a decision, and the key that is counted."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

import msgspec
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.utils.functional import Promise

from ..core.limits import algorithms
from ..core.limits.algorithms import Algorithm, Rule
from ..core.limits.rate_strings import parse_rate
from ..settings import POLICIES
from ..wire import messages as wire

MAX_RATES = 16  # of one limit, by the wire
MAX_COST = 2**31
TOO_MANY = "Too many requests."

ALGORITHMS = {
    "fixed_window": Algorithm.FIXED_WINDOW,
    "sliding_window": Algorithm.SLIDING_WINDOW,
    "token_bucket": Algorithm.TOKEN_BUCKET,
}

OneRate = str | tuple[int, float]  # "10/m", or hits and seconds
Rates = OneRate | Iterable[OneRate]


@dataclass(frozen=True, slots=True)
class Limit:
    """One or several rates that a key must keep, all of them.

    `on_unavailable` answers when the key's owner can't be reached: "local" (counted at the node that comes next for the
    key, else at this host's, else in this process), "allow" or "deny"; None: as the setting ON_UNAVAILABLE says then.
    """

    rules: tuple[Rule, ...]
    on_unavailable: str | None = None

    @classmethod
    def parse(cls, rates: Rates, algorithm: str = "fixed_window", on_unavailable: str | None = None) -> "Limit":
        """From rates such as "10/m", (10, 60) or ["10/s", "100/h"]. Raises `ImproperlyConfigured`, which says what is
        wrong."""
        if algorithm not in ALGORITHMS:
            raise ImproperlyConfigured(f"{algorithm!r} is no algorithm; there are: {', '.join(ALGORITHMS)}.")
        if on_unavailable is not None and on_unavailable not in POLICIES:
            raise ImproperlyConfigured(f"on_unavailable is one of {', '.join(POLICIES)}, not {on_unavailable!r}.")
        try:
            each: list[OneRate] = [rates] if _is_one(rates) else list(cast(Iterable[OneRate], rates))
            rules = tuple(dict.fromkeys(Rule(ALGORITHMS[algorithm], *parse_rate(rate)) for rate in each))
        except ValueError as error:
            raise ImproperlyConfigured(f"{error}.") from error
        except TypeError as error:
            raise ImproperlyConfigured(f"{rates!r} is no rate; write '10/m', or ['10/s', '100/h'].") from error
        if not 0 < len(rules) <= MAX_RATES:
            raise ImproperlyConfigured(f"a limit needs a rate, such as '10/m', or up to {MAX_RATES} of them.")
        return cls(rules, on_unavailable)


def _is_one(rates: Rates) -> TypeGuard[OneRate]:
    """Whether it is a single rate. A pair of texts is two."""
    return isinstance(rates, str) or (
        isinstance(rates, tuple) and len(rates) == 2 and not any(isinstance(part, str | tuple) for part in rates)
    )


class Decision(msgspec.Struct, frozen=True):  # made for each request, ten times as fast as a frozen dataclass
    """The answer to a hit. Times are seconds.

    `limit`, `period`, `remaining` and `reset_after` are those of the rate that denies, or else of the one with the
    least left.
    `retry_after` is 0 when allowed. `owner` names the node that counted, or the kind of LIMITS_STORAGE; `fallback` is
    empty if that is the one to count this key, else what answered in its place: "node" (another), "process", "allow" or
    "deny".
    """

    allowed: bool
    limit: int
    period: float
    remaining: int
    reset_after: float
    retry_after: float
    owner: str
    fallback: str = ""


class Ratelimited(PermissionDenied):
    """For your code to raise, and what a LIMITS_VIEW is given: a hit was denied. Django answers it with 403 where
    `ClusterRatelimitMiddleware` doesn't with 429.

    `told`: the decision that denied, or words of your own for the client, as django-ratelimit's takes them.
    `seconds`: until the same cost passes; None, as `decision`, where no decision was given.
    """

    def __init__(self, told: Decision | str | Promise | None = None) -> None:
        self.decision = told if isinstance(told, Decision) else None
        self.seconds = None if self.decision is None else math.ceil(self.decision.retry_after)
        if told is None:
            told = TOO_MANY
        elif isinstance(told, Decision):
            told = f"{TOO_MANY} Try again in {self.seconds} s."
        super().__init__(told)


def routing_key(group: str, key: str) -> bytes:
    """The key that is counted. The group's length stands before it, so no two pairs make the same key."""
    whole = f"\0{len(group)}:{group}{key}".encode(errors="surrogatepass")
    if len(whole) > wire.MAX_KEY_BYTES:
        return b"\0" + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
    return whole


def split_key(key: bytes) -> tuple[str, str] | None:
    """The group and the key of a `routing_key`; None for a hashed one, and for what is none."""
    try:
        length, _, both = key.decode(errors="surrogatepass").removeprefix("\0").partition(":")
        pair = both[: int(length)], both[int(length) :]
    except ValueError:
        return None
    return pair if routing_key(*pair) == key else None


def binding(rules: Sequence[Rule], decisions: Sequence[algorithms.RuleDecision], owner: str, fallback: str) -> Decision:
    """The one that matters to the caller: the longest denial, else the least that remains."""
    at = 0
    if len(decisions) > 1:
        order = range(len(decisions))
        denials = [i for i in order if not decisions[i].allowed]
        if denials:
            at = max(denials, key=lambda i: decisions[i].retry_after)
        else:
            at = min(order, key=lambda i: decisions[i].remaining)
    one, period = decisions[at], rules[at].period
    return Decision(one.allowed, one.limit, period, one.remaining, one.reset_after, one.retry_after, owner, fallback)
