"""The embedded layer as the node uses it: the same memory that serves other processes."""

import asyncio

import msgspec
import pytest

from django_clusterstate.node.channels.in_process_layer import CAPACITY, MAX_MESSAGE, WAIT, InProcessLayer
from django_clusterstate.wire import messages as wire
from tests.node.test_handler import THERE, Bench


@pytest.fixture
def bench() -> Bench:
    return Bench(others=("beta",))


@pytest.fixture
def layer(bench: Bench) -> InProcessLayer:
    return InProcessLayer(
        bench.handler.channel_requests, bench.handler.channels, bench.membership.me, lambda: bench.now
    )


async def test_what_is_sent_to_a_channel_is_received_in_order(layer: InProcessLayer) -> None:
    channel = await layer.new_channel()
    for number in range(3):
        await layer.send(channel, {"number": number})
    assert [(await layer.receive(channel))["number"] for _ in range(3)] == [0, 1, 2]


async def test_who_waits_is_given_what_comes(layer: InProcessLayer) -> None:
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.send(channel, {"body": b"x"})
    assert await waiting == {"body": b"x"}


async def test_a_group_is_heard_here_and_by_the_peers(bench: Bench, layer: InProcessLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("clusterstate.default", channel)
    await layer.group_send("clusterstate.default", {"body": b"x"})
    assert await layer.receive(channel) == {"body": b"x"}
    assert [message.group for message in bench.peers.fanned_out] == ["clusterstate.default"]
    bench.ask(wire.Flush())
    bench.ask(wire.Deliver("clusterstate.default", msgspec.msgpack.encode({"body": b"y"}), 60, 9))
    assert await layer.receive(channel) == {"body": b"y"}


async def test_what_is_for_a_channel_of_another_node_goes_there(bench: Bench, layer: InProcessLayer) -> None:
    await layer.send(f"{THERE}x", {"body": b"x"})
    assert [tag for tag, _ in bench.peers.forwarded] == [wire.channel_tag("beta")]


async def test_a_message_is_not_lost_to_who_has_stopped_waiting(layer: InProcessLayer) -> None:
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await layer.send(channel, {"body": b"x"})
    assert await layer.receive(channel) == {"body": b"x"}


async def test_waiting_goes_on_when_nothing_came_for_long(bench: Bench, layer: InProcessLayer) -> None:
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    bench.now += WAIT * 1.02
    bench.handler.reclaim()
    await asyncio.sleep(0)
    await layer.send(channel, {"body": b"x"})
    assert await waiting == {"body": b"x"}


async def test_what_is_no_heartbeat_is_dropped_and_holds_nothing_up(bench: Bench, layer: InProcessLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("clusterstate.default", channel)
    for payload in (b"\xc1", b"", b"\x01", b"\xc4\x01", b"\x81\xa1x\xc6" + bytes(MAX_MESSAGE)):
        bench.ask(wire.Deliver("clusterstate.default", payload, 60, 9))
    await layer.group_send("clusterstate.default", {"body": b"x"})
    assert await layer.receive(channel) == {"body": b"x"}
    assert bench.handler.channels.dropped == 5


async def test_what_nobody_takes_is_bounded(bench: Bench, layer: InProcessLayer) -> None:
    await layer.group_add("clusterstate.default", await layer.new_channel())
    for number in range(CAPACITY + 10):
        bench.ask(wire.Deliver("clusterstate.default", b"%d" % number, 60, 9))
    assert len(layer._arrived) == CAPACITY
    assert layer._arrived[0][0] == b"10"
