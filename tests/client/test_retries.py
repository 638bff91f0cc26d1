"""Which requests are sent again, by the type of the request and of the error."""

import pytest

from django_clusterstate.client.retries import may_be_executed, may_execute_twice, may_send_again
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.exceptions import (
    CircuitOpen,
    ClusterStateError,
    ConnectionLost,
    NoCluster,
    ProtocolError,
    Refused,
    TimedOut,
    Unreachable,
)
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.handshake import OtherInstance, OtherNode
from django_clusterstate.wire.status import RequesterStats

RULES = [Rule(Algorithm.FIXED_WINDOW, 5, 60.0)]

AGAIN: list[wire.Request] = [
    wire.Get([b"k"]),
    wire.GetWithTtl([b"k"]),
    wire.Set([(b"k", b"v")], None),
    wire.Set([(b"k", b"v")], 5.0, deletes=(b"x",), reads=(b"y",)),
    wire.Set([(b"k", b"token")], 5.0, absent=True, or_same=True),
    wire.Touch([b"k"], 5.0),
    wire.Touch([b"k"], 5.0, b"token"),
    wire.Delete([b"k"]),
    wire.Delete([b"k"], b"token"),
    wire.Clear(b"n"),
    wire.GetEntry(b"k"),
    wire.Scan(b"k"),
    wire.Hit(b"k", RULES, 0),
    wire.Peek(b"k", RULES),
    wire.Reset(b"k", RULES),
    wire.FindLimits(b"k"),
    wire.Track(b"12345678", []),
    wire.GetEvents(),
    wire.GetView(),
    wire.GetView(["doubted"]),
    wire.Ping(),
    wire.GetStatus(),
    wire.GetReport(),
    wire.GroupAdd("g", "c", 5.0),
    wire.GroupDiscard("g", "c"),
    wire.Flush(),
]
ONCE: list[wire.Request] = [
    wire.Set([(b"k", b"v")], 5.0, absent=True),
    wire.Set([(b"k", b"v")], 5.0, absent=True, reads=(b"k",)),
    wire.Incr(b"k", 1),
    wire.Hit(b"k", RULES),
    wire.Hit(b"k", RULES, 0, denied_locally=3),
    wire.Hit(b"k", RULES, dry=True),
    wire.Refund(b"k", RULES, 1, 0.0),
    wire.GetView(stats=RequesterStats(remembered=1)),
    wire.Send("c", b"m", 5.0, 1),
    wire.Receive("c", 5.0),
    wire.GroupSend("g", b"m", 5.0, 1),
    wire.Deliver("g", b"m", 5.0, 1),
    wire.Forward("c", b"m", 5.0, 1),
    wire.Replicate(b"message"),
    wire.Execute(b"request", 1),
]


@pytest.mark.parametrize("request_", AGAIN + ONCE, ids=lambda one: type(one).__name__)
def test_request_is_sent_again_if_it_may_be_executed_twice(request_: wire.Request) -> None:
    assert may_execute_twice(request_) == (request_ in AGAIN)
    assert may_send_again(frame(wire.encode(request_)), ConnectionLost()) == (request_ in AGAIN)


def test_each_kind_of_request_is_decided() -> None:
    assert {type(one) for one in AGAIN + ONCE} == set(wire.Request.__args__)


ERRORS = [
    (NoCluster(), False),
    (CircuitOpen(), False),
    (Unreachable(), False),
    (Refused(), False),
    (OtherNode(""), False),
    (OtherInstance(""), False),
    (ConnectionLost(), True),
    (TimedOut(), True),
    (ProtocolError(), True),
]


@pytest.mark.parametrize(("error", "executed"), ERRORS, ids=lambda one: type(one).__name__)
def test_error_says_whether_the_request_may_have_been_executed(error: ClusterStateError, executed: bool) -> None:
    assert may_be_executed(error) == executed
    assert may_send_again(frame(wire.encode(ONCE[0])), error) == (not executed)
