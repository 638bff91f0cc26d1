"""Hits on limits, and peeks, refunds and resets."""

import time
from collections.abc import Callable
from typing import Any

from .. import runtime
from ..client.operations import CallEach, CallEither, CallNode, GetTable, Operation, arun, run
from ..client.routing import RoutingTable, Target
from ..exceptions import ClusterStateError, ProtocolError
from ..limits_storage import LimitsStorage
from ..limits_storage import operations as storage_operations
from ..runtime import asynchronous, blocking
from ..wire import messages as wire
from .denial_cache import DenialCache
from .fallback import ProcessLimiter, decide_by_policy, effective_policy
from .limits import MAX_COST, Decision, Limit, routing_key, strictest_decision


def hit(limit: Limit, group: str, key: str, cost: int = 1, *, dry: bool = False, fresh: bool = False) -> Decision:
    """Counts a hit of `cost` (0 counts nothing) against a key of a group.

    Takes one round trip to the key's owner, or none while this process has a cached denial that still holds; `fresh`
    skips that cache. With `dry` the caller lets the hit pass even if it is denied, and the nodes count such denials
    separately. Raises `ValueError` for a wrong cost; never raises for a failure of the cluster.
    """
    whole, now = routing_key(group, key), time.monotonic()
    denied = None if dry or fresh else _cached_denial(limit, whole, cost, now)
    if denied is not None:
        return denied
    request, client = _hit_request(limit, whole, cost, dry), runtime.get_client()
    storage = runtime.get_limits_storage()
    if storage is not None:
        decision = run(_decide_in_storage(limit, request, storage), client)
    else:
        table = client.table()
        try:  # by hand what `peek()` does: as an operation, it would make a hit take 6 % longer
            owner = table.require_owner(whole)
            decision = _decision(limit, client.call_node(owner, wire.request_frame(request)), owner)
        except ClusterStateError:
            decision = run(_decide_without_owner(limit, request, table), client)
    return _finish_hit(decision, limit, whole, cost, now)


async def ahit(
    limit: Limit, group: str, key: str, cost: int = 1, *, dry: bool = False, fresh: bool = False
) -> Decision:
    """Asynchronous `hit()`."""
    whole, now = routing_key(group, key), time.monotonic()
    denied = None if dry or fresh else _cached_denial(limit, whole, cost, now)
    if denied is not None:
        return denied
    request, client = _hit_request(limit, whole, cost, dry), runtime.get_async_client()
    storage = runtime.get_limits_storage()
    if storage is not None:
        decision = await arun(_decide_in_storage(limit, request, storage), client)
    else:
        table = await client.table()
        try:
            owner = table.require_owner(whole)
            decision = _decision(limit, await client.call_node(owner, wire.request_frame(request)), owner)
        except ClusterStateError:
            decision = await arun(_decide_without_owner(limit, request, table), client)
    return _finish_hit(decision, limit, whole, cost, now)


@blocking
def peek(limit: Limit, group: str, key: str, cost: int = 1) -> Operation[Decision]:
    """The decision that a hit would get now, without counting it. `remaining` and `reset_after` are those before it."""
    request = wire.Peek(routing_key(group, key), list(limit.rules), _checked(cost))
    storage = runtime.get_limits_storage()
    if storage is not None:
        return (yield from _decide_in_storage(limit, request, storage))
    table = yield GetTable()
    try:
        owner = table.require_owner(request.key)
        return _decision(limit, (yield _call(owner, request)), owner)
    except ClusterStateError:
        return (yield from _decide_without_owner(limit, request, table))


@blocking
def refund(decision: Decision, limit: Limit, group: str, key: str, cost: int = 1, ago: float = 0.0) -> Operation[bool]:
    """Takes back a hit where it was counted, as far as it still counts there.

    `decision` is the one that allowed the hit, `ago` seconds before. Returns False if nothing was counted, or if the
    node or storage that counted it can't be reached.
    """
    whole, ago = routing_key(group, key), max(ago, 0.0)
    request = wire.Refund(whole, list(limit.rules), _checked(cost), ago)
    if not decision.allowed or decision.fallback in ("allow", "deny"):
        return False
    try:
        if decision.fallback == "process":
            _process_limiter().refund(whole, limit.rules, cost, ago)
            return True
        storage = runtime.get_limits_storage()
        if storage is not None:
            yield _call_storage(storage, storage_operations.refund, whole, limit, cost, ago)
            return True
        node = (yield GetTable()).targets.get(decision.owner)
        return node is not None and isinstance((yield _call(node, request)), wire.DoneReply)
    except ClusterStateError:
        return False
    finally:
        _denials().drop(whole, time.monotonic())


