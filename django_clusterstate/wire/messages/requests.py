"""Requests to a node. Their names are verbs; each docstring names the reply."""

from typing import Annotated

import mmh3
from msgspec import Meta

from ...core.event_counts import MAX_ENTRIES, EventEntry
from ..status import RequesterStats
from .fields import (
    MAX_KEYS,
    ChannelName,
    Cost,
    Integer,
    Key,
    Keys,
    Message,
    MoreKeys,
    NamespaceName,
    OptionalEventName,
    Rules,
    ScanCursor,
    Seconds,
    Value,
    Version,
)

# -- cache ------------------------------------------------------------------------------------------------------
#
# A reply may cover only the first keys of a request: where all values together are too long for one reply, or where
# all keys together take the node too long. The requester then sends the other keys again.


class Get(Message, frozen=True, tag=1):
    """Reads the values of some keys. Reply: `ValuesReply`, perhaps for the first keys only."""

    keys: Keys


class GetWithTtl(Message, frozen=True, tag=31):
    """Reads the values of some keys, and the seconds that each has left. Reply: `TtlValuesReply`, perhaps for the
    first keys only."""

    keys: Keys


class Set(Message, frozen=True, tag=2):
    """Stores values for `ttl` seconds (None: they don't expire); with `absent` only under keys that are absent.

    If all values were stored, the node then removes the keys in `deletes`. Its reply contains the values of the keys in
    `reads`. With `or_same`, a key that already holds this very value counts as stored: so a value that nobody else can
    write, such as a lock's token, may be sent again when the reply was lost.
    Reply: `FlagsReply`, perhaps for the first keys only; the others are unchanged.
    """

    items: Annotated[list[tuple[Key, Value]], Meta(max_length=MAX_KEYS)]
    ttl: Seconds | None
    absent: bool = False
    deletes: MoreKeys = ()
    reads: MoreKeys = ()
    or_same: bool = False


class Touch(Message, frozen=True, tag=3):
    """Gives keys a new ttl in seconds (None: they don't expire); with `expected` only keys that hold this value.

    Reply: `FlagsReply`, false for a key that is absent or keeps its ttl; perhaps for the first keys only,
    the others are unchanged.
    """

    keys: Keys
    ttl: Seconds | None
    expected: Value | None = None


class Delete(Message, frozen=True, tag=4):
    """Removes keys; with `expected` only keys that hold this value.

    Reply: `FlagsReply`, false for a key that is absent or stays; perhaps for the first keys only,
    the others are unchanged.
    """

    keys: Keys
    expected: Value | None = None


class Incr(Message, frozen=True, tag=5):
    """Adds to an integer and keeps its ttl. Reply: `NumberReply`, with None if the key is absent, or `FailedReply`."""

    key: Key
    delta: Integer


class Clear(Message, frozen=True, tag=6):
    """Removes all keys of a namespace, as far as they are older than `version`; 0: all that there are now.

    Reply: `ClearReply` with the version. The node passes it on to the peers that it reaches. A requester also sends it,
    with the first node's version, to all others.
    """

    namespace: NamespaceName
    version: Version = 0


class GetEntry(Message, frozen=True, tag=23):
    """Reads the ttl of a key, and with `value` its value. It doesn't count as a use of the key in the LRU order.

    Reply: `EntryReply`.
    """

    key: Key
    value: bool = False


class Scan(Message, frozen=True, tag=24):
    """Reads some of the keys that begin with `prefix`, which includes namespace and zero byte.

    `cursor` is None in the first request, then the cursor of the last reply. Reply: `ScanReply`.
    """

    prefix: Key
    cursor: ScanCursor | None = None


# -- limits -----------------------------------------------------------------------------------------------------


class Hit(Message, frozen=True, tag=7):
    """Counts `cost` against every rule of a key, or against none if one of the rules denies it. A cost of 0 only reads.

    `dry`: a dry run, in which the requester lets the hit pass whatever the reply; the counters keep it apart.
    `denied_locally`: how many hits on the key the requester has denied from memory since its last request. They are
    added to the denied hits of the key, and counted against no rule. Reply: `DecisionsReply`.
    """

    key: Key
    rules: Rules
    cost: Cost = 1
    dry: bool = False
    denied_locally: Cost = 0


class Peek(Message, frozen=True, tag=8):
    """Reads the decisions that a `Hit` would get now, and counts nothing. Reply: `DecisionsReply`."""

    key: Key
    rules: Rules
    cost: Cost = 1


class Reset(Message, frozen=True, tag=20):
    """Removes the counts of a key under these rules. Reply: `FlagsReply`, false for a rule without a count."""

    key: Key
    rules: Rules


class Refund(Message, frozen=True, tag=21):
    """Takes back a hit that was counted `ago` seconds before, as far as it still counts. Reply: `DoneReply`."""

    key: Key
    rules: Rules
    cost: Cost
    ago: Seconds


