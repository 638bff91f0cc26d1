"""Ephemeral events: what happens so often, or matters so little, that no metric, trace or log is kept of it.

`track()` counts an event in this process; its owner hears of it a quarter of a second later, and keeps the counts of
the last hours in memory. The functions that read have an `a...` twin for asynchronous code; they merge what all nodes
keep, leave out those that don't answer, and raise `Unavailable` when none does. They ask by the asynchronous client, as
`cluster.status()` does: it makes its connections all at once, so that a silent node costs the others no time.

`anames` and `adetails` take two more arguments: `patience`, seconds that they wait at most, if the deadline is longer;
`silent`, to which they add which nodes are left out, by name, and why.
"""

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

import msgspec
from asgiref.sync import async_to_sync

from . import runtime
from .client.aio import AsyncClient, from_now
from .client.event_sender import Field
from .client.routing import RoutingTable, Target, silence
from .core.event_counts import HOURS, MAX_KEY, MAX_NAME, MAX_SAMPLES, MINUTES, PAGE, Account, Totals
from .core.top_keys import KeyCount, merged
from .exceptions import ClusterStateError, NoCluster, Unavailable
from .wire import messages as wire
from .wire.framing import frame

MAX_FIELDS = 8
MAX_FIELD_NAME = 100  # characters
MAX_VALUE = 200
MAX_TIMES = 2**31

_INT64 = range(-(2**63), 2**63)
_decoder = msgspec.msgpack.Decoder(dict[str, Field])

Replies = list[wire.Reply | ClusterStateError]


class Counts(NamedTuple):
    """How often an event came. Each list begins with the span that ends now, and goes back from there."""

    total: int  #: since its first, while it is known
    minutes: list[int]  #: 60; the first lacks up to ten seconds
    hours: list[int]  #: 48; the first lacks up to ten minutes


class Recent(NamedTuple):
    """One event, `ago` seconds before. The `number`-th sample of its name at the node, since that began to keep it."""

    key: str
    fields: dict[str, Field]
    ago: float
    node: str
    number: int


class Details(NamedTuple):
    """All that is kept of one event. `top`: the keys, the most frequent first; `recent`: samples, the latest first."""

    counts: Counts
    top: list[KeyCount[str]]
    recent: list[Recent]


# -- tracking -------------------------------------------------------------------------------------------------


def track(name: str, /, key: str | int | UUID = "", times: int = 1, **fields: Field) -> None:
    """Counts an event, `times` at once. Waits for nothing, and never fails because of the cluster.

    `name` has 1 to 100 characters, `key` at most 200. There are at most 8 `fields`; text is cut at 200 characters.
    Raises `TypeError` or `ValueError` when an argument is something else.
    """
    if type(name) is not str:
        name = _text(name)
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"the name of an event has 1 to {MAX_NAME} characters, not {len(name)}")
    if type(key) is not str:
        if not isinstance(key, str | int | UUID):
            raise TypeError(f"the key of event {name!r} is text, a whole number or a UUID, not {key!r}")
        key = _text(key) if isinstance(key, str) else str(key)
    if len(key) > MAX_KEY:
        raise ValueError(f"the key of event {name!r} has at most {MAX_KEY} characters, not {len(key)}")
    if type(times) is not int:
        raise TypeError(f"event {name!r} happened a whole number of times, not {times!r}")
    if not 0 < times <= MAX_TIMES:
        raise ValueError(f"event {name!r} happened 1 to 2**31 times at once, not {times}")
    runtime.get_event_sender().track(name, key, times, _checked(name, fields) if fields else fields)


async def atrack(name: str, /, key: str | int | UUID = "", times: int = 1, **fields: Field) -> None:
    track(name, key, times, **fields)


def flush(timeout: float = 1.0) -> bool:
    """Sends what this process has tracked, for `timeout` seconds at most. False if some of it isn't with its owner.

    For a process that ends without Python's own clean-up: with `os._exit()`, as `multiprocessing` does it, or by a
    signal.
    """
    return runtime.get_event_sender().flush(timeout)


def dropped() -> int:
    """How many events this process has dropped: no room was left, or no owner answered in time."""
    return runtime.get_event_sender().dropped


def _text(text: str) -> str:
    """Text as such, without the class that it may be of."""
    if not isinstance(text, str):
        raise TypeError(f"the name of an event is text, not {text!r}")
    return "".join(text)


def _checked(event: str, fields: dict[str, Field]) -> dict[str, Field]:
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"event {event!r} has at most {MAX_FIELDS} fields, not {len(fields)}")
    return {_field_name(event, name): _value(event, name, value) for name, value in fields.items()}


def _field_name(event: str, name: str) -> str:
    if len(name) > MAX_FIELD_NAME:
        raise ValueError(f"a field of event {event!r} has a name of {len(name)} characters, more than {MAX_FIELD_NAME}")
    return name


def _value(event: str, name: str, value: Field) -> Field:
    if isinstance(value, str):
        return _text(value[:MAX_VALUE])
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if not isinstance(value, int):
        raise TypeError(f"the field {name!r} of event {event!r} is text, a number or a bool, not {value!r}")
    if value not in _INT64:
        raise ValueError(f"the field {name!r} of event {event!r} is a whole number of 64 bits at most")
    return int(value)


# -- reading --------------------------------------------------------------------------------------------------


def names() -> list[Totals]:
    """How often each event came in the last minute, in the last hour and since it is known; by name."""
    return async_to_sync(anames)()