@blocking
def reset(limit: Limit, group: str, key: str) -> Operation[bool | None]:
    """Forgets all hits of a key under this limit, also those counted by this process or by nodes in the owner's place.

    Returns True if there were any, False if there were none (check the spelling of the key and the rates), and None if
    the owner couldn't be reached and may still count them.
    """
    whole = routing_key(group, key)
    here = _process_limiter().reset(whole, limit.rules)
    storage = runtime.get_limits_storage()
    try:
        if storage is not None:
            return (yield _call_storage(storage, storage_operations.reset, whole, limit)) or here
        table = yield GetTable()
        owner = table.owner(whole)
        if owner is None:
            return None
        nodes = [owner, *table.fallback_targets(whole, runtime.get_routing().local)]
        request = wire.request_frame(wire.Reset(whole, list(limit.rules)))
        replies = yield CallEach([(node, request) for node in nodes])
    except ClusterStateError:
        return None
    finally:
        _denials().drop(whole, time.monotonic())
    if not isinstance(replies[0], wire.FlagsReply):
        return None
    return here or any(isinstance(reply, wire.FlagsReply) and any(reply.flags) for reply in replies)


apeek, arefund, areset = asynchronous(peek), asynchronous(refund), asynchronous(reset)


# -- decisions ------------------------------------------------------------------------------------------------------


def _decide_in_storage(limit: Limit, request: wire.Hit | wire.Peek, storage: LimitsStorage) -> Operation[Decision]:
    """The decision of LIMITS_STORAGE, or of the policy ON_UNAVAILABLE if its engine can't be reached."""
    operation = storage_operations.hit if isinstance(request, wire.Hit) else storage_operations.peek
    try:
        decisions = yield _call_storage(storage, operation, request.key, limit, request.cost)
    except ClusterStateError:
        return decide_by_policy(limit, request, _process_limiter())
    return strictest_decision(limit.rules, decisions, storage.name)


def _decide_without_owner(limit: Limit, request: wire.Hit | wire.Peek, table: RoutingTable) -> Operation[Decision]:
    """The decision of the policy ON_UNAVAILABLE. `table` is the one whose owner couldn't be reached. A newer one may
    name another owner already, under which the substitutes would be others."""
    if effective_policy(limit) == "local":
        for node in table.fallback_targets(request.key, runtime.get_routing().local):
            try:
                return _decision(limit, (yield _call(node, request)), node, "node")
            except ClusterStateError:
                continue
    return decide_by_policy(limit, request, _process_limiter())


def _call_storage(
    storage: LimitsStorage, operation: Callable[..., Operation[Any]], key: bytes, limit: Limit, *args: Any
) -> CallEither:
    return CallEither(storage.run, storage.arun, (operation, key, limit.rules, *args))


def _call(node: Target, request: wire.Request) -> CallNode:
    return CallNode(node, wire.request_frame(request))


def _decision(limit: Limit, reply: wire.Reply, node: Target, fallback: str = "") -> Decision:
    if not isinstance(reply, wire.DecisionsReply) or len(reply.decisions) != len(limit.rules):
        raise ProtocolError(f"{node} replied to a hit with {type(reply).__name__}")
    return strictest_decision(limit.rules, reply.decisions, node.name, fallback)


def _hit_request(limit: Limit, key: bytes, cost: int, dry: bool) -> wire.Hit:
    return wire.Hit(key, list(limit.rules), _checked(cost), dry, _denials().take_count(key))


def _checked(cost: int) -> int:
    if type(cost) is not int or not 0 <= cost <= MAX_COST:
        raise ValueError(f"the cost of a hit must be an integer from 0 to {MAX_COST}, not {cost!r}")
    return cost


# -- cached denials, and counters of this process --------------------------------------------------------------------


def _cached_denial(limit: Limit, key: bytes, cost: int, now: float) -> Decision | None:
    denial = _denials().get(key, limit, cost, now)
    if denial is not None:
        runtime.get_stats().remembered += 1
    return denial


def _finish_hit(decision: Decision, limit: Limit, key: bytes, cost: int, since: float) -> Decision:
    """Counts a fallback in the statistics, and caches a denial by the owner."""
    if decision.fallback:
        stats, counter = runtime.get_stats(), f"fallback_{decision.fallback}"
        setattr(stats, counter, getattr(stats, counter) + 1)
    elif not decision.allowed:
        _denials().add(key, limit, cost, decision, since)
    return decision


# Both are made again when the settings change, since they may then name another cluster.
_process_limiter = runtime.once(ProcessLimiter)
_denials = runtime.once(DenialCache)
