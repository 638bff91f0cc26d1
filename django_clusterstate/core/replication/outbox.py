"""What one node sends another to keep its copies complete: changed records, and slots that it lacks.

Nothing waits for it, and it is bounded: a peer that takes in less than what changes is behind. Then its changed records
are dropped, and its slots are filled again once it has caught up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Final

from .messages import Batch, FillEnd, FillStart, Message, Record, RecordKey, size_of
from .slots import SlotSet, union

WINDOW: Final = 32  # messages that aren't acknowledged
RESERVED: Final = 2  # of these, not for changes while the peer isn't filled: however many there are, the fill goes on
FLUSHED: Final = 20  # messages that are sent at once when a forwarded request or a hand-over follows: ten milliseconds
MAX_IN_FLIGHT: Final = 1000  # messages that aren't acknowledged, with those
MAX_BYTES_IN_FLIGHT: Final = 8 * 1024 * 1024  # of their records
BATCH: Final = 100  # records in one message: to take them in takes half a millisecond
SLICE: Final = 10  # changes in one message, unless many wait: a request that comes meanwhile waits for these only
BATCH_BYTES: Final = 32 * 1024  # of records in one message; a single one may be larger
RECORD_BYTES: Final = BATCH_BYTES // BATCH  # a larger record takes as long as several
FILL_SLOTS: Final = 256  # slots of one fill at least: with whole groups, up to five times as many
READ: Final = 25  # records that can be sent while a portion of keys is read
MAX_PENDING: Final = 50_000  # records that wait for a peer; more, and it is behind
RETRY: Final = 0.2  # seconds until what was refused is sent again


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message that isn't acknowledged: of some records, or the end of a fill of some slots, or another. `since`: when
    the first of the records changed, or before. `size`: bytes of the records. `posted`: by `post()`."""

    keys: tuple[RecordKey, ...] = ()
    slots: SlotSet | None = None
    filling: bool = False
    since: float = 0.0
    size: int = 0
    posted: bool = False


@dataclass(slots=True)
class _Fill:
    slots: SlotSet
    owned: bool
    portions: Iterator[Sequence[RecordKey]]
    rest: Sequence[RecordKey] = ()  # of the last portion


