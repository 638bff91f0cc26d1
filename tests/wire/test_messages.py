"""Messages survive encoding and decoding, and invalid bytes raise one of three errors."""

import contextlib
import time
from collections import Counter
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.event_counts import EventAccount, EventEntry, EventSample, EventTotals
from django_clusterstate.core.limits.algorithms import Algorithm, Rule, RuleDecision
from django_clusterstate.core.membership.heartbeat import Identity, MemberState
from django_clusterstate.core.membership.timeline import EventKind, MemberEvent
from django_clusterstate.core.top_keys import KeyCount
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import MAX_REQUEST, frame
from django_clusterstate.wire.status import MemberStatus, RequesterStats, Stats
from tests.timing import check_seconds

REQUESTS = get_args(wire.Request)
REPLIES = get_args(wire.Reply)

alpha = Identity("alpha", b"b" * 16, "10.0.0.1:4370", 2.0)
stats = Stats(requests=7, limit_evictions=1)
member = MemberStatus(alpha, MemberState.SUSPECT, 3, 1.5, 20.25, 2**64 - 1)
status = wire.StatusReply(1, alpha, MemberState.ALIVE, 9.5, True, "1.0", 2**33, (member,), stats)
EXAMPLES: list[wire.Message] = [
    wire.Replicate(b"message"),
    wire.Execute(b"request", 2),
    wire.ClearReply(7, 2**62),
    wire.AckReply(7, 2**62, refused=True),
    wire.UnavailableReply(7, sent=True),
    wire.Get([b"ns\0a", b"ns\0b"]),
    wire.GetWithTtl([b"ns\0a", b"ns\0b"]),
    wire.Set([(b"ns\0a", b"v"), (b"ns\0b", -(2**63))], 30.5, absent=True),
    wire.Set([(b"ns\0a", 2**63 - 1)], None, deletes=(b"ns\0b",), reads=(b"ns\0c", b"ns\0a")),
    wire.Touch([b"ns\0a"], None),
    wire.Touch([b"ns\0a"], 2.5, b"token"),
    wire.Delete([b"ns\0a"]),
    wire.Delete([b"ns\0a"], b"v"),
    wire.Incr(b"ns\0a", -1),
    wire.Clear(b"ns"),
    wire.GetEntry(b"ns\0a", value=True),
    wire.Scan(b"ns\0a"),
    wire.Scan(b"ns\0", (float("inf"), 7)),
    wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 10, 60.0), Rule(Algorithm.TOKEN_BUCKET, 0, 0.5)], 3),
    wire.Hit(b"k", [Rule(Algorithm.FIXED_WINDOW, 10, 60.0)], dry=True, denied_locally=7),
    wire.Peek(b"k", [Rule(Algorithm.SLIDING_WINDOW, 10, 60.0)], 2),
    wire.Reset(b"k", [Rule(Algorithm.FIXED_WINDOW, 10, 60.0)]),
    wire.FindLimits(b"k"),
    wire.Refund(b"k", [Rule(Algorithm.FIXED_WINDOW, 10, 60.0)], 2, 0.5),
    wire.Track(
        b"12345678", [EventEntry("login", "17", 3, 0.25, [(0.125, b"\x80")]), EventEntry("login", "", 2**53, 0.0)]
    ),
    wire.GetEvents("login"),
    wire.GetEvents("", "login"),
    wire.GetView(),
    wire.GetView(["beta"], RequesterStats(remembered=3)),
    wire.Ping(),
    wire.GetStatus(),
    wire.GetReport(),
    wire.Send("specific.a.b!c", b"payload", 60.0, 100),
    wire.Receive("specific.a.b!", 2.0),
    wire.GroupAdd("chat", "specific.a.b!c", 86400.0),
    wire.GroupDiscard("chat", "specific.a.b!c"),
    wire.GroupSend("chat", b"payload", 60.0, 100),
    wire.Deliver("chat", b"payload", 60.0, 100),
    wire.Forward("specific.a.b!c", b"payload", 60.0, 100),
    wire.Flush(),
    wire.ValuesReply(2**64 - 1, [b"v", 5, None, -(2**63)]),
    wire.TtlValuesReply(1, [b"v", 5, None], [1.5, None, None]),
    wire.FlagsReply(1, [True, False]),
    wire.FlagsReply(1, [True], (b"v", None)),
    wire.NumberReply(1, None),
    wire.NumberReply(1, 2**63 - 1),
    wire.DecisionsReply(1, [RuleDecision(False, 10, 0, 4.5, 0.25)]),
    wire.LimitsReply(1, [(Rule(Algorithm.FIXED_WINDOW, 10, 60.0), RuleDecision(True, 10, 7, 4.5, 0.0))]),
    wire.DoneReply(1),
    wire.FailedReply(1, wire.CHANNEL_FULL),
    wire.ViewReply(1, (alpha, alpha), "alpha"),
    wire.PongReply(1, alpha),
    wire.ReceiveReply(1, "specific.a.b!c", b"payload"),
    wire.ReceiveReply(1, "specific.a.b!", None),
    wire.EntryReply(1, True, 30.5, b"v", 1),
    wire.EntryReply(1, False),
    wire.ScanReply(1, [b"ns\0a"], (2.5, 2**63 - 1)),
    wire.ScanReply(1, []),
    wire.EventNamesReply(1, [EventTotals("login", 1, 20, 300, 4.5)]),
    wire.EventReply(
        1,
        EventAccount(
            9, [1, 8] + [0] * 58, [9] + [0] * 47, [KeyCount("17", 9, 1)], [EventSample(7, "17", b"\x80", 0.5)]
        ),
    ),
    wire.EventReply(1, None),
    status,
    wire.ReportReply(
        1,
        status,
        [MemberEvent(0.5, EventKind.DOWN, "beta", bytes(16))],
        {"hits": [1, 0]},
        [KeyCount(b"k", 9, 1)],
        [],
    ),
]


