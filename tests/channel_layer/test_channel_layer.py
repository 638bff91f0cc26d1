"""The contract of a channel layer, on three real nodes: messages and groups between hosts, at most once."""

import asyncio
import enum
import gc
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from django.utils.safestring import mark_safe

from django_clusterstate import runtime
from django_clusterstate.client.aio import AsyncClient
from django_clusterstate.client.routing import Routing
from django_clusterstate.core import channels as bounds
from django_clusterstate.exceptions import ClusterStateError
from django_clusterstate.layers import ClusterChannelLayer, buffers, receiving
from django_clusterstate.layers.channel_layer import _encode
from django_clusterstate.wire.address import UnixAddress
from testproject.processes import LocalCluster, wait_until
from tests.conftest import NODES, using
from tests.derived import DERIVED, Text, rendered
from tests.forks import InChild
from tests.threads import at_once

Layers = dict[str, ClusterChannelLayer]


class LayerOf(ClusterChannelLayer):
    """The layer as a process on that node's host has it."""

    def __init__(self, cluster: LocalCluster, node: str, **options: Any) -> None:
        super().__init__(**options)
        self._client = AsyncClient(Routing(UnixAddress(str(cluster.socket(node)))), runtime.get_dialer())

    def client(self) -> AsyncClient:
        return self._client

    async def close(self) -> None:
        await super().close()
        await self._client.close()


@pytest.fixture
async def hosts(cluster: LocalCluster) -> AsyncIterator[Layers]:
    """A layer on each host."""
    layers = {name: LayerOf(cluster, name) for name in NODES}
    yield {**layers}
    await layers["alpha"].flush()
    for layer in layers.values():
        await layer.close()


@pytest.fixture
async def layer(hosts: Layers) -> ClusterChannelLayer:
    return hosts["alpha"]


async def soon(awaitable: Any, seconds: float = 60) -> Any:
    async with asyncio.timeout(seconds):
        return await awaitable


async def until(condition: Callable[[], bool], seconds: float = 60, pause: float = 0.01) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(pause)


async def silent(*receivers: "tuple[ClusterChannelLayer, str]") -> bool:
    """Whether none of these channels has another message: each receives only the one sent here."""
    for layer, channel in receivers:
        await layer.send(channel, {"type": "end"})
    return [await soon(layer.receive(channel)) for layer, channel in receivers] == [{"type": "end"}] * len(receivers)


# -- the end of a loop -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_closing_a_loop_that_receives_logs_nothing_about_pending_tasks(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    layer = LayerOf(cluster, "alpha")

    async def receive() -> None:
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "hello"})
        await soon(layer.receive(channel))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(receive())
    loop.close()
    del loop
    asyncio.run(receive())
    layer._receivers.clear()
    gc.collect()
    assert caplog.text == ""


# -- forks ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_loop_that_continues_in_a_forked_child_has_its_own_channels(cluster: LocalCluster, in_child: InChild) -> None:
    layer = LayerOf(cluster, "alpha")

    async def use(who: str) -> str:
        channel = await layer.new_channel()
        for number in range(50):
            await layer.send(channel, {"type": who, "number": number})
            assert await soon(layer.receive(channel)) == {"type": who, "number": number}
        return channel.partition("!")[0]

    with asyncio.Runner() as runner:
        mine = runner.run(use("parent"))
        child = in_child(lambda: runner.run(use("child")) != mine)
        assert runner.run(use("parent")) == mine
        assert child()
        assert runner.run(use("parent")) == mine
        runner.run(layer.close())


# -- channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", NODES)
async def test_message_reaches_a_process_on_any_host(hosts: Layers, sender: str) -> None:
    channel = await hosts["beta"].new_channel()
    await hosts[sender].send(channel, {"type": "hello", "from": sender})
    assert await soon(hosts["beta"].receive(channel)) == {"type": "hello", "from": sender}


