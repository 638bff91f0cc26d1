"""Requests about keys of several owners, without sockets."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.node.key_owners import KeyOwners
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import MAX_REQUEST

EPOCH = 1
RULES = [Rule(Algorithm.FIXED_WINDOW, 10, 60.0)]
OWNERS = (b"me", b"two", b"three", None)


class FakePlacement:
    class me:  # noqa: N801 - as the real one names it
        boot = b"me"

    owns = bytearray(65536)

    def lists(self, slot: int) -> bool:
        return True


class FakeCopies:
    """Each key belongs to the owner at its last digit; the others reply by `reply(boot, request)`, in any order."""

    epoch = EPOCH

    def __init__(self, owners: list[bytes | None], reply: Callable[[bytes, Any], wire.Reply]) -> None:
        self.replication = type("Replication", (), {"placement": FakePlacement()})
        self.forwarded: list[tuple[bytes, Any, asyncio.Future[wire.Reply]]] = []
        self._owners = iter(owners)
        self._reply = reply

    def destination(self, slot: int, hops: int, merges: bool) -> bytes | None:
        return next(self._owners)

    def forward(self, boot: bytes, request: Any, hops: int) -> "asyncio.Future[wire.Reply]":
        future: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self.forwarded.append((boot, request, future))
        return future

    def answer(self) -> None:
        for boot, request, future in reversed(self.forwarded):
            future.set_result(self._reply(boot, request))


def values_of(boot: bytes, request: Any, size: int = 0) -> wire.Reply:
    return wire.ValuesReply(EPOCH, [boot + b"'s " + key + bytes(size) for key in request.keys])


def run(owners: list[bytes | None], request: Any, reply: Callable[[bytes, Any], wire.Reply] = values_of) -> Any:
    """The reply to a request whose keys belong to these owners."""

    async def execute() -> Any:
        copies = FakeCopies(owners, reply)
        answer = KeyOwners(copies, lambda part: reply(b"me", part)).execute(request)  # type: ignore[arg-type]
        copies.answer()
        return await answer if isinstance(answer, asyncio.Future) else answer

    return asyncio.run(execute())


def keys(count: int) -> list[bytes]:
    return [b"space\0%d" % number for number in range(count)]


@given(st.lists(st.sampled_from(OWNERS[:3]), min_size=1, max_size=12))
def test_each_key_is_read_at_its_owner_and_the_reply_is_in_the_order_of_the_request(owners: list[bytes]) -> None:
    wanted = keys(len(owners))
    found = run(list(owners), wire.Get(wanted))
    assert found.values == [owner + b"'s " + key for owner, key in zip(owners, wanted, strict=True)]


@given(st.lists(st.sampled_from(OWNERS), min_size=2, max_size=12).filter(lambda owners: None in owners))
def test_reply_ends_before_the_first_key_that_has_no_owner(owners: list[bytes | None]) -> None:
    found = run(list(owners), wire.Get(keys(len(owners))))
    if owners[0] is None:
        assert isinstance(found, wire.UnavailableReply)
        assert found.sent is any(owners)
    else:
        assert len(found.values) == owners.index(None)


def test_reply_ends_before_the_first_key_that_an_owner_had_no_time_for() -> None:
    def first_only(boot: bytes, request: Any) -> wire.Reply:
        return wire.FlagsReply(EPOCH, [True] * (1 if boot == b"two" else len(request.keys)))

    found = run([b"me", b"two", b"me", b"two", b"me"], wire.Delete(keys(5)), first_only)
    assert found.flags == [True] * 3


def test_reply_has_no_more_values_than_one_message_may() -> None:
    def large(boot: bytes, request: Any) -> wire.Reply:
        return values_of(boot, request, MAX_REQUEST // 3)

    found = run([b"two", b"three", b"two", b"three"], wire.Get(keys(4)), large)
    assert len(found.values) == 2


@pytest.mark.parametrize(
    ("request_", "counts_here"),
    [
        (wire.Hit(b"group\0key", RULES), True),
        (wire.Peek(b"group\0key", RULES), True),
        (wire.Reset(b"group\0key", RULES), True),
        (wire.Refund(b"group\0key", RULES, 1, 1.0), False),
        (wire.Get(keys(1)), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_may_be_done_twice_is_done_here_when_the_owner_does_not_reply(
    request_: Any, counts_here: bool
) -> None:
    done, late = wire.AckReply(EPOCH, 1), wire.UnavailableReply(EPOCH, sent=True)
    found = run([b"two", b"me"], request_, lambda boot, _: done if boot == b"me" else late)
    assert found is (done if counts_here else late)


@pytest.mark.parametrize("more", [{"deletes": (b"key",)}, {"reads": (b"key",)}])
def test_items_of_several_owners_are_not_stored_with_deletes_or_reads(more: dict[str, Any]) -> None:
    request = wire.Set([(key, b"value") for key in keys(2)], None, **more)
    with pytest.raises(ProtocolError, match="they must be in one slot"):
        run([b"me", b"two"], request)


@pytest.mark.parametrize("absent", [False, True])
def test_items_are_stored_at_their_owners(absent: bool) -> None:
    parts = []

    def stored(boot: bytes, request: Any) -> wire.Reply:
        parts.append((boot, [key for key, _ in request.items], request.ttl, request.absent))
        return wire.FlagsReply(EPOCH, [boot == b"two"] * len(request.items))

    items: list[tuple[bytes, wire.Value]] = [(key, b"value") for key in keys(3)]
    found = run([b"two", b"me", b"two"], wire.Set(items, 9.0, absent), stored)
    assert found.flags == [True, False, True]
    assert sorted(parts) == [(b"me", keys(3)[1:2], 9.0, absent), (b"two", keys(3)[::2], 9.0, absent)]
