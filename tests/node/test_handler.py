"""What a node answers to each request, with the clock in the test's hand and no socket anywhere."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast, get_args
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_clusterstate.core.counter_history import INTERVAL, INTERVALS
from django_clusterstate.core.event_counts import MAX_FIELDS_BYTES, MAX_SAMPLES, EventEntry, EventSample
from django_clusterstate.core.limits.algorithms import MAX_RULES, Algorithm, Rule
from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState, View
from django_clusterstate.core.membership.members import TOMBSTONES, Change, Effects, Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.core.membership.timeline import TIMELINE_LENGTH, EventKind, MemberEvent
from django_clusterstate.core.rendezvous_hashing import slot_of
from django_clusterstate.core.replication.messages import FillEnd, FillStart
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.node import handler
from django_clusterstate.node.cache_requests import MAX_DURATION
from django_clusterstate.node.channels.queues import queue_name
from django_clusterstate.node.config import NodeConfig
from django_clusterstate.node.copies import ACK_TIMEOUT, FLUSH
from django_clusterstate.node.handler import RECLAIM, Handler
from django_clusterstate.node.log import RateLimitedLog
from django_clusterstate.node.problems import Misdirected
from django_clusterstate.node.recent_activity import REPORTED, TOP_SPAN, counters
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.aio import AsyncConnection
from django_clusterstate.wire.framing import MAX_FRAME, MAX_REQUEST
from django_clusterstate.wire.messages import MAX_KEYS
from django_clusterstate.wire.status import MAX_COUNT, RequesterStats

MIB = 1024 * 1024
NAME = "alpha"
CONFIG = NodeConfig(
    name=NAME,
    cluster="default",
    bind=TcpAddress("127.0.0.1", 4370),
    advertise=TcpAddress("127.0.0.1", 4370),
    socket=UnixAddress("/nowhere"),
    link_keys=(),
    channel_keys=(),
    timings=Timings(),
    cache_max_bytes=8 * 1024 * 1024,
    limits_max_bytes=1024 * 1024,
)
PARTITIONED = dataclasses.replace(CONFIG, cache_own_bytes={b"own": 128 * 1024, b"ns": 64 * 1024})
HERE = f"specific.{wire.channel_tag(NAME)}.p1!"
KEYS_OF_BOTH = [b"%d" % number for number in range(50)]
THERE = f"specific.{wire.channel_tag('beta')}.p2!"


class Peers:
    """The links of the node, as far as it sees them."""

    def __init__(self) -> None:
        self.fanned_out: list[wire.Deliver] = []
        self.forwarded: list[tuple[str, wire.Forward]] = []
        self.redialed: list[str] = []
        self.misdirected: dict[str, Misdirected] = {}
        self.log = RateLimitedLog(lambda: 0.0, 60.0)
        self.connections: list[tuple[bytes, AsyncConnection]] = []

    def fan_out(self, message: wire.Deliver) -> None:
        self.fanned_out.append(message)

    def forward(self, tag: str, message: wire.Forward) -> None:
        self.forwarded.append((tag, message))

    def redial(self, name: str) -> None:
        self.redialed.append(name)

    def copies(self) -> Iterable[tuple[bytes, AsyncConnection]]:
        return self.connections


class Requester:
    """One connection, as far as the handler sees it."""

    peer = b"a node's boot ID"

    def __init__(self) -> None:
        self.pushed: list[wire.Reply] = []

    def push(self, reply: wire.Reply) -> None:
        self.pushed.append(reply)

    def abort(self) -> None: ...


class Bench:
    """A handler with all that it needs."""

    def __init__(self, *, others: tuple[str, ...] = (), config: NodeConfig = CONFIG) -> None:
        self.now = 1000.0
        self.membership = Membership(Identity(NAME, b"boot" * 4, "10.0.0.1:4370"), Timings(), self.now)
        for name in others:
            identity = Identity(name, name.encode().ljust(16), f"10.0.0.{len(name)}:4370")
            self.membership.heard(Heartbeat(identity, 0, 1, MemberState.ALIVE, 0), self.now, fresh=True)
        self.now += 2
        effects = self.membership.tick(self.now)
        self.peers = Peers()
        self.requester = Requester()
        self.handler = Handler(config, self.membership, lambda: self.now, self.peers)
        self.handler.take_effects(effects)

    def ask(self, request: wire.Request, requester: Requester | None = None) -> Any:
        return self.handler.handle(request, requester or self.requester)

    @property
    def pushed(self) -> list[wire.Reply]:
        return self.requester.pushed

    def received(self, queue: str) -> list[tuple[str, bytes | None]]:
        """All that waits in a queue."""
        self.pushed.clear()
        while not self.pushed or (
            isinstance(reply := self.pushed[-1], wire.ReceiveReply) and reply.payload is not None
        ):
            self.ask(wire.Receive(queue, 0))
        return [(reply.channel, reply.payload) for reply in self.pushed[:-1] if isinstance(reply, wire.ReceiveReply)]

    @property
    def epoch(self) -> int:
        return self.membership.view.epoch

    @property
    def unavailable(self) -> wire.Reply:
        return wire.UnavailableReply(self.epoch, sent=False)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- cache ----------------------------------------------------------------------------------------------------


def test_values_come_back_in_the_order_of_their_keys(bench: Bench) -> None:
    assert bench.ask(wire.Set([(b"a", b"x"), (b"b", 7)], None)) == wire.FlagsReply(bench.epoch, [True, True])
    assert bench.ask(wire.Get([b"b", b"none", b"a"])) == wire.ValuesReply(bench.epoch, [7, None, b"x"])
    assert (bench.handler.stats.hits, bench.handler.stats.misses) == (2, 1)


def test_values_come_back_with_what_they_have_left(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x")], 5.0))
    bench.ask(wire.Set([(b"b", 7)], None))
    bench.now += 2
    assert bench.ask(wire.GetWithTtl([b"b", b"none", b"a"])) == wire.TtlValuesReply(
        bench.epoch, [7, None, b"x"], [None, None, 3.0]
    )
    assert (bench.handler.stats.hits, bench.handler.stats.misses) == (2, 1)
    bench.now += 3
    assert bench.ask(wire.GetWithTtl([b"a"])) == wire.TtlValuesReply(bench.epoch, [None], [None])


@pytest.fixture
def slow() -> Bench:
    """A node that finds the time a quarter of a turn later each time that it looks at its clock."""

    class Slow(Bench):
        def tick(self) -> float:
            self.now += MAX_DURATION / 4
            return self.now

    bench = Slow()
    bench.handler = Handler(CONFIG, bench.membership, bench.tick, bench.peers)
    bench.handler.take_effects(Effects([Change(bench.membership.me, None, MemberState.ALIVE)]))
    return bench


def test_a_request_for_many_keys_takes_a_turn_and_is_answered_for_those_that_are_done(slow: Bench) -> None:
    keys = [b"ns\0%d" % number for number in range(MAX_KEYS)]
    stored = slow.ask(wire.Set([(key, 1) for key in keys], None))
    done = len(stored.flags)
    assert stored.flags == [True] * done
    assert 0 < done < 100
    assert slow.handler.cache.entries == done
    found = slow.ask(wire.Get(keys)).values
    assert found[:done] == [1] * min(done, len(found))
    assert 0 < len(found) < 100
    assert 0 < len(slow.ask(wire.Touch(keys, 60.0)).flags) < 100
    deleted = slow.ask(wire.Delete(keys)).flags
    assert deleted == [True] * len(deleted)
    assert slow.handler.cache.entries == done - len(deleted)


def test_a_set_that_isnt_done_deletes_nothing(slow: Bench) -> None:
    slow.ask(wire.Set([(b"ns\0lease", 1)], None))
    slow.ask(wire.Set([(b"ns\0%d" % number, 1) for number in range(MAX_KEYS)], None, deletes=(b"ns\0lease",)))
    assert slow.ask(wire.Get([b"ns\0lease"])).values == [1]


def test_a_few_keys_are_done_in_one_turn(slow: Bench) -> None:
    keys = [b"ns\0%d" % number for number in range(15)]
    assert slow.ask(wire.Set([(key, 1) for key in keys], None)).flags == [True] * 15
    assert slow.ask(wire.Get(keys)).values == [1] * 15
    assert slow.ask(wire.Delete(keys)).flags == [True] * 15


def test_set_deletes_other_keys_once_all_is_stored_and_then_reads(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x"), (b"b", 7)], None))
    again = wire.Set([(b"a", b"y")], None, absent=True, deletes=(b"b",), reads=(b"b", b"a", b"c"))
    assert bench.ask(again) == wire.FlagsReply(bench.epoch, [False], (7, b"x", None))
    other = wire.Set([(b"c", b"y")], None, absent=True, deletes=(b"b",), reads=(b"b", b"a", b"c"))
    assert bench.ask(other) == wire.FlagsReply(bench.epoch, [True], (None, b"x", b"y"))
    assert (bench.handler.stats.hits, bench.handler.stats.misses) == (4, 2)


def test_value_is_gone_when_its_ttl_is_over(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x")], 10))
    bench.now += 9.9
    assert bench.ask(wire.Get([b"a"])).values == [b"x"]
    bench.now += 0.1
    assert bench.ask(wire.Get([b"a"])).values == [None]


@pytest.mark.parametrize("own", [{}, {b"ns": 4 * 1024 * 1024}])
def test_what_has_expired_is_freed_in_portions(own: dict[bytes, int]) -> None:
    bench = Bench(config=dataclasses.replace(CONFIG, cache_own_bytes=own))
    for number in range(RECLAIM + 1):
        bench.ask(wire.Set([(b"ns\0%d" % number, b"x")], 10))
        bench.ask(wire.Hit(b"%d" % number, [Rule(Algorithm.FIXED_WINDOW, 5, 10.0)]))
    assert not bench.handler.reclaim()
    bench.now += 12
    assert bench.handler.reclaim()
    assert (bench.handler.cache.entries, bench.handler.limits.entries) == (1, 1)
    assert not bench.handler.reclaim()
    assert (bench.handler.cache.entries, bench.handler.limits.entries) == (0, 0)


def test_only_absent_keys_are_added(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x")], 10))
    assert bench.ask(wire.Set([(b"a", b"y"), (b"b", b"y")], 10, absent=True)).flags == [False, True]
    assert bench.ask(wire.Get([b"a", b"b"])).values == [b"x", b"y"]


def test_key_that_holds_the_very_value_counts_as_added_where_that_is_wanted(bench: Bench) -> None:
    taking = wire.Set([(b"lock", b"mine")], 10, absent=True, or_same=True, deletes=(b"other",))
    bench.ask(wire.Set([(b"other", b"x")], 10))
    assert bench.ask(taking).flags == [True]
    bench.ask(wire.Set([(b"other", b"x")], 10))
    bench.now += 4
    assert bench.ask(taking).flags == [True]
    assert bench.ask(wire.Get([b"other"])).values == [None]
    assert bench.ask(wire.GetEntry(b"lock")).ttl == 6  # as it was
    assert bench.ask(wire.Set([(b"lock", b"theirs")], 10, absent=True, or_same=True)).flags == [False]
    assert bench.ask(wire.Set([(b"lock", b"mine")], 10, absent=True)).flags == [False]


def test_touch_leaves_keys_that_hold_something_else(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x"), (b"b", b"y")], 10))
    assert bench.ask(wire.Touch([b"a", b"b", b"c"], 100, b"x")).flags == [True, False, False]
    bench.now += 99
    assert bench.ask(wire.Get([b"a", b"b"])).values == [b"x", None]


def test_touch_gives_a_new_ttl_and_tells_absent_keys(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x")], 10))
    assert bench.ask(wire.Touch([b"a", b"b"], 100)).flags == [True, False]
    bench.now += 99
    assert bench.ask(wire.Get([b"a"])).values == [b"x"]


def test_delete_tells_absent_keys(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x")], None))
    assert bench.ask(wire.Delete([b"a", b"b"])).flags == [True, False]
    assert bench.ask(wire.Get([b"a"])).values == [None]


@pytest.mark.parametrize(
    ("held", "expected", "deleted"),
    [(b"x", b"x", True), (b"x", b"y", False), (7, 7, True), (7, 8, False), (7, b"7", False), (b"", b"", True)],
)
def test_delete_may_expect_a_value(bench: Bench, held: wire.Value, expected: wire.Value, deleted: bool) -> None:
    bench.ask(wire.Set([(b"a", held)], None))
    assert bench.ask(wire.Delete([b"a", b"none"], expected)).flags == [deleted, False]
    assert bench.ask(wire.Get([b"a"])).values == [None if deleted else held]


def test_look_tells_what_is_left_and_the_value_where_it_is_wanted(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x")], 10))
    bench.ask(wire.Set([(b"b", 7)], None))
    bench.now += 4
    assert bench.ask(wire.GetEntry(b"a")) == wire.EntryReply(bench.epoch, True, 6.0, None, 1)
    assert bench.ask(wire.GetEntry(b"a", value=True)) == wire.EntryReply(bench.epoch, True, 6.0, b"x", 1)
    assert bench.ask(wire.GetEntry(b"b", value=True)) == wire.EntryReply(bench.epoch, True, None, 7, 8)
    assert bench.ask(wire.GetEntry(b"none", value=True)) == wire.EntryReply(bench.epoch, False)
    assert (bench.handler.stats.hits, bench.handler.stats.misses) == (0, 0)


def test_scan_gives_all_keys_with_a_prefix_step_by_step(bench: Bench) -> None:
    keys = [b"ns\0%d" % number for number in range(1000)]
    bench.ask(wire.Set([(key, b"x") for key in keys], None))
    bench.ask(wire.Set([(b"other\0a", b"x")], None))
    found, reply = [], bench.ask(wire.Scan(b"ns\0"))
    while reply.cursor is not None:
        found += reply.keys
        reply = bench.ask(wire.Scan(b"ns\0", reply.cursor))
    assert sorted(found + reply.keys) == sorted(keys)
    assert bench.ask(wire.Scan(b"other\0")) == wire.ScanReply(bench.epoch, [b"other\0a"])
    assert bench.ask(wire.Scan(b"other\0b")) == wire.ScanReply(bench.epoch, [])
    assert bench.ask(wire.Scan(b"none\0")) == wire.ScanReply(bench.epoch, [])


def test_longest_keys_that_one_scan_gives_fit_in_a_frame(bench: Bench) -> None:
    for number in range(2000):
        bench.ask(wire.Set([(b"ns\0%01020d" % number, b"x")], None if number % 2 else 1 + number))
    reply = bench.ask(wire.Scan(b"ns\0"))
    while reply.cursor is not None:
        assert len(wire.encode(reply)) <= MAX_FRAME
        reply = bench.ask(wire.Scan(b"ns\0", reply.cursor))


def test_clear_empties_one_namespace(bench: Bench) -> None:
    bench.ask(wire.Set([(b"one\0a", b"x"), (b"two\0a", b"y")], None))
    assert bench.ask(wire.Clear(b"one")).version > 0
    assert bench.ask(wire.Get([b"one\0a", b"two\0a"])).values == [None, b"y"]


def test_incr_adds_and_keeps_the_ttl(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", 40)], 10))
    bench.now += 5
    assert bench.ask(wire.Incr(b"a", 2)) == wire.NumberReply(bench.epoch, 42)
    assert bench.ask(wire.Incr(b"a", -50)) == wire.NumberReply(bench.epoch, -8)
    bench.now += 5
    assert bench.ask(wire.Incr(b"a", 1)) == wire.NumberReply(bench.epoch, None)


@pytest.mark.parametrize(("value", "delta"), [(b"x", 1), (2**63 - 1, 1), (-(2**63), -1)])
def test_incr_of_what_is_no_integer_of_64_bits_fails(bench: Bench, value: wire.Value, delta: int) -> None:
    bench.ask(wire.Set([(b"a", value)], None))
    assert bench.ask(wire.Incr(b"a", delta)) == wire.FailedReply(bench.epoch, wire.NOT_AN_INTEGER)
    assert bench.ask(wire.Get([b"a"])).values == [value]
    assert bench.handler.stats.failures == 1


def test_reply_holds_the_values_of_as_many_keys_as_fit_in_a_frame(bench: Bench) -> None:
    for key in (b"a", b"b", b"c"):
        bench.ask(wire.Set([(key, key * 500_000)], None))
    reply = bench.ask(wire.Get([b"a", b"b", b"c"]))
    assert reply.values == [b"a" * 500_000, b"b" * 500_000]
    assert len(wire.encode(reply)) <= MAX_FRAME
    assert bench.ask(wire.Get([b"c", b"none"])).values == [b"c" * 500_000, None]


def test_many_small_values_fit_in_a_frame_however_often_they_are_asked_for(bench: Bench) -> None:
    bench.ask(wire.Set([(b"a", b"x" * 300), (b"b", 2**63 - 1)], None))
    reply = bench.ask(wire.Get([b"a", b"b", b"none"] * 100_000))
    assert 9_000 < len(reply.values) < 300_000
    assert len(wire.encode(reply)) <= MAX_FRAME


def test_longest_value_that_can_be_stored_can_be_fetched(bench: Bench) -> None:
    overhead = len(wire.encode(wire.Set([(b"a", b"x" * 70_000)], None))) - 70_000
    value = b"x" * (MAX_REQUEST - overhead)
    bench.ask(wire.Set([(b"a", value)], None))
    assert len(wire.encode(bench.ask(wire.Get([b"a"])))) <= MAX_FRAME
    assert len(wire.encode(bench.ask(wire.GetEntry(b"a", value=True)))) <= MAX_FRAME


def test_values_that_are_read_after_a_set_leave_room_for_its_flags(bench: Bench) -> None:
    bench.ask(wire.Set([(b"big", b"x" * MIB)], None))
    reply = bench.ask(wire.Set([(b"a", 1)] * 100_000, None, reads=(b"none", b"big")))
    assert len(reply.flags) == 100_000
    assert reply.values == (None,)
    assert len(wire.encode(reply)) <= MAX_FRAME
    assert bench.ask(wire.Set([(b"a", 1)], None, reads=(b"none", b"big"))).values == (None, b"x" * MIB)


def test_namespace_with_room_of_its_own_takes_none_from_the_others_and_gives_none() -> None:
    bench = Bench(config=PARTITIONED)
    for number in range(100):
        bench.ask(wire.Set([(b"own\0%d" % number, bytes(10_000)), (b"other\0%d" % number, bytes(10_000))], None))
    assert bench.ask(wire.Get([b"other\x000", b"own\x000", b"own\x0099"])).values == [
        bytes(10_000), None, bytes(10_000)
    ]  # fmt: skip
    stats = bench.ask(wire.GetStatus()).stats
    assert 80 < stats.cache_evictions < 95
    assert stats.cache_entries == stats.cache_owned == 200 - stats.cache_evictions
    assert stats.cache_bytes > 1_000_000
    for number in range(1000):
        bench.ask(wire.Set([(b"other\0more%d" % number, bytes(10_000))], None))
    assert bench.ask(wire.Get([b"other\x000", b"own\x0099"])).values == [None, bytes(10_000)]


def test_namespaces_with_room_of_their_own_are_cleared_and_reclaimed_as_any() -> None:
    bench = Bench(config=PARTITIONED)
    keys = [b"own\0a", b"own\0b", b"other\0a"]

    def fill() -> None:
        bench.ask(wire.Set([(key, 1) for key in keys], 10))

    fill()
    bench.ask(wire.Clear(b"own"))
    assert bench.ask(wire.Get(keys)).values == [None, None, 1]
    fill()
    assert sorted(bench.ask(wire.Scan(b"own\0")).keys) == keys[:2]
    bench.now += 20
    bench.handler.reclaim()
    assert bench.ask(wire.GetStatus()).stats.cache_entries == 0


def test_evictions_are_counted_since_the_start() -> None:
    bench = Bench()
    for _ in range(2):
        for number in range(1000):
            bench.ask(wire.Set([(b"ns\0%d" % number, bytes(10_000))], None))
        bench.ask(wire.Clear(b"ns"))
    stats = bench.ask(wire.GetStatus()).stats
    evictions = stats.cache_evictions
    assert 300 < evictions < 500
    assert (stats.cache_owned, stats.cache_copies_evicted) == (stats.cache_entries, 0)
    assert bench.ask(wire.GetStatus()).stats.cache_evictions == evictions


# -- limits ---------------------------------------------------------------------------------------------------


def test_hit_is_decided_and_counted(bench: Bench) -> None:
    hit = wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 2, 60.0)])
    assert [bench.ask(hit).decisions[0].remaining for _ in range(2)] == [1, 0]
    denied = bench.ask(hit)
    assert denied.epoch == bench.epoch
    assert (denied.decisions[0].allowed, denied.decisions[0].retry_after) == (False, 60.0)
    assert (bench.handler.stats.allowed, bench.handler.stats.denied) == (2, 1)
    bench.now += 60
    assert bench.ask(hit).decisions[0].allowed


def test_hit_counts_in_all_rules_or_in_none(bench: Bench) -> None:
    wide, narrow = Rule(Algorithm.TOKEN_BUCKET, 10, 60.0), Rule(Algorithm.FIXED_WINDOW, 1, 60.0)
    bench.ask(wire.Hit(b"k", [wide, narrow]))
    assert [decision.allowed for decision in bench.ask(wire.Hit(b"k", [wide, narrow])).decisions] == [True, False]
    assert bench.ask(wire.Hit(b"k", [wide], 0)).decisions[0].remaining == 9


def test_refund_takes_a_hit_back_and_is_counted(bench: Bench) -> None:
    rule = Rule(Algorithm.FIXED_WINDOW, 2, 60.0)
    bench.ask(wire.Hit(b"k", [rule], 2))
    bench.now += 1
    assert bench.ask(wire.Refund(b"k", [rule], 1, 1.0)) == wire.DoneReply(bench.epoch)
    assert bench.ask(wire.Peek(b"k", [rule])).decisions[0].remaining == 1
    bench.now += 60  # another window
    bench.ask(wire.Hit(b"k", [rule], 2))
    bench.ask(wire.Refund(b"k", [rule], 1, 30.0))
    assert bench.ask(wire.Peek(b"k", [rule])).decisions[0].remaining == 0
    assert bench.ask(wire.GetStatus()).stats.refunds == 2


def test_denials_of_a_dry_run_are_told_apart(bench: Bench) -> None:
    rules = [Rule(Algorithm.FIXED_WINDOW, 1, 60.0)]
    for dry in (False, False, True, True):
        bench.ask(wire.Hit(b"k", rules, 1, dry))
    stats = bench.ask(wire.GetStatus()).stats
    assert (stats.allowed, stats.denied, stats.dry_denied) == (1, 3, 2)


RULES = [Rule(algorithm, limit, period) for algorithm in Algorithm for limit in (1, 5) for period in (1.0, 8.0)]


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"a\0b"]), st.lists(st.sampled_from(RULES), min_size=1, max_size=3),
                  st.integers(0, 3), st.integers(0, 16)),
        max_size=25,
    )
)  # fmt: skip
@settings(deadline=None)  # an example takes ten milliseconds, more where others are busy
def test_found_limits_are_those_that_still_count_as_the_limiter_decides_them(
    hits: list[tuple[bytes, list[Rule], int, int]],
) -> None:
    bench = Bench()
    for key, rules, cost, ticks in hits:
        bench.ask(wire.Hit(key, rules, cost))
        bench.now += ticks / 4
    for key in (b"a", b"b", b"a\0b"):
        found = bench.ask(wire.FindLimits(key)).limits
        peeks = {rule: bench.ask(wire.Peek(key, [rule])).decisions[0] for rule in RULES}
        assert dict(found) == {rule: peek for rule, peek in peeks.items() if peek.reset_after > 0}
        assert len(dict(found)) == len(found)


def test_found_limit_tells_its_count_and_when_it_frees(bench: Bench) -> None:
    rule = Rule(Algorithm.FIXED_WINDOW, 3, 60.0)
    bench.ask(wire.Hit(b"k", [rule], 2))
    bench.now += 15
    ((_, decision),) = bench.ask(wire.FindLimits(b"k")).limits
    assert (decision.limit - decision.remaining, decision.retry_after, decision.reset_after) == (2, 0.0, 45.0)
    bench.ask(wire.Hit(b"k", [rule]))
    ((_, decision),) = bench.ask(wire.FindLimits(b"k")).limits
    assert (decision.limit - decision.remaining, decision.retry_after, decision.reset_after) == (3, 45.0, 45.0)
    other = Rule(Algorithm.FIXED_WINDOW, 4, 60.0)
    assert bench.ask(wire.Reset(b"k", [other, rule])) == wire.FlagsReply(bench.epoch, [False, True])
    assert bench.ask(wire.Reset(b"k", [other, rule])) == wire.FlagsReply(bench.epoch, [False, False])
    assert bench.ask(wire.FindLimits(b"k")) == wire.LimitsReply(bench.epoch, [])


def test_rules_that_a_node_remembers_are_bounded_and_the_last_to_be_used_anew(bench: Bench) -> None:
    kept, lost = Rule(Algorithm.FIXED_WINDOW, 10**6, 60.0), Rule(Algorithm.FIXED_WINDOW, 10**6 + 1, 60.0)
    for rule in (kept, lost):
        bench.ask(wire.Hit(b"k", [rule]))
    for limit in range(1, MAX_RULES):
        bench.ask(wire.Hit(b"another", [Rule(Algorithm.FIXED_WINDOW, limit, 60.0)]))
        bench.ask(wire.Hit(b"%d" % limit, [kept]))
    assert [rule for rule, _ in bench.ask(wire.FindLimits(b"k")).limits] == [kept]
    assert len(bench.ask(wire.FindLimits(b"another")).limits) == MAX_RULES - 1


def test_full_cache_evicts_no_limit(bench: Bench) -> None:
    hit = wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 1, 60.0)])
    bench.ask(hit)
    for number in range(20):
        bench.ask(wire.Set([(b"%d" % number, b"x" * 1_000_000)], None))
    assert bench.handler.cache.evictions > 0
    assert not bench.ask(hit).decisions[0].allowed


# -- events ---------------------------------------------------------------------------------------------------


def test_events_are_counted_and_told(bench: Bench) -> None:
    track = wire.Track(
        b"batch one", [EventEntry("login", "17", 3, 0.5, [(0.5, b"\x80")]), EventEntry("export", "", 1, 0.0)]
    )
    assert bench.ask(track) == wire.DoneReply(bench.epoch)
    assert bench.ask(track) == wire.DoneReply(bench.epoch)  # once more, and not counted
    bench.now += 1
    names = bench.ask(wire.GetEvents()).events
    assert [(totals.name, totals.minute, totals.total) for totals in names] == [("export", 1, 1), ("login", 3, 3)]
    assert [totals.name for totals in bench.ask(wire.GetEvents(after="export")).events] == ["login"]
    account = bench.ask(wire.GetEvents("login")).account
    assert (account.total, account.top, account.recent) == (3, [("17", 3, 0)], [EventSample(1, "17", b"\x80", 1.5)])
    assert bench.ask(wire.GetEvents("logout")) == wire.EventReply(bench.epoch, None)
    stats = bench.ask(wire.GetStatus()).stats
    assert (stats.events, stats.event_evictions, stats.requests) == (4, 0, 0)


# -- the cluster ----------------------------------------------------------------------------------------------


def test_view_names_who_serves_and_who_says_so() -> None:
    bench = Bench(others=("beta", "gamma"))
    viewed = bench.ask(wire.GetView())
    assert [member.name for member in viewed.members] == ["alpha", "beta", "gamma"]
    assert (viewed.name, viewed.epoch) == ("alpha", bench.epoch)


def test_doubts_of_a_requester_are_passed_to_the_links() -> None:
    bench = Bench(others=("beta",))
    bench.ask(wire.GetView(["beta"]))
    assert bench.peers.redialed == ["beta"]


def test_what_requesters_counted_is_added_up() -> None:
    bench = Bench()
    bench.ask(wire.GetView([], RequesterStats(remembered=2, fallback_deny=1)))
    bench.ask(wire.GetView([], RequesterStats(remembered=3)))
    assert bench.ask(wire.GetStatus()).stats.tally == RequesterStats(remembered=5, fallback_deny=1)


def test_latencies_of_requesters_are_added_up_bucket_by_bucket() -> None:
    bench = Bench()
    for waits in ((0.00002, 0.0004), (0.0004, 7.0)):
        tally = RequesterStats()
        tally.add_latencies(waits)
        bench.ask(wire.GetView([], tally))
    told = bench.ask(wire.GetStatus()).stats.tally
    assert told.latencies == [1, 0, 0, 0, 2, *[0] * 10, 1]
    assert told.latency_sum == pytest.approx(7.00082)


def test_node_that_leaves_is_not_in_its_own_view_but_answers() -> None:
    bench = Bench(others=("beta",))
    bench.membership.leave()
    viewed = bench.ask(wire.GetView())
    assert [member.name for member in viewed.members] == ["beta"]
    assert bench.ask(wire.Ping()) == wire.PongReply(bench.epoch, bench.membership.me)


def test_report_tells_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "resident_bytes", lambda: 2**20)  # it may grow between two questions
    bench = Bench()
    limit = [Rule(Algorithm.FIXED_WINDOW, 1, 60.0)]
    for key, times in ((b"busy", 3), (b"quiet", 1)):
        for _ in range(times):
            bench.ask(wire.Hit(key, limit))
    bench.ask(wire.Hit(b"busy", limit, denied_locally=10))
    bench.ask(wire.GetView([], RequesterStats(remembered=10, fallback_node=2, failures=4)))
    bench.handler.history.timeline.note(EventKind.DOWN, "beta", b"beta", bench.now)
    bench.now += 5
    bench.handler.tick()
    report = bench.ask(wire.GetReport())
    assert report.status == bench.ask(wire.GetStatus())
    assert report.timeline == [MemberEvent(5.0, EventKind.DOWN, "beta", b"beta")]
    assert report.busiest == [(b"busy", 14, 0), (b"quiet", 1, 0)]
    assert report.denied == [(b"busy", 13, 0)]
    assert report.rates == {
        "requests": [5], "hits": [0], "misses": [0], "denials": [13], "fallbacks": [2], "errors": [4],
    }  # fmt: skip


def test_denials_from_memory_count_though_the_hit_that_tells_of_them_is_allowed() -> None:
    bench = Bench()
    bench.ask(wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 1, 60.0)], denied_locally=7))
    report = bench.ask(wire.GetReport())
    assert (report.busiest, report.denied) == ([(b"k", 8, 0)], [(b"k", 7, 0)])


def test_what_was_counted_never_grows_beyond_what_can_be_read() -> None:
    bench = Bench()
    most = RequesterStats(remembered=MAX_COUNT, latencies=[MAX_COUNT] * 16, latency_sum=float(MAX_COUNT))
    for _ in range(3):
        bench.ask(wire.GetView([], most))
    reply = wire.decode_reply(wire.encode(bench.ask(wire.GetStatus())))
    assert isinstance(reply, wire.StatusReply)
    assert reply.stats.tally == most


def test_keys_that_are_busy_no_more_are_forgotten() -> None:
    bench = Bench()
    bench.ask(wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 0, 60.0)]))
    for expected in ([(b"k", 1, 0)], []):
        bench.now += TOP_SPAN
        bench.handler.tick()
        report = bench.ask(wire.GetReport())
        assert report.busiest == report.denied == expected


def test_status_tells_what_the_node_knows_and_counts() -> None:
    bench = Bench(others=("beta",))
    bench.ask(wire.Set([(b"a", b"x")], None))
    bench.ask(wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 1, 60.0)]))
    bench.ask(wire.Send("a", b"x", 60, 1))
    bench.now += 3
    status = bench.ask(wire.GetStatus())
    assert (status.identity, status.state, status.uptime) == (bench.membership.me, MemberState.ALIVE, 5.0)
    (beta,) = status.members
    assert (beta.identity.name, beta.state, beta.heard_ago, beta.state_for) == ("beta", MemberState.ALIVE, 3.0, 5.0)
    assert status.memory > 1_000_000
    stats = status.stats
    assert (stats.requests, stats.cache_entries, stats.limit_entries, stats.channel_messages) == (2, 1, 1, 1)
    owns = bench.handler.copies.replication.placement.owns
    assert (stats.cache_owned, stats.limit_owned) == (owns[slot_of(b"a")], owns[slot_of(b"k")])
    assert stats.cache_bytes > 0
    assert stats.limit_bytes > 0
    assert wire.decode_reply(wire.encode(status)) == status


# -- channels -------------------------------------------------------------------------------------------------


def test_message_to_a_process_of_this_node_waits_here(bench: Bench) -> None:
    assert bench.ask(wire.Send(HERE + "a", b"x", 60, 1)) == wire.DoneReply(bench.epoch)
    assert bench.ask(wire.Send(HERE + "b", b"y", 60, 1)) == wire.FailedReply(bench.epoch, wire.CHANNEL_FULL)
    assert bench.received(HERE) == [(HERE + "a", b"x")]
    assert bench.peers.forwarded == []


def test_message_to_a_process_of_another_node_is_passed_on(bench: Bench) -> None:
    assert bench.ask(wire.Send(THERE + "a", b"x", 60, 1)) == wire.DoneReply(bench.epoch)
    assert bench.peers.forwarded == [(wire.channel_tag("beta"), wire.Forward(THERE + "a", b"x", 60, 1))]
    assert bench.received(THERE) == []


@pytest.mark.parametrize("channel", ["plain", "specific.x!y"])
def test_other_channels_are_where_they_are_sent_to(channel: str) -> None:
    bench = Bench(others=("beta", "gamma"))
    bench.ask(wire.Send(channel, b"x", 60, 1))
    assert bench.received(queue_name(channel)) == [(channel, b"x")]


def test_message_that_was_passed_on_is_never_passed_on_again(bench: Bench) -> None:
    assert bench.ask(wire.Forward(THERE + "a", b"x", 60, 1)) is None
    assert bench.peers.forwarded == []


def test_receive_is_answered_when_there_is_something(bench: Bench) -> None:
    assert bench.ask(wire.Receive(HERE, 5)) is None
    assert bench.pushed == []
    bench.ask(wire.Send(HERE + "a", b"x", 60, 1))
    assert bench.pushed == [wire.ReceiveReply(bench.epoch, HERE + "a", b"x")]


def test_receive_is_answered_without_a_message_in_the_end(bench: Bench) -> None:
    bench.ask(wire.Receive(HERE, 5))
    bench.now += 6
    bench.handler.reclaim()
    assert bench.pushed == [wire.ReceiveReply(bench.epoch, HERE, None)]


@pytest.mark.parametrize("size", [*range(52_000, 52_400, 7), 0, 1, 300_000])
def test_messages_received_together_fit_in_a_frame_and_the_rest_stays(bench: Bench, size: int) -> None:
    channel = HERE + "c" * (100 - len(HERE))
    sent = [bytes(1_000_000), bytes(size), b"last"]
    for payload in sent:
        bench.ask(wire.Send(channel, payload, 60, 100))
    received: list[bytes] = []
    while len(received) < len(sent):
        bench.ask(wire.Receive(HERE, 5, 50))
        reply = bench.pushed.pop()
        assert isinstance(reply, wire.ReceiveReply)
        assert reply.payload is not None
        assert len(wire.encode(reply)) <= MAX_FRAME
        received += [reply.payload, *(payload for _, payload in reply.more)]
    assert received == sent


def test_closed_connection_receives_nothing(bench: Bench) -> None:
    gone = Requester()
    bench.ask(wire.Receive(HERE, 5), gone)
    bench.handler.close(gone)
    bench.ask(wire.Send(HERE + "a", b"x", 60, 1))
    assert gone.pushed == []
    assert bench.received(HERE) == [(HERE + "a", b"x")]


def test_group_message_goes_to_the_channels_here_and_once_to_all_peers(bench: Bench) -> None:
    for channel in ("a", "b"):
        assert bench.ask(wire.GroupAdd("chat", HERE + channel, 60)) == wire.DoneReply(bench.epoch)
    assert bench.ask(wire.GroupSend("chat", b"x", 60, 9)) == wire.DoneReply(bench.epoch)
    assert bench.peers.fanned_out == [wire.Deliver("chat", b"x", 60, 9)]
    assert bench.received(HERE) == [(HERE + "a", b"x"), (HERE + "b", b"x")]
    bench.ask(wire.GroupDiscard("chat", HERE + "a"))
    assert bench.ask(wire.Deliver("chat", b"y", 60, 9)) is None
    assert bench.received(HERE) == [(HERE + "b", b"y")]
    assert len(bench.peers.fanned_out) == 1


def test_group_message_is_not_heard_twice_by_a_channel_whose_owner_has_changed() -> None:
    bench = Bench()
    channels = [f"channel-{number}" for number in range(20)]
    for channel in channels:
        bench.ask(wire.GroupAdd("chat", channel, 60))
    beta = Identity("beta", b"beta" * 4, "10.0.0.2:4370")
    bench.handler.take_effects(
        bench.membership.heard(Heartbeat(beta, 0, 1, MemberState.ALIVE, 0), bench.now, fresh=True)
    )
    bench.ask(wire.GroupSend("chat", b"x", 60, 9))
    here = [channel for channel in channels if bench.received(channel)]
    assert 0 < len(here) < 20
    assert bench.peers.forwarded == []


def test_flush_drops_channels_and_groups(bench: Bench) -> None:
    bench.ask(wire.GroupAdd("chat", HERE + "a", 60))
    bench.ask(wire.Send(HERE + "a", b"x", 60, 9))
    assert bench.ask(wire.Flush()) == wire.DoneReply(bench.epoch)
    bench.ask(wire.GroupSend("chat", b"y", 60, 9))
    assert bench.received(HERE) == []


# -- other owners -----------------------------------------------------------------------------------------------


def test_node_that_has_stood_still_gives_no_old_values_before_it_hears_whether_others_have_its_keys() -> None:
    bench = Bench(others=("beta",))
    timings = bench.membership.timings

    def tick() -> None:
        list(bench.handler.copies.tick())

    tick()
    key = next(key for key in KEYS_OF_BOTH if bench.ask(wire.Set([(key, b"old")], None)) != bench.unavailable)
    still = timings.down_after - 1.2 * timings.heartbeat  # as long as others may have heard nothing for `down_after`
    bench.now += still - 0.01
    assert bench.ask(wire.Get([key])) == wire.ValuesReply(bench.epoch, [b"old"])
    tick()
    bench.now += still
    assert bench.ask(wire.Get([key])) == bench.unavailable
    tick()
    bench.now += timings.heartbeat - 0.01
    tick()
    assert bench.ask(wire.Execute(wire.encode(wire.Get([key])), 1)) == bench.unavailable
    bench.now += 0.01
    tick()
    assert bench.ask(wire.Get([key])) == wire.ValuesReply(bench.epoch, [b"old"])


def test_messages_about_copies_are_acknowledged_when_they_are_taken_in(bench: Bench) -> None:
    for number, message in enumerate((FillStart(SlotSet.all(), 1, owned=False), FillEnd()), 1):
        assert bench.ask(wire.Replicate(wire.encode_copies(message))) is None
        list(bench.handler.copies.tick())
        assert [type(reply) for reply in bench.pushed] == [wire.AckReply] * number


class Silent:
    """A connection to a peer that never answers."""

    def __init__(self) -> None:
        self.closed = False
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def cast(self, data: bytes) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def test_a_peer_that_acknowledges_no_copies_is_named_and_dialed_again(caplog: pytest.LogCaptureFixture) -> None:
    bench, connection = Bench(others=("peer",)), Silent()
    boot = b"peer".ljust(16)
    bench.peers.connections.append((boot, cast(AsyncConnection, connection)))
    outbox = bench.handler.copies.replication.outboxes.get(boot)
    outbox.want(SlotSet.all(), SlotSet.all())
    outbox.take_as_filled(SlotSet.all())
    bench.ask(wire.Set([(b"a", b"value")], None))
    for _ in range(2):
        list(bench.handler.copies.tick())
        assert not connection.closed
        bench.now += ACK_TIMEOUT
    bench.now += 0.1
    list(bench.handler.copies.tick())
    assert connection.closed
    assert "peer peer (10.0.0.4:4370) has acknowledged no copies for 5 s; its link is closed" in caplog.text


def test_a_peer_that_was_gone_for_a_moment_is_dialed_again() -> None:
    bench, connection = Bench(others=("peer",)), Silent()
    boot, replication = b"peer".ljust(16), bench.handler.copies.replication
    bench.peers.connections.append((boot, cast(AsyncConnection, connection)))
    list(bench.handler.copies.tick())
    assert replication.outboxes.is_open(boot)
    view = replication.placement.view
    replication.update(View.of(member for member in view.members if member.boot != boot), [], bench.now)
    replication.update(view, [], bench.now)
    list(bench.handler.copies.tick())
    assert connection.closed


async def test_changes_are_sent_while_a_node_computes_what_follows_from_a_change_of_members() -> None:
    bench, connection = Bench(others=("peer",)), Silent()
    copies, boot = bench.handler.copies, b"peer".ljust(16)
    bench.peers.connections.append((boot, cast(AsyncConnection, connection)))
    list(copies.tick())
    outbox = copies.replication.outboxes.get(boot)
    outbox.want(SlotSet.all(), SlotSet.all())
    outbox.take_as_filled(SlotSet.all())
    found: list[bool] = []

    def steps(*_: object) -> Iterator[None]:
        mine = (key for key in KEYS_OF_BOTH if copies.replication.placement.owns[slot_of(key)])
        bench.ask(wire.Set([(next(mine), b"value")], None))
        for _step in range(2):
            bench.now += FLUSH
            yield
            found.append(any(b"value" in data for data in connection.sent))

    copies.replication.plan_due = True
    # In place of rankings, which take as long as the machine likes: two steps between which the clock goes on.
    with mock.patch.object(copies.replication, "prepare", steps):
        await copies.tick_when_due(0)
    assert found == [True, True]


def test_node_that_is_alone_may_stand_still_for_any_time(bench: Bench) -> None:
    list(bench.handler.copies.tick())
    bench.ask(wire.Set([(b"a", b"old")], None))
    bench.now += 3600
    assert bench.ask(wire.Get([b"a"])) == wire.ValuesReply(bench.epoch, [b"old"])


# -- any ------------------------------------------------------------------------------------------------------

keys = st.sampled_from([b"", b"a", b"ns\0a", b"ns\0b"])
channels = st.sampled_from(["", "a", "!", HERE + "a", THERE + "b", "specific.x!y"])
seconds = st.sampled_from([0, 0.5, 60.0, 1e308, math.inf])
values = st.binary(max_size=9) | st.integers(-(2**63), 2**63 - 1)
rules = st.builds(Rule, st.sampled_from(Algorithm), st.integers(0, 2**62), st.floats(5e-324, math.inf, width=64))
some_rules, costs = st.lists(rules, min_size=1, max_size=3), st.integers(0, 2**31)
requests = st.one_of(
    st.builds(wire.Get, st.lists(keys)),
    st.builds(wire.Set, st.lists(st.tuples(keys, values)), st.none() | seconds, st.booleans()),
    st.builds(wire.Touch, st.lists(keys), st.none() | seconds, st.none() | values),
    st.builds(wire.Delete, st.lists(keys), st.none() | values),
    st.builds(wire.Incr, keys, st.integers(-(2**63), 2**63 - 1)),
    st.builds(wire.Clear, keys),
    st.builds(wire.Hit, keys, some_rules, costs, st.booleans()),
    st.builds(wire.Peek, keys, some_rules, costs),
    st.builds(wire.Reset, keys, some_rules),
    st.builds(wire.Refund, keys, some_rules, costs, seconds),
    st.builds(wire.GetEntry, keys, st.booleans()),
    st.builds(wire.Scan, keys, st.none() | st.tuples(st.floats(), st.integers(-(2**63), 2**63 - 1))),
    st.sampled_from([wire.GetView(), wire.Ping(), wire.GetStatus(), wire.Flush()]),
    st.builds(wire.Send, channels, st.binary(), seconds, st.integers()),
    st.builds(wire.Forward, channels, st.binary(), seconds, st.integers()),
    st.builds(wire.Receive, channels, seconds),
    st.builds(wire.GroupAdd, channels, channels, seconds),
    st.builds(wire.GroupDiscard, channels, channels),
    st.builds(wire.GroupSend, channels, st.binary(), seconds, st.integers()),
    st.builds(wire.Deliver, channels, st.binary(), seconds, st.integers()),
)


@given(st.sampled_from([CONFIG, PARTITIONED]), st.lists(st.tuples(requests, st.sampled_from([0.0, 0.1, 100.0]))))
def test_whatever_can_be_decoded_is_answered_in_kind(
    config: NodeConfig, asked: list[tuple[wire.Request, float]]
) -> None:
    bench = Bench(others=("beta",), config=config)
    for request, step in asked:
        reply = bench.ask(request)
        silent = isinstance(request, wire.Receive | wire.Forward | wire.Deliver)
        assert (reply is None) is silent
        if reply is not None:
            assert isinstance(reply, get_args(wire.Reply))
            wire.decode_reply(wire.encode(reply))
        bench.now += step
        bench.handler.tick()
    assert all(isinstance(reply, wire.ReceiveReply) for reply in bench.pushed)


# -- the longest replies --------------------------------------------------------------------------------------

LONGEST_NAME = "\N{GRINNING FACE}" * 100  # four bytes for each character
LONGEST_KEY = b"k" * wire.MAX_KEY_BYTES
MEMBERS = 1024  # as many as a node keeps links to


def longest_values(bench: Bench) -> wire.Request:
    bench.ask(wire.Set([(b"big", b"x" * (MAX_REQUEST - 20))], None))
    bench.ask(wire.Set([(b"small", 2**63 - 1)], None))
    return wire.Get([b"small"] * 200_000 + [b"big"])


def longest_fetched(bench: Bench) -> wire.Request:
    bench.ask(wire.Set([(b"small", 2**63 - 1)], 1e14))
    longest_values(bench)
    return wire.GetWithTtl([b"small"] * 200_000 + [b"big"])


def longest_flags(bench: Bench) -> wire.Request:
    longest_values(bench)
    return wire.Set([(b"", 1)] * 200_000, None, reads=(b"small", b"big"))


def longest_looked(bench: Bench) -> wire.Request:
    longest_values(bench)
    return wire.GetEntry(b"big", value=True)


def longest_scanned(bench: Bench) -> wire.Request:
    for number in range(2000):
        bench.ask(wire.Set([(b"n\0%01022d" % number, 1)], None))
    return wire.Scan(b"n\0")


def longest_decided(bench: Bench) -> wire.Request:
    return wire.Hit(LONGEST_KEY, [Rule(Algorithm.TOKEN_BUCKET, 2**53, 1e14)] * 16, 2**31)


def longest_limits_found(bench: Bench) -> wire.Request:
    for limit in range(MAX_RULES):
        bench.ask(wire.Hit(LONGEST_KEY, [Rule(Algorithm.SLIDING_WINDOW, 2**53 - limit, 1e14)], 1))
    return wire.FindLimits(LONGEST_KEY)


def longest_event_names(bench: Bench) -> wire.Request:
    for number in range(200):
        bench.ask(wire.Track(b"%08d" % number, [EventEntry(f"{LONGEST_NAME[:96]}{number:04}", "", 2**53, 0)]))
    return wire.GetEvents()


def longest_event_account(bench: Bench) -> wire.Request:
    for number in range(MAX_SAMPLES):
        samples: list[tuple[float, bytes]] = [(1.5, b"f" * MAX_FIELDS_BYTES)]
        key = f"{LONGEST_NAME}{LONGEST_NAME[:96]}{number:04}"
        bench.ask(wire.Track(b"%08d" % number, [EventEntry(LONGEST_NAME, key, 2**53, 1.5, samples)]))
    return wire.GetEvents(LONGEST_NAME)


def many_members(bench: Bench) -> None:
    """As many as a node has links to, and as many again that are gone; with names and addresses at their longest."""
    for number in range(MEMBERS + TOMBSTONES):
        name, address = f"{LONGEST_NAME[:95]}{number:05}", f"{'h' * 253}:{number + 10_000}"
        identity = Identity(name, b"%016d" % number, address, 1.5)
        bench.membership.heard(Heartbeat(identity, 2**32, 1, MemberState.ALIVE, 2**63), bench.now, fresh=True)
        if number >= MEMBERS:
            bench.membership.refused(name, identity.boot, bench.now)


def longest_viewed(bench: Bench) -> wire.Request:
    many_members(bench)
    return wire.GetView()


def longest_status(bench: Bench) -> wire.Request:
    many_members(bench)
    return wire.GetStatus()


def longest_report(bench: Bench) -> wire.Request:
    many_members(bench)
    history = bench.handler.history
    for number in range(TIMELINE_LENGTH):
        history.timeline.note(EventKind.HEARD_AGAIN, LONGEST_NAME, b"%016d" % number, bench.now)
    for number in range(REPORTED):
        for top in (history.busiest, history.denied):
            top.add(b"%01024d" % number, 2**53)
    for step in range(INTERVALS):
        history.rates.sample(dict.fromkeys(counters(bench.handler.stats), step * 2**53), bench.now + step * INTERVAL)
    return wire.GetReport()


def longest_received(bench: Bench) -> wire.Request:
    for number in range(100):
        bench.ask(
            wire.Send(f"x!{LONGEST_NAME[:90]}{number:02}", bytes(MAX_REQUEST - 500 if not number else 5000), 60, 100)
        )
    return wire.Receive("x!", 5, 100)


LONGEST: dict[type[wire.Reply], Callable[[Bench], wire.Request]] = {
    wire.ValuesReply: longest_values,
    wire.TtlValuesReply: longest_fetched,
    wire.FlagsReply: longest_flags,
    wire.EntryReply: longest_looked,
    wire.ScanReply: longest_scanned,
    wire.DecisionsReply: longest_decided,
    wire.LimitsReply: longest_limits_found,
    wire.EventNamesReply: longest_event_names,
    wire.EventReply: longest_event_account,
    wire.ViewReply: longest_viewed,
    wire.StatusReply: longest_status,
    wire.ReportReply: longest_report,
    wire.ReceiveReply: longest_received,
}
CANNOT_GROW = {
    wire.DoneReply, wire.ClearReply, wire.AckReply, wire.UnavailableReply, wire.FailedReply, wire.NumberReply,
    wire.PongReply,
}  # fmt: skip


def test_each_kind_of_reply_is_known_to_be_bounded() -> None:
    assert LONGEST.keys() | CANNOT_GROW == set(get_args(wire.Reply))


@pytest.mark.parametrize("kind", LONGEST, ids=lambda kind: kind.__name__)
def test_longest_reply_of_each_kind_fits_in_a_frame(bench: Bench, kind: type[wire.Reply]) -> None:
    reply = bench.ask(LONGEST[kind](bench)) or bench.pushed[-1]
    assert type(reply) is kind
    assert 100 < len(wire.encode(reply)) <= MAX_FRAME


def test_status_of_more_members_than_fit_tells_of_those_that_serve(bench: Bench) -> None:
    many_members(bench)
    status = bench.ask(wire.GetStatus())
    states = [member.state for member in status.members]
    assert states.count(MemberState.ALIVE) == MEMBERS
    assert status.omitted == len(bench.membership.members) - len(status.members)
