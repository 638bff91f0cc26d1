"""Replies of a node."""

from typing import Annotated

from msgspec import Meta

from ...core.event_counts import EventAccount, EventTotals
from ...core.limits.algorithms import Rule, RuleDecision
from ...core.membership.heartbeat import Identity, MemberState
from ...core.membership.timeline import MemberEvent
from ...core.top_keys import KeyCount
from ..status import CopiesStatus, MemberStatus, Stats
from .fields import Message, ScanCursor, Seconds, Value, Version


class _Reply(Message, frozen=True):
    """The base of all replies. `epoch` is that of the answering node's view."""

    epoch: int


class ValuesReply(_Reply, frozen=True, tag=33):
    """The values of keys, in the order of the request; None for an absent key."""

    values: list[Value | None]


class TtlValuesReply(_Reply, frozen=True, tag=59):
    """The values of keys, and the seconds that each has left. Both are None for an absent key; a ttl of None also means
    that the key doesn't expire."""

    values: list[Value | None]
    ttls: list[Seconds | None]


class FlagsReply(_Reply, frozen=True, tag=34):
    """Whether the request took effect on each key or rule, in the order of the request. `values` are those of the keys
    that a `Set` also reads, as far as they fit in the reply."""

    flags: list[bool]
    values: tuple[Value | None, ...] = ()


class NumberReply(_Reply, frozen=True, tag=35):
    """The new value of an integer; None for an absent key."""

    value: int | None


class DecisionsReply(_Reply, frozen=True, tag=36):
    """One decision for each rule, in the order of the request. The hit was counted if all rules allow it."""

    decisions: list[RuleDecision]


class DoneReply(_Reply, frozen=True, tag=37):
    """The request was executed."""


class ClearReply(_Reply, frozen=True, tag=49):
    """The namespace was cleared up to this version."""

    version: Version


class AckReply(_Reply, frozen=True, tag=50):
    """A message about copies was taken in, unless it is `refused`. `clock`: the last version of the node."""

    clock: Version
    refused: bool = False


class UnavailableReply(_Reply, frozen=True, tag=51):
    """The node doesn't own the keys, and can't reach their owner. `sent`: it has forwarded the request, which may have
    been executed."""

    sent: bool


class FailedReply(_Reply, frozen=True, tag=38):
    """The request was not executed: `reason` is `NOT_AN_INTEGER`, `CHANNEL_FULL` or `REPLY_TOO_LONG`."""

    reason: str


NOT_AN_INTEGER = "not an integer"
CHANNEL_FULL = "channel full"
REPLY_TOO_LONG = "reply too long"


class ViewReply(_Reply, frozen=True, tag=39):
    """The serving members, and the name of the answering node."""

    members: tuple[Identity, ...]
    name: str


class PongReply(_Reply, frozen=True, tag=40):
    """The identity of the answering node."""

    identity: Identity


class ReceiveReply(_Reply, frozen=True, tag=41):
    """A message and its channel; `payload` is None if none came in time. `more`: channel and payload of each further
    message, as many as fit in the reply."""

    channel: str
    payload: bytes | None
    more: list[tuple[str, bytes]] = []


class EntryReply(_Reply, frozen=True, tag=43):
    """The seconds that a key has left (None: it doesn't expire), its value if that was requested, and the value's size
    in bytes, 8 for an integer."""

    found: bool
    ttl: Seconds | None = None
    value: Value | None = None
    size: int | None = None  #: None for an absent key


class ScanReply(_Reply, frozen=True, tag=44):
    """At most a few hundred keys, perhaps none. `cursor` goes into the next request; None: there are no more keys."""

    keys: list[bytes]
    cursor: ScanCursor | None = None


class EventNamesReply(_Reply, frozen=True, tag=46):
    """The totals of at most 100 events, sorted by name. Fewer than 100: there are no more."""

    events: list[EventTotals]


class EventReply(_Reply, frozen=True, tag=47):
    """All that the node keeps of one event; None: it knows no event of that name."""

    account: EventAccount | None


class LimitsReply(_Reply, frozen=True, tag=48):
    """Each rule under which the node has a count of the key, and the decision on a hit of cost 1 now. The count is
    `limit - remaining`."""

    limits: list[tuple[Rule, RuleDecision]]


class StatusReply(_Reply, frozen=True, tag=42):
    """A node's identity, state, members, counters and problems (sentences). `uptime` is seconds.

    `omitted`: how many members didn't fit in the reply; those that have been gone for longest are left out.
    """

    identity: Identity
    state: MemberState
    uptime: float
    isolated: bool
    version: str
    memory: int  #: resident bytes of the process
    members: tuple[MemberStatus, ...]
    stats: Stats
    omitted: int = 0
    problems: Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=100)] = ()
    copies: CopiesStatus = CopiesStatus()


class ReportReply(_Reply, frozen=True, tag=45):
    """A node's status, and its history of the last minutes, for the panel.

    `timeline`: changes of members, the latest first. `rates`: by how much each counter grew in steps of five seconds,
    the latest first, for ten minutes. `busiest` and `denied`: the keys of limits with most hits and with most denied
    hits in the last five to ten minutes.
    """

    status: StatusReply
    timeline: list[MemberEvent]
    rates: dict[str, list[int]]
    busiest: list[KeyCount[bytes]]
    denied: list[KeyCount[bytes]]


Reply = (
    ValuesReply | TtlValuesReply | FlagsReply | NumberReply | EntryReply | ScanReply
    | DecisionsReply | LimitsReply | EventNamesReply | EventReply
    | ViewReply | PongReply | StatusReply | ReportReply | ReceiveReply | DoneReply | ClearReply | AckReply
    | UnavailableReply | FailedReply
)  # fmt: skip
