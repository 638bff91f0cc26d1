"""Hits, and the questions about them: who is asked, what answers in its place, what is remembered of denials."""

import time
from collections.abc import Sequence
from os import getpid

from .. import runtime
from ..client.forks import PerProcess
from ..client.routing import Routing, RoutingTable, Target
from ..exceptions import ClusterStateError
from ..limits_storage import AsyncLimitsStorage, LimitsStorage
from ..wire import messages as wire
from ..wire.framing import frame
from .denials import Denials
from .fallback import ProcessLimits, policy_of, without_nodes
from .limits import MAX_COST, Decision, Limit, binding, routing_key


def hit(limit: Limit, group: str, key: str, cost: int = 1, *, dry: bool = False, fresh: bool = False) -> Decision:
    """Counts a hit of `cost` (0 only looks) against a key of a group. One round trip to the key's owner, or none where
    this process remembers a denial that still holds; `fresh` asks the owner nevertheless.

    `dry`: you let the hit pass whatever the answer; the nodes' statistics tell such denials apart.
    """
    whole, asked = routing_key(group, key), time.monotonic()
    if not (dry or fresh):
        denied = _remembered(limit, whole, cost, asked)
        if denied is not None:
            return denied
    return _noted(_ask(limit, whole, cost, dry=dry), limit, whole, cost, asked)


async def ahit(
    limit: Limit, group: str, key: str, cost: int = 1, *, dry: bool = False, fresh: bool = False
) -> Decision:
    """As `hit`."""
    whole, asked = routing_key(group, key), time.monotonic()
    if not (dry or fresh):
        denied = _remembered(limit, whole, cost, asked)
        if denied is not None:
            return denied
    return _noted(await _aask(limit, whole, cost, dry=dry), limit, whole, cost, asked)


