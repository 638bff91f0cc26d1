"""Three rate-limiting algorithms, as pure functions from (rule, state, cost, now) to a decision.

For each of them: `limit` hits pass at once on a key that has none, a client whose hits are `period / limit` apart or
more is never denied, and no `retry_after` is longer than the period.

Times are seconds on the owner's monotonic clock, as floats; `now` never goes backwards.

Arithmetic in doubles is inexact, so an instant is taken as reached TOLERANCE before it: a hit at `now +
retry_after` passes, and a bucket is full a period after it was emptied. Below a million hits a second that
lets no extra hit through; above, it is held to half a hit.
"""

import enum
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final, Protocol, TypeAlias

import msgspec

from ..rendezvous_hashing import slot_of

# Seconds. Above the spacing of doubles for any uptime (0.1 us at 30 years), below anything a network shows.
TOLERANCE: Final = 1e-6

MAX_LIMIT: Final = 2**53
MIN_PERIOD: Final = 1e-3  # seconds
MAX_PERIOD: Final = 1e14

MAX_RULES: Final = 256  # in a `RecentRules`: a site has a few dozen

# When it expires, three more instants, an amount and a count, whose meaning depends on the algorithm. A store reads
# only the first.
LimitState: TypeAlias = tuple[float, float, float, float, float, int]
Evaluation: TypeAlias = tuple["RuleDecision", LimitState | None, float]


class Algorithm(enum.IntEnum):
    """How hits are counted. The numbers are on the wire."""

    FIXED_WINDOW = 0
    """`limit` hits in a window that opens at the key's first hit. Cheapest; up to twice the limit across the
    end of a window."""
    SLIDING_WINDOW = 1
    """Never more than `limit` hits in any `period` seconds, and the whole limit again a period after the last of
    them: a log of hits in constant space, which may keep a hit of bursts for somewhat longer."""
    TOKEN_BUCKET = 2
    """A burst of `limit`, refilled evenly at limit / period. Also known as a leaky bucket, or GCRA."""

    __hash__ = int.__hash__  # an Enum's own is slower than all the rest of a Rule's


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """`limit` hits (0 denies all) per `period` seconds. The bounds are checked when a rule is decoded, not here."""

    algorithm: Algorithm
    limit: Annotated[int, msgspec.Meta(ge=0, le=MAX_LIMIT)]
    period: Annotated[float, msgspec.Meta(ge=MIN_PERIOD, le=MAX_PERIOD)]


class RuleDecision(msgspec.Struct, frozen=True, array_like=True):
    """The decision about one hit under one rule. Durations are seconds."""

    allowed: bool
    limit: int
    remaining: int
    """Hits that would pass now, after this one; >= 0."""
    reset_after: float
    """Until the whole limit is available again, if nothing else hits."""
    retry_after: float
    """Until the same cost passes, if nothing else hits; 0 when allowed. The rule's period when the cost is above the
    limit."""


def decide(rule: Rule, state: LimitState | None, cost: int, now: float) -> Evaluation:
    """Decides one hit of `cost` at `now`, given the key's state (None: never hit, or forgotten).

    Returns the decision, the state after it, and the seconds for which that state matters (its ttl; 0: forget
    it). Store the state only if the hit is to count. A denied hit consumes nothing: its state equals the one
    given.

    A cost of 0 is a peek: it changes nothing, and is allowed unless the limit is 0. A cost above the limit is always
    denied. Callers reject a negative cost. A state belongs to one rule: store the states of different rules under
    different keys.
    """
    if not rule.limit:
        return RuleDecision(False, 0, 0, 0.0, rule.period), state, 0.0
    return _ALGORITHMS[rule.algorithm](rule, state, cost, now)


