"""Hits, peeks, refunds and resets on the engine of LIMITS_STORAGE, as operations (see `client.operations`).

The engine holds the counts, and `core.limits.algorithms` decides by them, as in a node. Fixed windows are those of the
package `limits`. Sliding windows are counted by a Lua script where the engine runs scripts (Redis, Valkey); on
Memcached `limits` keeps two buckets and decides by an estimate, which `estimate()` reproduces.

A hit on several rules isn't atomic: all are read first, and then counted one after the other.
"""

import asyncio
import math
import time
from collections.abc import Callable
from operator import methodcaller
from typing import Any, NamedTuple, TypeAlias

from ..client.operations import Operation
from ..core.limits import algorithms
from ..core.limits.algorithms import Algorithm, LimitState, Rule, RuleDecision
from . import scripts
from .engines import EngineClient

ROUNDING = 0.5  # seconds by which a time to live in whole seconds may be too short
CLOCK_RESOLUTION = 0.001  # seconds, of the engines


class CallEngine(NamedTuple):
    """Calls a function with the storage of the package `limits` and further arguments. The result is that of the
    function. Raises the errors of the engine's driver."""

    function: Callable[..., Any]  # returns an awaitable for an asyncio storage
    args: tuple[Any, ...] = ()

    def run(self, client: EngineClient) -> Any:
        return self.function(client.storage, *self.args)

    async def arun(self, client: EngineClient) -> Any:
        async with asyncio.timeout(client.deadline):  # some pools open several connections one after the other
            return await self.function(client.storage, *self.args)


class Close(NamedTuple):
    """Closes the client's connections. The result is None."""

    def run(self, client: EngineClient) -> None:
        client.close()

    async def arun(self, client: EngineClient) -> None:
        await client.aclose()


class Counter(NamedTuple):
    """A rule as the engine counts it, the name of its counter, and whether a Lua script can count it."""

    rule: Rule
    name: str
    scripted: bool


class StateReading(NamedTuple):
    """A state of `core.limits.algorithms`, and the time."""

    state: LimitState | None
    now: float


class BucketsReading(NamedTuple):
    """A sliding window of `limits`: the start of the current bucket, seconds from now, and the hits in both."""

    start: float
    previous: int
    current: int


Counters: TypeAlias = list[Counter]
Reading: TypeAlias = StateReading | BucketsReading


def hit(counters: Counters, cost: int) -> Operation[list[RuleDecision]]:
    """Counts a hit of `cost` (0 counts nothing) against all rules or none. One decision for each rule."""
    readings = yield from _read_all(counters)
    decisions = _decide_all(counters, readings, cost)
    if not cost or not all(decision.allowed for decision in decisions):
        return decisions
    for i, counter in enumerate(counters):
        counted, readings[i] = yield from _count(counter, readings[i], cost)
        if not counted:
            for earlier in counters[:i]:
                yield CallEngine(_refund, (earlier, cost))
            break
    return _decide_all(counters, readings, cost)


def peek(counters: Counters, cost: int) -> Operation[list[RuleDecision]]:
    """The decisions that a hit would get now; `remaining` and `reset_after` are those before it."""
    readings = yield from _read_all(counters)
    return _without_hit(counters, readings, _decide_all(counters, readings, cost))


def refund(counters: Counters, cost: int, ago: float = 0.0) -> Operation[None]:
    """Takes back a hit of `cost` that was counted `ago` seconds before, as far as it still counts."""
    for counter in counters:
        yield CallEngine(_refund, (counter, cost, ago))


def reset(counters: Counters) -> Operation[bool]:
    """Forgets all hits. Whether there were any."""
    readings = yield from _read_all(counters)
    for counter in counters:
        if counter.rule.algorithm is Algorithm.FIXED_WINDOW:
            yield _call("clear", counter.name)
        elif counter.scripted:
            yield CallEngine(_delete, (counter,))
        else:
            yield _call("clear_sliding_window", counter.name, seconds_of(counter.rule))
    return any(_has_hits(reading) for reading in readings)


def counted_rule(rule: Rule) -> Rule:
    """The rule that an engine counts in the place of `rule`: it has no token buckets and no fractions of a second."""
    algorithm = Algorithm.FIXED_WINDOW if rule.algorithm is Algorithm.FIXED_WINDOW else Algorithm.SLIDING_WINDOW
    return Rule(algorithm, rule.limit, float(math.ceil(rule.period)))


def seconds_of(rule: Rule) -> int:
    return int(rule.period)


# -- decisions ------------------------------------------------------------------------------------------------------


def _has_hits(reading: Reading) -> bool:
    if isinstance(reading, BucketsReading):
        return bool(reading.previous or reading.current)
    return reading.state is not None and bool(reading.state[4] or reading.state[5])


def _decide_all(counters: Counters, readings: list[Reading], cost: int) -> list[RuleDecision]:
    """One decision for each rule. If any denies, the others show what remains without this hit, as those of
    `algorithms.decide_all()` do."""
    decisions = [_decide(counter.rule, one, cost) for counter, one in zip(counters, readings, strict=True)]
    if all(decision.allowed for decision in decisions):
        return decisions
    return _without_hit(counters, readings, decisions)


def _without_hit(counters: Counters, readings: list[Reading], decisions: list[RuleDecision]) -> list[RuleDecision]:
    return [
        _decide(counter.rule, reading, 0) if decision.allowed else decision
        for counter, reading, decision in zip(counters, readings, decisions, strict=True)
    ]


def _decide(rule: Rule, reading: Reading, cost: int) -> RuleDecision:
    if isinstance(reading, StateReading):
        return algorithms.decide(rule, reading.state, cost, reading.now)[0]
    return estimate(rule, reading, cost) if rule.limit else algorithms.decide(rule, None, cost, 0.0)[0]


