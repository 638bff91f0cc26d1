"""What a node is asked."""

from typing import Annotated

import mmh3
from msgspec import Meta

from ...core.event_counts import MAX_ENTRIES, Entry
from ..status import RequesterStats
from .fields import (
    MAX_KEYS,
    ChannelName,
    Cost,
    Cursor,
    EventName,
    Integer,
    Key,
    Keys,
    Message,
    Namespace,
    Rules,
    Seconds,
    Value,
)

# -- cache ------------------------------------------------------------------------------------------------------


class Get(Message, frozen=True, tag=1):
    """The values of some keys. Reply: `ValuesReply`, of the first few keys where all together are too long for a reply
    or take the node too much time."""

    keys: Keys


class GetWithTtl(Message, frozen=True, tag=31):
    """As `Get`, and how long each value has left. Reply: `TtlValuesReply`."""

    keys: Keys


class Set(Message, frozen=True, tag=2):
    """Stores values for `ttl` seconds (None: for ever), with `absent` only where there is none. Reply: `FlagsReply`.

    Then it removes the keys of `deletes`, if all was stored, and answers with the values of those of `reads` as well.
    With `or_same` an absent key may also hold this very value, which then counts as stored: so a value that nobody else
    has may be sent again when the answer was lost.
    The answer to this, to `Touch` and to `Delete` has the flags of the first few keys where all together take the node
    too much time; the others weren't touched.
    """

    items: Annotated[list[tuple[Key, Value]], Meta(max_length=MAX_KEYS)]
    ttl: Seconds | None
    absent: bool = False
    deletes: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)] = ()
    reads: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)] = ()
    or_same: bool = False


class Touch(Message, frozen=True, tag=3):
    """Gives keys a new ttl, with `expected` only those that hold this value. Reply: `FlagsReply`, false for a key that
    keeps its own or is absent."""

    keys: Keys
    ttl: Seconds | None
    expected: Value | None = None


class Delete(Message, frozen=True, tag=4):
    """Removes keys, with `expected` only those that hold this value. Reply: `FlagsReply`, false for a key that stays or
    is absent."""

    keys: Keys
    expected: Value | None = None


class Incr(Message, frozen=True, tag=5):
    """Adds to an integer, keeping its ttl. Reply: `NumberReply`, None for an absent key, or `FailedReply`."""

    key: Key
    delta: Integer


class Clear(Message, frozen=True, tag=6):
    """Empties a namespace of this node's cache. Reply: `DoneReply`."""

    namespace: Namespace


class GetEntry(Message, frozen=True, tag=23):
    """How long a key has left, and with `value` what it holds. Its place among the least recently used stays.

    Reply: `EntryReply`.
    """

    key: Key
    value: bool = False


class Scan(Message, frozen=True, tag=24):
    """Some of the keys that begin with `prefix`, namespace and zero byte included. Reply: `ScanReply`.

    `cursor` is that of the last answer, or None to begin.
    """

    prefix: Key
    cursor: Cursor | None = None


# -- limits -----------------------------------------------------------------------------------------------------


class Hit(Message, frozen=True, tag=7):
    """Counts `cost` against every rule of a key, or against none if one denies. Reply: `DecisionsReply`.

    A cost of 0 only looks. `dry`: the requester lets the hit pass whatever the answer, which the statistics tell apart.
    `remembered` hits on the key were denied from the requester's memory since it last asked: they count as denied ones
    of the key, and against no rule.
    """

    key: Key
    rules: Rules
    cost: Cost = 1
    dry: bool = False
    remembered: Cost = 0


class Peek(Message, frozen=True, tag=8):
    """What a `Hit` would be answered now, without counting it. Reply: `DecisionsReply`."""

    key: Key
    rules: Rules
    cost: Cost = 1


class Reset(Message, frozen=True, tag=20):
    """Forgets what was counted against these rules of a key. Reply: `FlagsReply`, false for a rule under which nothing
    was counted."""

    key: Key
    rules: Rules