def decide_all(
    rules: Sequence[Rule], states: Sequence[LimitState | None], cost: int, now: float
) -> tuple[list[RuleDecision], list[tuple[LimitState | None, float]] | None]:
    """Decides one hit under several rules, all or nothing: it counts in each only if each allows it.

    `states` holds one state per rule, in the same order. Returns one decision per rule, and the (state, ttl)
    pairs to store; None instead when a rule denied. The other rules' decisions are then `allowed`, with what
    remains if this hit isn't counted.
    """
    outcomes = [decide(rule, state, cost, now) for rule, state in zip(rules, states, strict=True)]
    decisions = [decision for decision, _, _ in outcomes]
    if all(decision.allowed for decision in decisions):
        return decisions, [(state, ttl) for _, state, ttl in outcomes]
    for i, decision in enumerate(decisions):
        if decision.allowed:
            decisions[i] = decide(rules[i], states[i], 0, now)[0]
    return decisions, None


class StateStore(Protocol):
    """Where the states of keys are kept: a `LimitStore`, or another object with these methods."""

    def get(self, key: bytes, now: float) -> LimitState | None: ...
    def set(self, key: bytes, state: LimitState, now: float) -> None: ...
    def delete(self, key: bytes, now: float) -> bool: ...


def hit(store: StateStore, key: bytes, rules: Sequence[Rule], cost: int, now: float) -> tuple[list[RuleDecision], bool]:
    """Decides a hit on a key whose states are in `store`, and counts it if every rule allows it. Returns one decision
    per rule, and whether all rules allow it."""
    if len(rules) == 1:  # nearly always
        state_key = key_of_state(key, rules[0])
        decision, state, _ = decide(rules[0], store.get(state_key, now), cost, now)
        if decision.allowed and cost and state is not None:
            store.set(state_key, state, now)
        return [decision], decision.allowed
    keys = [key_of_state(key, rule) for rule in rules]
    decisions, after = decide_all(rules, [store.get(state_key, now) for state_key in keys], cost, now)
    if after is None:
        return decisions, False
    if cost:
        for state_key, (state, _) in zip(keys, after, strict=True):
            if state is not None:
                store.set(state_key, state, now)
    return decisions, True


def peek(store: StateStore, key: bytes, rules: Sequence[Rule], cost: int, now: float) -> list[RuleDecision]:
    """The decisions that `hit()` would return now, with `remaining` as it is without this hit. Nothing is counted."""
    states = [store.get(key_of_state(key, rule), now) for rule in rules]
    decisions, _ = decide_all(rules, states, cost, now)
    return [
        decide(rule, state, 0, now)[0] if decision.allowed else decision
        for rule, state, decision in zip(rules, states, decisions, strict=True)
    ]


class RecentRules(OrderedDict[Rule, None]):
    """The distinct rules under which states were created last, MAX_RULES at most. A state's key contains its rule, so
    the states of a key are found only under known rules."""

    def note(self, rules: Sequence[Rule]) -> None:
        for rule in rules:
            self[rule] = None
            self.move_to_end(rule)
            if len(self) > MAX_RULES:
                self.popitem(last=False)


def find(store: StateStore, key: bytes, rules: Iterable[Rule], now: float) -> list[tuple[Rule, RuleDecision]]:
    """The rules under which a key has a state, each with the decision that `peek()` gives for a cost of 1.

    So `limit - remaining` hits are counted, and a denied key is allowed again after `retry_after`.
    """
    held = (rule for rule in rules if store.get(key_of_state(key, rule), now) is not None)
    return [(rule, peek(store, key, [rule], 1, now)[0]) for rule in held]


def reset(store: StateStore, key: bytes, rules: Sequence[Rule], now: float) -> list[bool]:
    """Forgets all hits of a key under these rules. Returns for each rule whether there were any."""
    return [store.delete(key_of_state(key, rule), now) for rule in rules]


def refund(store: StateStore, key: bytes, rules: Sequence[Rule], cost: int, at: float, now: float) -> None:
    """Takes back a hit of `cost` that was counted at `at` under these rules, as far as it still counts.

    Hits that have expired or been refilled since then aren't credited again, so no rule admits more than it would
    without that hit.
    """
    for rule in dict.fromkeys(rules):  # a rule that is given twice was counted once
        state_key = key_of_state(key, rule)
        state = store.get(state_key, now)
        if state is None:
            continue
        left = _REFUNDS[rule.algorithm](rule, state, cost, at, now)
        if decide(rule, left, 0, now)[2] > 0:
            store.set(state_key, left, now)
        else:
            store.delete(state_key, now)


