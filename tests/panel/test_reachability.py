"""Who hears whom."""

import msgspec

from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership import Timings
from django_clusterstate.core.messages import State
from django_clusterstate.panel.reachability import WIDEST, Hearing, matrix
from tests.panel.reports import member, node, reports_of

TIMINGS = Timings()


def test_every_node_that_answers_has_a_row_and_every_member_that_is_not_gone_a_column() -> None:
    nodes = {
        "a": node("a", members=(member("b", heard_ago=0.5), member("c", State.SUSPECT, 1.6), member("d", State.DOWN))),
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


def test_matrix_of_many_is_too_wide() -> None:
    for count, wide in ((WIDEST, False), (WIDEST + 1, True)):
        nodes = {f"n{number}": node(f"n{number}") for number in range(count)}
        assert matrix(reports_of(ClusterStatus("n0", nodes)), TIMINGS).is_wide is wide