class FindLimits(Message, frozen=True, tag=22):
    """Reads the counts of a key under each rule that the node knows. Reply: `LimitsReply`."""

    key: Key


# -- events -----------------------------------------------------------------------------------------------------


class Track(Message, frozen=True, tag=26):
    """Counts events, unless the node has already counted this batch. `batch` is the ID of the batch.

    Reply: `DoneReply`.
    """

    batch: Annotated[bytes, Meta(min_length=8, max_length=16)]
    entries: Annotated[list[EventEntry], Meta(max_length=MAX_ENTRIES)]


class GetEvents(Message, frozen=True, tag=27):
    """Reads all that this node keeps of the event `name`. Reply: `EventReply`.

    Without a name: reads the totals of all events, sorted by name, from the first name greater than `after`.
    Reply: `EventNamesReply`.
    """

    name: OptionalEventName = ""
    after: OptionalEventName = ""


# -- the cluster ------------------------------------------------------------------------------------------------


class GetView(Message, frozen=True, tag=9):
    """Reads the node's view of the cluster. Reply: `ViewReply`.

    `failing`: names of members for which the requester's circuit breaker is open; the node checks its links to them.
    `stats`: the requester's counts since its last request; None if all are 0.
    """

    failing: Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(max_length=64)] = []
    stats: RequesterStats | None = None


class Ping(Message, frozen=True, tag=10):
    """Does nothing. Reply: `PongReply`."""


class GetStatus(Message, frozen=True, tag=11):
    """Reads the node's state, members and counters. Reply: `StatusReply`."""


class GetReport(Message, frozen=True, tag=25):
    """Reads the node's status, and its history of the last minutes. Reply: `ReportReply`."""


# -- copies ------------------------------------------------------------------------------------------------------


class Replicate(Message, frozen=True, tag=28):
    """From a node to a peer: a message of `core.replication`, encoded. No reply; as that says, an `AckReply` comes
    later, in order with others of its kind only."""

    message: bytes


class Execute(Message, frozen=True, tag=29):
    """From a node to the owner of some keys: a request about them, encoded, that was sent to the wrong node.

    `hops`: how often it was forwarded. Reply: that to the request.
    """

    request: bytes
    hops: Annotated[int, Meta(ge=1, le=100)]


# -- channels (the embedded layer) ------------------------------------------------------------------------------


class Send(Message, frozen=True, tag=12):
    """Puts a message on a channel, which expires there after `expiry` seconds.

    Reply: `DoneReply`, or `FailedReply` if the channel already holds `capacity` messages.
    """

    channel: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Receive(Message, frozen=True, tag=13):
    """Takes the next messages of a queue, at most `limit`. It needs a connection to itself.

    A queue is one channel, or all channels of a process, named by their common prefix up to the `!`.
    Reply: `ReceiveReply`, as soon as there is a message, and without one after `timeout` seconds.
    """

    queue: ChannelName
    timeout: Seconds
    limit: Annotated[int, Meta(ge=1, le=100)] = 1


class GroupAdd(Message, frozen=True, tag=14):
    """Adds a channel to a group for `expiry` seconds. Reply: `DoneReply`."""

    group: ChannelName
    channel: ChannelName
    expiry: Seconds


class GroupDiscard(Message, frozen=True, tag=15):
    """Removes a channel from a group. Reply: `DoneReply`."""

    group: ChannelName
    channel: ChannelName


class GroupSend(Message, frozen=True, tag=16):
    """Puts a message on every channel of a group, on all nodes. Channels that are full miss it. Reply: `DoneReply`."""

    group: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Deliver(Message, frozen=True, tag=17):
    """From a node to its peers: puts a message on the channels of a group that live on the peer. No reply."""

    group: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Forward(Message, frozen=True, tag=19):
    """From a node to the peer on which a channel lives: puts a message on that channel. No reply."""

    channel: ChannelName
    payload: bytes
    expiry: Seconds
    capacity: int


class Flush(Message, frozen=True, tag=18):
    """Removes all channels and groups of this node. Reply: `DoneReply`."""


def channel_tag(node_name: str) -> str:
    """The part of a process channel's name that says on which node it lives: `specific.<tag>.<process>!<channel>`."""
    return f"{mmh3.hash64(node_name, signed=False)[0]:016x}"


def tag_of(channel: str) -> str:
    """The node's tag in the name of a process channel; empty for any other channel."""
    local, mark, _ = channel.partition("!")
    parts = local.split(".")
    return parts[-2] if mark and len(parts) > 2 else ""


Request = (
    Get | GetWithTtl | Set | Touch | Delete | Incr | Clear | GetEntry | Scan | Hit | Peek | Reset | Refund | FindLimits
    | Track | GetEvents | GetView | Ping | GetStatus | GetReport | Replicate | Execute
    | Send | Receive | GroupAdd | GroupDiscard | GroupSend | Deliver | Forward | Flush
)  # fmt: skip
