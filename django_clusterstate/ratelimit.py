"""Rate limits that hold across the cluster: each key is counted in one place, its owner's memory.

`hit()` and `ahit()` never raise for a failure of the cluster: the policy `on_unavailable` then answers, and the
decision says so.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured

from . import conf
from .core import limiter
from .core.limiter import Algorithm, Rule, parse_rate
from .core.store import Store
from .exceptions import ClusterStateError
from .wire import messages as wire
from .wire.framing import frame

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
    process), "allow" or "deny".
    """

    rules: tuple[Rule, ...]
    on_unavailable: str = "local"

    @classmethod
    def parse(
        cls, rates: str | Iterable[str], algorithm: str = "fixed_window", on_unavailable: str | None = None
    ) -> "Limit":
        """From rates such as "10/m" or ["10/s", "100/h"]. Raises `ImproperlyConfigured`, which says what is wrong."""
        if algorithm not in ALGORITHMS:
            raise ImproperlyConfigured(f"{algorithm!r} is no algorithm; there are: {', '.join(ALGORITHMS)}.")
        policy = conf.get_settings().on_unavailable if on_unavailable is None else on_unavailable
        if policy not in conf.POLICIES:
            raise ImproperlyConfigured(f"on_unavailable is one of {', '.join(conf.POLICIES)}, not {policy!r}.")
        texts = [rates] if isinstance(rates, str) else list(rates)
        try:
            rules = tuple(Rule(ALGORITHMS[algorithm], *parse_rate(text)) for text in texts)
        except ValueError as error:
            raise ImproperlyConfigured(str(error)) from error
        if not rules:
            raise ImproperlyConfigured("a limit needs at least one rate, such as '10/m'.")
        return cls(rules, policy)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a hit. Times are seconds.

    `limit`, `remaining` and `reset_after` are those of the rate that denies, or else of the one with the least left.
    `retry_after` is 0 when allowed. `owner` names the node that counted; `fallback` is empty if that was the key's
    owner, else what answered in its place: "node" (this host's), "process", "allow" or "deny".
    """

    allowed: bool
    limit: int
    remaining: int
    reset_after: float
    retry_after: float
    owner: str
    fallback: str = ""


def hit(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """Counts a hit of `cost` (0 only looks) against a key of a group. One round trip to the key's owner."""
    wire_key, request = _request(limit, group, key, cost)
    client = conf.get_client()
    try:
        return _decision(client.call(wire_key, request), client.routing.owner(wire_key).name)
    except ClusterStateError:
        if limit.on_unavailable == "local":
            try:
                reply = client.call_node(client.routing.local, request)
                return _decision(reply, client.routing.local.name, "node")
            except ClusterStateError:
                pass
        return _without_nodes(limit, wire_key, cost)


async def ahit(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """As `hit`."""
    wire_key, request = _request(limit, group, key, cost)
    client = conf.get_async_client()
    try:
        return _decision(await client.call(wire_key, request), client.routing.owner(wire_key).name)
    except ClusterStateError:
        if limit.on_unavailable == "local":
            try:
                reply = await client.call_node(client.routing.local, request)
                return _decision(reply, client.routing.local.name, "node")
            except ClusterStateError:
                pass
        return _without_nodes(limit, wire_key, cost)


def routing_key(group: str, key: str) -> bytes:
    """The key that is counted. The group's length stands before it, so no two pairs make the same key."""
    whole = f"\0{len(group)}:{group}{key}".encode(errors="surrogatepass")
    if len(whole) > wire.MAX_KEY_BYTES:
        return b"\0" + hashlib.blake2b(whole, digest_size=32).hexdigest().encode()
    return whole


def _request(limit: Limit, group: str, key: str, cost: int) -> tuple[bytes, bytes]:
    if cost < 0:
        raise ValueError(f"the cost of a hit can't be below 0, as {cost} is")
    whole = routing_key(group, key)
    return whole, frame(wire.encode(wire.Hit(whole, list(limit.rules), cost)))


def _decision(reply: wire.Reply, owner: str, fallback: str = "") -> Decision:
    if not isinstance(reply, wire.Decided):
        raise ClusterStateError(f"{owner} answered a hit with {type(reply).__name__}")
    return _binding(reply.decisions, owner, fallback)


def _binding(decisions: Sequence[limiter.Decision], owner: str, fallback: str) -> Decision:
    """The one that matters to the caller: the longest denial, else the least that remains."""
    if len(decisions) == 1:
        one = decisions[0]
    else:
        denials = [decision for decision in decisions if not decision.allowed]
        one = (
            max(denials, key=lambda decision: decision.retry_after)
            if denials
            else min(decisions, key=lambda decision: decision.remaining)
        )
    return Decision(one.allowed, one.limit, one.remaining, one.reset_after, one.retry_after, owner, fallback)


def _without_nodes(limit: Limit, key: bytes, cost: int) -> Decision:
    if limit.on_unavailable == "local":
        return _binding(_process.hit(key, limit.rules, cost), "", "process")
    rule = min(limit.rules, key=lambda rule: rule.limit)
    if limit.on_unavailable == "allow":
        return Decision(True, rule.limit, rule.limit, 0.0, 0.0, "", "allow")
    # Until when is unknown; a second is when the next attempt may well succeed.
    return Decision(False, rule.limit, 0, 1.0, 1.0, "", "deny")


class ProcessLimits:
    """What this process counts by itself while no node answers. Forgotten when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Store[limiter.State] = Store(PROCESS_MAX_BYTES, size_of=limiter.state_bytes)

    def hit(self, key: bytes, rules: Sequence[Rule], cost: int) -> list[limiter.Decision]:
        now = time.monotonic()
        with self._lock:
            self._store.expire(now)
            return limiter.hit(self._store, key, rules, cost, now)[0]


_process = ProcessLimits()
