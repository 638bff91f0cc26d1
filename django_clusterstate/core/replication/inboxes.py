"""Takes in the copies that other nodes send."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

from .. import rendezvous_hashing
from .messages import Batch, FillStart, Record, RecordKey
from .placement import Placement
from .slots import SlotSet, union
from .stores import Store
from .versions import MAX_VERSION, NONE, HybridClock


@dataclass(slots=True)
class _Filling:
    """A fill that is under way. `confirmed`: the records that its sender has sent since it began."""

    start: FillStart
    confirmed: set[RecordKey] = field(default_factory=set)


class Inboxes:
    """Merges records into the stores, and drops what a fill by their owner doesn't confirm.

    `changed(keys)` is called with records that others have to get in turn.
    """

    def __init__(
        self,
        placement: Placement,
        stores: Sequence[Store],
        clock: HybridClock,
        changed: Callable[[Iterable[RecordKey]], None],
    ) -> None:
        self._placement = placement
        self._stores = stores
        self._clock = clock
        self._changed = changed
        self._filling: dict[bytes, _Filling] = {}
        self._changed_by: dict[bytes, bytearray] = {}  # a byte for each slot, 1 if the instance has changed entries

    def closed(self, boot: bytes) -> None:
        """The connection from an instance is lost."""
        self._filling.pop(boot, None)

    def batch(self, boot: bytes, batch: Batch, now: float) -> bool:
        """Takes in records. False, and none is taken in, if they are older than this node's memory of deletes.

        ValueError, and none is taken in, if one is malformed.
        """
        for record in batch.records:
            self._check(record)
        self._clock.receive(batch.clock, now)
        if batch.clock < max(store.floor for store in self._stores):
            return False
        filling = self._filling.get(boot)
        for record in batch.records:
            self._merge(boot, record, now)
            if filling is not None:
                filling.confirmed.add((record.kind, record.key))
        return True

    def _check(self, record: Record) -> None:
        if not 0 <= record.kind < len(self._stores):
            raise ValueError(f"a record is of the unknown kind {record.kind}")
        if not NONE < record.version <= MAX_VERSION:
            raise ValueError(f"a record has the version {record.version}, which is out of bounds")
        self._stores[record.kind].check(record)

    def _merge(self, boot: bytes, record: Record, now: float) -> None:
        self._clock.receive(record.version, now)
        store = self._stores[record.kind]
        held = store.version(record.key)
        if record.version == held:
            store.confirm(record.key)
            return
        owns = self._placement.is_owner(self._placement.me.boot, store.slot(record.key))
        if owns and store.merges and record.value is not None:
            merged = store.merged(record, now)
            if merged is not None:
                version = self._clock.next(now)
                store.put(Record(record.kind, record.key, version, merged.value, merged.ttl), now)
                self._changed([(record.kind, record.key)])
                return
        if record.version < held:
            store.confirm(record.key)
            if self._placement.is_owner(boot, store.slot(record.key)):
                self._changed([(record.kind, record.key)])  # since its owner lacks what is newer here
            return
        store.put(record, now)
        if owns:
            self._changed([(record.kind, record.key)])
        else:
            self._flags_of(boot)[store.slot(record.key)] = 1

    def start_fill(self, boot: bytes, start: FillStart) -> None:
        """The records of some slots follow."""
        self._filling[boot] = _Filling(start)

    def end_fill(self, boot: bytes, lacking: SlotSet) -> SlotSet | None:
        """All records of the slots have come: drops the entries that none confirmed. Returns the slots that are now
        complete; None if this node doesn't see the sender as their owner, or holds entries that it is `lacking`."""
        filling = self._filling.pop(boot, None)
        if filling is None:
            return None
        if not filling.start.owned:
            return SlotSet()
        slots = filling.start.slots
        if slots & lacking or self._placement.by_owner(slots).keys() - {boot}:
            return None
        for kind, store in enumerate(self._stores):
            for key in list(store.keys(slots)):
                if (kind, key) not in filling.confirmed and store.version(key) < filling.start.clock:
                    store.drop(key)
        flags = self._flags_of(boot)
        for slot in slots:
            flags[slot] = 1
        return slots

    def _flags_of(self, boot: bytes) -> bytearray:
        if boot not in self._changed_by:
            self._changed_by[boot] = bytearray(rendezvous_hashing.SLOTS)
        return self._changed_by[boot]

    def changed_by_others(self, boots: Set[bytes]) -> SlotSet:
        """The slots that others than these instances, which serve, have changed here: their owner may lack that, since
        it may never have seen those others serve. Each is returned once."""
        return union(SlotSet.of_flags(self._changed_by.pop(boot)) for boot in self._changed_by.keys() - boots)
