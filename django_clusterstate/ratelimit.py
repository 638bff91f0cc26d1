"""Rate limits that hold across the cluster: each key is counted in one place, its owner's memory.

Nothing here raises for a failure of the cluster: the policy `on_unavailable` then answers, and the decision says so.
"""

import hashlib
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from django.core.exceptions import ImproperlyConfigured, PermissionDenied

from . import conf
from .client.denials import Denials
from .client.routing import Routing, Table, Target
from .core import limiter
from .core.ledger import Ledger
from .core.limiter import Algorithm, Rule, parse_rate
from .exceptions import ClusterStateError
from .wire import messages as wire
from .wire.framing import frame

MAX_RATES = 16  # of one limit, by the wire
MAX_COST = 2**31
PROCESS_MAX_BYTES = 8 * 1024 * 1024  # for what a process counts by itself when no node answers

ALGORITHMS = {
    "fixed_window": Algorithm.FIXED_WINDOW,
    "sliding_window": Algorithm.SLIDING_WINDOW,
    "token_bucket": Algorithm.TOKEN_BUCKET,
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One or several rates that a key must keep, all of them.

    `on_unavailable` answers when the key's owner can't be reached: "local" (counted at the node that comes next for the
    key, else at this host's, else in this process), "allow" or "deny"; None: as the setting ON_UNAVAILABLE says then.
    """

    rules: tuple[Rule, ...]
    on_unavailable: str | None = None

    @classmethod
    def parse(
        cls, rates: str | Iterable[str], algorithm: str = "fixed_window", on_unavailable: str | None = None
    ) -> "Limit":
        """From rates such as "10/m" or ["10/s", "100/h"]. Raises `ImproperlyConfigured`, which says what is wrong."""
        if algorithm not in ALGORITHMS:
            raise ImproperlyConfigured(f"{algorithm!r} is no algorithm; there are: {', '.join(ALGORITHMS)}.")
        if on_unavailable is not None and on_unavailable not in conf.POLICIES:
            raise ImproperlyConfigured(f"on_unavailable is one of {', '.join(conf.POLICIES)}, not {on_unavailable!r}.")
        try:
            texts = [rates] if isinstance(rates, str) else list(rates)
            rules = tuple(Rule(ALGORITHMS[algorithm], *parse_rate(text)) for text in texts)
        except ValueError as error:
            raise ImproperlyConfigured(f"{error}.") from error
        except TypeError as error:
            raise ImproperlyConfigured(f"{rates!r} is no rate; write '10/m', or ['10/s', '100/h'].") from error
        if not 0 < len(rules) <= MAX_RATES:
            raise ImproperlyConfigured(f"a limit needs a rate, such as '10/m', or up to {MAX_RATES} of them.")
        return cls(rules, on_unavailable)


class Decision(msgspec.Struct, frozen=True):  # made for each request, ten times as fast as a frozen dataclass
    """The answer to a hit. Times are seconds.

    `limit`, `period`, `remaining` and `reset_after` are those of the rate that denies, or else of the one with the
    least left.
    `retry_after` is 0 when allowed. `owner` names the node that counted; `fallback` is empty if that was the key's
    owner, else what answered in its place: "node" (another), "process", "allow" or "deny".
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
    `ClusterRatelimitMiddleware` doesn't with 429."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.seconds = math.ceil(decision.retry_after)
        super().__init__(f"Too many requests. Try again in {self.seconds} s.")


def hit(limit: Limit, group: str, key: str, cost: int = 1, *, dry: bool = False, fresh: bool = False) -> Decision:
    """Counts a hit of `cost` (0 only looks) against a key of a group. One round trip to the key's owner, or none where
    this process remembers a denial that still holds; `fresh` asks the owner nevertheless.

    `dry`: you let the hit pass whatever the answer; the nodes' statistics tell such denials apart.
    """
    whole, client = routing_key(group, key), conf.get_client()
    if not (dry or fresh):
        denied = _remembered(limit, whole, cost, client.routing)
        if denied is not None:
            return denied
    asked, request = time.monotonic(), _hit_request(limit, whole, cost, dry)
    return _noted(_ask(limit, whole, request, cost), limit, whole, cost, asked)


async def ahit(
    limit: Limit, group: str, key: str, cost: int = 1, *, dry: bool = False, fresh: bool = False
) -> Decision:
    """As `hit`."""
    whole, client = routing_key(group, key), conf.get_async_client()
    if not (dry or fresh):
        denied = _remembered(limit, whole, cost, client.routing)
        if denied is not None:
            return denied
    asked, request = time.monotonic(), _hit_request(limit, whole, cost, dry)
    return _noted(await _ask_async(limit, whole, request, cost), limit, whole, cost, asked)


def peek(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """What a hit would be answered now, without counting it; `remaining` and `reset_after` are those without it."""
    whole = routing_key(group, key)
    return _ask(limit, whole, _peek_request(limit, whole, cost), cost, counts=False)


async def apeek(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """As `peek`."""
    whole = routing_key(group, key)
    return await _ask_async(limit, whole, _peek_request(limit, whole, cost), cost, counts=False)


def refund(decision: Decision, limit: Limit, group: str, key: str, cost: int = 1, ago: float = 0.0) -> bool:
    """Takes back a hit, where it was counted and as far as it still counts there. `decision` allowed it, and was got
    `ago` seconds before. False when nothing was counted, or the node that did can't be reached."""
    whole, client = routing_key(group, key), conf.get_client()
    request, done = _refund_request(limit, whole, cost, ago), _refunded_here(decision, limit, whole, cost, ago)
    if done is not None:
        return done
    target = client.table().targets.get(decision.owner)
    try:
        return target is not None and isinstance(client.call_node(target, request), wire.Done)
    except ClusterStateError:
        return False


async def arefund(decision: Decision, limit: Limit, group: str, key: str, cost: int = 1, ago: float = 0.0) -> bool:
    """As `refund`."""
    whole, client = routing_key(group, key), conf.get_async_client()
    request, done = _refund_request(limit, whole, cost, ago), _refunded_here(decision, limit, whole, cost, ago)
    if done is not None:
        return done
    target = (await client.table()).targets.get(decision.owner)
    try:
        return target is not None and isinstance(await client.call_node(target, request), wire.Done)
    except ClusterStateError:
        return False


def reset(limit: Limit, group: str, key: str) -> bool:
    """Forgets all hits of a key under this limit, and what was counted in the owner's place, by other nodes and by this
    process. False when the owner couldn't be reached."""
    whole, client = routing_key(group, key), conf.get_client()
    _process.reset(whole, limit.rules)
    replies = client.call_each(_resets(client.table(), client.routing.local, whole, limit))
    _denials.forget(whole)
    return bool(replies) and isinstance(replies[0], wire.Done)


async def areset(limit: Limit, group: str, key: str) -> bool:
    """As `reset`."""
    whole, client = routing_key(group, key), conf.get_async_client()
    _process.reset(whole, limit.rules)
    replies = await client.call_each(_resets(await client.table(), client.routing.local, whole, limit))
    _denials.forget(whole)
    return bool(replies) and isinstance(replies[0], wire.Done)


def routing_key(group: str, key: str) -> bytes:
    """The key that is counted. The group's length stands before it, so no two pairs make the same key."""
    whole = f"\0{len(group)}:{group}{key}".encode(errors="surrogatepass")
    if len(whole) > wire.MAX_KEY_BYTES:
        return b"\0" + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
    return whole


# -- asking -------------------------------------------------------------------------------------------------------


def _ask(limit: Limit, key: bytes, request: bytes, cost: int, *, counts: bool = True) -> Decision:
    client = conf.get_client()
    # Looked up once: by the time that a dead owner has failed us, others may have learned of its heir.
    table = client.table()
    owner = table.owner(key)
    try:
        if owner is not None:
            return _decision(limit, client.call_node(owner, request), owner.name)
    except ClusterStateError:
        pass
    for node in _substitutes(limit, key, table, client.routing):
        try:
            decision = _decision(limit, client.call_node(node, request), node.name, "node")
        except ClusterStateError:
            continue
        client.routing.tally.fallback_node += counts
        return decision
    return _without_nodes(limit, key, cost, client.routing, counts=counts)


async def _ask_async(limit: Limit, key: bytes, request: bytes, cost: int, *, counts: bool = True) -> Decision:
    client = conf.get_async_client()
    # Looked up once: by the time that a dead owner has failed us, others may have learned of its heir.
    table = await client.table()
    owner = table.owner(key)
    try:
        if owner is not None:
            return _decision(limit, await client.call_node(owner, request), owner.name)
    except ClusterStateError:
        pass
    for node in _substitutes(limit, key, table, client.routing):
        try:
            decision = _decision(limit, await client.call_node(node, request), node.name, "node")
        except ClusterStateError:
            continue
        client.routing.tally.fallback_node += counts
        return decision
    return _without_nodes(limit, key, cost, client.routing, counts=counts)


def _substitutes(limit: Limit, key: bytes, table: Table, routing: Routing) -> list[Target]:
    return table.substitutes(key, routing.local) if _policy(limit) == "local" else []


def _hit_request(limit: Limit, key: bytes, cost: int, dry: bool) -> bytes:
    return frame(wire.encode(wire.Hit(key, list(limit.rules), _checked(cost), dry)))


def _peek_request(limit: Limit, key: bytes, cost: int) -> bytes:
    return frame(wire.encode(wire.Peek(key, list(limit.rules), _checked(cost))))


def _refund_request(limit: Limit, key: bytes, cost: int, ago: float) -> bytes:
    return frame(wire.encode(wire.Refund(key, list(limit.rules), _checked(cost), max(ago, 0.0))))


def _checked(cost: int) -> int:
    if type(cost) is not int or not 0 <= cost <= MAX_COST:
        raise ValueError(f"the cost of a hit is an integer from 0 to {MAX_COST}, not {cost!r}")
    return cost


def _resets(table: Table, local: Target, key: bytes, limit: Limit) -> list[tuple[Target, bytes]]:
    """To the owner first, and to those who may have counted in its place."""
    owner, request = table.owner(key), frame(wire.encode(wire.Reset(key, list(limit.rules))))
    return [] if owner is None else [(node, request) for node in (owner, *table.substitutes(key, local))]


def _refunded_here(decision: Decision, limit: Limit, key: bytes, cost: int, ago: float) -> bool | None:
    """Whether a hit is taken back by now; None when a node counted it."""
    _denials.forget(key)
    if not decision.allowed or decision.fallback in ("allow", "deny"):
        return False
    if decision.fallback == "process":
        _process.refund(key, limit.rules, cost, ago)
        return True
    return None


# -- denials that are remembered ----------------------------------------------------------------------------------


def _remembered(limit: Limit, key: bytes, cost: int, routing: Routing) -> Decision | None:
    found = _denials.find(key, limit, cost, time.monotonic())
    if found is None:
        return None
    routing.tally.remembered += 1
    told, age = found
    return Decision(
        False, told.limit, told.period, told.remaining,
        max(told.reset_after - age, 0.0), told.retry_after - age, told.owner,
    )  # fmt: skip


def _noted(decision: Decision, limit: Limit, key: bytes, cost: int, asked: float) -> Decision:
    if not decision.allowed and not decision.fallback:
        _denials.note(key, limit, cost, decision, decision.retry_after, asked)
    return decision


# -- answers ------------------------------------------------------------------------------------------------------


def _policy(limit: Limit) -> str:
    return limit.on_unavailable or conf.get_settings().on_unavailable


def _decision(limit: Limit, reply: wire.Reply, owner: str, fallback: str = "") -> Decision:
    if not isinstance(reply, wire.Decided) or len(reply.decisions) != len(limit.rules):
        raise ClusterStateError(f"{owner} answered a hit with {type(reply).__name__}")
    return _binding(limit.rules, reply.decisions, owner, fallback)


def _binding(rules: Sequence[Rule], decisions: Sequence[limiter.Decision], owner: str, fallback: str) -> Decision:
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


def _without_nodes(limit: Limit, key: bytes, cost: int, routing: Routing, *, counts: bool) -> Decision:
    policy, tally = _policy(limit), routing.tally
    rule = min(limit.rules, key=lambda rule: rule.limit)
    if policy == "local":
        tally.fallback_process += counts
        return _binding(limit.rules, _process.decide(key, limit.rules, cost, counts=counts), "", "process")
    if policy == "deny" or not rule.limit:  # a limit of 0 needs no counting
        tally.fallback_deny += counts
        # Until when is unknown; a second is when the next attempt may well succeed.
        return Decision(False, rule.limit, rule.period, 0, 1.0, 1.0, "", policy)
    tally.fallback_allow += counts
    return Decision(True, rule.limit, rule.period, rule.limit, 0.0, 0.0, "", policy)


class ProcessLimits:
    """What this process counts by itself while no node answers. Forgotten when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store = Ledger(PROCESS_MAX_BYTES)

    def decide(self, key: bytes, rules: Sequence[Rule], cost: int, *, counts: bool = True) -> list[limiter.Decision]:
        now = time.monotonic()
        with self._lock:
            self._store.expire(now)
            if not counts:
                return limiter.peek(self._store, key, rules, cost, now)
            return limiter.hit(self._store, key, rules, cost, now)[0]

    def refund(self, key: bytes, rules: Sequence[Rule], cost: int, ago: float) -> None:
        now = time.monotonic()
        with self._lock:
            limiter.refund(self._store, key, rules, cost, now - ago, now)

    def reset(self, key: bytes, rules: Sequence[Rule]) -> None:
        with self._lock:
            limiter.reset(self._store, key, rules, time.monotonic())


_process = ProcessLimits()
_denials: Denials[Decision] = Denials()
