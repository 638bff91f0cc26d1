"""What is asked of a storage, and what its answers mean, as generators that do no I/O: a face carries their steps out.

The storage holds the counts; `core.limiter` says what follows from them for a fixed window, as it does for a node. For
a sliding window the storages of `limits` keep two buckets, and decide by an estimate, which `estimate` follows.
"""

import math
import time
from collections.abc import Callable, Generator
from operator import methodcaller
from typing import Any, TypeAlias, TypeVar

from ..core import limiter
from ..core.limiter import Algorithm, Decision, Rule

ROUNDING = 0.5  # seconds by which a time to live in whole seconds may be too short
GRAIN = 0.001  # seconds: the clock of these storages

# What was counted and is still there, never more: below zero would be a credit.
GIVE_BACK = """
local given = math.min(tonumber(redis.call('get', KEYS[1]) or 0), tonumber(ARGV[1]))
if given > 0 then redis.call('decrby', KEYS[1], given) end
"""

T = TypeVar("T")
Step: TypeAlias = Callable[[Any], Any]  # called with a storage; what it returns is awaited by the asyncio face
Steps: TypeAlias = Generator[Step, Any, T]
Counter: TypeAlias = tuple[Rule, str]  # a rule as it is counted there, and the name under which it is
Counters: TypeAlias = list[Counter]
# What is counted, on a clock that reads 0 now: the end of a fixed window and its hits, or the start of the current of
# two buckets, and the hits in the previous and in the current one.
Counts: TypeAlias = tuple[float, int, int]


def hit(counters: Counters, cost: int) -> Steps[list[Decision]]:
    counts = yield from _counts(counters)
    decisions = _decide_all(counters, counts, cost)
    if not cost or not all(decision.allowed for decision in decisions):
        return decisions
    for i, counter in enumerate(counters):
        before = yield from _count(counter, counts[i], cost)
        if before is None:
            for earlier in counters[:i]:
                yield _give_back(earlier, cost)
            counts[i] = _full(counter[0], counts[i])
            break
        counts[i] = before
    return _decide_all(counters, counts, cost)


def peek(counters: Counters, cost: int) -> Steps[list[Decision]]:
    counts = yield from _counts(counters)
    return [
        _decide(rule, known, 0) if decision.allowed else decision
        for (rule, _), known, decision in zip(counters, counts, _decide_all(counters, counts, cost), strict=True)
    ]


def refund(counters: Counters, cost: int) -> Steps[None]:
    for counter in counters:
        yield _give_back(counter, cost)


def reset(counters: Counters) -> Steps[bool]:
    """Whether anything was counted, of what the storage still had when it was asked."""
    counts = yield from _counts(counters)
    for rule, name in counters:
        if rule.algorithm is Algorithm.FIXED_WINDOW:
            yield methodcaller("clear", name)
        else:
            yield methodcaller("clear_sliding_window", name, seconds_of(rule))
    return any(previous or current for _, previous, current in counts)


def _decide_all(counters: Counters, counts: list[Counts], cost: int) -> list[Decision]:
    """As `limiter.decide_all`: a rule that would allow what another denies shows what remains without this hit."""
    rules = [rule for rule, _ in counters]
    decisions = [_decide(rule, known, cost) for rule, known in zip(rules, counts, strict=True)]
    if all(decision.allowed for decision in decisions):
        return decisions
    return [
        _decide(rule, known, 0) if decision.allowed else decision
        for rule, known, decision in zip(rules, counts, decisions, strict=True)
    ]


def _decide(rule: Rule, counts: Counts, cost: int) -> Decision:
    if rule.algorithm is Algorithm.FIXED_WINDOW or not rule.limit:
        return limiter.decide(rule, (counts[0], 0.0, 0.0, 0.0, 0.0, counts[2]), cost, 0.0)[0]
    return estimate(rule, counts, cost)


