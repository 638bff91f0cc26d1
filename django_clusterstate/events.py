"""Ephemeral events: counted in the memory of the cluster for two days, where a metric, trace or log would be too much.

`track()` counts an event in this process, and a thread sends it to its owner within a quarter of a second. The other
functions query all nodes and merge the replies. Each has a twin for asynchronous code, whose name begins with `a`. They
leave out nodes that don't reply, and raise `Unavailable` if none does.

The blocking twins use the asyncio client too: it connects to all nodes at once, so a node that doesn't reply takes no
time from the others.

`anames()` and `adetails()` accept `patience`, a number of seconds to wait at most if the deadline is longer, and
`silent`, a dict to which they add the nodes that are left out, by name, and why.
"""

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

import msgspec
from asgiref.sync import async_to_sync

from . import runtime
from .client.aio import AsyncClient, from_now
from .client.event_sender import Field
from .client.routing import RoutingTable, Target, missing_replies
from .core.event_counts import HOURS, MAX_KEY, MAX_NAME, MAX_SAMPLES, MINUTES, PAGE, EventAccount, EventTotals
from .core.top_keys import KeyCount, merged
from .exceptions import ClusterStateError, NoCluster, Unavailable
from .wire import messages as wire

MAX_FIELDS = 8
MAX_FIELD_NAME = 100  # characters
MAX_VALUE = 200
MAX_TIMES = 2**31

_decoder = msgspec.msgpack.Decoder(dict[str, Field])

NodeReplies = list[wire.Reply | ClusterStateError]


class Counts(NamedTuple):
    """How many events there were. The first item of each list is the minute or hour that ends now."""

    total: int  #: since the cluster knows the name
    minutes: list[int]  #: 60; the first lacks up to ten seconds
    hours: list[int]  #: 48; the first lacks up to ten minutes


class RecentEvent(NamedTuple):
    """One event, `ago` seconds before, kept by `node` as the `number`-th sample of its name."""

    key: str
    fields: dict[str, Field]
    ago: float
    node: str
    number: int


class Details(NamedTuple):
    """All that the cluster keeps of one name: `top` are the most frequent keys, `recent` the latest events first."""

    counts: Counts
    top: list[KeyCount[str]]
    recent: list[RecentEvent]


# -- tracking -------------------------------------------------------------------------------------------------


def track(name: str, /, key: str | int | UUID = "", times: int = 1, **fields: Field) -> None:
    """Counts an event, `times` at once. It waits for nothing, and never fails because of the cluster.

    `name` has 1 to 100 characters, `key` at most 200. There are at most 8 `fields`: text, which is cut at 200
    characters, numbers and bools. Raises `TypeError` or `ValueError` for any other argument.
    """
    if type(name) is not str:
        name = _plain(name)
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"the name of an event has 1 to {MAX_NAME} characters, not {len(name)}")
    if type(key) is not str:
        if not isinstance(key, str | int | UUID):
            raise TypeError(f"the key of event {name!r} must be text, an integer or a UUID, not {key!r}")
        key = _plain(key) if isinstance(key, str) else str(key)
    if len(key) > MAX_KEY:
        raise ValueError(f"the key of event {name!r} has at most {MAX_KEY} characters, not {len(key)}")
    if type(times) is not int:
        raise TypeError(f"times of event {name!r} must be an integer, not {times!r}")
    if not 0 < times <= MAX_TIMES:
        raise ValueError(f"times of event {name!r} must be 1 to 2**31, not {times}")
    runtime.get_event_sender().track(name, key, times, _checked(name, fields) if fields else fields)


async def atrack(name: str, /, key: str | int | UUID = "", times: int = 1, **fields: Field) -> None:
    """Asynchronous `track()`."""
    track(name, key, times, **fields)


def flush(timeout: float = 1.0) -> bool:
    """Sends all events tracked in this process. False if that isn't done within `timeout` seconds, or some are dropped.

    Call it before a process ends without Python's clean-up: by `os._exit()`, as children of `multiprocessing` do, or by
    a signal.
    """
    return runtime.get_event_sender().flush(timeout)


def dropped() -> int:
    """How many events this process has dropped because no room was left or no owner replied in time.

    Some of them may have been counted.
    """
    return runtime.get_event_sender().dropped


def _plain(text: str) -> str:
    """The text as an instance of `str` itself, not of a subclass."""
    if not isinstance(text, str):
        raise TypeError(f"the name of an event must be text, not {text!r}")
    return "".join(text)


def _checked(event: str, fields: dict[str, Field]) -> dict[str, Field]:
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"event {event!r} has at most {MAX_FIELDS} fields, not {len(fields)}")
    for name in fields:
        if len(name) > MAX_FIELD_NAME:
            raise ValueError(
                f"a field name of event {event!r} has at most {MAX_FIELD_NAME} characters, not {len(name)}"
            )
    return {name: _value(event, name, value) for name, value in fields.items()}


def _value(event: str, name: str, value: Field) -> Field:
    if isinstance(value, str):
        return _plain(value[:MAX_VALUE])
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if not isinstance(value, int):
        raise TypeError(f"field {name!r} of event {event!r} must be text, a number or a bool, not {value!r}")
    if value not in wire.INT64:
        raise ValueError(f"field {name!r} of event {event!r} is an integer of more than 64 bits")
    return int(value)


# -- reading --------------------------------------------------------------------------------------------------


def names() -> list[EventTotals]:
    """The totals of all events, sorted by name: in the last minute, in the last hour, and since the cluster first
    counted the name. Leaves out nodes that don't reply; raises `Unavailable` if none does."""
    return async_to_sync(anames)()