def decoder(message: wire.Message) -> Any:
    return wire.decode_request if isinstance(message, REQUESTS) else wire.decode_reply


def array(*items: Any) -> bytes:
    return msgspec.msgpack.encode(items)


def refused(data: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_reply):
        with pytest.raises(wire.DECODE_ERRORS):
            decode(data)


@pytest.mark.parametrize(("minutes", "hours"), [(59, 48), (61, 48), (60, 47), (60, 49), (0, 0)])
def test_event_account_with_a_wrong_number_of_minutes_or_hours_is_refused(minutes: int, hours: int) -> None:
    refused(wire.encode(wire.EventReply(1, EventAccount(1, [1] * minutes, [1] * hours, [], []))))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_message_survives_encoding_and_decoding(message: wire.Message) -> None:
    decoded = decoder(message)(wire.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in EXAMPLES} == {*REQUESTS, *REPLIES}


def test_every_message_is_a_request_or_a_reply() -> None:
    base = wire.DoneReply.__base__  # of all replies
    assert base is not None
    assert {*wire.Message.__subclasses__(), *base.__subclasses__()} == {base, *REQUESTS, *REPLIES}


def test_tags_are_unique() -> None:
    tags = Counter(kind.__struct_config__.tag for kind in (*REQUESTS, *REPLIES))
    assert tags.most_common(1)[0][1] == 1


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("surplus", [[None], [[[{"a": 1}]], b"", 2.5, msgspec.msgpack.Ext(5, b"e")]])
def test_fields_of_a_later_version_are_ignored(message: wire.Message, surplus: list[Any]) -> None:
    items = msgspec.msgpack.decode(wire.encode(message))
    if isinstance(message, wire.StatusReply):  # what its members and statistics are made of has grown as well
        items[-4] += surplus
        items[-5][0] += surplus
    assert decoder(message)(array(*items, *surplus)) == message


def test_missing_fields_get_their_defaults() -> None:
    assert wire.decode_request(array(2, [], None)) == wire.Set([], None, absent=False)
    assert wire.decode_request(array(7, b"k", [[0, 1, 1.0]])) == wire.Hit(b"k", [Rule(Algorithm(0), 1, 1.0)], 1)


def test_frame_of_a_get_is_that_of_its_message() -> None:
    for size in range(wire.MAX_KEY_BYTES + 1):
        key = bytes(n % 251 for n in range(size))
        assert wire.get_frame(key) == frame(wire.encode(wire.Get([key])))


def test_key_longer_than_the_limit_is_refused() -> None:
    longest = b"k" * wire.MAX_KEY_BYTES
    assert wire.decode_request(wire.encode(wire.Get([longest]))) == wire.Get([longest])
    for message in (
        wire.Get([longest + b"k"]),
        wire.Set([(longest + b"k", b"")], None),
        wire.Touch([longest + b"k"], None),
        wire.Delete([longest + b"k"]),
        wire.Incr(longest + b"k", 1),
        wire.GetEntry(longest + b"k"),
        wire.Scan(longest + b"k"),
        wire.Hit(longest + b"k", [Rule(Algorithm(0), 1, 1.0)]),
        wire.Peek(longest + b"k", [Rule(Algorithm(0), 1, 1.0)]),
        wire.Reset(longest + b"k", [Rule(Algorithm(0), 1, 1.0)]),
        wire.Clear(b"n" * 257),
        wire.Receive("c" * 101, 1.0),
        wire.GroupAdd("g" * 101, "c", 1.0),
    ):
        refused(wire.encode(message))


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("-inf")])
def test_negative_and_invalid_durations_are_refused(seconds: float) -> None:
    refused(wire.encode(wire.Set([], seconds)))
    refused(wire.encode(wire.Touch([], seconds)))
    refused(wire.encode(wire.Send("c", b"", seconds, 1)))
    refused(wire.encode(wire.Receive("c", seconds)))
    refused(wire.encode(wire.GroupAdd("g", "c", seconds)))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64 - 1])