def key_of_state(key: bytes, rule: Rule) -> bytes:
    return key + _RULE.pack(rule.algorithm, rule.limit, rule.period)


# Of fixed length, so no two pairs of key and rule give the same bytes.
_RULE: Final = struct.Struct("<BQd")
RULE_BYTES: Final = _RULE.size  # of a state's key, at its end


def rule_of(state_key: bytes) -> Rule:
    """The rule of a state. ValueError if the key contains none."""
    if len(state_key) < RULE_BYTES:
        raise ValueError(f"the key of a limit has no rule: {state_key!r}")
    algorithm, limit, period = _RULE.unpack_from(state_key, len(state_key) - RULE_BYTES)
    return Rule(Algorithm(algorithm), limit, period)


def algorithm_of(state_key: bytes) -> int:
    """The number of the algorithm of a state, whose key contains a rule."""
    return state_key[-RULE_BYTES]


def slot_of_state(state_key: bytes) -> int:
    """The slot of a state: that of the key which is limited, under whichever rule."""
    return slot_of(state_key[:-RULE_BYTES])


_COARSE: Final = 0.5 / TOLERANCE  # hits a second above which TOLERANCE is more than half a hit


def _fixed_window(rule: Rule, state: LimitState | None, cost: int, now: float) -> Evaluation:
    # State: (end of the window, 0, 0, 0, 0, hits in the window).
    limit = rule.limit
    end, used = (now, 0) if state is None else (state[0], state[5])
    left = end - now
    if left <= TOLERANCE:
        left, used = 0.0, 0
    if used + cost > limit:
        retry = rule.period if cost > limit else left
        return RuleDecision(False, limit, max(limit - used, 0), left, retry), state, left
    if not cost:
        return RuleDecision(True, limit, limit - used, left, 0.0), state, left
    if not used:
        left = rule.period
        end = now + left
    used += cost
    return RuleDecision(True, limit, limit - used, left, 0.0), (end, 0.0, 0.0, 0.0, 0.0, used), left


def _sliding_window(rule: Rule, state: LimitState | None, cost: int, now: float) -> Evaluation:
    # `current` + `share` is an upper bound of the hits in the last period, and is kept to the limit. Hits are in two
    # runs: one that began at most a period ago, of which each hit counts, and the one before it. Of that run, at most
    # these hits count:
    #   - all of them, until its last hit has left the window, at `edge`; and
    #   - those of an even rate of limit / period from the beginning of the window to `even`, the run's theoretical
    #     arrival time: as in GCRA, each hit moves that on by period / limit from where it was, or from now if that is
    #     later. So there were fewer than (even - t) * limit / period hits after any time t before it.
    # For evenly spaced hits the second is exact, and for a burst the first, so the bound denies neither. The arrival
    # time of the current run is computed from `base` and its number of hits, since a float summed up hit by hit drifts.
    # State: (a period after the last hit, base, even, edge, hits in the run before, hits in this one).
    limit = rule.limit
    period = rule.period
    share = 0
    if state is None or now >= state[0] - TOLERANCE:
        until = base = even = now
        edge = now + period
        previous, current = 0.0, 0
    else:
        until, base, even, edge, previous, current = state
        if now >= edge - TOLERANCE:
            base += current * period / limit
            even = base
            edge, previous, current = until, current, 0
        if previous:
            bound = (even + period - now - TOLERANCE) * limit / period
            if limit > _COARSE * period:
                bound += (TOLERANCE * limit / period) - 0.5
            if bound > previous:
                share = int(previous)
            elif bound > 0:
                share = math.ceil(bound) - 1  # the whole number below it
    room = limit - current - share
    if 0 < cost <= room:
        idle = now - current * period / limit
        base = idle if idle > base else base  # later if the theoretical arrival time has passed
        after = (now + period, base, even, edge, previous, current + cost)
        return RuleDecision(True, limit, room - cost, period, 0.0), after, period
    reset = _sliding_reset(until, edge, previous, current, now)
    room = max(room, 0)
    if not cost:
        return RuleDecision(True, limit, room, reset, 0.0), state, reset
    if cost > limit:
        return RuleDecision(False, limit, room, reset, period), state, reset
    spare = limit - cost
    if current <= spare:
        # When the share of the run before has fallen to the spare hits of this one.
        allowed_at = min(even + period - (spare - current + 1) * period / limit, edge)
    else:
        # When this run is the one before, and its share has fallen.
        allowed_at = max(min(base + (current - spare - 1) * period / limit + period, until), edge)
    return RuleDecision(False, limit, room, reset, allowed_at - now), state, reset


