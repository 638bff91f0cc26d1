"""Curves, shares and the busiest keys."""

import pytest

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.counter_history import INTERVALS
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.core.top_keys import KeyCount
from django_clusterstate.node.recent_activity import counters
from django_clusterstate.panel.traffic import CURVES, SHOWN, curves, shares, top
from django_clusterstate.ratelimit import routing_key
from django_clusterstate.wire.status import Stats
from tests.panel.reports import node, report, reports_of


def test_there_is_a_curve_for_everything_that_nodes_count() -> None:
    assert set(CURVES) == set(counters(Stats()))


def test_curve_is_the_sum_of_all_nodes_per_second_the_oldest_first() -> None:
    one, two = report(node("a"), rates={"requests": [5, 10]}), report(node("b"), rates={"requests": [20]})
    curve = {curve.name: curve for curve in curves([one, two])}["requests"]
    assert len(curve.values) == INTERVALS
    assert curve.values[-3:] == [0, 2, 5]
    assert (curve.now, curve.peak) == (5, 5)
    assert len(curve.points.split()) == INTERVALS


def test_curves_of_no_node_are_level() -> None:
    assert all(curve.peak == 0 and curve.points for curve in curves([]))


def test_shares_are_those_of_the_nodes_that_serve() -> None:
    nodes = {"a": node("a", weight=3.0), "b": node("b"), "c": node("c", state=MemberState.LEAVING)}
    a, b = shares(reports_of(ClusterStatus("a", nodes)))
    assert (a.name, a.expected_percent, a.actual_percent, a.entries) == ("a", 75.0, 50.0, 5)
    assert (b.name, b.expected_percent, b.actual_percent) == ("b", 25.0, 50.0)
    assert [a.expected_length, a.actual_length, b.expected_length] == ["120", "80", "40"]


def test_copies_do_not_count_as_shares() -> None:
    nodes = {"a": node("a"), "b": node("b")}
    nodes["b"].stats.cache_entries = 1000
    assert [share.entries for share in shares(reports_of(ClusterStatus("a", nodes)))] == [5, 5]


def test_there_are_no_shares_without_nodes() -> None:
    assert shares(reports_of(ClusterStatus())) == []


def test_busiest_keys_are_those_of_all_nodes_together() -> None:
    login, api = routing_key("login", "ip:10.0.0.7"), routing_key("api", "ü&")
    keys = top([KeyCount(login, 5, 1), KeyCount(api, 7, 0), KeyCount(login, 4, 0)])
    assert [(key.group, key.key, key.times, key.least) for key in keys] == [
        ("login", "ip:10.0.0.7", 9, 8),
        ("api", "ü&", 7, 7),
    ]
    assert keys[0].length == "120"
    assert keys[1].query == "kind=limit&group=api&key=%C3%BC%26"


@pytest.mark.parametrize("key", [routing_key("g", "x" * 2000), routing_key("g", "\ud800"), b"\xff"])
def test_key_that_cannot_be_split_or_sent_is_shown_as_it_is(key: bytes) -> None:
    (shown,) = top([KeyCount(key, 1, 0)])
    assert shown.group is None
    assert shown.key.encode()


def test_only_the_first_are_shown() -> None:
    keys = top([KeyCount(b"%d" % number, number + 1, 0) for number in range(2 * SHOWN)])
    assert [key.times for key in keys] == list(range(2 * SHOWN, SHOWN, -1))
