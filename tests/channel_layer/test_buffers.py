"""Fetched messages of a process; each test sets the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.channels import ABANDONED_AFTER, OVERHEAD, QUEUE_OVERHEAD
from django_clusterstate.layers import buffers as module
from django_clusterstate.layers.buffers import Buffers

NOW = 1000.0


def put(
    buffers: Buffers, channel: str, payload: bytes, now: float = NOW, expiry: float = 60, capacity: int = 9
) -> None:
    buffers.put(channel, payload, expiry, capacity, now)


def taken(buffers: Buffers, channel: str, now: float = NOW) -> list[bytes]:
    found = []
    while (payload := buffers.take(channel, now)) is not None:
        found.append(payload)
    return found


def test_messages_are_taken_in_order_after_one_put_first() -> None:
    buffers = Buffers()
    put(buffers, "a", b"1")
    put(buffers, "a", b"2")
    buffers.put("a", b"0", 60, 9, NOW, first=True)
    put(buffers, "b", b"x")
    assert taken(buffers, "a") == [b"0", b"1", b"2"]
    assert len(buffers) == 1


def test_expired_messages_are_not_taken_and_are_freed() -> None:
    buffers = Buffers()
    put(buffers, "a", b"1", expiry=1)
    put(buffers, "a", b"2", expiry=10)
    put(buffers, "b", b"3", expiry=1)
    assert buffers.expire(NOW + 0.9, 100) == 0
    assert buffers.expire(NOW + 2, 100) == 4
    assert (len(buffers), buffers.count("a"), buffers.count("b")) == (1, 1, 0)
    assert taken(buffers, "a", NOW + 2) == [b"2"]
    put(buffers, "a", b"4", expiry=1)
    assert taken(buffers, "a", NOW + 1) == []
    assert len(buffers) == len(buffers._expiry) == 0


def test_expired_messages_are_freed_in_batches() -> None:
    buffers = Buffers()
    for number in range(30):
        put(buffers, f"c{number % 7}", b"x", expiry=1)
    assert max(buffers.expire(NOW + 2, 7) for _ in range(10)) == 7
    assert len(buffers) == 0


def test_full_channel_drops_its_oldest_message_and_counts_it_unless_abandoned() -> None:
    buffers = Buffers()
    for number in range(3):
        put(buffers, "a", b"%d" % number, capacity=2)
    assert buffers.dropped == 1
    put(buffers, "a", b"3", NOW + ABANDONED_AFTER + 1, capacity=2)  # nobody has taken the first: its consumer has gone
    assert buffers.dropped == 1
    assert taken(buffers, "a") == [b"2", b"3"]


def test_channels_are_bounded_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BUFFERS", 3)
    buffers = Buffers()
    for number in range(5):
        put(buffers, f"c{number}", b"x")
    assert len(buffers) == len(buffers._expiry) == 3
    assert buffers.dropped == 2
    assert buffers.count("c0") == 0


def test_bytes_are_bounded_over_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    buffers = Buffers()
    for number in range(50):
        put(buffers, f"c{number}", bytes(9_000))
        assert buffers._bytes <= 100_000
    assert buffers.count("c49") == 1
    assert buffers.dropped == 50 - len(buffers) > 35
    put(buffers, "c49", bytes(99_000), capacity=1)
    assert len(buffers) == 1
    assert taken(buffers, "c49") == [bytes(99_000)]
    assert buffers._bytes == 0


step = st.tuples(
    st.sampled_from(["put", "first", "take", "free"]), st.sampled_from("ab"), st.sampled_from([0.0, 0.7, 3.0])
)


@given(st.lists(step, max_size=50))
def test_no_message_is_taken_late_and_sizes_stay_consistent(steps: list[tuple[str, str, float]]) -> None:
    buffers, now, number = Buffers(), NOW, 0
    until: dict[bytes, float] = {}
    for what, channel, seconds in steps:
        now += seconds
        if what == "take":
            if (payload := buffers.take(channel, now)) is not None:
                assert until.pop(payload) > now
        elif what == "free":
            buffers.expire(now, 2)
        else:
            number += 1
            buffers.put(channel, b"%d" % number, 2, 3, now, first=what == "first")
            until[b"%d" % number] = now + 2
        assert len(buffers._expiry) == len(buffers)
        held = [len(payload) + OVERHEAD for messages in buffers._messages.values() for _, payload in messages]
        assert buffers._bytes == sum(held) + len(buffers) * QUEUE_OVERHEAD
        assert all(0 < len(messages) <= 3 for messages in buffers._messages.values())
