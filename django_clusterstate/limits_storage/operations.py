"""What is asked of a storage, and what its answers mean, as generators that do no I/O: a face carries their steps out.

The storage holds the counts; `core.limiter` says what follows from them, as it does for a node. Fixed windows are those
of `limits`. Sliding windows are counted by a script of ours where the engine runs scripts (Redis, Valkey); on Memcached
`limits` keeps two buckets, and decides by an estimate, which `estimate` follows.
"""

import math
import time
from collections.abc import Callable, Generator
from operator import methodcaller
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..core.limits import algorithms
from ..core.limits.algorithms import Algorithm, LimitState, Rule, RuleDecision
from . import scripts

ROUNDING = 0.5  # seconds by which a time to live in whole seconds may be too short
GRAIN = 0.001  # seconds: the clock of these storages

T = TypeVar("T")
Step: TypeAlias = Callable[[Any], Any]  # called with a storage; what it returns is awaited by the asyncio face
Steps: TypeAlias = Generator[Step, Any, T]


class Counter(NamedTuple):
    """A rule as it is counted in a storage, the name under which it is, and whether by a script of ours."""

    rule: Rule
    name: str
    scripted: bool


class Kept(NamedTuple):
    """A state of `core.limiter`, and the time."""

    state: LimitState | None
    now: float


class Buckets(NamedTuple):
    """A sliding window of `limits`: the start of the current bucket, seconds from now, and the hits in both."""

    start: float
    previous: int
    current: int


Counters: TypeAlias = list[Counter]
Known: TypeAlias = Kept | Buckets


def hit(counters: Counters, cost: int) -> Steps[list[RuleDecision]]:
    known = yield from _look(counters)
    decisions = _decide_all(counters, known, cost)
    if not cost or not all(decision.allowed for decision in decisions):
        return decisions
    for i, counter in enumerate(counters):
        counted, known[i] = yield from _count(counter, known[i], cost)
        if not counted:
            for earlier in counters[:i]:
                yield _give_back(earlier, cost)
            break
    return _decide_all(counters, known, cost)


def peek(counters: Counters, cost: int) -> Steps[list[RuleDecision]]:
    known = yield from _look(counters)
    return [
        _decide(counter.rule, one, 0) if decision.allowed else decision
        for counter, one, decision in zip(counters, known, _decide_all(counters, known, cost), strict=True)
    ]


def refund(counters: Counters, cost: int, ago: float) -> Steps[None]:
    for counter in counters:
        yield _give_back(counter, cost, ago)


def reset(counters: Counters) -> Steps[bool]:
    """Whether anything was counted, of what the storage still had when it was asked."""
    known = yield from _look(counters)
    for counter in counters:
        if counter.rule.algorithm is Algorithm.FIXED_WINDOW:
            yield methodcaller("clear", counter.name)
        elif counter.scripted:
            yield _clear(counter)
        else:
            yield methodcaller("clear_sliding_window", counter.name, seconds_of(counter.rule))
    return any(_is_counted(one) for one in known)


def _is_counted(known: Known) -> bool:
    if isinstance(known, Buckets):
        return bool(known.previous or known.current)
    return known.state is not None and bool(known.state[4] or known.state[5])


def _decide_all(counters: Counters, known: list[Known], cost: int) -> list[RuleDecision]:
    """As `algorithms.decide_all`: a rule that would allow what another denies shows what remains without this hit."""
    rules = [counter.rule for counter in counters]
    decisions = [_decide(rule, one, cost) for rule, one in zip(rules, known, strict=True)]
    if all(decision.allowed for decision in decisions):
        return decisions
    return [
        _decide(rule, one, 0) if decision.allowed else decision
        for rule, one, decision in zip(rules, known, decisions, strict=True)
    ]


def _decide(rule: Rule, known: Known, cost: int) -> RuleDecision:
    if isinstance(known, Kept):
        return algorithms.decide(rule, known.state, cost, known.now)[0]
    return estimate(rule, known, cost) if rule.limit else algorithms.decide(rule, None, cost, 0.0)[0]


def estimate(rule: Rule, buckets: Buckets, cost: int) -> RuleDecision:
    """What the storages of `limits` decide of a sliding window: the previous bucket counts by the share of it that the
    window still covers, rounded down."""
    start, previous, current = buckets
    limit, period, elapsed = rule.limit, rule.period, -start
    if elapsed >= period:
        elapsed, previous, current = elapsed - period, current, 0
    if elapsed >= period:
        elapsed, previous = 0.0, 0
    room = max(limit - current - math.floor(previous * (1.0 - elapsed / period)), 0)
    if cost <= room:
        reset = 2 * period - elapsed if current or cost else period - elapsed if previous else 0.0
        return RuleDecision(True, limit, room - cost, reset, 0.0)
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
    return RuleDecision(False, limit, room, reset, retry)


