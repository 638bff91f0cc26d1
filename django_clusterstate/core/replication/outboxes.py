"""The copies that one node keeps on others: an `Outbox` for each, and the changes that none has got yet."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from .messages import Message, Record, RecordKey
from .outbox import BATCH, SLICE, Outbox
from .placement import Placement, Wanted
from .slots import SlotSet
from .stores import Store, keys_in
from .versions import NONE, HybridClock

FILLED_AT_ONCE: Final = 2  # instances
FILL: Final = 200  # records that are sent in one step of a fill: about a millisecond
FILL_STEPS: Final = 2  # for each of them
STEPS: Final = 32  # in which changes are sent until others have their turn
DISTRIBUTED: Final = 1000  # changes that are given to their receivers in one step: about two milliseconds


class Outboxes:
    """Sends changes to the nodes that hold them. `send(boot, message)` sends over the connection to an instance."""

    def __init__(
        self,
        placement: Placement,
        stores: Sequence[Store],
        clock: HybridClock,
        send: Callable[[bytes, Message], None],
    ) -> None:
        self.by_boot: dict[bytes, Outbox] = {}
        self.send = send
        self.now = 0.0
        self.paused = False  # whether no copies are sent
        self.has_strays = False  # perhaps entries that this node changed in the place of others, and doesn't hold
        self._behind_before = 0  # of instances that are gone
        self._turn = 0  # of the instances that are filled
        self._placement = placement
        self._stores = stores
        self._clock = clock
        self._changed: dict[RecordKey, None] = {}
        self._receivers: dict[int, tuple[Outbox, ...]] = {}  # of the changes in a slot, as `_receivers_of` gives them

    def changed(self, keys: Iterable[RecordKey]) -> None:
        """Notes records that have changed, or whose change may not have arrived."""
        self._changed.update(dict.fromkeys(keys))

    def unacknowledged(self) -> Callable[[RecordKey], bool]:
        """Tells of a record whether somebody may lack a change of it, as long as nothing is sent or acknowledged."""
        outboxes = list(self.by_boot.values())
        on_their_way = {key for outbox in outboxes for key in outbox.on_their_way}
        return lambda key: key in on_their_way or key in self._changed or any(outbox.waits(key) for outbox in outboxes)

    def get(self, boot: bytes) -> Outbox:
        outbox = self.by_boot.get(boot)
        if outbox is None:
            outbox = self.by_boot[boot] = Outbox(
                lambda message: self.send(boot, message), self._encode, self._keys_in, self._clock.last
            )
        return outbox

    @property
    def open(self) -> dict[bytes, Outbox]:
        """Those of instances to which there is a connection."""
        return {boot: outbox for boot, outbox in self.by_boot.items() if outbox.open}

    def is_open(self, boot: bytes) -> bool:
        """Whether there is a connection to an instance."""
        outbox = self.by_boot.get(boot)
        return outbox is not None and outbox.open

    @property
    def lag(self) -> int:
        """Changes that others have to get, and haven't acknowledged."""
        return len(self._changed) + sum(outbox.lag for outbox in self.by_boot.values())

    @property
    def age(self) -> float:
        """Seconds since the first change of those that an instance hasn't acknowledged, or more while it is slow; 0 if
        there are none. The count begins again when the members change, or a connection is lost."""
        return max((outbox.age(self.now) for outbox in self.by_boot.values()), default=0.0)

    @property
    def behind(self) -> int:
        """How often changes were dropped for an instance that was too slow."""
        return self._behind_before + sum(outbox.behind for outbox in self.by_boot.values())

    @property
    def unfilled(self) -> int:
        """How many slots others have to get from this node, and haven't received completely."""
        return sum(len(outbox.unfilled) for outbox in self.by_boot.values())

    def post(self, message: Message) -> None:
        """Sends a message that has an `Ack` to all."""
        for outbox in self.open.values():
            outbox.post(message)

    def acknowledged(self, boot: bytes, refused: bool) -> None:
        """An instance has taken in the oldest message that it hadn't acknowledged, or refuses it."""
        arrived = self.by_boot[boot].acknowledged(refused, self.now) if boot in self.by_boot else ()
        if self.has_strays and arrived:
            self._drop_strays(arrived)

    def _drop_strays(self, arrived: Iterable[RecordKey]) -> None:
        """Drops what was changed here in the place of an owner that wasn't reached, and that has it now."""
        stores, held = self._stores, self._placement.held
        strays = [(kind, key) for kind, key in arrived if stores[kind].slot(key) not in held]
        if strays:
            unacknowledged = self.unacknowledged()
            for kind, key in strays:
                if not unacknowledged((kind, key)):
                    stores[kind].drop(key)
        self.has_strays = self.lag > 0

    def closed(self, boot: bytes) -> None:
        """The connection to an instance is lost."""
        if boot in self.by_boot:
            self.changed(self.by_boot[boot].closed())

    def tell_again(self, boot: bytes) -> None:
        """What an instance was told of the state of this node is told again."""
        if boot in self.by_boot:
            self.by_boot[boot].told_filled = self.by_boot[boot].told_settled = -1

    def drop_unknown(self, known: set[bytes]) -> None:
        """Drops the outboxes of instances that are gone."""
        for boot in [boot for boot in self.by_boot if boot not in known]:
            self.closed(boot)
            self._behind_before += self.by_boot.pop(boot).behind
        self._receivers.clear()

    def begin_epoch(self) -> None:
        """Other nodes own keys than before, so what isn't acknowledged may have to go elsewhere."""
        for outbox in self.by_boot.values():
            self.changed(outbox.take_pending())
            outbox.told_filled = -1

    def want(self, wanted: dict[bytes, Wanted]) -> None:
        """Sets what each instance has to hold."""
        for boot in dict.fromkeys([*wanted, *self.by_boot]):
            what = wanted.get(boot, Wanted())
            self.get(boot).want(what.owned | what.ceded, what.owned)
        self._receivers.clear()

    def distribute(self) -> None:
        """Gives each change to the nodes that have to hold it."""
        self._distribute(len(self._changed))

    def _distribute(self, most: int) -> None:
        """Gives the first changes to the nodes that have to hold them."""
        changed = list(islice(self._changed, most))
        for record_key in changed:
            del self._changed[record_key]
        shares: dict[tuple[Outbox, ...], list[RecordKey]] = {}
        for record_key in changed:
            slot = self._stores[record_key[0]].slot(record_key[1])
            receivers = self._receivers.get(slot)
            if receivers is None:
                receivers = self._receivers[slot] = self._receivers_of(slot)
            shares.setdefault(receivers, []).append(record_key)
        for receivers, keys in shares.items():
            for outbox in receivers:
                outbox.add(keys, self.now)

    def _receivers_of(self, slot: int) -> tuple[Outbox, ...]:
        """The owner; the nodes that have to hold the slot, if this node is the owner."""
        owner = self._placement.owner(slot)
        if owner is None:
            return ()
        if owner.boot != self._placement.me.boot:
            return (self.get(owner.boot),)
        return tuple(outbox for outbox in self.by_boot.values() if slot in outbox.wanted)

    def flush(self, boot: bytes) -> bool:
        """Sends an instance all changes that it has to get, as far as they count: a hand-over or a forwarded request
        follows. False if they are too many."""
        if self.paused:
            return True
        self.distribute()
        return self.get(boot).flush()

    def pump(self) -> Iterator[None]:
        """Sends changes to all in turn, as far as others are acknowledged, a few in each step."""
        for _ in range(0, len(self._changed), DISTRIBUTED):
            if self.paused:
                return
            self._distribute(DISTRIBUTED)
            yield
        waiting = deque(self.by_boot.values())
        waiting.rotate(-self._turn)
        for _ in range(STEPS):
            left = SLICE
            while waiting and left > 0 and not self.paused:
                outbox = waiting.popleft()
                if sent := outbox.pump_changes(self.now):
                    waiting.append(outbox)
                left -= sent
            if left == SLICE:
                return
            yield

    def fill(self) -> Iterator[None]:
        """Goes on with the fills of a few instances in turn, in a few steps for each."""
        filling = [outbox for outbox in self.by_boot.values() if outbox.can_fill(self.now)]
        start = self._turn % max(len(filling), 1)
        self._turn = start + FILLED_AT_ONCE
        for outbox in [*dict.fromkeys([*filling, *filling][start : self._turn])] * FILL_STEPS:
            yield
            if len(self._changed) >= BATCH:
                yield from self.pump()
            if not self.paused:
                outbox.pump(self.now, FILL)

    def _encode(self, record_key: RecordKey) -> Record | None:
        """The present state of a key. One that was evicted or has expired travels as a delete, if this node owns it."""
        kind, key = record_key
        store = self._stores[kind]
        record = store.record(key, self.now)
        if record.version != NONE:
            return record
        if not self._placement.owns[store.slot(key)]:
            return None
        return Record(kind, key, self._clock.next(self.now))

    def _keys_in(self, slots: SlotSet) -> Iterator[Sequence[RecordKey]]:
        return keys_in(self._stores, slots)
