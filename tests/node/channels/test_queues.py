"""The memory of the embedded channel layer, with the clock in the test's hand."""

import tracemalloc
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core import channels as bounds
from django_clusterstate.core.channels import OVERHEAD, QUEUE_OVERHEAD
from django_clusterstate.node.channels import queues as module
from django_clusterstate.node.channels.queues import ChannelQueues, queue_name
from django_clusterstate.wire.framing import MAX_REQUEST

NOW = 1000.0
MANY = 10_000


class Consumer:
    """A connection that receives, and the messages that it got."""

    def __init__(self, channels: ChannelQueues) -> None:
        self.heard: list[tuple[str, bytes | None]] = []
        self._channels = channels

    def listen(self, queue: str, wait: float = 5, now: float = NOW) -> None:
        self._channels.receive(self, queue, lambda channel, payload: self.heard.append((channel, payload)), wait, now)


def send(channels: ChannelQueues, channel: str, payload: bytes, now: float = NOW, *, capacity: int = 100) -> bool:
    return channels.send(channel, payload, 60, capacity, now)


def drained(channels: ChannelQueues, queue: str, now: float = NOW) -> list[bytes]:
    """What waits in a queue."""
    consumer = Consumer(channels)
    while not consumer.heard or consumer.heard[-1][1] is not None:
        channels.expire(now, MANY)
        consumer.listen(queue, 0, now)
    return [payload for _, payload in consumer.heard if payload is not None]


def assert_empty(channels: ChannelQueues) -> None:
    held = (channels._queues, channels._waiters, channels._waiting, channels.groups)
    assert not any(held)
    assert len(channels._queues_expiry) == 0
    assert (channels._bytes, channels.waiters) == (0, 0)


@pytest.mark.parametrize(
    ("channel", "queue"), [("plain", "plain"), ("specific.x!y", "specific.x!"), ("specific.x!y!z", "specific.x!")]
)
def test_channels_of_a_process_share_a_queue(channel: str, queue: str) -> None:
    assert queue_name(channel) == queue


def test_messages_come_in_the_order_in_which_they_were_sent() -> None:
    channels = ChannelQueues()
    consumer = Consumer(channels)
    for number in range(3):
        assert send(channels, f"specific.x!{number % 2}", b"%d" % number)
    for _ in range(3):
        consumer.listen("specific.x!")
    assert consumer.heard == [("specific.x!0", b"0"), ("specific.x!1", b"1"), ("specific.x!0", b"2")]
    assert_empty(channels)


def test_who_waits_gets_the_next_message_at_once() -> None:
    channels = ChannelQueues()
    first, second = Consumer(channels), Consumer(channels)
    first.listen("a")
    second.listen("a")
    send(channels, "a", b"1", NOW + 1)
    send(channels, "a", b"2", NOW + 2)
    assert (first.heard, second.heard) == ([("a", b"1")], [("a", b"2")])
    assert channels.taken == 2
    assert_empty(channels)


def test_who_has_waited_in_vain_is_told_and_misses_nothing() -> None:
    channels = ChannelQueues()
    late, waiting = Consumer(channels), Consumer(channels)
    late.listen("a", wait=1)
    waiting.listen("a", wait=9)
    send(channels, "a", b"1", NOW + 2)
    assert (late.heard, waiting.heard) == ([("a", None)], [("a", b"1")])
    late.listen("a", wait=1, now=NOW + 2)
    channels.expire(NOW + 2.9, MANY)
    assert len(late.heard) == 1
    channels.expire(NOW + 3.125, MANY)
    assert late.heard[1:] == [("a", None)]
    assert_empty(channels)


def test_capacity_counts_all_channels_of_a_process_together() -> None:
    channels = ChannelQueues()
    assert send(channels, "specific.x!1", b"", capacity=2)
    assert send(channels, "specific.x!2", b"", capacity=2)
    assert not send(channels, "specific.x!3", b"", capacity=2)
    assert send(channels, "specific.y!1", b"", capacity=2)
    assert send(channels, "plain", b"", capacity=1)
    assert not send(channels, "plain", b"", capacity=1)
    assert (channels.taken, channels.dropped + channels.unreceived) == (4, 2)


