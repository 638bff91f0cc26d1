"""What replication needs of the entries of a node."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from .messages import Record, RecordKey
from .slots import SlotSet

PORTION: Final = 250  # keys that are read at a time


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
        """The state that counts what both states have counted; None if the key has it here and newer, or no state."""
        ...

    def drop(self, key: bytes) -> None:
        """Removes an entry without a trace."""
        ...

    def forget(self, slots: SlotSet) -> None:
        """The entries and deletes of these slots that are here now don't count any longer, not even by their versions.
        They are dropped later."""
        ...

    def keys(self, slots: SlotSet) -> Iterable[Sequence[bytes]]:
        """The keys of all entries in these slots, also of those that don't count: those among `PORTION` keys at a time,
        which may be none. Entries may come and go meanwhile."""
        ...

    def clear(self, namespace: bytes, version: int, now: float) -> None:
        """Entries of a namespace up to this version are absent."""
        ...


def portions(keys: Sequence[bytes], wanted: Callable[[bytes], bool]) -> Iterator[list[bytes]]:
    """Those of the keys that are wanted, of `PORTION` at a time."""
    for start in range(0, len(keys), PORTION):
        yield [key for key in keys[start : start + PORTION] if wanted(key)]


def keys_in(stores: Iterable[Store], slots: SlotSet) -> Iterator[list[RecordKey]]:
    """The keys in these slots of all stores, by kind, in portions."""
    for kind, store in enumerate(stores):
        for keys in store.keys(slots):
            yield [(kind, key) for key in keys]