def estimate(rule: Rule, counts: Counts, cost: int) -> Decision:
    """What the storages' own scripts decide of a sliding window: the previous bucket counts by the share of it that the
    window still covers, rounded down."""
    start, previous, current = counts
    limit, period, elapsed = rule.limit, rule.period, -start
    if elapsed >= period:
        elapsed, previous, current = elapsed - period, current, 0
    if elapsed >= period:
        elapsed, previous = 0.0, 0
    room = max(limit - current - math.floor(previous * (1.0 - elapsed / period)), 0)
    if cost <= room:
        reset = 2 * period - elapsed if current or cost else period - elapsed if previous else 0.0
        return Decision(True, limit, room - cost, reset, 0.0)
    reset = 2 * period - elapsed if current else period - elapsed
    spare = limit - cost
    if spare < 0:
        retry = period
    elif current <= spare:
        # Passes within this bucket, once less than a hit more than what the current one spares is left of the previous.
        retry = period * (1.0 - (spare - current + 1) / previous) - elapsed + GRAIN
    else:
        # Passes within the next bucket only, where this one is the previous.
        retry = period * (1.0 + max(1.0 - (spare + 1) / current, 0.0)) - elapsed + GRAIN
    return Decision(False, limit, room, reset, retry)


def _counts(counters: Counters) -> Steps[list[Counts]]:
    counts: list[Counts] = []
    for rule, name in counters:
        seconds = seconds_of(rule)
        if rule.algorithm is Algorithm.FIXED_WINDOW:
            used = yield methodcaller("get", name)
            left = (yield methodcaller("get_expiry", name)) - time.time() + ROUNDING if used else 0.0
            counts.append((min(max(left, ROUNDING), seconds), 0, used) if used else (0.0, 0, 0))
        else:
            previous, previous_left, current, current_left = yield methodcaller("get_sliding_window", name, seconds)
            elapsed = 2 * seconds - current_left if current_left else seconds - previous_left if previous_left else 0
            counts.append((-max(elapsed, 0.0), previous, current))
    return counts


def _count(counter: Counter, counts: Counts, cost: int) -> Steps[Counts | None]:
    """Counts a hit, and returns the counts that it came upon; None, and it isn't counted, if others were faster."""
    rule, name = counter
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        used = yield methodcaller("incr", name, seconds_of(rule), cost)
        if used <= rule.limit:
            return (counts[0] or rule.period, 0, used - cost)
        yield _give_back(counter, cost)
        return None
    counted = yield methodcaller("acquire_sliding_window_entry", name, rule.limit, seconds_of(rule), cost)
    return counts if counted else None


def _give_back(counter: Counter, cost: int) -> Step:
    """`limits` has no such thing, so its clients are asked. The asynchronous ones stand behind a bridge."""
    rule, name = counter
    sliding = rule.algorithm is not Algorithm.FIXED_WINDOW

    def step(storage: Any) -> Any:
        behind = getattr(storage, "bridge", storage)
        if hasattr(behind, "prefixed_key"):
            key = behind.prefixed_key(storage._current_window_key(name) if sliding else name)
            return behind.get_connection().eval(GIVE_BACK, 1, key, cost)
        key = storage.sliding_window_keys(name, seconds_of(rule), time.time())[1] if sliding else name
        return (storage.storage if behind is storage else behind).decr(key, cost)

    return step


def _full(rule: Rule, counts: Counts) -> Counts:
    """The same, when nothing is left of the limit."""
    instant, previous, _ = counts
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        instant = instant or rule.period
    return (instant, previous, rule.limit)


def as_counted(rule: Rule) -> Rule:
    """There are no token buckets, and no fractions of a second, in these storages."""
    algorithm = Algorithm.FIXED_WINDOW if rule.algorithm is Algorithm.FIXED_WINDOW else Algorithm.SLIDING_WINDOW
    return Rule(algorithm, rule.limit, float(math.ceil(rule.period)))


def seconds_of(rule: Rule) -> int:
    return int(rule.period)
