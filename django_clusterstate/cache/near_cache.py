"""What this process has read of a namespace lately, so that it needn't ask the owners again for a while."""

import contextlib
import itertools
import math
from collections import OrderedDict

from ..wire.messages import Value

MAX_NEAR_VALUE = 64 * 1024  # bytes: with 1,000 entries at most 64 MiB in a process
_SLOTS = 4096  # writes are noted by these: one makes as much as a 4096th of what is near be read again

Ticket = tuple[int, float]


class NearCache:
    """Encoded values, each as long as nobody in this process writes its key.

    For all threads, without a lock, which a fork could copy while it is held: each step is atomic, and an entry is good
    only if no write came to its slot since it was asked for. Times are monotonic seconds.
    """

    __slots__ = ("_entries", "_serial", "_used", "_writes")

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[Value, Ticket, float]] = OrderedDict()  # least recently used first
        self._serial = itertools.count(1)
        self._used = False  # until somebody reads, there is nothing that writes could make wrong
        self._writes = [0] * _SLOTS

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, since: float, now: float) -> Value | None:
        """The value, if it was asked for no earlier than `since` and hasn't ended."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, (write, asked), ends = entry
        if asked < since or ends <= now or write != self._writes[hash(key) % _SLOTS]:
            return None
        try:
            self._entries.move_to_end(key)
        except KeyError:  # another thread dropped it
            return None
        return value

    def ticket(self, key: bytes, now: float) -> Ticket:
        """To be taken before the owner is asked, and given to `put` with its answer."""
        self._used = True
        return self._writes[hash(key) % _SLOTS], now

    def put(self, key: bytes, value: Value | None, ttl: float | None, ticket: Ticket, most: int) -> None:
        """Keeps what was read, and no more than `most` entries. What is absent or large isn't kept.

        `ttl`: the seconds that it had left when its owner answered; None: for ever. It ends here when that time is over
        since it was asked for, so never later than at its owner.
        """
        if value is None or (isinstance(value, bytes) and len(value) > MAX_NEAR_VALUE):
            return
        self._entries[key] = (value, ticket, math.inf if ttl is None else ticket[1] + ttl)
        with contextlib.suppress(KeyError):  # other threads drop some as well
            self._entries.move_to_end(key)
            while len(self._entries) > most:
                self._entries.popitem(last=False)

    def drop(self, *keys: bytes) -> None:
        """They were written, or may have been. To be called after that, so that no read from before it counts."""
        if not self._used:
            return
        for key in keys:
            self._writes[hash(key) % _SLOTS] = next(self._serial)
            self._entries.pop(key, None)

    def clear(self) -> None:
        self._writes = [next(self._serial)] * _SLOTS
        self._entries.clear()
