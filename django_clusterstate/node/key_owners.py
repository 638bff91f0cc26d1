"""Which node executes a request about keys: this one if it owns them, otherwise their owner.

A requester with another view may have sent it here, and so may any while a node joins or leaves. A request about keys
of several owners is divided.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import structs

from ..core.cache.entry_keys import slot_of_entry
from ..core.rendezvous_hashing import slot_of
from ..exceptions import ProtocolError
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from .cache_requests import TTL_BYTES, VALUE_HEADER
from .copies import Copies

SlotsOf = Callable[[Any], Sequence[int]]


def _of_keys(request: wire.Get | wire.GetWithTtl | wire.Touch | wire.Delete) -> Sequence[int]:
    keys = request.keys
    return [slot_of_entry(key) for key in keys]


def _of_items(request: wire.Set) -> Sequence[int]:
    """Keys that are deleted and read at the same time are in the slot of the items."""
    return [slot_of_entry(key) for key, _ in request.items]


def _of_entry(request: wire.Incr | wire.GetEntry) -> Sequence[int]:
    return (slot_of_entry(request.key),)


def _of_limit(request: wire.Hit | wire.Peek | wire.Reset | wire.Refund | wire.FindLimits) -> Sequence[int]:
    return (slot_of(request.key),)


LIMIT_REQUESTS = (wire.Hit, wire.Peek, wire.Reset, wire.Refund, wire.FindLimits)
# Those that are sent on again, or executed here, when the owner doesn't reply. At worst, a hit counts twice.
REPEATED = (wire.Hit, wire.Peek, wire.Reset)
SLOTS_OF: dict[type, SlotsOf] = {
    **dict.fromkeys((wire.Get, wire.GetWithTtl, wire.Touch, wire.Delete), _of_keys),
    **dict.fromkeys((wire.Incr, wire.GetEntry), _of_entry),
    **dict.fromkeys(LIMIT_REQUESTS, _of_limit),
    wire.Set: _of_items,
}


class KeyOwners:
    """Executes requests about keys by `execute(request)`, or forwards them through `copies`."""

    def __init__(self, copies: Copies, execute: Callable[[Any], wire.Reply]) -> None:
        self._copies = copies
        self._placement = copies.replication.placement
        self._execute = execute

    def owns(self, request: Any) -> bool:
        """Whether this node owns all keys of a request."""
        return all(map(self._placement.owns.__getitem__, SLOTS_OF[type(request)](request)))

    def execute(self, request: Any, hops: int = 0) -> "wire.Reply | asyncio.Future[wire.Reply]":
        """The reply to a request of which this node may not own all keys, and which was forwarded `hops` times."""
        slots = SLOTS_OF[type(request)](request)
        merges = type(request) in LIMIT_REQUESTS
        parts: dict[bytes | None, list[int]] = {}
        for place, slot in enumerate(slots):
            parts.setdefault(self._copies.destination(slot, hops, merges), []).append(place)
        if len(parts) < 2:
            return self._execute_at(next(iter(parts), self._placement.me.boot), request, hops)
        replies = [self._execute_at(boot, _part(request, places), hops) for boot, places in parts.items()]
        return _when_all_are_done(replies, lambda done: _joined(list(parts.values()), done))

    def _execute_at(self, boot: bytes | None, request: Any, hops: int) -> "wire.Reply | asyncio.Future[wire.Reply]":
        if boot is None:
            return wire.UnavailableReply(self._copies.epoch, sent=False)
        if boot == self._placement.me.boot:
            return self._execute(request)
        if isinstance(request, wire.FindLimits):  # all nodes are asked, so the owner is as well
            lists = self._placement.lists(slot_of(request.key))
            return self._execute(request) if lists else wire.LimitsReply(self._copies.epoch, [])
        reply = self._copies.forward(boot, request, hops)
        return _or_else(reply, lambda: self.execute(request, hops + 1)) if isinstance(request, REPEATED) else reply


def _or_else(
    reply: "asyncio.Future[wire.Reply]", repeat: "Callable[[], wire.Reply | asyncio.Future[wire.Reply]]"
) -> "asyncio.Future[wire.Reply]":
    """The reply, or if that is `UnavailableReply`, another one."""
    whole: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()

    def done(first: "asyncio.Future[wire.Reply]") -> None:
        second = repeat() if isinstance(first.result(), wire.UnavailableReply) else first
        if isinstance(second, asyncio.Future):
            second.add_done_callback(lambda last: whole.set_result(last.result()))
        else:
            whole.set_result(second)

    reply.add_done_callback(done)
    return whole


def _part(request: Any, places: Sequence[int]) -> Any:
    """The same request for some of its keys only."""
    if isinstance(request, wire.Set):
        if request.deletes or request.reads:
            raise ProtocolError("a Set with deletes or reads whose items have several owners; they must be in one slot")
        return structs.replace(request, items=[request.items[place] for place in places])
    return structs.replace(request, keys=[request.keys[place] for place in places])


def _when_all_are_done(
    replies: "Sequence[wire.Reply | asyncio.Future[wire.Reply]]", join: Callable[[list[wire.Reply]], wire.Reply]
) -> "wire.Reply | asyncio.Future[wire.Reply]":
    def join_all() -> wire.Reply:
        return join([reply.result() if isinstance(reply, asyncio.Future) else reply for reply in replies])

    late = {reply for reply in replies if isinstance(reply, asyncio.Future)}
    if not late:
        return join_all()
    whole: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()

    def done(reply: "asyncio.Future[wire.Reply]") -> None:
        late.remove(reply)
        if not late:
            whole.set_result(join_all())

    for reply in list(late):
        reply.add_done_callback(done)
    return whole


def _joined(places: Sequence[Sequence[int]], replies: Sequence[wire.Reply]) -> wire.Reply:
    """The replies to the parts of a request, whose keys were at these places in it, as one reply: for the first keys,
    up to one that has no result, or no room."""
    results: dict[int, tuple[Any, ...]] = {}
    for part, reply in zip(places, replies, strict=True):
        results.update(zip(part, _results(reply), strict=False))
    first: list[tuple[Any, ...]] = []
    room = MAX_REQUEST
    while len(first) in results:
        result = results[len(first)]
        room -= VALUE_HEADER + TTL_BYTES + (len(result[0]) if isinstance(result[0], bytes) else 0)
        if room < 0:
            break
        first.append(result)
    whole = next(reply for reply in replies if _results(reply)) if first else replies[0]
    if isinstance(whole, wire.TtlValuesReply):
        return wire.TtlValuesReply(whole.epoch, [value for value, _ in first], [ttl for _, ttl in first])
    if isinstance(whole, wire.ValuesReply):
        return wire.ValuesReply(whole.epoch, [value for (value,) in first])
    if isinstance(whole, wire.FlagsReply):
        return wire.FlagsReply(whole.epoch, [flag for (flag,) in first])
    return wire.UnavailableReply(whole.epoch, sent=True)  # other parts may have been executed


def _results(reply: wire.Reply) -> list[tuple[Any, ...]]:
    """The results for each key in a reply; none if it is about no keys."""
    if isinstance(reply, wire.TtlValuesReply):
        return list(zip(reply.values, reply.ttls, strict=True))
    if isinstance(reply, wire.ValuesReply):
        return [(value,) for value in reply.values]
    return [(flag,) for flag in reply.flags] if isinstance(reply, wire.FlagsReply) else []