@pytest.mark.parametrize("channel", ["jobs", "a-named_channel.1", "thumbnails", "x"])
async def test_channel_with_a_plain_name_is_the_same_on_every_host(hosts: Layers, channel: str) -> None:
    for number, sender in enumerate(NODES):
        await hosts[sender].send(channel, {"type": "job", "number": number})
    for number, receiver in enumerate(reversed(NODES)):
        assert await soon(hosts[receiver].receive(channel)) == {"type": "job", "number": number}
        await hosts[receiver].close()


async def test_message_with_a_plain_name_goes_to_one_receiver_only(hosts: Layers) -> None:
    receiving = [asyncio.create_task(layer.receive("jobs")) for layer in hosts.values()]
    for number in range(3):
        await hosts["alpha"].send("jobs", {"type": "job", "number": number})
    received = await soon(asyncio.gather(*receiving))
    assert sorted(message["number"] for message in received) == [0, 1, 2]


async def test_message_comes_as_it_was_sent(layer: ClusterChannelLayer) -> None:
    message = {
        "type": "websocket.receive",
        "bytes": bytes(range(256)),
        "text": None,
        "nested": {"list": [1, -(2**63), 2**64 - 1, 2.5, True, False, None], "empty": [{}, [], "", b""]},
        "unicode": "Grüße, 世界 \N{SNOWMAN}",
        "": 0,
    }
    channel = await layer.new_channel()
    await layer.send(channel, message)
    assert await soon(layer.receive(channel)) == message


async def test_message_of_one_megabyte_arrives_and_a_longer_one_is_refused(layer: ClusterChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "long", "bytes": b"x" * 1024 * 1024})
    assert len((await soon(layer.receive(channel)))["bytes"]) == 1024 * 1024
    with pytest.raises(ValueError, match="longer than the limit"):
        await layer.send(channel, {"type": "longer", "bytes": b"x" * 1024 * 1024 * 2})
    assert await silent((layer, channel))


@pytest.mark.parametrize("name", DERIVED)
async def test_text_and_numbers_of_subclasses_arrive_as_their_base_class(hosts: Layers, name: str) -> None:
    value, plain = DERIVED[name]
    message = {"type": "x", "value": value, "nested": [{"in": (value, [value])}], value: {value: value}}
    channel = await hosts["beta"].new_channel()
    await hosts["beta"].group_add("chat", channel)
    await hosts["alpha"].send(channel, message)
    await hosts["alpha"].group_send("chat", message)
    for _ in range(2):
        received = await soon(hosts["beta"].receive(channel))
        assert received == {"type": "x", "value": plain, "nested": [{"in": [plain, [plain]]}], plain: {plain: plain}}
        assert type(received["value"]) is type(plain)


async def test_rendered_template_can_be_sent(layer: ClusterChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "x", "html": rendered()})
    received = await soon(layer.receive(channel))
    assert received == {"type": "x", "html": "<b>&lt;Ann&gt;</b>"}
    assert type(received["html"]) is str


@pytest.mark.parametrize("of", [mark_safe, Text, lambda name: next(iter(enum.StrEnum("Name", {"A": name})))])
async def test_names_of_channels_and_groups_may_be_of_subclasses_of_str(
    hosts: Layers, of: Callable[[str], str]
) -> None:
    channel, group = of(await hosts["beta"].new_channel()), of("chat")
    await hosts["beta"].group_add(group, channel)
    await hosts["alpha"].send(channel, {"type": "direct"})
    assert await soon(hosts["beta"].receive(channel)) == {"type": "direct"}
    await hosts["alpha"].group_send(group, {"type": "group"})
    assert await soon(hosts["beta"].receive(channel)) == {"type": "group"}
    await hosts["beta"].group_discard(group, channel)
    await hosts["alpha"].send(of("jobs"), {"type": "named"})
    assert await soon(hosts["gamma"].receive(of("jobs"))) == {"type": "named"}


