"""The simulated cluster with the stores of real nodes."""

import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from django_clusterstate.core.cache.copies import CacheCopies
from django_clusterstate.core.cache.quotas import CacheStores, Value
from django_clusterstate.core.cache.store import CacheStore
from django_clusterstate.core.limits import algorithms
from django_clusterstate.core.limits.copies import LimitCopies
from django_clusterstate.core.limits.store import LimitStore
from django_clusterstate.core.rendezvous_hashing import slot_of
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.core.replication.stores import keys_in
from tests.core.membership.simulation import Node
from tests.core.replication.simulation import LIMITS, VALUES, Data, DataSimulation, Request, rule_of

AMPLE = 1 << 30


class StoredData(Data):
    """What a node holds, in a `CacheStore` and a `LimitStore`."""

    def __init__(self, sim: DataSimulation, node: Node) -> None:
        self.cache: CacheStore[Value] = CacheStore(
            AMPLE, size_of=sys.getsizeof, is_valid=self._is_valid, on_write=partial(self._wrote, VALUES)
        )
        self.limits = LimitStore(
            AMPLE,
            is_valid=lambda key, generation: self._is_valid(key[: -algorithms.RULE_BYTES], generation),
            on_write=partial(self._wrote, LIMITS),
        )
        super().__init__(sim, node)

    def _make_stores(self) -> list[Any]:
        return [CacheCopies(VALUES, CacheStores(self.cache, {})), LimitCopies(LIMITS, self.limits)]

    def _is_valid(self, key: bytes, generation: int) -> bool:
        return generation >= self.replication.valid_since[slot_of(key)]

    def _wrote(self, kind: int, key: bytes, now: float) -> int:
        self.replication.changed(kind, key)
        return self.replication.clock.next(now)

    def execute(self, request: Request, now: float) -> Any:
        if request.name in ("hit", "reset"):
            return self._limit(request, now)
        key, value, cache = request.key, request.value, self.cache
        held = cache.peek(key, now)
        results: dict[str, Callable[[], Any]] = {
            "get": lambda: cache.get(key, now),
            "set": lambda: cache.set(key, value, None, now),
            "touch": lambda: cache.touch(key, value, now),
            "delete": lambda: cache.delete(key, now),
            "add": lambda: cache.add(key, value, None, now),
            "unlock": lambda: held is not None and held[0] == value and cache.delete(key, now),
            "incr": lambda: self._incr(key, now),
        }
        return results[request.name]()

    def _incr(self, key: bytes, now: float) -> int:
        value = self.cache.get(key, now)
        assert not isinstance(value, bytes)
        if value is None:
            self.cache.set(key, 1, None, now)
        else:
            self.cache.replace(key, value + 1, now)
        return (value or 0) + 1

    def _limit(self, request: Request, now: float) -> bool:
        rules = [rule_of(request.key)]
        if request.name == "hit":
            return algorithms.hit(self.limits, request.key, rules, 1, now)[1]
        return algorithms.reset(self.limits, request.key, rules, now)[0]

    def live(self, now: float) -> list[tuple[int, bytes, int, Any]]:
        found: list[tuple[int, bytes, int, Any]] = []
        for kind, key in chain.from_iterable(keys_in(self.stores, SlotSet.all())):
            held = self.cache.peek(key, now) if kind == VALUES else (None,) if self.limits.get(key, now) else None
            if held is not None:
                found.append((kind, key, self.stores[kind].version(key), held[0]))
        return found


class StoredSimulation(DataSimulation):
    """Nodes with real stores."""

    holds = StoredData
