"""What it answers. Each reply begins with the epoch of the answering node's view."""

from typing import Annotated

from msgspec import Meta

from ...core.events import Account, Totals
from ...core.limiter import Decision, Rule
from ...core.messages import Identity, State
from ...core.sketch import Counted
from ...core.timeline import Moment
from ..status import MemberStatus, Stats
from .fields import Cursor, Message, Seconds, Value


class Values(Message, frozen=True, tag=33):
    epoch: int
    values: list[Value | None]


class Fetched(Message, frozen=True, tag=59):
    """Values, and the seconds that each has left; None: for ever, or absent."""

    epoch: int
    values: list[Value | None]
    ttls: list[Seconds | None]


class Flags(Message, frozen=True, tag=34):
    epoch: int
    flags: list[bool]
    values: tuple[Value | None, ...] = ()


class Number(Message, frozen=True, tag=35):
    epoch: int
    value: int | None


class Decided(Message, frozen=True, tag=36):
    """One decision a rule, in the rules' order; the hit passed if all allow it."""

    epoch: int
    decisions: list[Decision]


class Done(Message, frozen=True, tag=37):
    epoch: int


class Failed(Message, frozen=True, tag=38):
    """The node understood, and won't: `reason` is `NOT_AN_INTEGER`, `CHANNEL_FULL` or `REPLY_TOO_LONG`."""

    epoch: int
    reason: str


NOT_AN_INTEGER = "not an integer"
CHANNEL_FULL = "channel full"
REPLY_TOO_LONG = "reply too long"


class Viewed(Message, frozen=True, tag=39):
    """The serving members, and the name of the node that says so."""

    epoch: int
    members: tuple[Identity, ...]
    name: str


class Pong(Message, frozen=True, tag=40):
    epoch: int
    identity: Identity


class Received(Message, frozen=True, tag=41):
    epoch: int
    channel: str
    payload: bytes | None
    more: list[tuple[str, bytes]] = []


class Looked(Message, frozen=True, tag=43):
    """Seconds left (None: for ever), the value if it was asked for, and its bytes in any case, 8 for an integer."""

    epoch: int
    found: bool
    ttl: Seconds | None = None
    value: Value | None = None
    size: int | None = None  #: None from a node that doesn't say it yet


class Scanned(Message, frozen=True, tag=44):
    """Keys, at most a few hundred, perhaps none, and the cursor to go on with; None: there are no more."""

    epoch: int
    keys: list[bytes]
    cursor: Cursor | None = None


class EventNames(Message, frozen=True, tag=46):
    """At most 100; fewer are the last ones."""

    epoch: int
    events: list[Totals]


class EventAccount(Message, frozen=True, tag=47):
    """None: no event of that name is known."""

    epoch: int
    account: Account | None


class LimitsFound(Message, frozen=True, tag=48):
    """The rules under which hits of the key are counted here, and what a hit of cost 1 would be decided by each now:
    `limit - remaining` are counted, and a denied key frees in `retry_after`."""

    epoch: int
    limits: list[tuple[Rule, Decision]]


class Status(Message, frozen=True, tag=42):
    """A node's own account: who it is, for how long, whom it knows, what it counted, and in words what is wrong.

    `omitted` members didn't fit in the reply: those that have been gone for longest.
    """

    epoch: int
    identity: Identity
    state: State
    uptime: float
    isolated: bool
    version: str
    memory: int  #: resident bytes of the process
    members: tuple[MemberStatus, ...]
    stats: Stats
    omitted: int = 0
    problems: Annotated[tuple[Annotated[str, Meta(max_length=4096)], ...], Meta(max_length=100)] = ()


class Report(Message, frozen=True, tag=45):
    """What a node can tell of itself, for those who look at it.

    `timeline` is what happened to members, the latest first. `rates` tells by how much counters grew in each step of
    five seconds, the latest first: ten minutes. `busiest` and `denied` are keys of limits, of the last five to ten
    minutes.
    """

    epoch: int
    status: Status
    timeline: list[Moment]
    rates: dict[str, list[int]]
    busiest: list[Counted[bytes]]
    denied: list[Counted[bytes]]


Reply = (
    Values | Fetched | Flags | Number | Decided | Done | Failed | Viewed | Pong | Received | Status | Looked | Scanned
    | EventNames | EventAccount | Report | LimitsFound
)  # fmt: skip