class Outbox:
    """The copies on one peer. `wanted`: the slots that it has to get from this node; `owned`: those of them that this
    node owns, so that the peer may drop what it doesn't get; `filled`: those of which it holds all entries.

    `send(message)` sends a message, `encode(key)` gives the present record of a key, `keys_in(slots)` all keys of slots
    in portions, `clock()` the last version. `behind`: how often changes were dropped.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        encode: Callable[[RecordKey], Record | None],
        keys_in: Callable[[SlotSet], Iterable[Sequence[RecordKey]]],
        clock: Callable[[], int],
    ) -> None:
        self.wanted = SlotSet()
        self.owned = SlotSet()
        self.filled = SlotSet()
        self.open = False
        self.behind = 0
        self.told_filled = self.told_settled = -1  # the epochs for which the peer was sent `Filled` and `Settled`
        self._send = send
        self._encode = encode
        self._keys_in = keys_in
        self._clock = clock
        self._pending: dict[RecordKey, None] = {}
        self._pending_since = 0.0  # when the first of them changed, or before
        self._in_flight: deque[_Sent] = deque()
        self._bytes_in_flight = 0
        self._fill: _Fill | None = None
        self._retry_at = self._refill_at = 0.0

    @property
    def lag(self) -> int:
        """Records that the peer hasn't acknowledged."""
        return len(self._pending) + sum(len(sent.keys) for sent in self._in_flight if not sent.filling)

    def age(self, now: float) -> float:
        """Seconds since the first change of those that the peer hasn't acknowledged, or more if there always are some
        for which the window has no room; 0 if there are none."""
        waiting = [sent.since for sent in self._in_flight if sent.keys and not sent.filling]
        waiting += [self._pending_since] if self._pending else []
        return now - min(waiting, default=now)

    @property
    def unfilled(self) -> SlotSet:
        """The slots that the peer has to hold, and of which it may lack entries."""
        return self.wanted - self.filled

    @property
    def ends_fill(self) -> bool:
        """Whether the end of a fill isn't acknowledged, which takes the peer as long as it has entries to look at."""
        return any(sent.slots is not None for sent in self._in_flight)

    @property
    def busy(self) -> bool:
        """Whether the peer hasn't acknowledged all messages."""
        return bool(self._in_flight)

    @property
    def knows_all(self) -> bool:
        """Whether the peer has acknowledged all that was posted."""
        return not any(sent.posted for sent in self._in_flight)

    @property
    def is_filled(self) -> bool:
        """Whether the peer holds all that it has to hold, but for changes on their way."""
        return self.filled == self.wanted

    def want(self, wanted: SlotSet, owned: SlotSet) -> None:
        """Sets the slots that the peer has to hold."""
        self.wanted, self.owned = wanted, owned
        self.filled = self.filled & wanted
        if not self.is_filled:
            self.told_filled = -1
        self._cut_fills(wanted)
        fill = self._fill
        if fill is not None and (fill.slots - wanted or (fill.owned and fill.slots - owned)):
            self._fill = None  # its slots that are still wanted are filled again

    def add(self, keys: Iterable[RecordKey], since: float) -> None:
        """Notes records that have changed, the first of them at `since`."""
        self._pending_since = min(since, self._pending_since) if self._pending else since
        self._pending.update(dict.fromkeys(keys))
        if len(self._pending) > MAX_PENDING:
            self.behind += 1
            self._pending.clear()
            self._fill = None
            self.refill(self.wanted)

    def waits(self, key: RecordKey) -> bool:
        """Whether a change of this record waits to be sent."""
        return key in self._pending

    @property
    def on_their_way(self) -> Iterator[RecordKey]:
        """The records of which a change was sent and isn't acknowledged."""
        return (key for sent in self._in_flight if not sent.filling for key in sent.keys)

    def _cut_fills(self, slots: SlotSet) -> None:
        """Fills that are under way count for these slots only."""
        self._in_flight = deque(
            sent if sent.slots is None else _Sent(slots=sent.slots & slots) for sent in self._in_flight
        )

    def take_pending(self) -> list[RecordKey]:
        """The records that haven't been acknowledged; those that wait do so no longer."""
        keys = [*self.on_their_way, *self._pending]
        self._pending.clear()
        return keys

    def can_fill(self, now: float) -> bool:
        """Whether it can go on with a fill, or begin one."""
        if not self._has_room:
            return False
        return self._fill is not None or (not self.is_filled and now >= self._refill_at and bool(self._missing()))

    def pump(self, now: float, most: int = BATCH) -> None:
        """Sends changes and a part of a fill, as far as the window has room, but no more than `most` records of usual
        size, or a few more."""
        left = most
        while self._has_room and left > 0:
            sent = self._send_changes(BATCH) if self._room_for_changes > 0 and now >= self._retry_at else 0
            if self._has_room and sent < left:
                sent += self._send_fill(now)
            if not sent:
                return
            left -= sent

    def pump_changes(self, now: float) -> int:
        """Sends a few changes if the window has room; of many, as many as let all fit. Returns how many records of
        usual size could be sent in that time."""
        room = self._room_for_changes
        if room <= 0 or now < self._retry_at:
            return 0
        return self._send_changes(max(SLICE, ceil(len(self._pending) / room)))

    def flush(self) -> bool:
        """Sends all changes, more than the window has room for: a forwarded request or a hand-over follows. False if
        they are too many: then the rest waits."""
        for _ in range(FLUSHED):
            if not (self._pending and self.open):
                return True
            if len(self._in_flight) >= MAX_IN_FLIGHT or self._bytes_in_flight >= MAX_BYTES_IN_FLIGHT:
                return False
            self._send_changes(BATCH)
        return not (self._pending and self.open)

    def post(self, message: Message) -> None:
        """Sends a message that has an `Ack`, in order with the others."""
        self._in_flight.append(_Sent(posted=True))
        self._send(message)

    @property
    def _has_room(self) -> bool:
        return self.open and len(self._in_flight) < WINDOW

    @property
    def _room_for_changes(self) -> int:
        return WINDOW - len(self._in_flight) - (0 if self.is_filled else RESERVED) if self.open else 0

    def _sends(self, sent: _Sent) -> None:
        self._in_flight.append(sent)
        self._bytes_in_flight += sent.size

    def _send_changes(self, most: int) -> int:
        """Returns how many records of usual size could be sent in that time."""
        keys, records = self._take(islice(self._pending, most))
        for key in keys:
            del self._pending[key]
        if keys:
            self._sends(_Sent(keys, since=self._pending_since, size=sum(map(size_of, records))))
            self._send(Batch(self._clock(), records))
        return _effort(keys, records)

    def _take(self, keys: Iterable[RecordKey]) -> tuple[tuple[RecordKey, ...], tuple[Record, ...]]:
        """The first of these keys, as many as one message may have, and their records. A key may have none."""
        taken: list[RecordKey] = []
        records: list[Record] = []
        room = BATCH_BYTES
        for key in islice(keys, BATCH):
            record = self._encode(key)
            if record is not None:
                room -= size_of(record)
                if room < 0 and records:
                    break
                records.append(record)
            taken.append(key)
        return tuple(taken), tuple(records)

    def _send_fill(self, now: float) -> int:
        """Goes on with a fill. Returns how many records could be sent in the time that it took."""
        fill = self._fill
        if fill is None:
            return READ if self._start_fill(now) else 0
        portion: Sequence[RecordKey] | None = fill.rest or None
        if portion is None:
            portion = next(fill.portions, None)
        if portion is None:
            self._fill = None
            self._in_flight.append(_Sent(slots=fill.slots))
            self._send(FillEnd())
            return READ
        keys, records = self._take(portion)
        fill.rest = portion[len(keys) :]
        records = tuple(record for record in records if record.value is not None)
        if records:
            self._sends(_Sent(keys, filling=True, since=now, size=sum(map(size_of, records))))
            self._send(Batch(self._clock(), records))
        return READ + _effort(keys, records)

    def _start_fill(self, now: float) -> bool:
        """Begins with the slots of whole groups, since a store reads a group at a time."""
        if self.is_filled or now < self._refill_at:
            return False
        missing = self._missing()
        owned = missing & self.owned
        first = missing - owned or missing  # an owner refuses fills of its own slots until it has what it lacks
        if not first:
            return False
        slots = SlotSet()
        for group in first.groups:
            slots = slots | first.of_group(group)
            if len(slots) >= FILL_SLOTS:
                break
        self._fill = _Fill(slots, first == owned, iter(self._keys_in(slots)))
        self._in_flight.append(_Sent())
        self._send(FillStart(slots, self._clock(), self._fill.owned))
        return True

    def _missing(self) -> SlotSet:
        """The slots that aren't filled, and whose fill hasn't ended here."""
        return self.wanted - self.filled - union(sent.slots for sent in self._in_flight if sent.slots is not None)

    def acknowledged(self, refused: bool, now: float) -> tuple[RecordKey, ...]:
        """The peer has taken in the oldest message that it hadn't acknowledged, or refuses it. Returns the records of
        which it has a change now."""
        if not self._in_flight:
            return ()
        sent = self._in_flight.popleft()
        self._bytes_in_flight -= sent.size
        if refused:
            self._refill_at = now + RETRY
            if sent.keys:
                self.add(sent.keys, sent.since)
                self._retry_at = now + RETRY
        elif sent.slots is not None:
            self.filled = self.filled | (sent.slots & self.wanted)
        return () if refused or sent.filling else sent.keys

    def refill(self, slots: SlotSet) -> None:
        """The peer lacks these slots."""
        self.filled = self.filled - slots
        self._cut_fills(self.wanted - slots)
        self.told_filled = self.told_settled = -1

    def take_as_filled(self, slots: SlotSet) -> None:
        """The peer had these slots until now."""
        self.filled = self.filled | (slots & self.wanted)

    def closed(self) -> Iterable[RecordKey]:
        """The connection is lost. Returns the records that may not have arrived."""
        self.open = False
        self._fill = None
        self.told_filled = self.told_settled = -1
        lost = self.take_pending()
        self._in_flight.clear()
        self._bytes_in_flight = 0
        return lost


def _effort(keys: Sequence[RecordKey], records: Sequence[Record]) -> int:
    """How many records of usual size take as long as these."""
    return max(len(keys), sum(map(size_of, records)) // RECORD_BYTES)
