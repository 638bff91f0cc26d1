"""Sets of slots, in the 8 KiB that they also take in a message."""

from collections.abc import Iterable, Iterator

from .. import rendezvous_hashing


class SlotSet:
    """A set of slots of `rendezvous_hashing`. Immutable but for `add()`, which builds it."""

    __slots__ = ("_bits",)

    def __init__(self, slots: Iterable[int] = ()) -> None:
        self._bits = bytearray((rendezvous_hashing.SLOTS + 7) // 8)
        for slot in slots:
            self.add(slot)

    @classmethod
    def all(cls) -> "SlotSet":
        return cls._of((1 << rendezvous_hashing.SLOTS) - 1)

    @classmethod
    def _of(cls, number: int) -> "SlotSet":
        found = cls()
        found._bits[:] = number.to_bytes(len(found._bits), "little")
        return found

    def add(self, slot: int) -> None:
        self._bits[slot >> 3] |= 1 << (slot & 7)

    def __contains__(self, slot: int) -> bool:
        return bool(self._bits[slot >> 3] & (1 << (slot & 7)))

    def __iter__(self) -> Iterator[int]:
        for index, byte in enumerate(self._bits):
            if byte:
                yield from (index * 8 + bit for bit in range(8) if byte >> bit & 1)

    def __len__(self) -> int:
        return self._number.bit_count()

    def __bool__(self) -> bool:
        return any(self._bits)

    def __or__(self, other: "SlotSet") -> "SlotSet":
        return self._of(self._number | other._number)

    def __and__(self, other: "SlotSet") -> "SlotSet":
        return self._of(self._number & other._number)

    def __sub__(self, other: "SlotSet") -> "SlotSet":
        return self._of(self._number & ~other._number)

    @property
    def _number(self) -> int:
        return int.from_bytes(self._bits, "little")
