"""What replication needs of the entries of a node."""

from collections.abc import Iterable
from typing import Protocol

from .messages import Record
from .slots import SlotSet


class Store(Protocol):
    """The entries of one kind, with the version of each and the generation in which it was written or confirmed."""

    generation: int
    """The present generation. An entry of an earlier one may be invalid, which the following methods don't look at."""

    merges: bool
    """Whether an owner that gets another's state of a key counts both. Otherwise the greater version wins."""

    @property
    def floor(self) -> int:
        """Deletes up to this version may be forgotten."""
        ...

    def slot(self, key: bytes) -> int: ...

    def version(self, key: bytes) -> int:
        """The version of a key's last change, a delete or clear included; 0 if none is known."""
        ...

    def record(self, key: bytes, now: float) -> Record:
        """The present state of a key."""
        ...

    def check(self, record: Record) -> None:
        """Raises ValueError if a record of another node is malformed."""
        ...

    def put(self, record: Record, now: float) -> None:
        """Stores a state, or a delete."""
        ...

    def confirm(self, key: bytes) -> None:
        """The entry is as good as if it were written now."""
        ...

    def merged(self, record: Record, now: float) -> Record | None:
        """The state that counts what both states have counted; None if the key has the same state here, or none."""
        ...

    def drop(self, key: bytes) -> None:
        """Removes an entry without a trace."""
        ...

    def forget(self, slots: SlotSet) -> None:
        """The entries and deletes of these slots that are here now don't count any longer, not even by their versions.
        They are dropped later."""
        ...

    def keys(self, slots: SlotSet) -> Iterable[bytes]:
        """The keys of all entries in these slots, also of those that don't count. Entries may come and go meanwhile."""
        ...

    def clear(self, namespace: bytes, version: int, now: float) -> None:
        """Entries of a namespace up to this version are absent."""
        ...
