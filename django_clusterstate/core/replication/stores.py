"""What replication needs of the entries of a node."""

from collections.abc import Iterable
from typing import Protocol

from .messages import Record
from .slots import SlotSet


class Store(Protocol):
    """The entries of one kind, with the version of each and the generation in which it was written or confirmed."""

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

    def put(self, record: Record, generation: int, now: float) -> None:
        """Stores a state, or a delete."""
        ...

    def confirm(self, key: bytes, generation: int) -> None:
        """The entry is as good as if it were written now."""
        ...

    def merged(self, record: Record, now: float) -> Record | None:
        """The state that counts what both states have counted; None if the key has the same state here, or none."""
        ...

    def drop(self, key: bytes) -> None:
        """Removes an entry without a trace."""
        ...

    def forget(self, slots: SlotSet) -> None:
        """Removes all entries and deletes of these slots without a trace."""
        ...

    def keys(self, slots: SlotSet) -> Iterable[bytes]: ...

    def clear(self, namespace: bytes, version: int, now: float) -> None:
        """Entries of a namespace up to this version are absent."""
        ...