def _look(counters: Counters) -> Steps[list[Known]]:
    known: list[Known] = []
    for counter in counters:
        rule, name, scripted = counter
        seconds = seconds_of(rule)
        if rule.algorithm is Algorithm.FIXED_WINDOW:
            used = yield methodcaller("get", name)
            left = (yield methodcaller("get_expiry", name)) - time.time() + ROUNDING if used else 0.0
            known.append(_window(min(max(left, ROUNDING), seconds), used) if used else Kept(None, 0.0))
        elif scripted:
            known.append(_kept((yield _run_sliding(counter, 0))))
        else:
            previous, previous_left, current, current_left = yield methodcaller("get_sliding_window", name, seconds)
            elapsed = 2 * seconds - current_left if current_left else seconds - previous_left if previous_left else 0
            known.append(Buckets(-max(elapsed, 0.0), previous, current))
    return known


def _window(end: float, used: int) -> Kept:
    """A fixed window, on a clock that reads 0 now."""
    return Kept((end, 0.0, 0.0, 0.0, 0.0, used), 0.0)


def _kept(answer: list[Any]) -> Kept:
    """What `scripts.SLIDING_WINDOW` answers."""
    now, state = float(answer[1]), [float(number) for number in answer[2:]]
    if not state:
        return Kept(None, now)
    until, base, even, edge, previous, current = state
    return Kept((until, base, even, edge, previous, int(current)), now)


def _count(counter: Counter, known: Known, cost: int) -> Steps[tuple[bool, Known]]:
    """Counts a hit, and returns what it came upon. It isn't counted if others were faster: then nothing is left."""
    rule, name, scripted = counter
    if isinstance(known, Buckets):
        counted = yield methodcaller("acquire_sliding_window_entry", name, rule.limit, seconds_of(rule), cost)
        return counted, known if counted else known._replace(current=rule.limit)
    if scripted and rule.algorithm is not Algorithm.FIXED_WINDOW:
        answer = yield _run_sliding(counter, cost)
        return bool(answer[0]), _kept(answer)
    end = known.state[0] if known.state is not None else rule.period
    used = yield methodcaller("incr", name, seconds_of(rule), cost)
    if used <= rule.limit:
        return True, _window(end, used - cost)
    yield _give_back(counter, cost)
    return False, _window(end, rule.limit)


# The steps below do what `limits` hasn't, with its clients. The asynchronous ones stand behind a bridge.


def _run_sliding(counter: Counter, cost: int) -> Step:
    rule, name, _ = counter

    def sliding_window(storage: Any) -> Any:
        behind = getattr(storage, "bridge", storage)
        # By the script's digest; the client sends its text where the engine doesn't know it.
        if (script := vars(behind).get("clusterstate_script")) is None:
            script = behind.clusterstate_script = behind.get_connection().register_script(scripts.SLIDING_WINDOW)
        return script(keys=[behind.prefixed_key(name)], args=[rule.limit, rule.period, cost])

    return sliding_window


def _clear(counter: Counter) -> Step:
    def clear(storage: Any) -> Any:
        behind = getattr(storage, "bridge", storage)
        return behind.get_connection().delete(behind.prefixed_key(counter.name))

    return clear


def _give_back(counter: Counter, cost: int, ago: float = 0.0) -> Step:
    rule, name, scripted = counter
    sliding = rule.algorithm is not Algorithm.FIXED_WINDOW

    def give_back(storage: Any) -> Any:
        behind = getattr(storage, "bridge", storage)
        if scripted:
            client, key = behind.get_connection(), behind.prefixed_key(name)
            if sliding:
                return client.eval(scripts.GIVE_BACK_SLIDING, 1, key, cost, rule.limit, rule.period, ago)
            return client.eval(scripts.GIVE_BACK, 1, key, cost)
        key = storage.sliding_window_keys(name, seconds_of(rule), time.time())[1] if sliding else name
        return (storage.storage if behind is storage else behind).decr(key, cost)

    return give_back


def as_counted(rule: Rule) -> Rule:
    """There are no token buckets, and no fractions of a second, in these storages."""
    algorithm = Algorithm.FIXED_WINDOW if rule.algorithm is Algorithm.FIXED_WINDOW else Algorithm.SLIDING_WINDOW
    return Rule(algorithm, rule.limit, float(math.ceil(rule.period)))


def seconds_of(rule: Rule) -> int:
    return int(rule.period)
