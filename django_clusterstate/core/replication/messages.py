"""What nodes send each other about copies, over one ordered connection in each direction."""

from typing import Any, TypeAlias

import msgspec

from .slots import SlotSet

RecordKey: TypeAlias = tuple[int, bytes]  # the kind of a record, and its key


class Record(msgspec.Struct, frozen=True, array_like=True):
    """The state of one key. `value` None: there is none (deleted, expired or evicted). `ttl`: seconds that it has left
    (None: it doesn't expire). `version`: of its last change."""

    kind: int
    key: bytes
    version: int
    value: Any = None
    ttl: float | None = None


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Records as they were when this was encoded, at `clock`. Reply: `Ack`, refused when the receiver doesn't remember
    deletes back to `clock`."""

    clock: int
    records: tuple[Record, ...]
    filling: bool = False


class FillStart(msgspec.Struct, frozen=True, array_like=True):
    """The records of these slots follow. `owned`: the sender owns them, so the receiver drops what the fill doesn't
    confirm. Reply: `Ack`."""

    slots: SlotSet
    clock: int
    owned: bool


class FillEnd(msgspec.Struct, frozen=True, array_like=True):
    """All records of the slots of the last `FillStart` have been sent. Reply: `Ack`, refused when the receiver doesn't
    see the sender as their owner, and so can't drop what the sender doesn't have."""


class Clear(msgspec.Struct, frozen=True, array_like=True):
    """Entries of a namespace up to this version are absent. Reply: `Ack`."""

    namespace: bytes
    version: int


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """The receiver has taken in the next message of those that have a reply."""

    clock: int
    refused: bool = False


class Filled(msgspec.Struct, frozen=True, array_like=True):
    """The receiver holds all of the sender's slots that it has to hold, as of the sender's view with this epoch."""

    epoch: int


class Missing(msgspec.Struct, frozen=True, array_like=True):
    """The receiver has said that it had filled the sender, which lacks these slots: by a view that the receiver didn't
    have, it wasn't to hold them meanwhile. The receiver fills them again."""

    slots: SlotSet


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """All slots of the sender have a filled backup, as of its view with this epoch; 0: not any more."""

    epoch: int


class TakeOver(msgspec.Struct, frozen=True, array_like=True):
    """A joining node that all have filled asks for its slots. `turn`: how often it has given back what it had. Reply:
    `Yours` or `Busy`; none while views differ."""

    epoch: int
    turn: int


class Yours(msgspec.Struct, frozen=True, array_like=True):
    """From now on the receiver owns these slots of the sender, which is their backup. `turn`: of the request. If the
    receiver has given back since what it had, it doesn't own them."""

    epoch: int
    turn: int
    slots: SlotSet


class Busy(msgspec.Struct, frozen=True, array_like=True):
    """Another joining node, of this name, takes over now."""

    name: str


class GiveBack(msgspec.Struct, frozen=True, array_like=True):
    """The joining node gives back the slots that it took over from the receiver, so that another one goes first."""


class Leaving(msgspec.Struct, frozen=True, array_like=True):
    """The sender is about to leave: it will own and back up nothing. Reply: `Ack`."""


class Left(msgspec.Struct, frozen=True, array_like=True):
    """The sender owns nothing any more: its slots belong to the next in their ranking. Reply: `Ack`."""


Message: TypeAlias = (
    Batch
    | FillStart
    | FillEnd
    | Clear
    | Ack
    | Filled
    | Missing
    | Settled
    | TakeOver
    | Yours
    | Busy
    | GiveBack
    | Leaving
    | Left
)
