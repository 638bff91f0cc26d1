"""Who hears whom."""

import msgspec

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership.messages import MemberState
from django_clusterstate.core.membership.transitions import Timings
from django_clusterstate.panel.reachability import LISTED, WIDEST, Hearing, matrix
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
    told = matrix(reports_of(ClusterStatus("a", nodes)), TIMINGS)
    assert told.speakers == ["a", "b", "c"]
    assert told.rows == [
        ("a", [Hearing("a", "a", is_self=True), Hearing("a", "b", 0.5), Hearing("a", "c", 1.6, late=True)]),
        ("b", [Hearing("b", "a", 0.1), Hearing("b", "b", is_self=True), Hearing("b", "c", lost=True)]),
    ]
    assert told.wrong == [told.rows[0][1][2], told.rows[1][1][2]]
    assert [hearing.text for hearing in told.rows[0][1]] == ["", "0.5 s", "1.6 s"]


def test_member_that_only_others_hear_is_lost() -> None:
    unreachable = msgspec.structs.replace(member("b", heard_ago=9.0), unreachable=True)
    (hearing,) = matrix(reports_of(ClusterStatus("a", {"a": node("a", members=(unreachable,))})), TIMINGS).wrong
    assert (hearing.listener, hearing.speaker, hearing.lost) == ("a", "b", True)


def test_member_that_one_side_of_a_partition_holds_for_gone_is_lost_there_with_its_age() -> None:
    nodes = {
        "a": node("a", members=(member("b"), member("c", MemberState.DOWN, 9.0))),
        "b": node("b", members=(member("a"), member("c", MemberState.LEFT, 8.0))),
        "c": node("c", members=(member("a", MemberState.DOWN, 9.5), member("b", MemberState.DOWN, 9.5))),
    }
    told = matrix(reports_of(ClusterStatus("a", nodes)), TIMINGS)
    assert told.speakers == ["a", "b", "c"]
    assert [(one.listener, one.speaker, one.age, one.lost) for one in told.wrong] == [
        ("a", "c", 9.0, True),
        ("b", "c", 8.0, True),
        ("c", "a", 9.5, True),
        ("c", "b", 9.5, True),
    ]
    assert all(one.text for one in told.wrong)


def test_no_more_are_listed_than_can_be_read() -> None:
    for count, listed, more in ((LISTED, LISTED, 0), (LISTED + 3, LISTED, 3)):
        silent = tuple(member(f"m{number}", MemberState.SUSPECT, 2.0) for number in range(count))
        told = matrix(reports_of(ClusterStatus("a", {"a": node("a", members=silent)})), TIMINGS)
        assert (len(told.wrong), len(told.listed), told.more) == (count, listed, more)


def test_matrix_of_many_is_too_wide() -> None:
    for count, wide in ((WIDEST, False), (WIDEST + 1, True)):
        nodes = {f"n{number}": node(f"n{number}") for number in range(count)}
        assert matrix(reports_of(ClusterStatus("n0", nodes)), TIMINGS).is_wide is wide