def test_integers_beyond_64_bits_are_refused(number: int) -> None:
    try:
        data = wire.encode(wire.Incr(b"k", number)), wire.encode(wire.Set([(b"k", number)], None))
    except OverflowError:
        return  # not even msgpack has it
    for each in data:
        refused(each)


@pytest.mark.parametrize(
    "rule", [(0, -1, 1.0), (0, 1, 0.0), (0, 1, -1.0), (0, 1, float("nan")), (3, 1, 1.0), (0, 1.5, 1.0)]
)
def test_invalid_rule_is_refused(rule: tuple[Any, ...]) -> None:
    refused(array(7, b"k", [rule], 1))


@pytest.mark.parametrize(("rules", "cost"), [(0, 1), (17, 1), (1, -1), (1, 2**31 + 1)])
def test_hit_has_one_to_sixteen_rules_and_a_bounded_cost(rules: int, cost: int) -> None:
    refused(array(7, b"k", [(0, 1, 1.0)] * rules, cost))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        array(),
        array(0),
        array(99),
        array("ping"),
        array(10) + b"more",
        b"\xc1",
        b"\x92\x01\xdd\xff\xff\xff\xff",  # a list of four billion, and nothing more
        b"\x92\x0a\xdf\xff\xff\xff\xff",
        b"\x92\x01\xc6\xff\xff\xff\xff",
        b"\x93\x0d\xa2\xff\xff\x01",  # a channel name that is no UTF-8
    ],
)
def test_broken_messages_are_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\x01", b"\xdd\x00\x00\x00\x01"])
@pytest.mark.timing
def test_deep_nesting_is_refused(opening: bytes) -> None:
    depth = MAX_REQUEST // len(opening)
    start = time.perf_counter()
    refused(opening * depth)
    refused(b"\x92\x0a" + opening * depth)  # where a later version might have put something
    check_seconds(time.perf_counter() - start, below=0.1)


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_decode_errors(data: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_reply):
        with contextlib.suppress(*wire.DECODE_ERRORS):
            decode(data)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text()
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3))


@given(st.sampled_from([*range(1, 30), *range(33, 46)]), st.lists(trees, max_size=6), st.data())
def test_valid_msgpack_that_is_not_a_message_raises_only_decode_errors(
    tag: int, items: list[Any], draw: st.DataObject
) -> None:
    data = bytearray(array(tag, *items))
    if draw.draw(st.booleans()):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    for decode in (wire.decode_request, wire.decode_reply):
        try:
            message = decode(bytes(data))
        except wire.DECODE_ERRORS:
            continue
        assert decode(wire.encode(message)) == message or "nan" in repr(message)


@pytest.mark.parametrize("kind", [wire.Get, wire.Set, wire.Touch, wire.Delete])
def test_a_request_for_more_keys_than_it_may_have_is_refused(kind: type[wire.Request]) -> None:
    def request(count: int) -> wire.Request:
        keys = [b"key"] * count
        if kind is wire.Set:
            return wire.Set([(key, 1) for key in keys], None)
        return (
            wire.Touch(keys, None) if kind is wire.Touch else wire.Get(keys) if kind is wire.Get else wire.Delete(keys)
        )

    assert wire.decode_request(wire.encode(request(wire.MAX_KEYS))) == request(wire.MAX_KEYS)
    with pytest.raises(wire.DECODE_ERRORS):
        wire.decode_request(wire.encode(request(wire.MAX_KEYS + 1)))


@given(st.text(max_size=100))
def test_name_of_a_process_channel_contains_the_tag_of_its_node(node: str) -> None:
    tag = wire.channel_tag(node)
    assert len(tag) == 16
    assert wire.tag_of(f"specific.{tag}.a1b2c3!d4e5") == tag
    assert wire.tag_of(f"specific.inner.{tag}.a1b2c3!d4.e5") == tag


@pytest.mark.parametrize("channel", ["", "plain", "a.b.c", "a.b!c", "!", "specific.a1b2c3!d"])
def test_name_of_any_other_channel_has_no_tag(channel: str) -> None:
    assert wire.tag_of(channel) == ""