async def anames(*, patience: float | None = None, silent: dict[str, str] | None = None) -> list[Totals]:
    client, until = runtime.get_async_client(), from_now(patience)
    found: list[Totals] = []
    left_out = {} if silent is None else silent
    wanted = _first_pages(await _table(client, patience))
    while wanted:
        replies = await client.call_each([(target, _request(after=after)) for target, after in wanted], until)
        left_out |= silence([target for target, _ in wanted], replies, wire.EventNamesReply)
        wanted = _take_pages(found, wanted, replies)
    return _merged_names(found)


def details(name: str) -> Details:
    """All that is kept of an event, in one round trip. Zeros and empty lists when it isn't known.

    A name that is too long raises `ValueError`.
    """
    return async_to_sync(adetails)(name)


async def adetails(name: str, *, patience: float | None = None, silent: dict[str, str] | None = None) -> Details:
    client, until = runtime.get_async_client(), from_now(patience)
    targets = _targets(await _table(client, patience))
    replies = await client.call_each([(target, _request(name)) for target in targets], until)
    if silent is not None:
        silent |= silence(targets, replies, wire.EventReply)
    return _merged(_accounts(targets, replies))


def counts(name: str) -> Counts:
    """How often an event came, by minute and by hour."""
    return details(name).counts


async def acounts(name: str) -> Counts:
    return (await adetails(name)).counts


def top(name: str, n: int = 10) -> list[KeyCount[str]]:
    """The most frequent keys of the last hour or two: each came `times` at most, and `times - error` at least.

    There are at most 50 of each node. A key that has more than a fiftieth of the events that its node counts is there.
    """
    return details(name).top[:n]


async def atop(name: str, n: int = 10) -> list[KeyCount[str]]:
    return (await adetails(name)).top[:n]


def recent(name: str, n: int = MAX_SAMPLES) -> list[Recent]:
    """The last events with their fields, the latest first: 50 of each node at most, and not all where many come."""
    return details(name).recent[:n]


async def arecent(name: str, n: int = MAX_SAMPLES) -> list[Recent]:
    return (await adetails(name)).recent[:n]


def _request(name: str = "", after: str = "") -> bytes:
    if len(name) > MAX_NAME:
        raise ValueError(f"the name of an event has 1 to {MAX_NAME} characters, not {len(name)}")
    return frame(wire.encode(wire.GetEvents(name, after)))


async def _table(client: AsyncClient, patience: float | None) -> RoutingTable:
    """In half of the time, so that the nodes have the rest."""
    return await client.table(from_now(None if patience is None else patience / 2))


def _targets(table: RoutingTable) -> list[Target]:
    if not table.targets:
        raise NoCluster()
    return list(table.targets.values())


def _first_pages(table: RoutingTable) -> list[tuple[Target, str]]:
    return [(target, "") for target in _targets(table)]


def _take_pages(found: list[Totals], asked: list[tuple[Target, str]], replies: Replies) -> list[tuple[Target, str]]:
    """Adds what was answered. Returns whom to ask on, and from which name."""
    if all(isinstance(reply, ClusterStateError) for reply in replies) and not found:
        raise _failure(replies)
    more = []
    for (target, after), reply in zip(asked, replies, strict=True):
        if isinstance(reply, wire.EventNamesReply):
            found += reply.events
            if len(reply.events) >= PAGE and reply.events[-1].name > after:
                more.append((target, reply.events[-1].name))
    return more


def _merged_names(found: Iterable[Totals]) -> list[Totals]:
    by_name: dict[str, Totals] = {}
    for one in found:
        known = by_name.get(one.name)
        by_name[one.name] = one if known is None else _plus(known, one)
    return [by_name[name] for name in sorted(by_name)]


def _plus(a: Totals, b: Totals) -> Totals:
    return Totals(a.name, a.minute + b.minute, a.hour + b.hour, a.total + b.total, min(a.last_ago, b.last_ago))


def _accounts(targets: list[Target], replies: Replies) -> list[tuple[str, Account]]:
    """What each node keeps, of those that answered and know the event."""
    if all(isinstance(reply, ClusterStateError) for reply in replies):
        raise _failure(replies)
    return [
        (target.name, reply.account)
        for target, reply in zip(targets, replies, strict=True)
        if isinstance(reply, wire.EventReply) and reply.account is not None
    ]


def _fields(packed: bytes) -> dict[str, Field]:
    try:
        return _decoder.decode(packed)
    except wire.DECODE_ERRORS:
        return {}  # no node looks into it


def _failure(replies: Replies) -> ClusterStateError:
    return next((reply for reply in replies if isinstance(reply, ClusterStateError)), Unavailable("no node answered"))


def _merged(accounts: list[tuple[str, Account]]) -> Details:
    minutes, hours = [0] * MINUTES, [0] * HOURS
    keys: list[KeyCount[str]] = []
    samples: list[Recent] = []
    for node, account in accounts:
        minutes = [a + b for a, b in zip(minutes, account.minutes, strict=True)]
        hours = [a + b for a, b in zip(hours, account.hours, strict=True)]
        keys += account.top
        samples += [Recent(s.key, _fields(s.fields), s.ago, node, s.number) for s in account.recent]
    total = sum(account.total for _, account in accounts)
    return Details(Counts(total, minutes, hours), merged(keys), sorted(samples, key=lambda sample: sample.ago))