def test_messages_for_a_process_that_has_ended_are_no_loss_for_want_of_room() -> None:
    channels = ChannelQueues()
    assert send(channels, "specific.x!y", b"1", capacity=1)
    assert not send(channels, "specific.x!y", b"2", capacity=1)  # nobody has received from it yet
    assert (channels.dropped, channels.unreceived) == (0, 1)
    assert drained(channels, "specific.x!", NOW + 1) == [b"1"]
    assert send(channels, "specific.x!y", b"3", NOW + 1, capacity=1)
    assert not send(channels, "specific.x!y", b"4", NOW + bounds.ABANDONED_AFTER, capacity=1)
    assert (channels.dropped, channels.unreceived) == (1, 1)
    assert not send(channels, "specific.x!y", b"5", NOW + 2 + bounds.ABANDONED_AFTER, capacity=1)
    assert (channels.dropped, channels.unreceived) == (1, 2)


def test_messages_for_a_process_whose_connection_is_closed_are_no_loss_for_want_of_room() -> None:
    channels = ChannelQueues()
    consumer = Consumer(channels)
    consumer.listen("specific.x!")
    channels.forget(consumer)
    assert send(channels, "specific.x!y", b"1", capacity=1)
    assert not send(channels, "specific.x!y", b"2", capacity=1)
    assert (channels.dropped, channels.unreceived) == (0, 1)


def test_burst_that_a_receiver_has_no_time_for_is_a_loss() -> None:
    channels = ChannelQueues()
    consumer = Consumer(channels)
    consumer.listen("specific.x!", wait=3600)
    for number in range(4):
        send(channels, "specific.x!y", b"%d" % number, NOW + 3000, capacity=2)
    assert consumer.heard == [("specific.x!y", b"0")]
    assert (channels.dropped, channels.unreceived) == (1, 0)


def test_expired_messages_are_never_heard_and_leave_room() -> None:
    channels = ChannelQueues()
    channels.send("a", b"short", 1, 2, NOW)
    channels.send("a", b"long", 10, 2, NOW)
    assert channels.send("a", b"new", 10, 2, NOW + 1)
    assert drained(channels, "a", NOW + 2) == [b"long", b"new"]
    assert (channels.dropped, channels.unreceived) == (0, 1)


def test_message_behind_one_that_lives_longer_expires_as_well() -> None:
    channels = ChannelQueues()
    channels.send("a", b"long", 10, 9, NOW)
    channels.send("a", b"short", 1, 9, NOW)
    assert drained(channels, "a", NOW + 2) == [b"long"]
    assert_empty(channels)


def test_what_has_expired_is_freed_a_second_later() -> None:
    channels = ChannelQueues()
    for number in range(20):
        channels.send(f"c{number}", b"x", 1, 9, NOW)
        channels.group_add(f"g{number}", "c", 1, NOW)
    assert channels.expire(NOW + 0.9, MANY) == 0
    assert len(channels._queues) == len(channels.groups) == 20
    assert channels.expire(NOW + 2, MANY) == 40
    assert_empty(channels)
    assert (channels.dropped, channels.unreceived) == (0, 20)


def test_what_has_expired_is_freed_in_portions() -> None:
    channels = ChannelQueues()
    for number in range(30):
        channels.send(f"c{number % 3}", b"x", 1, 99, NOW)
        channels.group_add(f"g{number}", "c", 1, NOW)
    consumer = Consumer(channels)
    for _ in range(30):
        consumer.listen("a", 1)
    portions = []
    while looked := channels.expire(NOW + 2, 7):
        portions.append(looked)
    assert max(portions) == 7
    assert sum(portions) >= 90
    assert len(consumer.heard) == 30
    assert_empty(channels)


def test_queue_that_lives_on_is_looked_at_again_when_its_next_message_expires() -> None:
    channels = ChannelQueues()
    channels.send("a", b"1", 1, 9, NOW)
    channels.send("a", b"2", 5, 9, NOW)
    assert channels.expire(NOW + 2, MANY) == 1
    assert channels._bytes == QUEUE_OVERHEAD + OVERHEAD + 1
    assert channels.expire(NOW + 4, MANY) == 0
    assert channels.expire(NOW + 6, MANY) == 1
    assert_empty(channels)


