"""Drops what a node has no reason to hold, some entries at a time, so that requests needn't wait."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from .messages import FillStart, RecordKey
from .slots import SlotSet
from .stores import PORTION, Store, keys_in

MAX_READ: Final = 2500  # keys at a time: about two milliseconds
DROP: Final = 10  # keys that can be read while one is dropped


@dataclass(eq=False, slots=True)
class Filling:
    """A fill that is under way, or has ended. `confirmed`: the records that its sender has sent since it began.
    `changed`: slots in which its sender may lack what others have changed. `portions`: the keys of its slots that
    haven't been looked at since it ended."""

    start: FillStart
    confirmed: set[RecordKey] = field(default_factory=set)
    changed: SlotSet = field(default_factory=SlotSet)
    portions: Iterator[Sequence[RecordKey]] = field(default_factory=lambda: iter(()))


class Cleaner:
    """Drops entries of `stores` that a fill hasn't confirmed, and those of slots that this node doesn't hold.

    The end of a fill is acknowledged when that is done, and the messages after it wait until then for their `Ack`; so
    do those after a message whose `Ack` is delayed for another reason.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self._queues: dict[bytes, deque[Filling | bool | None]] = {}
        self._unheld: Iterator[Sequence[RecordKey]] | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to drop."""
        return not self._queues and self._unheld is None

    # -- fills ----------------------------------------------------------------------------------------------

    def add(self, boot: bytes, filling: Filling) -> None:
        """A fill has ended."""
        if filling.start.owned:
            filling.portions = keys_in(self._stores, filling.start.slots)
        self._queues.setdefault(boot, deque()).append(filling)

    def queue_ack(self, boot: bytes, taken_in: bool) -> bool:
        """Queues the `Ack` of a message of this instance behind others that have to wait; whether there are any."""
        queue = self._queues.get(boot)
        if queue is None:
            return False
        queue.append(taken_in)
        return True

    def delay_ack(self, boot: bytes) -> None:
        """The `Ack` of a message that was taken in waits for `end_delays()`."""
        self._queues.setdefault(boot, deque()).append(None)

    def end_delays(self) -> None:
        for boot, queue in self._queues.items():
            self._queues[boot] = deque(True if waiting is None else waiting for waiting in queue)

    def confirm(self, boot: bytes, key: RecordKey) -> None:
        """The instance has sent a record."""
        for filling in self._queues.get(boot, ()):
            if isinstance(filling, Filling):
                filling.confirmed.add(key)

    def fillings(self) -> Iterator[Filling]:
        """The fills that have ended, and whose end isn't acknowledged."""
        for queue in self._queues.values():
            yield from (waiting for waiting in queue if isinstance(waiting, Filling))

    def closed(self, boot: bytes) -> None:
        """The connection from an instance is lost."""
        self._queues.pop(boot, None)

    def refuse(self) -> None:
        """The fills that have ended don't count."""
        for boot, queue in self._queues.items():
            self._queues[boot] = deque(False if isinstance(waiting, Filling) else waiting for waiting in queue)

    def drop_unconfirmed(self) -> Iterator[tuple[bytes, Filling | bool]]:
        """Drops what fills haven't confirmed. Gives for each message that can be acknowledged by now its sender, and
        the fill that it ended; or, of another message, whether it was taken in."""
        left = MAX_READ
        for boot, queue in list(self._queues.items()):
            while queue and left > 0 and (waiting := queue[0]) is not None:
                if isinstance(waiting, Filling):
                    keys = next(waiting.portions, None)
                    if keys is not None:
                        left -= self._drop(waiting, keys)
                        continue
                queue.popleft()
                yield boot, waiting
            if not queue:
                self._queues.pop(boot, None)

    def _drop(self, filling: Filling, keys: Sequence[RecordKey]) -> int:
        unconfirmed = [key for key in keys if key not in filling.confirmed]
        for kind, key in unconfirmed:
            store = self._stores[kind]
            if store.version(key) < filling.start.clock:
                store.drop(key)
        return PORTION + DROP * len(unconfirmed)

    # -- what isn't held ------------------------------------------------------------------------------------

    def begin(self, unheld: SlotSet) -> None:
        """`drop_unheld()` shall drop the entries of these slots, and no others."""
        self._unheld = keys_in(self._stores, unheld) if unheld else None

    def drop_unheld(self, held: SlotSet, unacknowledged: Callable[[RecordKey], bool]) -> None:
        """Drops entries of slots that aren't held, but for those of which others may lack a change."""
        left = MAX_READ
        while left > 0 and self._unheld is not None:
            keys = next(self._unheld, None)
            if keys is None:
                self._unheld = None
                return
            for kind, key in keys:
                store = self._stores[kind]
                if store.slot(key) not in held and not unacknowledged((kind, key)):
                    store.drop(key)
            left -= PORTION + DROP * len(keys)
