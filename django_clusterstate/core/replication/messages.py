"""What nodes send each other about copies, over one ordered connection in each direction."""

from typing import Annotated, Any, Final, TypeAlias

import msgspec

from .slots import SlotSet

MAX_RECORDS: Final = 500  # in one message
MAX_KEY: Final = 2048  # bytes

Version: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
RecordKey: TypeAlias = tuple[int, bytes]  # the kind of a record, and its key


class Record(msgspec.Struct, frozen=True, array_like=True):
    """The state of one key. `value` None: there is none (deleted, expired or evicted). `ttl`: seconds that it has left
    (None: it doesn't expire). `version`: of its last change."""

    kind: Annotated[int, msgspec.Meta(ge=0, le=1)]
    key: Annotated[bytes, msgspec.Meta(max_length=MAX_KEY)]
    version: Version
    value: Any = None
    ttl: float | None = None


def size_of(record: Record) -> int:
    """The bytes of a record in a message, at most."""
    return len(record.key) + 64 + (len(record.value) if isinstance(record.value, bytes) else 64)


class Batch(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Records as they were when this was encoded, at `clock`. Reply: `Ack`, refused when the receiver doesn't remember
    deletes back to `clock`."""

    clock: Version
    records: Annotated[tuple[Record, ...], msgspec.Meta(max_length=MAX_RECORDS)]


class FillStart(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The records of these slots follow. `owned`: the sender owns them, so the receiver drops what the fill doesn't
    confirm. Reply: `Ack`."""

    slots: SlotSet
    clock: Version
    owned: bool


class FillEnd(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """All records of the slots of the last `FillStart` have been sent. Reply: `Ack`, refused when the receiver doesn't
    see the sender as their owner, and so can't drop what the sender doesn't have."""


class Clear(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Entries of a namespace up to this version are absent. Reply: `Ack`."""

    namespace: bytes
    version: Version


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The receiver has taken in the next message of those that have a reply."""

    clock: Version
    refused: bool = False


class Filled(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The receiver holds all of the sender's slots that it has to hold, as of the sender's view with this epoch."""

    epoch: int


class Missing(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The sender lacks these slots, though the receiver has reported it filled, since their views differed. The
    receiver fills them again."""

    slots: SlotSet


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """All slots of the sender have a filled backup, as of its view with this epoch; 0: not any more."""

    epoch: int


class TakeOver(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A joining node that all have filled asks for its slots. `turn`: how often it has given back what it had. Reply:
    `Yours` or `Busy`; none while views differ."""

    epoch: int
    turn: int


class Yours(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """From now on the receiver owns these slots of the sender, which is their backup. `turn`: of the request. If the
    receiver has given back since what it had, it doesn't own them."""

    epoch: int
    turn: int
    slots: SlotSet


class Busy(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Another joining node, of this name, takes over now."""

    name: str


class GiveBack(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """The joining node gives back the slots that it took over from the receiver, so that another one goes first."""


class Leaving(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The sender is about to leave: it will own and back up nothing. Reply: `Ack`."""


class Left(msgspec.Struct, frozen=True, array_like=True, tag=14):
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

# Those that have a reply.
ACKNOWLEDGED: Final = (Batch, FillStart, FillEnd, Clear, Leaving, Left)
