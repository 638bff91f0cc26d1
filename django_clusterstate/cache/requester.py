"""Sends the requests of a cache to the nodes: batches for many keys, failures as misses, near values invalidated."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct

from ..client.operations import CallEach, CallNode, GetTable, Operation
from ..client.routing import RoutingTable, Target
from ..exceptions import ClusterStateError, NoCluster
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from .codec import MESSAGE_OVERHEAD
from .near_cache import NearCache

KEYS_AT_ONCE = 250  # keys in one request, which so occupies its node for well below a millisecond
_ITEM_OVERHEAD = 16  # bytes by which a key and its value grow in a message, at most
_READS = (wire.Get, wire.GetWithTtl)

T = TypeVar("T")
OwnerReplies = list[tuple[list[bytes], wire.Reply]]
MakeRequest = Callable[[list[bytes]], wire.Request]
SizeOf = Callable[[bytes], int]


def _whole_reply(reply: Any) -> Any:
    return reply


class CacheRequester:
    """The nodes as one cache uses them; its methods return operations, or commands that are operations of one step.

    A failure of the cluster counts as no reply, or is raised as `ClusterStateError` with `raise_unavailable`. After a
    write, whatever its outcome, the near values of its keys are dropped.
    """

    def __init__(self, near: NearCache, *, raise_unavailable: bool) -> None:
        self.near = near
        self._raise_unavailable = raise_unavailable

    def failed(self, error: ClusterStateError) -> None:
        """The one place where failures of the cluster end: raised only if the alias has ON_UNAVAILABLE "raise"."""
        if self._raise_unavailable:
            raise error

    def call(self, key: bytes, request: wire.Request, read: Callable[[Any], T] = _whole_reply) -> "CallOwner[T]":
        """One request to the owner of a key. Results in `read(reply)`; the reply is None where the request fails."""
        return CallOwner(self, key, wire.request_frame(request), type(request) not in _READS, read)

    def call_node(self, target: Target, request: wire.Request) -> Operation[wire.Reply | None]:
        """One request to one node. The result is its reply, or None where it fails."""
        try:
            reply: wire.Reply = yield CallNode(target, wire.request_frame(request))
        except ClusterStateError as error:
            self.failed(error)
            return None
        finally:
            if isinstance(request, wire.Delete):
                self.near.drop(*request.keys)
        return reply

    def call_owners(self, keys: Iterable[bytes], make: MakeRequest, size_of: SizeOf = len) -> Operation[OwnerReplies]:
        """Requests for many keys, made by `make` for the keys of one owner: one round trip to all owners in parallel,
        and further ones for keys that had no room in the first. Replies that fail are missing.

        `size_of` is the bytes that a key and its value take in a request.
        """
        keys = list(keys)
        replies: OwnerReplies = []
        try:
            table = yield GetTable()
            left = dict(table.group(keys))
            if keys and not left:
                self.failed(NoCluster())
            while left:
                batches = [(target, _first_batch(keys_left, size_of)) for target, keys_left in left.items()]
                answers = yield CallEach([(target, wire.request_frame(make(batch))) for target, batch in batches])
                for (target, batch), answer in zip(batches, answers, strict=True):
                    if isinstance(answer, ClusterStateError):
                        self.failed(answer)
                        del left[target]  # to call a failed owner again would cost another deadline
                        continue
                    count = _answered(answer) or len(batch)
                    replies.append((batch[:count], answer))
                    left[target] = left[target][count:]
                left = {target: keys_left for target, keys_left in left.items() if keys_left}
        finally:
            if make not in _READS:
                self.near.drop(*keys)
        return replies

    def table(self) -> Operation[RoutingTable]:
        """The routing table. One without nodes is a failure."""
        table: RoutingTable = yield GetTable()
        if not table.targets:
            self.failed(NoCluster())
        return table

    def call_all(self, request: wire.Request) -> Operation[dict[Target, wire.Reply | ClusterStateError]]:
        """One request to each node, all at once. An error is in the place of a reply that failed."""
        targets = list((yield from self.table()).targets.values())
        return (yield from _call_each(targets, request))

    def clear(self, namespace: bytes) -> Operation[dict[Target, wire.Reply | ClusterStateError]]:
        """Clears a namespace at each node, for all up to the version that the first one gives."""
        replies: dict[Target, wire.Reply | ClusterStateError] = {}
        targets = list((yield from self.table()).targets.values())
        version = 0
        try:
            while targets and not version:
                first = targets.pop()
                replies |= yield from _call_each([first], wire.Clear(namespace))
                if isinstance(reply := replies[first], wire.ClearReply):
                    version = reply.version
            if targets:
                replies |= yield from _call_each(targets, wire.Clear(namespace, version))
            return replies
        finally:
            self.near.clear()


def _call_each(
    targets: Sequence[Target], request: wire.Request
) -> Operation[dict[Target, wire.Reply | ClusterStateError]]:
    framed = wire.request_frame(request)
    replies = yield CallEach([(target, framed) for target in targets])
    return dict(zip(targets, replies, strict=True))


class CallOwner(Struct, Generic[T], frozen=True):
    """The command that `CacheRequester.call()` returns."""

    requester: CacheRequester
    key: bytes
    request: bytes
    writes: bool
    read: Callable[[Any], T]

    def run(self, client: Any) -> T:
        try:
            reply = client.call(self.key, self.request)
        except ClusterStateError as error:
            self.requester.failed(error)
            reply = None
        finally:
            if self.writes:
                self.requester.near.drop(self.key)
        return self.read(reply)

    async def arun(self, client: Any) -> T:
        try:
            reply = await client.call(self.key, self.request)
        except ClusterStateError as error:
            self.requester.failed(error)
            reply = None
        finally:
            if self.writes:
                self.requester.near.drop(self.key)
        return self.read(reply)


def succeeded(reply: wire.Reply | None) -> bool:
    """Whether a reply says that a node did what was requested for the only key of a request."""
    return isinstance(reply, wire.FlagsReply) and reply.flags[0]


def _answered(reply: wire.Reply) -> int:
    """The number of keys that a reply answers: fewer than requested where more had no room or would have taken the node
    too long; 0 for a reply that isn't about keys."""
    if isinstance(reply, wire.ValuesReply | wire.TtlValuesReply):
        return len(reply.values)
    return len(reply.flags) if isinstance(reply, wire.FlagsReply) else 0


def _first_batch(keys: list[bytes], size_of: SizeOf) -> list[bytes]:
    """The first keys, as many as one request may hold, and at least one."""
    room = MAX_REQUEST - MESSAGE_OVERHEAD
    for count, key in enumerate(keys[:KEYS_AT_ONCE]):
        room -= size_of(key) + _ITEM_OVERHEAD
        if room < 0 and count:
            return keys[:count]
    return keys[:KEYS_AT_ONCE]