@pytest.mark.parametrize(
    "sizes",
    [
        [1_000_000, 60_000],
        [60_000, 1_000_000, 60_000, 60_000],
        [1024 * 1024, 0, 1024 * 1024],
        [*[40_000] * 30, 1_000_000, *[40_000] * 30],
        *([1_000_000, size] for size in range(52_100, 52_800, 50)),  # around what still fits with the first
    ],
    ids=lambda sizes: f"{len(sizes)} messages, the second of {sizes[1]}",
)
async def test_long_messages_do_not_lose_those_behind_them(
    hosts: Layers, cluster: LocalCluster, sizes: list[int]
) -> None:
    def refused() -> int:
        status = cluster.status("beta")
        assert status is not None
        return status.stats.refused

    before = refused()
    layer = hosts["beta"]
    channel = await layer.new_channel()
    for number, size in enumerate(sizes):
        await layer.send(channel, {"type": "x", "number": number, "bytes": b"x" * size})
    received = [await soon(layer.receive(channel)) for _ in sizes]
    assert [(message["number"], len(message["bytes"])) for message in received] == list(enumerate(sizes))
    assert refused() == before


@pytest.mark.parametrize("message", ["text", [1], None, {"type": "x", "what": object()}, {"type": "x", "n": 1j}])
async def test_values_that_are_not_messages_are_refused(layer: ClusterChannelLayer, message: Any) -> None:
    with pytest.raises(TypeError):
        await layer.send("jobs", message)


@pytest.mark.parametrize("name", ["", "with space", "x" * 100, "ümlaut", "slash/", 5, None])
async def test_invalid_names_are_refused(layer: ClusterChannelLayer, name: Any) -> None:
    for call in (
        layer.send(name, {"type": "x"}),
        layer.receive(name),
        layer.group_add(name, "channel"),
        layer.group_add("group", name),
        layer.group_discard(name, "channel"),
        layer.group_discard("group", name),
        layer.group_send(name, {"type": "x"}),
    ):
        with pytest.raises(TypeError):
            await call


async def test_new_channels_are_valid_different_and_keep_their_prefix(layer: ClusterChannelLayer) -> None:
    channels = [await layer.new_channel() for _ in range(20)] + [await layer.new_channel("inner.one")]
    assert len(set(channels)) == 21
    assert all(layer.require_valid_channel_name(channel) for channel in channels)
    assert channels[0].startswith("specific.")
    assert channels[-1].startswith("inner.one")
    assert len({layer.non_local_name(channel) for channel in channels[:20]}) == 1


async def test_messages_come_in_order(hosts: Layers) -> None:
    channel = await hosts["beta"].new_channel()
    for number in range(50):
        await hosts["alpha"].send(channel, {"type": "x", "number": number})
    received = [await soon(hosts["beta"].receive(channel)) for _ in range(50)]
    assert [message["number"] for message in received] == list(range(50))


async def test_many_channels_of_a_process_each_get_their_own(hosts: Layers) -> None:
    channels = [await hosts["beta"].new_channel() for _ in range(60)]
    receiving = [asyncio.create_task(hosts["beta"].receive(channel)) for channel in channels]
    for number, channel in enumerate(channels):
        await hosts[NODES[number % 3]].send(channel, {"type": "x", "number": number})
    received = await soon(asyncio.gather(*receiving))
    assert [message["number"] for message in received] == list(range(60))


async def test_message_for_another_channel_of_the_process_is_kept_for_it(layer: ClusterChannelLayer) -> None:
    first, second = await layer.new_channel(), await layer.new_channel()
    await layer.send(second, {"type": "second"})
    await layer.send(first, {"type": "first"})
    assert await soon(layer.receive(first)) == {"type": "first"}
    assert await soon(layer.receive(second)) == {"type": "second"}