def _sliding_reset(until: float, edge: float, previous: float, current: int, now: float) -> float:
    if current:
        return until - now
    return edge - now if previous else 0.0


def _token_bucket(rule: Rule, state: LimitState | None, cost: int, now: float) -> Evaluation:
    # GCRA (ATM Forum TM 4.0; ITU-T I.371): a theoretical arrival time moves on by an emission interval,
    # period / limit, at each hit, and may be ahead of now by a period at most. It is kept in two parts, because a float
    # summed up hit by hit drifts, and then `limit` hits don't pass, or one more does.
    # State: (when the bucket is full again, when it was last full, 0, 0, hits since then, 0).
    limit = rule.limit
    period = rule.period
    since, hits = (now, 0.0) if state is None else (state[1], state[4])
    owed = hits - (now - since) * limit / period
    if owed <= 0:
        since, hits, owed = now, 0.0, 0.0
    tolerance = TOLERANCE * limit / period  # in hits
    room = limit - owed + (tolerance if tolerance < 0.5 else 0.5)
    if cost and cost <= room:
        reset = (owed + cost) * period / limit
        return (
            RuleDecision(True, limit, int(room - cost), reset, 0.0),
            (now + reset, since, 0.0, 0.0, hits + cost, 0),
            reset,
        )
    reset = owed * period / limit
    remaining = int(room) if room > 0 else 0
    if not cost:
        return RuleDecision(True, limit, remaining, reset, 0.0), state, reset
    retry = period if cost > limit else (owed + cost - limit) * period / limit
    return RuleDecision(False, limit, remaining, reset, retry), state, reset


def _refund_fixed_window(rule: Rule, state: LimitState, cost: int, at: float, now: float) -> LimitState:
    end, used = state[0], state[5]
    if at <= end - rule.period - TOLERANCE:
        return state
    return (end, 0.0, 0.0, 0.0, 0.0, max(used - cost, 0))


def _refund_sliding_window(rule: Rule, state: LimitState, cost: int, at: float, now: float) -> LimitState:
    until, base, even, edge, previous, current = state
    if at <= now - rule.period:
        return state
    if previous and (not current or at <= edge - rule.period + TOLERANCE):  # up to the last hit of the run before
        return (until, base, even, edge, max(previous - cost, 0.0), current)
    # As in a token bucket, the theoretical arrival time goes back only by what hasn't passed since the hit.
    back = min(cost, current)
    base += min(back * rule.period / rule.limit, now - at)
    return (until, base, even, edge, previous, current - back)


def _refund_token_bucket(rule: Rule, state: LimitState, cost: int, at: float, now: float) -> LimitState:
    # What was refilled since the hit may be due to it (a full bucket takes nothing), so only the rest is credited.
    _, since, _, _, hits, _ = state
    if at <= since - TOLERANCE:
        return state
    hits -= max(cost - (now - at) * rule.limit / rule.period, 0.0)
    return (since + hits * rule.period / rule.limit, since, 0.0, 0.0, hits, 0)


# Indexed by Algorithm.
_ALGORITHMS: Final[tuple[Callable[[Rule, LimitState | None, int, float], Evaluation], ...]] = (
    _fixed_window,
    _sliding_window,
    _token_bucket,
)
_REFUNDS: Final[tuple[Callable[[Rule, LimitState, int, float, float], LimitState], ...]] = (
    _refund_fixed_window,
    _refund_sliding_window,
    _refund_token_bucket,
)
