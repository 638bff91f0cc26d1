"""Rate limits that hold across the cluster: each key is counted in one place, its owner's memory.

Nothing here raises for a failure of the cluster: the policy `on_unavailable` then answers, and the decision says so.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from django.core.exceptions import ImproperlyConfigured

from . import conf
from .client.routing import Table, Target
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

    `on_unavailable` answers when the key's owner can't be reached: "local" (counted at this host's node, else in this
    process), "allow" or "deny"; None: as the setting ON_UNAVAILABLE says at that moment.
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
    owner, else what answered in its place: "node" (this host's), "process", "allow" or "deny".
    """

    allowed: bool
    limit: int
    period: float
    remaining: int
    reset_after: float
    retry_after: float
    owner: str
    fallback: str = ""


def hit(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """Counts a hit of `cost` (0 only looks) against a key of a group. One round trip to the key's owner."""
    return _ask(limit, routing_key(group, key), cost)


async def ahit(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """As `hit`."""
    return await _ask_async(limit, routing_key(group, key), cost)


def peek(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """What a hit would be answered now, without counting it; `remaining` and `reset_after` are those without it."""
    return _ask(limit, routing_key(group, key), cost, counts=False)


async def apeek(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """As `peek`."""
    return await _ask_async(limit, routing_key(group, key), cost, counts=False)


def reset(limit: Limit, group: str, key: str) -> bool:
    """Forgets all hits of a key under this limit, and what was counted in the owner's place at this host's node and in
    this process. False when the owner couldn't be reached."""
    whole, client = routing_key(group, key), conf.get_client()
    _process.reset(whole, limit.rules)
    replies = client.call_each(_resets(client.table(), client.routing.local, whole, limit))
    return bool(replies) and isinstance(replies[0], wire.Done)


async def areset(limit: Limit, group: str, key: str) -> bool:
    """As `reset`."""
    whole, client = routing_key(group, key), conf.get_async_client()
    _process.reset(whole, limit.rules)
    replies = await client.call_each(_resets(await client.table(), client.routing.local, whole, limit))
    return bool(replies) and isinstance(replies[0], wire.Done)


def routing_key(group: str, key: str) -> bytes:
    """The key that is counted. The group's length stands before it, so no two pairs make the same key."""
    whole = f"\0{len(group)}:{group}{key}".encode(errors="surrogatepass")
    if len(whole) > wire.MAX_KEY_BYTES:
        return b"\0" + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
    return whole


def _ask(limit: Limit, key: bytes, cost: int, *, counts: bool = True) -> Decision:
    request, client = _request(limit, key, cost, counts), conf.get_client()
    # Looked up once: by the time that a dead owner has failed us, others may have learned of its heir.
    owner, local = client.table().owner(key), client.routing.local
    try:
        if owner is not None:
            return _decision(limit, client.call_node(owner, request), owner.name)
    except ClusterStateError:
        pass
    policy = _policy(limit)
    if policy == "local" and owner is not local:
        try:
            return _decision(limit, client.call_node(local, request), local.name, "node")
        except ClusterStateError:
            pass
    return _without_nodes(limit, policy, key, cost, counts)


async def _ask_async(limit: Limit, key: bytes, cost: int, *, counts: bool = True) -> Decision:
    request, client = _request(limit, key, cost, counts), conf.get_async_client()
    # Looked up once: by the time that a dead owner has failed us, others may have learned of its heir.
    owner, local = (await client.table()).owner(key), client.routing.local
    try:
        if owner is not None:
            return _decision(limit, await client.call_node(owner, request), owner.name)
    except ClusterStateError:
        pass
    policy = _policy(limit)
    if policy == "local" and owner is not local:
        try:
            return _decision(limit, await client.call_node(local, request), local.name, "node")
        except ClusterStateError:
            pass
    return _without_nodes(limit, policy, key, cost, counts)


def _request(limit: Limit, key: bytes, cost: int, counts: bool) -> bytes:
    if type(cost) is not int or not 0 <= cost <= MAX_COST:
        raise ValueError(f"the cost of a hit is an integer from 0 to {MAX_COST}, not {cost!r}")
    kind = wire.Hit if counts else wire.Peek
    return frame(wire.encode(kind(key, list(limit.rules), cost)))


def _resets(table: Table, local: Target, key: bytes, limit: Limit) -> list[tuple[Target, bytes]]:
    """To the owner first, and to this host's node if that is another."""
    owner, request = table.owner(key), frame(wire.encode(wire.Reset(key, list(limit.rules))))
    return [] if owner is None else [(node, request) for node in dict.fromkeys((owner, local))]


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


def _without_nodes(limit: Limit, policy: str, key: bytes, cost: int, counts: bool) -> Decision:
    if policy == "local":
        return _binding(limit.rules, _process.decide(key, limit.rules, cost, counts=counts), "", "process")
    rule = min(limit.rules, key=lambda rule: rule.limit)
    if policy == "deny" or not rule.limit:  # a limit of 0 needs no counting
        # Until when is unknown; a second is when the next attempt may well succeed.
        return Decision(False, rule.limit, rule.period, 0, 1.0, 1.0, "", policy)
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

    def reset(self, key: bytes, rules: Sequence[Rule]) -> None:
        with self._lock:
            limiter.reset(self._store, key, rules, time.monotonic())


_process = ProcessLimits()