def estimate(rule: Rule, buckets: BucketsReading, cost: int) -> RuleDecision:
    """The decision of the storages of `limits` on a sliding window: the previous bucket counts by the share of it that
    the window still covers, rounded down."""
    start, previous, current = buckets
    limit, period, elapsed = rule.limit, rule.period, -start
    if elapsed >= period:
        elapsed, previous, current = elapsed - period, current, 0
    if elapsed >= period:
        elapsed, previous = 0.0, 0
    room = max(limit - current - math.floor(previous * (1.0 - elapsed / period)), 0)
    if cost <= room:
        reset = 0.0
        if current or cost:
            reset = 2 * period - elapsed
        elif previous:
            reset = period - elapsed
        return RuleDecision(True, limit, room - cost, reset, 0.0)
    reset = 2 * period - elapsed if current else period - elapsed
    spare = limit - cost
    if spare < 0:
        retry = period
    elif current <= spare:
        # Passes within this bucket, once the share of the previous one leaves room for the cost.
        retry = period * (1.0 - (spare - current + 1) / previous) - elapsed + CLOCK_RESOLUTION
    else:
        # Passes within the next bucket, in which the current one is the previous one.
        retry = period * (1.0 + max(1.0 - (spare + 1) / current, 0.0)) - elapsed + CLOCK_RESOLUTION
    return RuleDecision(False, limit, room, reset, retry)


# -- exchanges with the engine --------------------------------------------------------------------------------------


def _read_all(counters: Counters) -> Operation[list[Reading]]:
    readings: list[Reading] = []
    for counter in counters:
        readings.append((yield from _read(counter)))
    return readings


def _read(counter: Counter) -> Operation[Reading]:
    rule, name, scripted = counter
    seconds = seconds_of(rule)
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        used = yield _call("get", name)
        if not used:
            return StateReading(None, 0.0)
        left = (yield _call("get_expiry", name)) - time.time() + ROUNDING
        return _window(min(max(left, ROUNDING), seconds), used)
    if scripted:
        return _parse_count((yield CallEngine(_run_script, (counter, 0))))
    previous, previous_left, current, current_left = yield _call("get_sliding_window", name, seconds)
    elapsed = 0.0
    if current_left:
        elapsed = 2 * seconds - current_left
    elif previous_left:
        elapsed = seconds - previous_left
    return BucketsReading(-max(elapsed, 0.0), previous, current)


def _window(end: float, used: int) -> StateReading:
    """A fixed window, on a clock that reads 0 now."""
    return StateReading((end, 0.0, 0.0, 0.0, 0.0, used), 0.0)


def _parse_count(reply: list[Any]) -> StateReading:
    """Parses the reply of `scripts.SLIDING_WINDOW`."""
    now, state = float(reply[1]), [float(number) for number in reply[2:]]
    if not state:
        return StateReading(None, now)
    until, base, even, edge, previous, current = state
    return StateReading((until, base, even, edge, previous, int(current)), now)


def _count(counter: Counter, reading: Reading, cost: int) -> Operation[tuple[bool, Reading]]:
    """Counts a hit. Returns whether it was counted, and the engine's count before it: the whole limit, if hits of
    others came first and this one wasn't counted."""
    rule, name, scripted = counter
    if isinstance(reading, BucketsReading):
        counted = yield _call("acquire_sliding_window_entry", name, rule.limit, seconds_of(rule), cost)
        return counted, reading if counted else reading._replace(current=rule.limit)
    if scripted and rule.algorithm is not Algorithm.FIXED_WINDOW:
        reply = yield CallEngine(_run_script, (counter, cost))
        return bool(reply[0]), _parse_count(reply)
    end = reading.state[0] if reading.state is not None else rule.period
    used = yield _call("incr", name, seconds_of(rule), cost)
    if used <= rule.limit:
        return True, _window(end, used - cost)
    yield CallEngine(_refund, (counter, cost))
    return False, _window(end, rule.limit)


def _call(method: str, *args: Any) -> CallEngine:
    return CallEngine(methodcaller(method, *args))


# `limits` lacks the exchanges below, so they use its clients, which asyncio storages have behind a bridge.


def _run_script(storage: Any, counter: Counter, cost: int) -> Any:
    bridge = getattr(storage, "bridge", storage)
    # Called by its digest; the client sends its text if the engine doesn't know it.
    script = vars(bridge).get("clusterstate_script")
    if script is None:
        script = bridge.clusterstate_script = bridge.get_connection().register_script(scripts.SLIDING_WINDOW)
    return script(keys=[bridge.prefixed_key(counter.name)], args=[counter.rule.limit, counter.rule.period, cost])


def _delete(storage: Any, counter: Counter) -> Any:
    bridge = getattr(storage, "bridge", storage)
    return bridge.get_connection().delete(bridge.prefixed_key(counter.name))


def _refund(storage: Any, counter: Counter, cost: int, ago: float = 0.0) -> Any:
    rule, name, scripted = counter
    sliding = rule.algorithm is not Algorithm.FIXED_WINDOW
    bridge = getattr(storage, "bridge", storage)
    if scripted:
        client, key = bridge.get_connection(), bridge.prefixed_key(name)
        if sliding:
            return client.eval(scripts.REFUND_SLIDING_WINDOW, 1, key, cost, rule.limit, rule.period, ago)
        return client.eval(scripts.REFUND_FIXED_WINDOW, 1, key, cost)
    key = storage.sliding_window_keys(name, seconds_of(rule), time.time())[1] if sliding else name
    return (storage.storage if bridge is storage else bridge).decr(key, cost)
