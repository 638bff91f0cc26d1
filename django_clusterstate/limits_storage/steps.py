"""What is asked of a storage, and what its answers mean, as generators that do no I/O: a face carries their steps out.

The storage holds the counts; `core.limiter` says what follows from them, as it does for a node.
"""

import math
import time
from collections.abc import Callable, Generator
from operator import methodcaller
from typing import Any, TypeAlias, TypeVar

from ..core import limiter
from ..core.limiter import Algorithm, Decision, Rule, State

ROUNDING = 0.5  # seconds by which a time to live in whole seconds may be too short

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


def hit(counters: Counters, cost: int) -> Steps[list[Decision]]:
    rules = [rule for rule, _ in counters]
    states = yield from _states(counters)
    decisions, counted = limiter.decide_all(rules, states, cost, 0.0)
    if counted is None or not cost:
        return decisions
    for i, counter in enumerate(counters):
        before = yield from _count(counter, states[i], cost)
        if before is None:
            for earlier in counters[:i]:
                yield _give_back(earlier, cost)
            states[i] = _full(rules[i], states[i])
            break
        states[i] = before
    return limiter.decide_all(rules, states, cost, 0.0)[0]


def peek(counters: Counters, cost: int) -> Steps[list[Decision]]:
    rules = [rule for rule, _ in counters]
    states = yield from _states(counters)
    decisions, _ = limiter.decide_all(rules, states, cost, 0.0)
    return [
        limiter.decide(rule, state, 0, 0.0)[0] if decision.allowed else decision
        for rule, state, decision in zip(rules, states, decisions, strict=True)
    ]


def refund(counters: Counters, cost: int) -> Steps[None]:
    for counter in counters:
        yield _give_back(counter, cost)


def reset(counters: Counters) -> Steps[None]:
    for rule, name in counters:
        if rule.algorithm is Algorithm.FIXED_WINDOW:
            yield methodcaller("clear", name)
        else:
            yield methodcaller("clear_sliding_window", name, seconds_of(rule))


def _states(counters: Counters) -> Steps[list[State]]:
    """What was counted, as the states of `core.limiter`, on a clock that reads 0 now."""
    states: list[State] = []
    for rule, name in counters:
        seconds = seconds_of(rule)
        if rule.algorithm is Algorithm.FIXED_WINDOW:
            used = yield methodcaller("get", name)
            left = (yield methodcaller("get_expiry", name)) - time.time() + ROUNDING if used else 0.0
            states.append((min(max(left, ROUNDING), seconds), 0.0, used) if used else (0.0, 0.0, 0))
        else:
            previous, previous_left, current, current_left = yield methodcaller("get_sliding_window", name, seconds)
            elapsed = 2 * seconds - current_left if current_left else seconds - previous_left if previous_left else 0
            states.append((-max(elapsed, 0.0), previous, current))
    return states


def _count(counter: Counter, state: State, cost: int) -> Steps[State | None]:
    """Counts a hit, and returns the state that it came upon; None, and it isn't counted, if others were faster."""
    rule, name = counter
    if rule.algorithm is Algorithm.FIXED_WINDOW:
        used = yield methodcaller("incr", name, seconds_of(rule), cost)
        if used <= rule.limit:
            return (state[0] or rule.period, 0.0, used - cost)
        yield _give_back(counter, cost)
        return None
    counted = yield methodcaller("acquire_sliding_window_entry", name, rule.limit, seconds_of(rule), cost)
    return state if counted else None


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


def _full(rule: Rule, state: State) -> State:
    """The same, when nothing is left of the limit."""
    since = state[0] or rule.period if rule.algorithm is Algorithm.FIXED_WINDOW else state[0]
    return (since, state[1], rule.limit)


def as_counted(rule: Rule) -> Rule:
    """There are no token buckets, and no fractions of a second, in these storages."""
    algorithm = Algorithm.FIXED_WINDOW if rule.algorithm is Algorithm.FIXED_WINDOW else Algorithm.SLIDING_WINDOW
    return Rule(algorithm, rule.limit, float(math.ceil(rule.period)))


def seconds_of(rule: Rule) -> int:
    return int(rule.period)