async def test_full_channel_raises_channel_full(cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha", capacity=3, channel_capacity={"wide*": 5})
    own = await layer.new_channel()
    for channel, capacity in ((own, 3), ("narrow", 3), ("wide.one", 5)):
        for _ in range(capacity):
            await layer.send(channel, {"type": "x"})
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"type": "x"})
        await soon(layer.receive(channel))
        await layer.flush()
    await layer.close()


async def test_expired_messages_are_never_received(cluster: LocalCluster) -> None:
    brief, lasting = LayerOf(cluster, "alpha", expiry=1), LayerOf(cluster, "alpha")
    at_node = await brief.new_channel()
    await brief.send(at_node, {"type": "expires at the node"})
    in_process, other = await lasting.new_channel(), await lasting.new_channel()
    await lasting.send(in_process, {"type": "expires here"})
    await lasting.send(other, {"type": "x"})
    lasting.expiry = 1  # from here on, for what this process keeps
    await soon(lasting.receive(other))  # brings the other channel's message along
    await asyncio.sleep(1.1)
    brief.expiry = lasting.expiry = 60
    assert await silent((brief, at_node), (lasting, in_process))
    await brief.close()
    await lasting.close()


async def test_fetched_messages_are_freed_once_they_expire(cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha", capacity=1000)
    channels = [await layer.new_channel() for _ in range(300)]
    for channel in channels:
        await layer.send(channel, {"type": "x"})
    layer.expiry = 3  # from here on, for what this process keeps
    await soon(layer.receive(channels[-1]))  # brings those of the others along
    receiver = layer._receiver()
    assert len(receiver.buffers) == 299
    await until(
        lambda: not len(receiver.buffers) and receiver._sweep is None
    )  # though nothing else is sent or received
    await layer.close()


async def test_messages_that_have_not_expired_stay_while_others_are_freed(layer: ClusterChannelLayer) -> None:
    channel, other = await layer.new_channel(), await layer.new_channel()
    receiver = layer._receiver()
    layer.expiry = 1
    receiver.put(channel, _encode({"type": "brief"}))
    receiver.put(other, _encode({"type": "brief"}))
    layer.expiry = 60
    receiver.put(channel, _encode({"type": "lasting"}))
    await until(lambda: not receiver.buffers.count(other))
    assert receiver.buffers.count(channel) == 1
    assert await soon(layer.receive(channel)) == {"type": "lasting"}


async def test_freeing_takes_a_bounded_time_of_the_event_loop(
    layer: ClusterChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "SWEEP_BATCH", 10)
    layer.expiry = 1
    receiver = layer._receiver()
    for number in range(95):
        receiver.put(f"specific.x!{number % 30}", b"x")
    held = {95}

    def left() -> int:
        count = sum(receiver.buffers.count(f"specific.x!{number}") for number in range(30))
        held.add(count)
        return count

    await until(lambda: not left(), pause=0)
    steps = sorted(held)
    assert max(later - sooner for sooner, later in pairwise(steps)) <= 10


async def test_messages_that_a_process_drops_for_lack_of_room_are_counted(
    layer: ClusterChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "MAX_BUFFERS", 3)
    layer.capacity = 2
    receiver, stats = layer._receiver(), runtime.get_stats()
    before = stats.channel_dropped
    for _ in range(3):
        receiver.put("specific.x!1", b"x")
    assert stats.channel_dropped == before + 1  # the oldest of a full channel
    for number in range(2, 5):
        receiver.put(f"specific.x!{number}", b"x")
    assert stats.channel_dropped == before + 3  # all of the oldest channel


async def test_memberships_are_freed_once_they_expire(cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha", group_expiry=3)
    channel = await layer.new_channel()
    for number in range(20):
        await layer.group_add(f"chat-{number}", channel)
    receiver = layer._receiver()
    assert len(receiver.memberships) == 20
    await until(lambda: not len(receiver.memberships))
    await layer.close()


async def test_memberships_kept_by_a_process_are_bounded(
    layer: ClusterChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_MEMBERSHIPS", 3)
    channel = await layer.new_channel()
    for number in range(5):
        await layer.group_add(f"chat-{number}", channel)
    await layer.group_add("chat-0", channel)
    assert len(layer._receiver().memberships) == 3
    await layer.group_send("chat-4", {"type": "x"})
    assert await soon(layer.receive(channel)) == {"type": "x"}


async def test_nothing_is_kept_of_channels_without_a_consumer(
    layer: ClusterChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "POLL", 0.1)
    waiting = [asyncio.create_task(layer.receive(f"jobs-{number}")) for number in range(20)]
    receiver = layer._receiver()
    await until(lambda: len(receiver._readers) == 20)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: not receiver._readers)
    assert not receiver._waiting


# -- receiving ------------------------------------------------------------------------------------------------


async def test_cancelled_receive_loses_nothing(hosts: Layers) -> None:
    layer = hosts["alpha"]
    for channel in (await layer.new_channel(), "jobs"):
        for number in range(5):
            waiting = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0.01 * (number % 2))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await hosts["beta"].send(channel, {"type": "x", "number": number})
            assert (await soon(layer.receive(channel)))["number"] == number


async def test_receive_cancelled_as_its_message_arrives_leaves_it_to_the_next(layer: ClusterChannelLayer) -> None:
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0.02)
    receiver = layer._receiver()
    receiver.put(channel, _encode({"type": "first"}))
    receiver.put(channel, _encode({"type": "second"}))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [(await soon(layer.receive(channel)))["type"] for _ in range(2)] == ["first", "second"]


