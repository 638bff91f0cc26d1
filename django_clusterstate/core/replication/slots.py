"""Sets of slots, which take 8 KiB in memory and in a message."""

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import compress
from operator import or_
from typing import Final

from .. import rendezvous_hashing

_DIGITS: Final = b"0" + b"1" * 255  # of a binary number, by flag
_FLAGS: Final = bytes(byte == ord("1") for byte in range(256))
GROUPS: Final = 64  # a power of two. Stores are sharded by the group, slot % GROUPS, so that they read one shard for it


class SlotSet:
    """An immutable set of slots of `rendezvous_hashing`. An operation on two sets takes about a microsecond."""

    __slots__ = ("_bytes", "_number")

    def __init__(self, slots: Iterable[int] = ()) -> None:
        self._number = 0
        self._bytes: bytes | None = None
        if slots:
            flags = bytearray(rendezvous_hashing.SLOTS)
            for slot in slots:
                flags[slot] = 1
            self._number = _number_of(flags)

    @classmethod
    def all(cls) -> "SlotSet":
        return cls._of((1 << rendezvous_hashing.SLOTS) - 1)

    @classmethod
    def of_flags(cls, flags: bytes | bytearray) -> "SlotSet":
        """The slots whose byte is not 0; there is one for each slot."""
        return cls._of(_number_of(flags))

    @classmethod
    def from_bytes(cls, data: bytes) -> "SlotSet":
        """Raises `ValueError` if the length is wrong."""
        if len(data) != _size():
            raise ValueError(f"a set of slots takes {_size()} bytes, not {len(data)}")
        return cls._of(int.from_bytes(data, "little"))

    @classmethod
    def _of(cls, number: int) -> "SlotSet":
        found = cls.__new__(cls)
        found._number, found._bytes = number, None
        return found

    def to_bytes(self) -> bytes:
        """A bit for each slot, the least one first."""
        if self._bytes is None:
            self._bytes = self._number.to_bytes(_size(), "little")
        return self._bytes

    def flags(self) -> bytes:
        """A byte for each slot, 1 or 0."""
        return format(self._number, f"0{rendezvous_hashing.SLOTS}b").encode()[::-1].translate(_FLAGS)

    @property
    def groups(self) -> list[int]:
        """The groups in which it has slots."""
        number, bits = self._number, rendezvous_hashing.SLOTS
        while bits > GROUPS:
            bits //= 2
            number = number >> bits | number & ((1 << bits) - 1)
        return [group for group in range(GROUPS) if number >> group & 1]

    def of_group(self, group: int) -> "SlotSet":
        """Its slots of one group."""
        return self._of(self._number & _every_group() << group)

    def __contains__(self, slot: int) -> bool:
        data = self._bytes or self.to_bytes()
        return bool(data[slot >> 3] >> (slot & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        return compress(range(rendezvous_hashing.SLOTS), self.flags()) if self._number else iter(())

    def __len__(self) -> int:
        return self._number.bit_count()

    def __bool__(self) -> bool:
        return self._number != 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotSet) and self._number == other._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __or__(self, other: "SlotSet") -> "SlotSet":
        return self._of(self._number | other._number)

    def __and__(self, other: "SlotSet") -> "SlotSet":
        return self._of(self._number & other._number)

    def __sub__(self, other: "SlotSet") -> "SlotSet":
        return self._of(self._number & ~other._number)


def union(sets: Iterable[SlotSet]) -> SlotSet:
    """The slots of all sets."""
    return reduce(or_, sets, SlotSet())


def _number_of(flags: bytes | bytearray) -> int:
    return int(flags[::-1].translate(_DIGITS), 2)


def _size() -> int:
    return (rendezvous_hashing.SLOTS + 7) // 8


def _every_group() -> int:
    """A bit for the first slot of each run of GROUPS slots."""
    return ((1 << rendezvous_hashing.SLOTS) - 1) // ((1 << GROUPS) - 1)
