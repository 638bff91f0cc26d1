"""Which node executes a request about keys: this one if it owns them, otherwise their owner.

A requester with another view may have sent it here, and so may any while a node joins or leaves. A request about keys
of several owners is executed for the first ones that have the same owner.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import structs

from ..core.cache.entry_keys import slot_of_entry
from ..core.rendezvous_hashing import slot_of
from ..wire import messages as wire
from .copies import Copies

SlotsOf = Callable[[Any], Sequence[int]]


def _of_keys(request: wire.Get | wire.GetWithTtl | wire.Touch | wire.Delete) -> Sequence[int]:
    keys = request.keys
    return [slot_of_entry(key) for key in keys]


def _of_items(request: wire.Set) -> Sequence[int]:
    """Keys that are deleted and read at the same time are in the slot of the only item."""
    return [slot_of_entry(key) for key, _ in request.items]


def _of_entry(request: wire.Incr | wire.GetEntry) -> Sequence[int]:
    return (slot_of_entry(request.key),)


def _of_limit(request: wire.Hit | wire.Peek | wire.Reset | wire.Refund | wire.FindLimits) -> Sequence[int]:
    return (slot_of(request.key),)


SLOTS_OF: dict[type, SlotsOf] = {
    **dict.fromkeys((wire.Get, wire.GetWithTtl, wire.Touch, wire.Delete), _of_keys),
    **dict.fromkeys((wire.Incr, wire.GetEntry), _of_entry),
    **dict.fromkeys((wire.Hit, wire.Peek, wire.Reset, wire.Refund, wire.FindLimits), _of_limit),
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
        if not slots:
            return self._execute(request)
        boot = self._copies.destination(slots[0], hops)
        if isinstance(request, wire.FindLimits) and boot != self._placement.me.boot:
            return wire.LimitsReply(self._copies.epoch, [])  # all nodes are asked, so the owner is as well
        count = 1
        while count < len(slots) and self._copies.destination(slots[count], hops) == boot:
            count += 1
        if count < len(slots):
            request = _for_first(request, count)
        if boot is None:
            return wire.UnavailableReply(self._copies.epoch, sent=False)
        if boot == self._placement.me.boot:
            return self._execute(request)
        return self._copies.forward(boot, request, hops)


def _for_first(request: Any, count: int) -> Any:
    """The same request for its first keys only."""
    if isinstance(request, wire.Set):
        return structs.replace(request, items=request.items[:count])
    return structs.replace(request, keys=request.keys[:count])
