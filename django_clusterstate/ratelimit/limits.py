"""Limits, decisions, and the keys under which hits are counted."""

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
    """One or several rates, all of which a key must keep.

    `on_unavailable` is the policy while the key's owner can't be reached: "local" (count at the next node in the key's
    ranking, then at this host's node, then in this process), "allow" or "deny"; None means the setting ON_UNAVAILABLE.
    """

    rules: tuple[Rule, ...]
    on_unavailable: str | None = None

    @classmethod
    def parse(cls, rates: Rates, algorithm: str = "fixed_window", on_unavailable: str | None = None) -> "Limit":
        """Makes a limit from rates such as "10/m", (10, 60) or ["10/s", "100/h"]. Raises `ImproperlyConfigured`."""
        if algorithm not in ALGORITHMS:
            raise ImproperlyConfigured(f"unknown algorithm {algorithm!r}; choose one of {', '.join(ALGORITHMS)}.")
        if on_unavailable is not None and on_unavailable not in POLICIES:
            raise ImproperlyConfigured(
                f"unknown on_unavailable {on_unavailable!r}; choose one of {', '.join(POLICIES)}."
            )
        try:
            each: list[OneRate] = [rates] if _is_one(rates) else list(cast(Iterable[OneRate], rates))
            rules = tuple(dict.fromkeys(Rule(ALGORITHMS[algorithm], *parse_rate(rate)) for rate in each))
        except ValueError as error:
            raise ImproperlyConfigured(f"{error}.") from error
        except TypeError as error:
            raise ImproperlyConfigured(f"{rates!r} is not a rate; write '10/m', or ['10/s', '100/h'].") from error
        if not 0 < len(rules) <= MAX_RATES:
            raise ImproperlyConfigured(f"a limit needs from 1 to {MAX_RATES} rates, such as '10/m'; got {len(rules)}.")
        return cls(rules, on_unavailable)


def _is_one(rates: Rates) -> TypeGuard[OneRate]:
    """Whether `rates` is a single rate. A pair of strings is two rates."""
    return isinstance(rates, str) or (
        isinstance(rates, tuple) and len(rates) == 2 and not any(isinstance(part, str | tuple) for part in rates)
    )


class Decision(msgspec.Struct, frozen=True):  # made for each request, ten times as fast as a frozen dataclass
    """The result of a hit. Times are seconds.

    `limit`, `period`, `remaining` and `reset_after` are those of the rate that denies for longest, or, if all allow, of
    the rate with the least remaining. `retry_after` is 0 when allowed. `owner` names the node that counted, or the
    scheme of LIMITS_STORAGE. `fallback` is empty if that is the regular place to count this key; otherwise it names the
    substitute: "node" (another node), "process", "allow" or "deny".
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
    """A hit was denied: raise it in a view, or receive it in a LIMITS_VIEW. `ClusterRatelimitMiddleware` turns it into
    a response with status 429, Django alone into one with 403.

    `reason`: the decision that denied, or a text for the client, as in django-ratelimit.
    `seconds`: until a hit of the same cost passes; None if no decision was given, as is `decision`.
    """

    def __init__(self, reason: Decision | str | Promise | None = None) -> None:
        self.decision = reason if isinstance(reason, Decision) else None
        self.seconds = None if self.decision is None else math.ceil(self.decision.retry_after)
        if self.decision is not None:
            reason = f"{TOO_MANY} Try again in {self.seconds} s."
        super().__init__(TOO_MANY if reason is None else reason)


def routing_key(group: str, key: str) -> bytes:
    """The key that is counted. It begins with the length of the group, so no two pairs make the same key."""
    whole = f"\0{len(group)}:{group}{key}".encode(errors="surrogatepass")
    if len(whole) > wire.MAX_KEY_BYTES:
        return b"\0" + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
    return whole


def split_key(key: bytes) -> tuple[str, str] | None:
    """The group and the key from which `routing_key()` made `key`; None if it was hashed, or made otherwise."""
    try:
        length, _, both = key.decode(errors="surrogatepass").removeprefix("\0").partition(":")
        pair = both[: int(length)], both[int(length) :]
    except ValueError:
        return None
    return pair if routing_key(*pair) == key else None


def strictest_decision(
    rules: Sequence[Rule], decisions: Sequence[algorithms.RuleDecision], owner: str, fallback: str = ""
) -> Decision:
    """The decision of the rule that denies for longest, or, if all allow, of the rule with the least remaining."""
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
