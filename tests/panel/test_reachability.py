"""The table of heartbeats."""

import msgspec

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.core.membership.members import Timings
from django_clusterstate.panel.reachability import MAX_COLUMNS, MAX_LISTED, LastHeartbeat, heartbeat_table
from tests.panel.reports import member, node, reports_of

TIMINGS = Timings()


def test_every_node_that_answers_has_a_row_and_every_member_that_is_not_gone_a_column() -> None:
    nodes = {
        "a": node(
            "a",
            members=(member("b", heard_ago=0.5), member("c", MemberState.SUSPECT, 1.6), member("d", MemberState.DOWN)),
        ),
        "b": node("b", members=(member("a", heard_ago=0.1),)),
    }
    table = heartbeat_table(reports_of(ClusterStatus("a", nodes)), TIMINGS)
    assert table.senders == ["a", "b", "c"]
    assert table.rows == [
        (
            "a",
            [
                LastHeartbeat("a", "a", is_self=True),
                LastHeartbeat("a", "b", 0.5),
                LastHeartbeat("a", "c", 1.6, late=True),
            ],
        ),
        (
            "b",
            [LastHeartbeat("b", "a", 0.1), LastHeartbeat("b", "b", is_self=True), LastHeartbeat("b", "c", lost=True)],
        ),
    ]
    assert table.problems == [table.rows[0][1][2], table.rows[1][1][2]]
    assert [last.text for last in table.rows[0][1]] == ["", "0.5 s", "1.6 s"]


def test_member_whose_heartbeats_only_others_receive_is_lost() -> None:
    unreachable = msgspec.structs.replace(member("b", heard_ago=9.0), unreachable=True)
    (last,) = heartbeat_table(
        reports_of(ClusterStatus("a", {"a": node("a", members=(unreachable,))})), TIMINGS
    ).problems
    assert (last.receiver, last.sender, last.lost) == ("a", "b", True)


def test_member_that_one_side_of_a_partition_holds_for_gone_is_lost_there_with_its_age() -> None:
    nodes = {
        "a": node("a", members=(member("b"), member("c", MemberState.DOWN, 9.0))),
        "b": node("b", members=(member("a"), member("c", MemberState.LEFT, 8.0))),
        "c": node("c", members=(member("a", MemberState.DOWN, 9.5), member("b", MemberState.DOWN, 9.5))),
    }
    table = heartbeat_table(reports_of(ClusterStatus("a", nodes)), TIMINGS)
    assert table.senders == ["a", "b", "c"]
    assert [(one.receiver, one.sender, one.age, one.lost) for one in table.problems] == [
        ("a", "c", 9.0, True),
        ("b", "c", 8.0, True),
        ("c", "a", 9.5, True),
        ("c", "b", 9.5, True),
    ]
    assert all(one.text for one in table.problems)


def test_list_of_problems_is_cut_and_says_how_many_are_missing() -> None:
    for count, listed, more in ((MAX_LISTED, MAX_LISTED, 0), (MAX_LISTED + 3, MAX_LISTED, 3)):
        silent = tuple(member(f"m{number}", MemberState.SUSPECT, 2.0) for number in range(count))
        table = heartbeat_table(reports_of(ClusterStatus("a", {"a": node("a", members=silent)})), TIMINGS)
        assert (len(table.problems), len(table.listed), table.more) == (count, listed, more)


def test_table_of_many_members_is_too_wide() -> None:
    for count, wide in ((MAX_COLUMNS, False), (MAX_COLUMNS + 1, True)):
        nodes = {f"n{number}": node(f"n{number}") for number in range(count)}
        assert heartbeat_table(reports_of(ClusterStatus("n0", nodes)), TIMINGS).is_wide is wide
