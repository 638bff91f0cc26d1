"""Versions of deleted keys, so that a late copy of a deleted entry isn't taken for a new one."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .versions import NONE

SECONDS: Final = 30.0  # longer than a copy is on its way
MAX_KEYS: Final = 100_000


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

    def expire(self, now: float) -> None:
        """Forgets old deletes."""
        while self._deletes and next(iter(self._deletes.values()))[1] <= now - SECONDS:
            self._forget()

    def _forget(self) -> None:
        _, (version, _) = self._deletes.popitem(last=False)
        self.floor = max(self.floor, version)
