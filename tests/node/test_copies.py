"""Copies between real nodes, with real sockets in one event loop."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.wire import messages as wire
from tests.core.replication.simulation import few_slots
from tests.node.loop_cluster import LoopCluster

pytestmark = pytest.mark.usefixtures("slots")

VALUES = {b"space\0key %d" % number: b"value %d" % number for number in range(300)}
RULE = Rule(Algorithm.FIXED_WINDOW, 10, 3600.0)
LIMITED = [b"group\0%d" % number for number in range(50)]


@pytest.fixture
def slots() -> Iterator[None]:
    """A few: three nodes share one processor here, and fill each other's."""
    with few_slots():
        yield


async def use_up(cluster: LoopCluster) -> None:
    """Hits each limit until it denies."""
    for key in LIMITED:
        for _ in range(RULE.limit):
            assert (await cluster.call(key, wire.Hit(key, [RULE]))).decisions[0].allowed


async def admitted(cluster: LoopCluster) -> int:
    """How many more hits pass."""
    replies = [await cluster.call(key, wire.Hit(key, [RULE])) for key in LIMITED]
    return sum(reply.decisions[0].allowed for reply in replies)


async def flushed(cluster: LoopCluster) -> None:
    """Waits until each change is on its way to no node."""
    await cluster.until(
        lambda: all(node.handler.copies.status().lag == 0 for node in cluster.nodes.values()), "all changes are copied"
    )


@pytest.mark.parametrize("ending", ["killed", "stopped"])
async def test_nothing_is_lost_when_a_node_ends(folder: Path, ending: str) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await cluster.set_all(VALUES)
        await use_up(cluster)
        await flushed(cluster)
        await (cluster.kill("b") if ending == "killed" else cluster.leave("b"))
        await cluster.synced("a", "c")
        assert await cluster.get_all(list(VALUES)) == VALUES
        assert await admitted(cluster) == 0


@pytest.mark.parametrize("undone", ["refund", "reset"])
async def test_hits_that_are_taken_back_stay_so_when_their_owner_is_killed(folder: Path, undone: str) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await use_up(cluster)
        await flushed(cluster)
        key = LIMITED[0]
        if undone == "refund":
            await cluster.call(key, wire.Refund(key, [RULE], 3, 0.0))
        else:
            assert (await cluster.call(key, wire.Reset(key, [RULE]))).flags == [True]
        await flushed(cluster)
        owner = cluster.owners(key)[0]
        await cluster.kill(owner)
        await cluster.synced(*({"a", "b", "c"} - {owner}))
        passed = [(await cluster.call(key, wire.Hit(key, [RULE]))).decisions[0].allowed for _ in range(RULE.limit + 1)]
        assert sum(passed) == (3 if undone == "refund" else RULE.limit)


async def test_nothing_is_lost_when_nodes_join_and_all_earlier_ones_leave(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b")
        await cluster.set_all(VALUES)
        await use_up(cluster)
        for old, new in (("a", "c"), ("b", "d")):
            await cluster.start(new)
            await cluster.leave(old)
            await cluster.synced()
        assert await cluster.get_all(list(VALUES)) == VALUES
        assert await admitted(cluster) == 0


async def test_large_values_are_copied_too(folder: Path) -> None:
    values = {b"space\0%d" % number: bytes(number * 10_000) for number in range(100)} | {b"space\0": bytes(1_000_000)}
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b")
        await cluster.set_all(values)
        await flushed(cluster)
        await cluster.start("c")
        await cluster.leave("a")
        await cluster.kill("b")
        await cluster.synced("c")
        assert await cluster.get_all(list(values)) == values


async def test_scale_down_to_one_loses_nothing(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await cluster.set_all(VALUES)
        await asyncio.gather(cluster.leave("a"), cluster.leave("b"))
        await cluster.synced("c")
        assert await cluster.get_all(list(VALUES)) == VALUES


async def test_request_to_another_node_than_the_owner_is_forwarded(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        for key, value in VALUES.items():
            assert (await cluster.ask(cluster.owners(key)[2], wire.Set([(key, value)], None))).flags == [True]
        assert await cluster.get_all(list(VALUES)) == VALUES
        wrong = [await cluster.ask(cluster.owners(key)[1], wire.Hit(key, [RULE])) for key in LIMITED for _ in range(11)]
        assert sum(reply.decisions[0].allowed for reply in wrong) == 10 * len(LIMITED)
        assert await admitted(cluster) == 0


async def test_request_for_keys_of_several_owners_is_answered_in_parts(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await cluster.set_all(VALUES)
        left, found = list(VALUES), []
        while left:
            reply = await cluster.ask("a", wire.Get(left))
            assert 0 < len(reply.values) <= len(left)
            found += reply.values
            left = left[len(reply.values) :]
        assert found == list(VALUES.values()), cluster.describe()


async def test_replies_come_in_the_order_of_requests_though_some_are_forwarded(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await cluster.set_all(VALUES)
        replies = await asyncio.gather(*(cluster.ask("a", wire.Get([key])) for key in VALUES))
        assert [reply.values for reply in replies] == [[value] for value in VALUES.values()]


async def test_clear_reaches_all_nodes_with_one_version(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await cluster.set_all(VALUES)
        reply = await cluster.ask("a", wire.Clear(b"space"))
        assert isinstance(reply, wire.ClearReply)
        await cluster.until(lambda: not any(node.handler.cache.entries for node in cluster.nodes.values()), "cleared")
        await cluster.set_all(VALUES)
        assert (await cluster.ask("b", wire.Clear(b"space", reply.version))).version == reply.version
        assert await cluster.get_all(list(VALUES)) == VALUES


async def test_deleted_key_does_not_come_back(folder: Path) -> None:
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b", "c")
        await cluster.set_all(VALUES)
        for key in VALUES:
            await cluster.call(key, wire.Delete([key]))
        await flushed(cluster)
        await cluster.kill("a")
        await cluster.synced("b", "c")
        assert await cluster.get_all(list(VALUES)) == {}


async def test_peer_whose_copies_begin_again_while_it_is_connected_ends_nobody(folder: Path) -> None:
    # A heartbeat that says that it leaves may overtake what it says itself, and others may declare it down.
    async with LoopCluster(folder) as cluster:
        await cluster.start("a", "b")
        await cluster.set_all(VALUES)
        replication = cluster.nodes["a"].handler.copies.replication
        replication.outboxes.drop_unknown(set())
        await cluster.until(lambda: bool(replication.outboxes.open), "a is connected again")
        await cluster.synced("a", "b")
        await flushed(cluster)
        await cluster.kill("a")
        await cluster.synced("b")
        assert await cluster.get_all(list(VALUES)) == VALUES