def test_message_that_expires_behind_others_is_not_taken_with_them() -> None:
    channels = ChannelQueues()
    for payload, expiry in ((b"1", 10), (b"2", 10), (b"late", 1), (b"3", 10)):
        channels.send("x!y", payload, expiry, 9, NOW)
    assert channels.take("x!", 9, MAX_REQUEST, NOW + 2) == [("x!y", b"1"), ("x!y", b"2"), ("x!y", b"3")]


def test_who_does_not_wait_is_answered_at_once() -> None:
    channels = ChannelQueues()
    consumer = Consumer(channels)
    consumer.listen("a", 0)
    assert consumer.heard == [("a", None)]
    assert_empty(channels)


def test_closed_connection_is_forgotten_and_no_message_goes_to_it() -> None:
    channels = ChannelQueues()
    gone, other = Consumer(channels), Consumer(channels)
    gone.listen("a")
    other.listen("a")
    gone.listen("b")
    channels.forget(gone)
    channels.forget(gone)
    send(channels, "a", b"1")
    send(channels, "b", b"2")
    assert (gone.heard, other.heard) == ([], [("a", b"1")])
    assert drained(channels, "b") == [b"2"]
    assert_empty(channels)


def test_channel_hears_a_group_from_its_joining_to_its_leaving() -> None:
    channels = ChannelQueues()
    channels.group_add("chat", "a", 60, NOW)
    channels.group_add("chat", "b", 60, NOW)
    channels.group_add("chat", "a", 60, NOW)
    assert channels.groups.channels("chat", NOW) == ["a", "b"]
    channels.groups.discard("chat", "a")
    channels.groups.discard("chat", "a")
    channels.groups.discard("none", "a")
    assert channels.groups.channels("chat", NOW) == ["b"]
    channels.groups.discard("chat", "b")
    assert channels.groups.channels("chat", NOW) == []
    assert_empty(channels)


def test_place_in_a_group_expires_unless_it_is_taken_anew() -> None:
    channels = ChannelQueues()
    channels.group_add("chat", "a", 10, NOW)
    channels.group_add("chat", "b", 10, NOW)
    channels.group_add("chat", "a", 10, NOW + 5)
    assert channels.groups.channels("chat", NOW + 9.9) == ["a", "b"]
    assert channels.groups.channels("chat", NOW + 10) == ["a"]
    assert channels.groups.channels("chat", NOW + 15) == []


def test_flush_drops_messages_and_groups_but_not_those_who_wait() -> None:
    channels = ChannelQueues()
    consumer = Consumer(channels)
    send(channels, "a", b"1")
    channels.group_add("chat", "a", 60, NOW)
    consumer.listen("b")
    channels.flush()
    assert drained(channels, "a") == []
    assert channels.groups.channels("chat", NOW) == []
    send(channels, "b", b"2")
    assert consumer.heard == [("b", b"2")]
    assert_empty(channels)


def test_bytes_that_wait_are_bounded_over_all_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10 * (OVERHEAD + QUEUE_OVERHEAD + 10))
    channels = ChannelQueues()
    assert [send(channels, f"c{number}", b"x" * 10) for number in range(12)] == 10 * [True] + 2 * [False]
    assert drained(channels, "c0") == [b"x" * 10]
    assert send(channels, "c11", b"x" * 10)


@pytest.mark.parametrize("channel", ["channel-{:08}", "specific.x!{:08}"])
def test_memory_is_bounded_whatever_the_number_of_queues(monkeypatch: pytest.MonkeyPatch, channel: str) -> None:
    most = 1024 * 1024
    monkeypatch.setattr(module, "MAX_BYTES", most)
    tracemalloc.start()
    try:
        channels = ChannelQueues()
        number = 0
        while channels.send(channel.format(number), b"%d" % number, 60, 10**9, NOW):
            number += 1
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number > 500
    assert held < 1.05 * most


def test_empty_messages_are_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10 * (OVERHEAD + QUEUE_OVERHEAD))
    channels = ChannelQueues()
    assert sum(send(channels, f"c{number}", b"") for number in range(50)) == 10


def test_places_in_groups_are_bounded_and_a_refused_one_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_MEMBERSHIPS", 3)
    channels = ChannelQueues()
    for number in range(5):
        channels.group_add(f"g{number}", "a", 60, NOW)
    assert len(channels.groups) == 3
    assert channels.dropped == 2
    channels.group_add("g0", "a", 90, NOW)
    assert channels.groups.channels("g0", NOW + 80) == ["a"]
    channels.groups.discard("g0", "a")
    channels.group_add("g4", "a", 60, NOW)
    assert channels.groups.channels("g4", NOW) == ["a"]


