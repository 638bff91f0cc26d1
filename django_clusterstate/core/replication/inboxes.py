"""Takes in the copies that other nodes send."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from .. import rendezvous_hashing
from .cleaning import Cleaner, Filling
from .messages import Batch, FillStart, Record, RecordKey
from .placement import Placement
from .slots import SlotSet, union
from .stores import Store
from .versions import MAX_VERSION, NONE, HybridClock


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
        self.cleaner = Cleaner(stores)
        self._filling: dict[bytes, Filling] = {}
        self._changed_by: dict[bytes, bytearray] = {}  # a byte for each slot, 1 if the instance has changed entries
        self._filled_by: dict[bytes, SlotSet] = {}  # the slots in which it has dropped entries

    def closed(self, boot: bytes) -> None:
        """The connection from an instance is lost."""
        self._filling.pop(boot, None)
        self.cleaner.closed(boot)

    def refuse(self) -> None:
        """The fills that are under way, or have ended, don't count."""
        self._filling.clear()
        self.cleaner.refuse()

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
            self.cleaner.confirm(boot, (record.kind, record.key))
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
        owns = self._placement.owns[store.slot(record.key)]
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
        self._filling[boot] = Filling(start)

    def end_fill(self, boot: bytes, lacking: SlotSet) -> bool:
        """All records of the slots have come: the entries that none confirmed will be dropped. False if this node
        doesn't see the sender as their owner, or holds entries that it is `lacking`."""
        filling = self._filling.pop(boot, None)
        if filling is None or (filling.start.owned and not self._may_drop(boot, filling.start.slots, lacking)):
            return False
        self._note_changes(boot, filling)
        self.cleaner.add(boot, filling)
        return True

    def drop_unheld(self, unacknowledged: Callable[[RecordKey], bool]) -> None:
        """Drops entries of slots that this node doesn't hold, whoever fills them."""
        held = self._placement.held
        for filling in (*self._filling.values(), *self.cleaner.fillings()):
            filling.changed |= filling.start.slots - held
        self.cleaner.drop_unheld(held, unacknowledged)

    def end_stale_fills(self) -> None:
        """Forgets fills of slots that this node doesn't hold any more, since their senders may have ended them too."""
        for boot, filling in list(self._filling.items()):
            if not filling.start.slots & self._placement.held:
                del self._filling[boot]

    def clean(self, lacking: Callable[[bytes], SlotSet]) -> Iterator[tuple[bytes, bool, SlotSet]]:
        """Drops entries that fills haven't confirmed. Gives for each message that can be acknowledged by now its
        sender, whether it was taken in, and the slots that are now complete."""
        for boot, ended in self.cleaner.drop_unconfirmed():
            if isinstance(ended, bool):
                yield boot, ended, SlotSet()
            elif not ended.start.owned:
                yield boot, True, SlotSet()
            else:
                self._note_changes(boot, ended)
                slots = ended.start.slots
                taken_in = self._may_drop(boot, slots, lacking(boot))  # unless the view has changed meanwhile
                yield boot, taken_in, slots - ended.changed if taken_in else SlotSet()

    def _may_drop(self, boot: bytes, slots: SlotSet, lacking: SlotSet) -> bool:
        return not (slots & lacking or self._placement.by_owner(slots).keys() - {boot})

    def _note_changes(self, boot: bytes, filling: Filling) -> None:
        if filling.start.owned:
            self._filled_by[boot] = self._filled_by.get(boot, SlotSet()) | filling.start.slots

    def _flags_of(self, boot: bytes) -> bytearray:
        if boot not in self._changed_by:
            self._changed_by[boot] = bytearray(rendezvous_hashing.SLOTS)
        return self._changed_by[boot]

    def forget_changes(self, boots: Iterable[bytes]) -> None:
        """Forgets in which slots these instances have changed entries here: all owners have the changes."""
        for boot in boots:
            self._changed_by.pop(boot, None)
            self._filled_by.pop(boot, None)

    def changed_by_others(self, boots: Set[bytes]) -> SlotSet:
        """The slots that others than these instances, which serve, have changed here: their owner may lack that, since
        it may never have seen those others serve. Each is returned once."""
        changed = union(SlotSet.of_flags(self._changed_by.pop(boot)) for boot in self._changed_by.keys() - boots)
        changed |= union(self._filled_by.pop(boot) for boot in self._filled_by.keys() - boots)
        for filling in [*self._filling.values(), *self.cleaner.fillings()] if changed else ():
            filling.changed |= changed
        return changed
