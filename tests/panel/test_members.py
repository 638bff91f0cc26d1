"""The members' table."""

import pytest

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.core.membership.timeline import EventKind, MemberEvent
from django_clusterstate.panel.formatting import LONGEST, duration
from django_clusterstate.panel.members import RECENT, STATE_LABELS, rows, versions, views
from tests.panel.reports import identity, member, node, report, reports_of


def test_members_that_do_not_answer_are_listed_with_their_state() -> None:
    states = (MemberState.SUSPECT, MemberState.DOWN, MemberState.LEAVING, MemberState.LEFT, MemberState.JOINING)
    one = node("one", members=tuple(member(f"is-{state}", state, 5.0) for state in states))
    table = rows(reports_of(ClusterStatus("one", {"one": one}, {"is-suspect": "too late"})))
    assert [(row.name, row.state, row.silent) for row in table] == [
        ("is-joining", MemberState.JOINING, ""),
        ("is-leaving", MemberState.LEAVING, ""),
        ("is-suspect", MemberState.SUSPECT, "too late"),
        ("one", MemberState.ALIVE, ""),
        ("is-down", MemberState.DOWN, ""),
        ("is-left", MemberState.LEFT, ""),
    ]
    assert [row.status is None for row in table] == [True, True, True, False, True, True]
    assert [row.address for row in table] == [f"{row.name}.example:4370" for row in table]
    assert [row.heard for row in table] == ["5.0 s", "5.0 s", "5.0 s", "", "5.0 s", "5.0 s"]


def test_row_has_the_figures_of_the_nodes_report() -> None:
    (row,) = rows(reports_of(ClusterStatus("one", {"one": node("one")})))
    assert (row.entries, row.is_observer) == (5, True)
    assert row.uptime.replace("\xa0", " ") == "1 hour, 1 minute"


def test_row_counts_copies_apart() -> None:
    one = node("one")
    one.stats.limit_entries, one.stats.cache_copies_evicted, one.stats.limit_copies_evicted = 10, 3, 4
    (row,) = rows(reports_of(ClusterStatus("one", {"one": one})))
    assert (row.entries, row.copies, row.copies_evicted) == (12, 7, 7)


def test_heartbeats_are_those_that_the_observer_received() -> None:
    nodes = {
        "one": node("one", members=(member("two", heard_ago=0.1),)),
        "two": node("two", members=(member("one", heard_ago=0.2),)),
    }
    assert [row.heard_ago for row in rows(reports_of(ClusterStatus("one", nodes)))] == [None, 0.1]
    assert [row.heard_ago for row in rows(reports_of(ClusterStatus("two", nodes)))] == [0.2, None]
    assert [row.heard_ago for row in rows(reports_of(ClusterStatus("", nodes)))] == [None, 0.1]


def test_state_in_which_the_observer_sees_a_node_is_shown_if_it_differs() -> None:
    nodes = {"one": node("one", members=(member("two", MemberState.SUSPECT),)), "two": node("two")}
    one, two = rows(reports_of(ClusterStatus("one", nodes)))
    assert (one.seen_as, two.seen_as) == (None, MemberState.SUSPECT)
    assert two.state == MemberState.ALIVE


def test_silent_members_are_listed_as_the_node_with_their_last_heartbeat_knows_them() -> None:
    nodes = {
        "one": node("one", members=(member("known", MemberState.SUSPECT, 2.0),)),
        "two": node("two", members=(member("known", MemberState.ALIVE, 0.1), member("new", MemberState.DOWN, 9.0))),
        "three": node("three", members=(member("new", MemberState.ALIVE, 0.2),)),
    }
    table = {row.name: row for row in rows(reports_of(ClusterStatus("one", nodes, {"new": "too late"})))}
    known, new = table["known"], table["new"]
    assert (known.state, known.heard_ago) == (MemberState.SUSPECT, 2.0)
    assert (new.state, new.heard_ago, new.silent) == (MemberState.ALIVE, None, "too late")
    assert new.address == "new.example:4370"


def test_every_state_has_a_label() -> None:
    assert set(STATE_LABELS) == set(MemberState)


def test_no_rows_when_no_node_answers() -> None:
    assert rows(reports_of(ClusterStatus(silent={"/a.sock": "gone"}))) == []
    assert views(reports_of(ClusterStatus())) == []


def test_most_common_view_is_first() -> None:
    nodes = {"a": node("a", 7), "b": node("b", 8), "c": node("c", 8)}
    assert [names for _, names in views(reports_of(ClusterStatus("a", nodes)))] == [["b", "c"], ["a"]]


def test_restart_is_marked() -> None:
    before = MemberEvent(60.0, EventKind.DOWN, "two", b"earlier instance")
    now = MemberEvent(50.0, EventKind.JOINED, "two", identity("two").boot)

    def restarted(timeline: list[MemberEvent], uptime: float) -> list[bool]:
        nodes = {"one": node("one"), "two": node("two", uptime=uptime)}
        told = {"one": report(nodes["one"], timeline=timeline)}
        return [row.restarted for row in rows(reports_of(ClusterStatus("one", nodes), told))]

    assert restarted([now, before], 50.0) == [False, True]
    assert restarted([now], 50.0) == [False, False]
    assert restarted([now, before], RECENT) == [False, False]


def test_version_that_most_others_do_not_run_is_marked() -> None:
    nodes = {name: node(name, version=version) for name, version in (("a", "1"), ("b", "2"), ("c", "2"))}
    reports = reports_of(ClusterStatus("a", nodes))
    assert [row.odd_version for row in rows(reports)] == [True, False, False]
    assert versions(reports) == ["1", "2"]


def test_row_has_the_round_trip_and_the_requests_of_the_last_step() -> None:
    one = node("one")
    told = {"one": report(one, rates={"requests": [40, 5000]})}
    (row,) = rows(reports_of(ClusterStatus("one", {"one": one}), told))
    assert (row.milliseconds, row.requests_per_second) == (1.0, 8.0)
    (row,) = rows(reports_of(ClusterStatus("one", {"one": one})))
    assert row.requests_per_second == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 minute"),
        (7200, "2 hours"),
        (90000, "1 day, 1 hour"),
        (LONGEST - 1, "99 years, 11 months"),
        (LONGEST, "more than 100 years"),
        (8e10, "more than 100 years"),
        (1e300, "more than 100 years"),
        (float("inf"), "more than 100 years"),
        (float("nan"), "more than 100 years"),
    ],
)
def test_duration_is_formatted(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\xa0", " ") == text