def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITERS", 2)
    channels = ChannelQueues()
    consumer = Consumer(channels)
    for queue in "abc":
        consumer.listen(queue)
    assert consumer.heard == [("c", None)]


operation = st.tuples(
    st.sampled_from(["send", "send", "receive", "join", "leave", "tick", "forget"]),
    st.sampled_from(["a", "specific.x!1", "specific.x!2", "specific.y!1"]),
    st.sampled_from([0.0, 0.5, 3.0]),
)


@given(st.lists(operation, max_size=60))
def test_nothing_is_heard_twice_or_late_and_the_books_balance(
    operations: list[tuple[str, str, float]],
) -> None:
    channels, now, number = ChannelQueues(), NOW, 0
    consumers = deque([Consumer(channels), Consumer(channels)])
    sent: dict[bytes, tuple[str, float]] = {}
    for what, channel, step in operations:
        now += step
        consumers.rotate()
        queue = queue_name(channel)
        if what == "send":
            number += 1
            payload = b"%05d" % number
            if channels.send(channel, payload, 2, 3, now):
                sent[payload] = (channel, now + 2)
        elif what == "receive":
            before = len(consumers[0].heard)
            consumers[0].listen(queue, 1, now)
            for where, message in consumers[0].heard[before:]:
                if message is not None:
                    on, until = sent[message]
                    assert on == where
                    assert now < until
        elif what == "join":
            channels.group_add("chat", channel, 2, now)
        elif what == "leave":
            channels.groups.discard("chat", channel)
        elif what == "tick":
            channels.expire(now, 5)
        else:
            channels.forget(consumers[0])
        kept = [entry for messages in channels._queues.values() for entry in messages]
        sizes = [len(payload) + OVERHEAD for _, _, payload in kept]
        assert channels._bytes == sum(sizes) + QUEUE_OVERHEAD * len(channels._queues)
        assert channels.waiters == sum(map(len, channels._waiters.values()))
        assert channels.waiters == sum(sum(queues.values()) for queues in channels._waiting.values())
        assert len(channels._queues_expiry) == len(channels._queues)
        assert channels._waiters.keys() <= channels._waiters_expiry._due.keys()
        assert len(channels.groups) == sum(map(len, channels.groups._groups.values()))
        assert all(channels._waiting.values())
        assert len(channels._received_expiry) == len(channels._received)
        assert all(len(messages) <= 3 for messages in channels._queues.values())
        assert all([*channels._queues.values(), *channels._waiters.values(), *channels.groups._groups.values()])
        assert not channels._queues.keys() & channels._waiters.keys()
    heard = [payload for consumer in consumers for _, payload in consumer.heard if payload is not None]
    assert len(heard) == len(set(heard))


def test_messages_are_taken_together_as_far_as_they_are_there_and_small() -> None:
    channels = ChannelQueues()
    for number in range(5):
        send(channels, f"x!{number}", b"%d" % number)
    assert channels.take("x!", 3, MAX_REQUEST, NOW) == [("x!0", b"0"), ("x!1", b"1"), ("x!2", b"2")]
    assert channels.take("x!", 3, MAX_REQUEST, NOW) == [("x!3", b"3"), ("x!4", b"4")]
    assert channels.take("x!", 3, MAX_REQUEST, NOW) == []
    assert_empty(channels)
    for _ in range(3):
        send(channels, "x!y", bytes(module.MAX_TAKEN // 2 - 50))
    assert len(channels.take("x!", 3, MAX_REQUEST, NOW)) == 2
    assert channels.take("x!", 3, MAX_REQUEST, NOW + 60) == []


def test_message_that_has_no_room_stays() -> None:
    channels = ChannelQueues()
    for payload in (b"x" * 100, b"y" * 100):
        send(channels, "x!y", payload)
    room = 100 + module.HEADERS + module.CHARACTER * len("x!y")
    assert channels.take("x!", 9, room - 1, NOW) == []
    assert channels.take("x!", 9, room, NOW) == [("x!y", b"x" * 100)]
    assert channels.take("x!", 9, room, NOW) == [("x!y", b"y" * 100)]
    assert_empty(channels)