async def anames(*, patience: float | None = None, silent: dict[str, str] | None = None) -> list[EventTotals]:
    """Asynchronous `names()`."""
    client, until = runtime.get_async_client(), from_now(patience)
    found: list[EventTotals] = []
    pages = [(target, "") for target in await _targets(client, patience)]
    while pages:
        requests = [(target, _request(after=after)) for target, after in pages]
        replies = await client.call_each(requests, until)
        if silent is not None:
            silent |= missing_replies([target for target, _ in pages], replies, wire.EventNamesReply)
        pages = _next_pages(found, pages, replies)
    return _merge_totals(found)


def details(name: str) -> Details:
    """All that the cluster keeps of an event, in one round trip; zeros and empty lists for an unknown name.

    Raises `ValueError` if the name is too long.
    """
    return async_to_sync(adetails)(name)


async def adetails(name: str, *, patience: float | None = None, silent: dict[str, str] | None = None) -> Details:
    """Asynchronous `details()`."""
    request = _request(name)
    client, until = runtime.get_async_client(), from_now(patience)
    targets = await _targets(client, patience)
    replies = await client.call_each([(target, request) for target in targets], until)
    if silent is not None:
        silent |= missing_replies(targets, replies, wire.EventReply)
    _require_reply(replies)
    return _merge_accounts(
        (target.name, reply.account)
        for target, reply in zip(targets, replies, strict=True)
        if isinstance(reply, wire.EventReply) and reply.account is not None
    )


def counts(name: str) -> Counts:
    """How many events of a name there were, by minute and by hour."""
    return details(name).counts


async def acounts(name: str) -> Counts:
    """Asynchronous `counts()`."""
    return (await adetails(name)).counts


def top(name: str, n: int = 10) -> list[KeyCount[str]]:
    """The most frequent keys of the last one to two hours. Each occurred between `times - error` and `times`.

    Each node keeps 50 keys, among them every key that makes up more than a fiftieth of its events of the name.
    """
    return details(name).top[:n]


async def atop(name: str, n: int = 10) -> list[KeyCount[str]]:
    """Asynchronous `top()`."""
    return (await adetails(name)).top[:n]


def recent(name: str, n: int = MAX_SAMPLES) -> list[RecentEvent]:
    """The last events with their fields, the latest first: at most 50 of each node, a sample where there are many."""
    return details(name).recent[:n]


async def arecent(name: str, n: int = MAX_SAMPLES) -> list[RecentEvent]:
    """Asynchronous `recent()`."""
    return (await adetails(name)).recent[:n]


def _request(name: str = "", after: str = "") -> bytes:
    if len(name) > MAX_NAME:
        raise ValueError(f"the name of an event has 1 to {MAX_NAME} characters, not {len(name)}")
    return wire.request_frame(wire.GetEvents(name, after))


async def _targets(client: AsyncClient, patience: float | None) -> list[Target]:
    """All nodes. Takes at most half of the time, so that the other half is left for the nodes' replies."""
    table: RoutingTable = await client.table(from_now(None if patience is None else patience / 2))
    if not table.targets:
        raise NoCluster()
    return list(table.targets.values())


def _require_reply(replies: NodeReplies) -> None:
    """Raises the first error if no node replied."""
    if all(isinstance(reply, ClusterStateError) for reply in replies):
        raise next((reply for reply in replies if isinstance(reply, ClusterStateError)), Unavailable("no node replied"))


def _next_pages(
    found: list[EventTotals], pages: list[tuple[Target, str]], replies: NodeReplies
) -> list[tuple[Target, str]]:
    """Adds the replies to `found`. Returns the nodes that have more names, each with the name to continue after."""
    if not found:
        _require_reply(replies)
    following = []
    for (target, after), reply in zip(pages, replies, strict=True):
        if isinstance(reply, wire.EventNamesReply):
            found += reply.events
            if len(reply.events) >= PAGE and reply.events[-1].name > after:
                following.append((target, reply.events[-1].name))
    return following


def _merge_totals(found: Iterable[EventTotals]) -> list[EventTotals]:
    by_name: dict[str, EventTotals] = {}
    for b in found:
        a = by_name.get(b.name, EventTotals(b.name, 0, 0, 0, b.last_ago))
        by_name[b.name] = EventTotals(
            b.name, a.minute + b.minute, a.hour + b.hour, a.total + b.total, min(a.last_ago, b.last_ago)
        )
    return [by_name[name] for name in sorted(by_name)]


def _merge_accounts(accounts: Iterable[tuple[str, EventAccount]]) -> Details:
    """Adds up the accounts of all nodes, given with their names."""
    total, minutes, hours = 0, [0] * MINUTES, [0] * HOURS
    keys: list[KeyCount[str]] = []
    samples: list[RecentEvent] = []
    for node, account in accounts:
        total += account.total
        minutes = [a + b for a, b in zip(minutes, account.minutes, strict=True)]
        hours = [a + b for a, b in zip(hours, account.hours, strict=True)]
        keys += account.top
        samples += [RecentEvent(s.key, _decode_fields(s.fields), s.ago, node, s.number) for s in account.recent]
    return Details(Counts(total, minutes, hours), merged(keys), sorted(samples, key=lambda sample: sample.ago))


def _decode_fields(encoded: bytes) -> dict[str, Field]:
    try:
        return _decoder.decode(encoded)
    except wire.DECODE_ERRORS:  # a node keeps the fields without decoding them
        return {}