def peek(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """What a hit would be answered now, without counting it; `remaining` and `reset_after` are those without it."""
    return _ask(limit, routing_key(group, key), cost, counts=False)


async def apeek(limit: Limit, group: str, key: str, cost: int = 1) -> Decision:
    """As `peek`."""
    return await _aask(limit, routing_key(group, key), cost, counts=False)


def refund(decision: Decision, limit: Limit, group: str, key: str, cost: int = 1, ago: float = 0.0) -> bool:
    """Takes back a hit, where it was counted and as far as it still counts there. `decision` allowed it, and was got
    `ago` seconds before. False when nothing was counted, or what counted it can't be reached."""
    whole, storage, client = routing_key(group, key), runtime.get_limits_storage(), runtime.get_client()
    done = _refunded_here(decision, limit, whole, _checked(cost), ago)
    if done is not None:
        return done
    try:
        if storage is not None:
            storage.refund(whole, limit.rules, cost, max(ago, 0.0))
            return True
        node, request = client.table().targets.get(decision.owner), _refund_request(limit, whole, cost, ago)
        return node is not None and isinstance(client.call_node(node, request), wire.DoneReply)
    except ClusterStateError:
        return False


async def arefund(decision: Decision, limit: Limit, group: str, key: str, cost: int = 1, ago: float = 0.0) -> bool:
    """As `refund`."""
    whole, storage, client = routing_key(group, key), runtime.get_async_limits_storage(), runtime.get_async_client()
    done = _refunded_here(decision, limit, whole, _checked(cost), ago)
    if done is not None:
        return done
    try:
        if storage is not None:
            await storage.refund(whole, limit.rules, cost, max(ago, 0.0))
            return True
        node, request = (await client.table()).targets.get(decision.owner), _refund_request(limit, whole, cost, ago)
        return node is not None and isinstance(await client.call_node(node, request), wire.DoneReply)
    except ClusterStateError:
        return False


def reset(limit: Limit, group: str, key: str) -> bool | None:
    """Forgets all hits of a key under this limit, and what was counted in the owner's place, by other nodes and by this
    process. True if there were any; False if there was no count, as for a key or a rate that is misspelt; None if the
    owner couldn't be reached, so that it may go on counting."""
    whole, storage, client = routing_key(group, key), runtime.get_limits_storage(), runtime.get_client()
    here = _process().reset(whole, limit.rules)
    try:
        if storage is not None:
            return storage.reset(whole, limit.rules) or here
        replies = client.call_each(_resets(client.table(), client.routing.local, whole, limit))
    except ClusterStateError:
        return None
    finally:
        _denials().forget(whole)
    return _was_counted(replies, here)


async def areset(limit: Limit, group: str, key: str) -> bool | None:
    """As `reset`."""
    whole, storage, client = routing_key(group, key), runtime.get_async_limits_storage(), runtime.get_async_client()
    here = _process().reset(whole, limit.rules)
    try:
        if storage is not None:
            return await storage.reset(whole, limit.rules) or here
        replies = await client.call_each(_resets(await client.table(), client.routing.local, whole, limit))
    except ClusterStateError:
        return None
    finally:
        _denials().forget(whole)
    return _was_counted(replies, here)


# -- asking -------------------------------------------------------------------------------------------------------


def _ask(limit: Limit, key: bytes, cost: int, *, counts: bool = True, dry: bool = False) -> Decision:
    storage = runtime.get_limits_storage()
    if storage is not None:
        return _ask_storage(storage, limit, key, _checked(cost), counts=counts)
    request, client = _request(limit, key, cost, counts, dry), runtime.get_client()
    # Looked up once: by the time that a dead owner has failed us, others may have learned of its heir.
    table = client.table()
    owner = table.owner(key)
    try:
        if owner is not None:
            return _decision(limit, client.call_node(owner, request), owner.name)
    except ClusterStateError:
        pass
    for node in _substitutes(limit, key, table, client.routing):
        try:
            decision = _decision(limit, client.call_node(node, request), node.name, "node")
        except ClusterStateError:
            continue
        runtime.get_stats().fallback_node += counts
        return decision
    return without_nodes(limit, key, cost, _process(), counts=counts)


async def _aask(limit: Limit, key: bytes, cost: int, *, counts: bool = True, dry: bool = False) -> Decision:
    storage = runtime.get_async_limits_storage()
    if storage is not None:
        return await _aask_storage(storage, limit, key, _checked(cost), counts=counts)
    request, client = _request(limit, key, cost, counts, dry), runtime.get_async_client()
    # Looked up once: by the time that a dead owner has failed us, others may have learned of its heir.
    table = await client.table()
    owner = table.owner(key)
    try:
        if owner is not None:
            return _decision(limit, await client.call_node(owner, request), owner.name)
    except ClusterStateError:
        pass
    for node in _substitutes(limit, key, table, client.routing):
        try:
            decision = _decision(limit, await client.call_node(node, request), node.name, "node")
        except ClusterStateError:
            continue
        runtime.get_stats().fallback_node += counts
        return decision
    return without_nodes(limit, key, cost, _process(), counts=counts)


def _ask_storage(storage: LimitsStorage, limit: Limit, key: bytes, cost: int, *, counts: bool) -> Decision:
    try:
        decisions = (storage.hit if counts else storage.peek)(key, limit.rules, cost)
    except ClusterStateError:
        return without_nodes(limit, key, cost, _process(), counts=counts)
    return binding(limit.rules, decisions, storage.name, "")


async def _aask_storage(storage: AsyncLimitsStorage, limit: Limit, key: bytes, cost: int, *, counts: bool) -> Decision:
    try:
        decisions = await (storage.hit if counts else storage.peek)(key, limit.rules, cost)
    except ClusterStateError:
        return without_nodes(limit, key, cost, _process(), counts=counts)
    return binding(limit.rules, decisions, storage.name, "")


def _substitutes(limit: Limit, key: bytes, table: RoutingTable, routing: Routing) -> list[Target]:
    return table.substitutes(key, routing.local) if policy_of(limit) == "local" else []


def _checked(cost: int) -> int:
    if type(cost) is not int or not 0 <= cost <= MAX_COST:
        raise ValueError(f"the cost of a hit is an integer from 0 to {MAX_COST}, not {cost!r}")
    return cost


def _request(limit: Limit, key: bytes, cost: int, counts: bool, dry: bool) -> bytes:
    rules, cost = list(limit.rules), _checked(cost)
    if not counts:
        return frame(wire.encode(wire.Peek(key, rules, cost)))
    return frame(wire.encode(wire.Hit(key, rules, cost, dry, _denials().take_answered(key))))


def _refund_request(limit: Limit, key: bytes, cost: int, ago: float) -> bytes:
    return frame(wire.encode(wire.Refund(key, list(limit.rules), cost, max(ago, 0.0))))


def _resets(table: RoutingTable, local: Target, key: bytes, limit: Limit) -> list[tuple[Target, bytes]]:
    """To the owner first, and to those who may have counted in its place."""
    owner, request = table.owner(key), frame(wire.encode(wire.Reset(key, list(limit.rules))))
    return [] if owner is None else [(node, request) for node in (owner, *table.substitutes(key, local))]


def _was_counted(replies: Sequence[wire.Reply | ClusterStateError], here: bool) -> bool | None:
    """What the replies to `_resets` say; None without the owner's."""
    if not replies or not isinstance(replies[0], wire.FlagsReply):
        return None
    return here or any(isinstance(reply, wire.FlagsReply) and any(reply.flags) for reply in replies)


def _refunded_here(decision: Decision, limit: Limit, key: bytes, cost: int, ago: float) -> bool | None:
    """Whether a hit is taken back by now; None when it was counted elsewhere."""
    _denials().forget(key)
    if not decision.allowed or decision.fallback in ("allow", "deny"):
        return False
    if decision.fallback == "process":
        _process().refund(key, limit.rules, cost, ago)
        return True
    return None


def _decision(limit: Limit, reply: wire.Reply, owner: str, fallback: str = "") -> Decision:
    if not isinstance(reply, wire.DecisionsReply) or len(reply.decisions) != len(limit.rules):
        raise ClusterStateError(f"{owner} answered a hit with {type(reply).__name__}")
    return binding(limit.rules, reply.decisions, owner, fallback)


# -- denials that are remembered ----------------------------------------------------------------------------------


def _remembered(limit: Limit, key: bytes, cost: int, now: float) -> Decision | None:
    found = _denials().find(key, limit, cost, now)
    if found is None:
        return None
    runtime.get_stats().remembered += 1
    told, age = found
    reset_after = told.reset_after - age
    return Decision(
        False, told.limit, told.period, told.remaining,
        reset_after if reset_after > 0 else 0.0, told.retry_after - age, told.owner,
    )  # fmt: skip


def _noted(decision: Decision, limit: Limit, key: bytes, cost: int, asked: float) -> Decision:
    if not decision.allowed and not decision.fallback:
        _denials().note(key, limit, cost, decision, decision.retry_after, asked)
    return decision


# After a change of the settings others count, so neither holds any more.


@runtime.once
def _process() -> ProcessLimits:
    return runtime.shared(ProcessLimits, ProcessLimits)


class _Remembered(Denials[Decision], PerProcess):
    """A forked child begins without any: how often they were given from memory is the parent's to tell."""

    def __init__(self) -> None:
        super().__init__()
        PerProcess.__init__(self)

    def _reset(self) -> None:
        self.clear()

    def take_answered(self, key: bytes) -> int:
        if getpid() != self.pid:
            self.reset_after_fork()
        return super().take_answered(key)


@runtime.once
def _denials() -> Denials[Decision]:
    return runtime.shared(Denials, _Remembered)
