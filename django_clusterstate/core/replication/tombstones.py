"""Versions of what is gone, so that a late copy of it isn't taken for a new entry."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .slots import SlotSet
from .versions import NONE

SECONDS: Final = 30.0  # longer than a copy is on its way
MAX_KEYS: Final = 100_000
MAX_CLEARS: Final = 1000  # namespaces
MAX_VOID: Final = 8  # sets of slots, one each time that the node is declared down: the entries of older ones are gone


class Tombstones:
    """Remembers deletes for `SECONDS`, `MAX_KEYS` at most. `floor`: deletes up to this version may be forgotten."""

    def __init__(self) -> None:
        self.floor = NONE
        self._deletes: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._deletes)

    def add(self, key: bytes, version: int, now: float) -> None:
        """Remembers a delete."""
        self._deletes[key] = version, now
        self._deletes.move_to_end(key)
        if len(self._deletes) > MAX_KEYS:
            self._forget()

    def discard(self, key: bytes) -> None:
        """The key was written again."""
        self._deletes.pop(key, None)

    def version(self, key: bytes) -> int:
        """The version of the delete of a key; `NONE` if it wasn't deleted, or is forgotten."""
        return self._deletes.get(key, (NONE, 0.0))[0]

    def forget(self, which: Callable[[bytes], bool]) -> None:
        """Forgets deletes that don't count, because another side of a partition has the keys."""
        for key in [key for key in self._deletes if which(key)]:
            del self._deletes[key]

    def expire(self, now: float, budget: int = MAX_KEYS) -> int:
        """Forgets old deletes, at most `budget`. Returns their number."""
        for forgotten in range(budget):
            if not self._deletes or next(iter(self._deletes.values()))[1] > now - SECONDS:
                return forgotten
            self._forget()
        return budget

    def _forget(self) -> None:
        _, (version, _) = self._deletes.popitem(last=False)
        self.floor = max(self.floor, version)


class Clears:
    """Remembers the versions of the last clears, of `MAX_CLEARS` namespaces at most. `floor`: clears up to this version
    may be forgotten."""

    def __init__(self) -> None:
        self.floor = NONE
        self._versions: dict[bytes, int] = {}

    def add(self, namespace: bytes, version: int) -> bool:
        """Remembers a clear; whether it is later than those before."""
        known = self._versions.pop(namespace, NONE)
        self._versions[namespace] = max(known, version)
        if len(self._versions) > MAX_CLEARS:
            self.floor = max(self.floor, self._versions.pop(next(iter(self._versions))))
        return known < version

    def version(self, namespace: bytes) -> int:
        """The version of the last clear of a namespace; `NONE` if there was none, or it is forgotten."""
        return self._versions.get(namespace, NONE)

    def all(self) -> dict[bytes, int]:
        return self._versions


class Void:
    """Entries that don't count though they are in memory: those of some slots from before a generation, because another
    side of a partition has these slots."""

    def __init__(self, slot_of: Callable[[bytes], int]) -> None:
        self._slot_of = slot_of
        self._before: dict[int, SlotSet] = {}

    def add(self, slots: SlotSet, generation: int) -> None:
        if slots:
            self._before[generation] = slots
        if len(self._before) > MAX_VOID:
            del self._before[next(iter(self._before))]

    def covers(self, key: bytes, generation: int) -> bool:
        if not self._before:
            return False  # nearly always
        slot = self._slot_of(key)
        return any(generation < before and slot in slots for before, slots in self._before.items())
