"""States of limits on two nodes: sent with durations in place of instants, and merged where both have counted."""

import math
from collections.abc import Iterator
from typing import Final

from ..replication.messages import Record
from ..replication.slots import SlotSet
from ..replication.versions import NONE
from .algorithms import (
    MAX_LIMIT,
    MAX_PERIOD,
    MIN_PERIOD,
    RULE_BYTES,
    Algorithm,
    LimitState,
    Rule,
    algorithm_of,
    rule_of,
    slot_of_state,
)  # fmt: skip
from .store import LimitStore

MAX_KEY_BYTES: Final = 1024  # without the rule
_MAX_COUNT: Final = 2**63 - 1
_ROUNDING: Final = 1.0  # seconds by which a state may seem to outlive its period

# Which of the first four numbers of a state are instants: 1.0.
_INSTANTS: Final[dict[int, tuple[float, float, float, float]]] = {
    Algorithm.FIXED_WINDOW: (1.0, 0.0, 0.0, 0.0),
    Algorithm.SLIDING_WINDOW: (1.0, 1.0, 1.0, 1.0),
    Algorithm.TOKEN_BUCKET: (1.0, 1.0, 0.0, 0.0),
}


def shifted(algorithm: int, state: LimitState, seconds: float) -> LimitState:
    """The state with its instants later by `seconds`: `-now` makes them durations, and the `now` of another node makes
    those instants of its clock."""
    first, second, third, fourth = _INSTANTS[algorithm]
    return (
        state[0] + first * seconds, state[1] + second * seconds, state[2] + third * seconds,
        state[3] + fourth * seconds, state[4], state[5],
    )  # fmt: skip


def merged(rule: Rule, one: LimitState, other: LimitState, now: float) -> LimitState:
    """A state that allows no hit which either of the two denies. Hits that both have counted count once."""
    if rule.algorithm is Algorithm.TOKEN_BUCKET:
        return max(one, other, key=lambda state: _debt(rule, state, now))
    return (
        max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]),
        max(one[4], other[4]), max(one[5], other[5]),
    )  # fmt: skip


def _debt(rule: Rule, state: LimitState, now: float) -> float:
    """Hits that haven't been refilled; less than 0 if the bucket has been full for a while."""
    owed = state[4] - (now - state[1]) * rule.limit / rule.period
    return owed if owed > 0 else -math.inf


class LimitCopies:
    """The `Store` of a node's limits. A record's value is the state with durations in place of instants. It expires
    after the first of them, so a record needs no ttl."""

    merges = True

    def __init__(self, kind: int, store: LimitStore) -> None:
        self.kind = kind
        self._store = store

    @property
    def generation(self) -> int:
        return self._store.generation

    @generation.setter
    def generation(self, generation: int) -> None:
        self._store.generation = generation

    @property
    def floor(self) -> int:
        return self._store.floor

    def slot(self, key: bytes) -> int:
        return slot_of_state(key)

    def version(self, key: bytes) -> int:
        return self._store.version(key)

    def record(self, key: bytes, now: float) -> Record:
        state = self._store.state(key, now)
        return Record(self.kind, key, self._store.version(key), None if state is None else _sent(key, state, now))

    def check(self, record: Record) -> None:
        if len(record.key) > MAX_KEY_BYTES + RULE_BYTES:
            raise ValueError(f"the key of a copied limit has {len(record.key) - RULE_BYTES} bytes, too many")
        rule, state = rule_of(record.key), record.value
        if not (0 < rule.limit <= MAX_LIMIT and MIN_PERIOD <= rule.period <= MAX_PERIOD):
            raise ValueError(f"the rule of a copied limit is out of bounds: {rule}")
        if state is not None and not _is_state(rule, state):
            raise ValueError(f"the state of a copied limit is malformed or out of bounds: {state!r:.200}")

    def put(self, record: Record, now: float) -> None:
        state = None if record.value is None else _received(record, now)
        self._store.put(record.key, state, record.version, now)

    def confirm(self, key: bytes) -> None:
        self._store.confirm(key)

    def merged(self, record: Record, now: float) -> Record | None:
        here = self._store.state(record.key, now)
        if here is None:
            return None
        both = merged(rule_of(record.key), _received(record, now), here, now)
        if both == here and record.version < self.version(record.key):
            return None
        return Record(self.kind, record.key, NONE, _sent(record.key, both, now))

    def drop(self, key: bytes) -> None:
        self._store.drop(key)

    def forget(self, slots: SlotSet) -> None:
        self._store.forget(slots)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        return self._store.keys(slots)

    def clear(self, namespace: bytes, version: int, now: float) -> None:
        """Limits are in no namespace."""


def _sent(key: bytes, state: LimitState, now: float) -> LimitState:
    return shifted(algorithm_of(key), state, -now)


def _received(record: Record, now: float) -> LimitState:
    return shifted(algorithm_of(record.key), record.value, now)


def _is_state(rule: Rule, state: object) -> bool:
    """Whether this is a state with durations."""
    if not isinstance(state, list | tuple) or len(state) != 6:
        return False
    *numbers, count = state
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        return False
    if type(count) is not int or not 0 <= count <= _MAX_COUNT:
        return False
    return bool(0 < numbers[0] <= rule.period + _ROUNDING and numbers[4] >= 0)