class Refund(Message, frozen=True, tag=21):
    """Takes back a hit that counted `ago` seconds before, as far as it still counts. Reply: `DoneReply`."""

    key: Key
    rules: Rules
    cost: Cost
    ago: Seconds


class FindLimits(Message, frozen=True, tag=22):
    """What the node has counted of a key, under each of the rules that it remembers. Reply: `LimitsReply`."""

    key: Key


# -- events -----------------------------------------------------------------------------------------------------


class Track(Message, frozen=True, tag=26):
    """Counts events, unless the node has counted this `batch` before. Reply: `DoneReply`."""

    batch: Annotated[bytes, Meta(min_length=8, max_length=16)]
    entries: Annotated[list[Entry], Meta(max_length=MAX_ENTRIES)]


class GetEvents(Message, frozen=True, tag=27):
    """What this node keeps of an event. Reply: `EventReply`.

    Without a name: how often each came, in the order of their names and from `after` on. Reply: `EventNamesReply`.
    """

    name: EventName = ""
    after: EventName = ""


# -- the cluster ------------------------------------------------------------------------------------------------


class GetView(Message, frozen=True, tag=9):
    """Who serves. Reply: `ViewReply`.

    `doubts` are the members that fail the requester again and again: the node tries its links to them anew.
    `tally` is what the requester has counted since it last asked.
    """

    doubts: Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(max_length=64)] = []
    tally: RequesterStats | None = None


class Ping(Message, frozen=True, tag=10):
    """Reply: `PongReply`."""


class GetStatus(Message, frozen=True, tag=11):
    """All that this node can tell of itself and of its members. Reply: `StatusReply`."""


class GetReport(Message, frozen=True, tag=25):
    """That, and what this node remembers of the last minutes. Reply: `ReportReply`."""


# -- channels (the embedded layer) ------------------------------------------------------------------------------


class Send(Message, frozen=True, tag=12):
    """Puts a message on a channel of this node. Reply: `DoneReply`, or `FailedReply` when the channel is full."""

    channel: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Receive(Message, frozen=True, tag=13):
    """Asks for the next messages of a queue, at most so many, of those that are there.

    A queue is a channel, or all channels of a process by what they share, up to the `!`.
    Reply: `ReceiveReply`, whenever there is one; without one after `wait`. On a connection for this queue alone.
    """

    queue: ChannelName
    wait: Seconds
    most: Annotated[int, Meta(ge=1, le=100)] = 1


class GroupAdd(Message, frozen=True, tag=14):
    """Makes a channel hear a group for `expiry` seconds. Reply: `DoneReply`."""

    group: ChannelName
    channel: ChannelName
    expiry: Seconds


class GroupDiscard(Message, frozen=True, tag=15):
    """Ends that. Reply: `DoneReply`."""

    group: ChannelName
    channel: ChannelName


class GroupSend(Message, frozen=True, tag=16):
    """Puts a message on every channel of the group, on every node. Reply: `DoneReply`."""

    group: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Deliver(Message, frozen=True, tag=17):
    """From a node to its peers: the same, for the channels that you have. No answer."""

    group: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Forward(Message, frozen=True, tag=19):
    """From a node to the peer where a channel lives. No answer."""

    channel: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Flush(Message, frozen=True, tag=18):
    """Drops all channels and groups of this node. Reply: `DoneReply`."""


def channel_tag(node_name: str) -> str:
    """How a channel name says on which node it lives: `specific.<tag>.<process>!<channel>`."""
    return f"{mmh3.hash64(node_name, signed=False)[0]:016x}"


def tag_of(channel: str) -> str:
    """The tag in the name of a process's channel; empty in any other name."""
    local, mark, _ = channel.partition("!")
    parts = local.split(".")
    return parts[-2] if mark and len(parts) > 2 else ""


Request = (
    Get | GetWithTtl | Set | Touch | Delete | Incr | Clear | GetEntry | Scan | Hit | Peek | Reset | Refund | FindLimits
    | Track | GetEvents | GetView | Ping | GetStatus | GetReport
    | Send | Receive | GroupAdd | GroupDiscard | GroupSend | Deliver | Forward | Flush
)  # fmt: skip
