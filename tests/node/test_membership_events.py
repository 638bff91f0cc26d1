"""What a node logs when a member changes its state."""

import logging

import pytest

from django_clusterstate.core.membership.heartbeat import Identity, MemberState, View
from django_clusterstate.core.membership.members import Change, Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.node.membership_changes import MembershipEvents, describe
from django_clusterstate.node.recent_activity import History
from django_clusterstate.wire.status import Stats

WHO = Identity("web-2", b"b" * 16, "10.0.0.12:4370")


@pytest.mark.parametrize("new", MemberState)
@pytest.mark.parametrize("old", [None, *MemberState])
def test_every_change_of_state_is_described(old: MemberState | None, new: MemberState) -> None:
    text = describe(Change(WHO, old, new), 3.04, 1.5)
    assert text
    assert "{" not in text


def test_down_after_silence_names_its_duration_and_down_by_refusal_its_cause() -> None:
    change = Change(WHO, MemberState.SUSPECT, MemberState.DOWN)
    assert describe(change, 3.04, 1.5) == ("declared down after 3.0 s without heartbeats; its keys move to other nodes")
    assert "its process has ended" in describe(change, 0.4, 1.5)


@pytest.mark.parametrize(("others", "serving"), [([], "1 node serving"), ([WHO], "2 nodes serving")])
def test_a_change_is_logged_with_the_number_of_serving_nodes(
    others: list[Identity], serving: str, caplog: pytest.LogCaptureFixture
) -> None:
    membership = Membership(Identity("web-1", b"a" * 16, "10.0.0.11:4370"), Timings(), 0.0)
    membership.view = View.of([membership.me, *others])
    events = MembershipEvents(membership, Stats(), History(0.0), lambda _: None, lambda: 0.0)
    with caplog.at_level(logging.INFO, "django_clusterstate.node"):
        events.take_change(Change(membership.me, MemberState.JOINING, MemberState.ALIVE))
    assert f"; joining -> alive, {serving}, epoch " in caplog.text