async def test_channel_of_another_process_cannot_be_received_from(
    hosts: Layers, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbor = LayerOf(cluster, "alpha")  # another process of the same host
    here, there = await neighbor.new_channel(), await hosts["beta"].new_channel()
    for channel in (here, there, "specific.0123456789abcdef.0123456789abcdef!x"):
        with pytest.raises(ValueError, match=f"{channel} belongs to a different process"):
            await soon(hosts["alpha"].receive(channel))
    assert not hosts["alpha"]._receiver()._waiting
    await hosts["alpha"].send(here, {"type": "x"})
    assert await soon(neighbor.receive(here)) == {"type": "x"}
    monkeypatch.setattr(os, "getpid", lambda: -1)  # a fork of it, which no hook has told
    with pytest.raises(ValueError, match="belongs to a different process"):
        await soon(neighbor.receive(here))
    child = await neighbor.new_channel()
    await hosts["alpha"].send(child, {"type": "y"})
    assert await soon(neighbor.receive(child)) == {"type": "y"}
    await neighbor.close()


def test_channels_made_at_once_by_several_event_loops_are_of_the_same_process() -> None:
    for _ in range(100):
        assert len(set(at_once(ClusterChannelLayer().process_id))) == 1


def test_channel_may_be_received_from_in_another_event_loop_of_its_process(cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha")
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.send)(channel, {"type": "x"})
    assert async_to_sync(soon)(layer.receive(channel)) == {"type": "x"}


@pytest.mark.parametrize("prefix", ["specific.", "specific", "inner.one", "a.b.c.", ""])
async def test_channel_with_any_prefix_can_be_received_from(hosts: Layers, prefix: str) -> None:
    channel = await hosts["beta"].new_channel(prefix)
    assert channel.startswith(prefix)
    await hosts["alpha"].send(channel, {"type": "x"})
    assert await soon(hosts["beta"].receive(channel)) == {"type": "x"}
    await hosts["beta"].group_add("chat", channel)
    await hosts["gamma"].group_send("chat", {"type": "y"})
    assert await soon(hosts["beta"].receive(channel)) == {"type": "y"}


async def test_outage_of_receiving_is_logged_once_and_its_end_once(
    tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receiving, "LOG_AFTER", 0.2)
    layer = LayerOf(cluster, "alpha")
    channel = await layer.new_channel()
    local = layer.client().routing.local
    address, local.address = local.address, UnixAddress(str(tmp_path / "none.sock"))
    waiting = asyncio.create_task(layer.receive(channel))
    await until(lambda: bool(caplog.records))
    local.address = address
    await until(lambda: len(caplog.records) == 2)
    await asyncio.sleep(0.3)
    queue = layer.non_local_name(channel)
    failed, again = (record.getMessage() for record in caplog.records)
    assert failed.startswith(f"channels {queue}: nothing received for ")
    assert f"consumers wait; retrying every second: node alpha at {tmp_path}" in failed
    assert again == f"channels {queue}: receiving again"
    waiting.cancel()
    await layer.close()


async def test_several_consumers_can_receive_from_one_channel(layer: ClusterChannelLayer) -> None:
    channel = await layer.new_channel()
    receiving = [asyncio.create_task(layer.receive(channel)) for _ in range(3)]
    for number in range(3):
        await layer.send(channel, {"type": "x", "number": number})
    received = await soon(asyncio.gather(*receiving))
    assert [message["number"] for message in received] == [0, 1, 2]


async def test_channel_without_a_consumer_here_is_left_to_other_processes(
    hosts: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "POLL", 0.1)
    alpha = hosts["alpha"]
    both = [asyncio.create_task(alpha.receive(name)) for name in ("thumb", "thumbs")]
    await asyncio.sleep(0.02)
    both[0].cancel()
    reader = alpha._receiver()._readers["thumb"]
    await soon(reader.task)  # it ends, though somebody waits on a name that begins with this one
    await hosts["beta"].send("thumb", {"type": "x"})
    assert await soon(hosts["gamma"].receive("thumb")) == {"type": "x"}
    both[1].cancel()
    await asyncio.gather(*both, return_exceptions=True)


def test_nothing_is_fetched_in_advance_for_an_event_loop_that_ends(cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha")
    for number in range(3):
        async_to_sync(layer.send)("jobs", {"type": "x", "number": number})
    received = [async_to_sync(soon)(layer.receive("jobs")) for _ in range(3)]
    assert [message["number"] for message in received] == [0, 1, 2]


def test_event_loops_in_a_row_leave_no_socket_open(cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha")

    async def talk() -> None:
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"type": "x"})
        await soon(layer.receive(channel))
        await layer.group_discard("chat", channel)

    async_to_sync(talk)()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async_to_sync(talk)()
        asyncio.run(talk())
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(layer._receivers) == 1


# -- groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", NODES)
async def test_group_message_arrives_once_on_every_host(hosts: Layers, sender: str) -> None:
    channels = {name: [await layer.new_channel(), await layer.new_channel()] for name, layer in hosts.items()}
    for name, layer in hosts.items():
        for channel in channels[name]:
            await layer.group_add("chat", channel)
            await layer.group_add("chat", channel)
    await hosts[sender].group_send("chat", {"type": "hello"})
    for name, layer in hosts.items():
        for channel in channels[name]:
            assert await soon(layer.receive(channel)) == {"type": "hello"}
    assert await silent(*((layer, channel) for name, layer in hosts.items() for channel in channels[name]))


async def test_channel_that_left_the_group_receives_nothing(hosts: Layers) -> None:
    channels = {name: await layer.new_channel() for name, layer in hosts.items()}
    for name, layer in hosts.items():
        await layer.group_add("chat", channels[name])
    await hosts["beta"].group_discard("chat", channels["beta"])
    await hosts["beta"].group_discard("none", channels["beta"])
    await hosts["alpha"].group_send("chat", {"type": "hello"})
    assert await soon(hosts["gamma"].receive(channels["gamma"])) == {"type": "hello"}
    assert await silent((hosts["beta"], channels["beta"]))


async def test_channel_can_join_and_leave_a_group_from_another_host(hosts: Layers) -> None:
    channel = await hosts["beta"].new_channel()
    await hosts["beta"].group_add("chat", channel)
    await hosts["alpha"].group_add("chat", channel)
    await hosts["gamma"].group_send("chat", {"type": "hello"})
    assert await soon(hosts["beta"].receive(channel)) == {"type": "hello"}
    assert await silent((hosts["beta"], channel))
    await hosts["alpha"].group_discard("chat", channel)
    await hosts["gamma"].group_send("chat", {"type": "hello"})
    assert await silent((hosts["beta"], channel))


@pytest.mark.parametrize("channel", ["jobs", "thumbnails", "x", "y"])
async def test_channel_with_a_plain_name_receives_a_group_message_once(hosts: Layers, channel: str) -> None:
    for layer in hosts.values():
        await layer.group_add("chat", channel)
    waiting = asyncio.create_task(hosts["beta"].receive(channel))
    await asyncio.sleep(0.02)
    await hosts["gamma"].group_send("chat", {"type": "hello"})
    assert await soon(waiting) == {"type": "hello"}
    assert await silent((hosts["beta"], channel))


async def test_full_channel_misses_a_group_message_and_the_others_receive_it(cluster: LocalCluster) -> None:
    narrow, wide = LayerOf(cluster, "alpha", capacity=1), LayerOf(cluster, "beta")
    full, free = await narrow.new_channel(), await wide.new_channel()
    await narrow.group_add("chat", full)
    await wide.group_add("chat", free)
    await narrow.send(full, {"type": "first"})
    await narrow.group_send("chat", {"type": "hello"})
    assert await soon(wide.receive(free)) == {"type": "hello"}
    assert await soon(narrow.receive(full)) == {"type": "first"}
    assert await silent((narrow, full))
    await narrow.flush()
    await narrow.close()
    await wide.close()


async def test_flush_empties_channels_and_groups_everywhere_and_members_stay(
    hosts: Layers, cluster: LocalCluster
) -> None:
    channels = {name: await layer.new_channel() for name, layer in hosts.items()}
    for name, layer in hosts.items():
        await layer.group_add("chat", channels[name])
        await layer.send(channels[name], {"type": "x"})
    await hosts["alpha"].flush()
    await hosts["beta"].group_send("chat", {"type": "hello"})
    assert await silent(*((layer, channels[name]) for name, layer in hosts.items()))

    def heard() -> list[int]:
        return [status.stats.heartbeats_heard for name in NODES if (status := cluster.status(name)) is not None]

    before = heard()
    await asyncio.to_thread(
        wait_until, lambda: all(now >= then + 3 for then, now in zip(before, heard(), strict=True)), 60, "heartbeats"
    )
    assert cluster.agreed(NODES)


# -- what happens to the nodes --------------------------------------------------------------------------------


async def eventually(call: Callable[[], Any], seconds: float = 10) -> None:
    """Repeats the call until it succeeds: nodes and requesters need a moment to learn the members."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await call()
            except ClusterStateError:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.fixture
async def own_cluster() -> AsyncIterator[LocalCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as folder,
        LocalCluster(Path(folder), ["alpha", "beta"]) as cluster,
        using(cluster, "alpha"),
    ):
        cluster.start("alpha")
        cluster.wait_for("alpha")
        yield cluster


async def test_receivers_and_groups_outlive_their_node_and_follow_their_channels(own_cluster: LocalCluster) -> None:
    layer, other = LayerOf(own_cluster, "alpha"), LayerOf(own_cluster, "beta")
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    plain = [f"jobs-{number}" for number in range(6)]
    waiting = {name: asyncio.create_task(layer.receive(name)) for name in (channel, *plain)}
    await asyncio.sleep(0.1)

    own_cluster.start("beta")
    await asyncio.to_thread(own_cluster.wait_for)
    table = await other.client().table()
    owners = {owner.name for name in plain if (owner := table.owner(name.encode()))}
    assert owners == {"alpha", "beta"}  # some of the channels have moved to the new node
    for name in plain:
        await other.send(name, {"type": name})
    assert [(await soon(waiting[name]))["type"] for name in plain] == plain

    own_cluster.kill("alpha")
    await asyncio.to_thread(own_cluster.wait_for, "beta")
    assert not waiting[channel].done()
    own_cluster.start("alpha")
    await asyncio.to_thread(own_cluster.wait_for)
    await eventually(lambda: layer.send(channel, {"type": "direct"}))
    assert await soon(waiting[channel]) == {"type": "direct"}
    await eventually(lambda: other.group_send("chat", {"type": "hello"}))
    assert await soon(layer.receive(channel)) == {"type": "hello"}
    await layer.close()
    await other.close()


async def test_without_a_node_sending_fails_at_once_and_receiving_waits(tmp_path: Path, cluster: LocalCluster) -> None:
    layer = LayerOf(cluster, "alpha")
    channel = await layer.new_channel()
    await layer.client().close()
    layer.client().routing.local.address = UnixAddress(str(tmp_path / "none.sock"))
    for call in (
        layer.send(channel, {"type": "x"}),
        layer.group_add("chat", channel),
        layer.group_send("chat", {"type": "x"}),
    ):
        with pytest.raises(ClusterStateError):
            await call
    with pytest.raises(TimeoutError):
        await soon(layer.receive(channel), 0.2)
    await layer.close()


# What docs/metrics.md says to alert on, as far as a healthy cluster could come near it.
ALERTED = ("heartbeats_dropped", "channel_dropped", "refused", "connections_evicted", "limit_evictions")


async def test_healthy_restarts_leave_the_counters_for_alerts_at_zero(folder: Path) -> None:
    with LocalCluster(folder, NODES) as cluster, using(cluster, "alpha"):
        cluster.start()
        await asyncio.to_thread(cluster.wait_for)
        # More room than is needed while a busy machine holds up a node.
        hosts = {name: LayerOf(cluster, name, capacity=10_000) for name in NODES}
        channels = {name: await layer.new_channel() for name, layer in hosts.items()}
        for name, layer in hosts.items():
            await layer.group_add("chat", channels[name])
        heard = Counter[str]()
        over = asyncio.Event()

        async def listen(name: str) -> None:
            while True:
                await hosts[name].receive(channels[name])
                heard[name] += 1

        async def talk(name: str) -> None:
            while not over.is_set():
                with suppress(ClusterStateError, ChannelFull):
                    await hosts[name].group_send("chat", {"type": "x"})
                    await hosts[name].send(channels["beta"], {"type": "x"})
                await asyncio.sleep(0.01)

        def all_heard(before: Counter[str]) -> bool:
            return all(heard[name] > before[name] + 50 for name in NODES)

        listening = [asyncio.create_task(listen(name)) for name in NODES]
        talking = [asyncio.create_task(talk(name)) for name in NODES]
        counted: list[tuple[str, dict[str, int]]] = []

        def count(*names: str) -> None:
            for name in names:
                status = cluster.status(name)
                assert status is not None
                counted.append((name, {counter: getattr(status.stats, counter) for counter in ALERTED}))

        for name in NODES:
            before = heard.copy()
            count(name)
            cluster.processes[name].signal(signal.SIGTERM)
            await asyncio.to_thread(cluster.processes[name].wait, 60)
            cluster.start(name)
            await asyncio.to_thread(cluster.wait_for)
            await until(partial(all_heard, before), 20)
        await asyncio.sleep(1.1)  # counters are up to date once a second
        count(*NODES)
        over.set()
        await asyncio.gather(*talking)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        for layer in hosts.values():
            await layer.close()
        assert [(name, counters) for name, counters in counted if any(counters.values())] == []
