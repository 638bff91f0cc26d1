"""What it answers. Each reply begins with the epoch of the answering node's view."""

from typing import Annotated

from msgspec import Meta

from ...core.event_counts import Account, Totals
from ...core.limits.algorithms import Rule, RuleDecision
from ...core.membership.messages import Identity, MemberState
from ...core.membership.timeline import Moment
from ...core.top_keys import KeyCount
from ..status import MemberStatus, Stats
from .fields import Cursor, Message, Seconds, Value


class ValuesReply(Message, frozen=True, tag=33):
    epoch: int
    values: list[Value | None]


class TtlValuesReply(Message, frozen=True, tag=59):
    """Values, and the seconds that each has left; None: for ever, or absent."""

    epoch: int
    values: list[Value | None]
    ttls: list[Seconds | None]


class FlagsReply(Message, frozen=True, tag=34):
    epoch: int
    flags: list[bool]
    values: tuple[Value | None, ...] = ()


class NumberReply(Message, frozen=True, tag=35):
    epoch: int
    value: int | None


class DecisionsReply(Message, frozen=True, tag=36):
    """One decision a rule, in the rules' order; the hit passed if all allow it."""

    epoch: int
    decisions: list[RuleDecision]


class DoneReply(Message, frozen=True, tag=37):
    epoch: int


class FailedReply(Message, frozen=True, tag=38):
    """The node understood, and won't: `reason` is `NOT_AN_INTEGER`, `CHANNEL_FULL` or `REPLY_TOO_LONG`."""

    epoch: int
    reason: str


NOT_AN_INTEGER = "not an integer"
CHANNEL_FULL = "channel full"
REPLY_TOO_LONG = "reply too long"


class ViewReply(Message, frozen=True, tag=39):
    """The serving members, and the name of the node that says so."""

    epoch: int
    members: tuple[Identity, ...]
    name: str


class PongReply(Message, frozen=True, tag=40):
    epoch: int
    identity: Identity


class ReceiveReply(Message, frozen=True, tag=41):
    epoch: int
    channel: str
    payload: bytes | None
    more: list[tuple[str, bytes]] = []


class EntryReply(Message, frozen=True, tag=43):
    """Seconds left (None: for ever), the value if it was asked for, and its bytes in any case, 8 for an integer."""

    epoch: int
    found: bool
    ttl: Seconds | None = None
    value: Value | None = None
    size: int | None = None  #: None from a node that doesn't say it yet


class ScanReply(Message, frozen=True, tag=44):
    """Keys, at most a few hundred, perhaps none, and the cursor to go on with; None: there are no more."""

    epoch: int
    keys: list[bytes]
    cursor: Cursor | None = None


class EventNamesReply(Message, frozen=True, tag=46):
    """At most 100; fewer are the last ones."""

    epoch: int
    events: list[Totals]


class EventReply(Message, frozen=True, tag=47):
    """None: no event of that name is known."""

    epoch: int
    account: Account | None


class LimitsReply(Message, frozen=True, tag=48):
    """The rules under which hits of the key are counted here, and what a hit of cost 1 would be decided by each now:
    `limit - remaining` are counted, and a denied key frees in `retry_after`."""

    epoch: int
    limits: list[tuple[Rule, RuleDecision]]


class StatusReply(Message, frozen=True, tag=42):
    """A node's own account: who it is, for how long, whom it knows, what it counted, and in words what is wrong.

    `omitted` members didn't fit in the reply: those that have been gone for longest.
    """

    epoch: int
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


class ReportReply(Message, frozen=True, tag=45):
    """What a node can tell of itself, for those who look at it.

    `timeline` is what happened to members, the latest first. `rates` tells by how much counters grew in each step of
    five seconds, the latest first: ten minutes. `busiest` and `denied` are keys of limits, of the last five to ten
    minutes.
    """

    epoch: int
    status: StatusReply
    timeline: list[Moment]
    rates: dict[str, list[int]]
    busiest: list[KeyCount[bytes]]
    denied: list[KeyCount[bytes]]


Reply = (
    ValuesReply | TtlValuesReply | FlagsReply | NumberReply | EntryReply | ScanReply
    | DecisionsReply | LimitsReply | EventNamesReply | EventReply
    | ViewReply | PongReply | StatusReply | ReportReply | ReceiveReply | DoneReply | FailedReply
)  # fmt: skip
