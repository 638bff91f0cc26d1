"""What a node logs when a member changes its state."""

import pytest

from django_clusterstate.core.membership.heartbeat import Identity, MemberState
from django_clusterstate.core.membership.members import Change
from django_clusterstate.node.membership_changes import describe

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
