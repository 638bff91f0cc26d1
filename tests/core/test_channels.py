"""Memberships of channels in groups; each test sets the clock."""

import pytest

from django_clusterstate.core import channels as module
from django_clusterstate.core.channels import ChannelGroups

NOW = 1000.0


def test_memberships_are_kept_until_they_expire() -> None:
    groups = ChannelGroups()
    groups.add("g", "a", 10, NOW)
    groups.add("g", "b", 20, NOW)
    groups.add("g", "c", 20, NOW)
    groups.discard("g", "c")
    groups.discard("g", "unknown")
    assert list(groups.remaining(NOW + 5)) == [("g", "a", 5.0), ("g", "b", 15.0)]
    assert list(groups.remaining(NOW + 10)) == [("g", "b", 10.0)]
    groups.add("g", "a", 10, NOW + 10)
    assert groups.expire(NOW + 15, 9) == 0
    groups.expire(NOW + 22, 9)
    assert len(groups) == 0


def test_memberships_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERSHIPS", 2)
    groups = ChannelGroups()
    for number in range(4):
        groups.add("g", f"c{number}", 10, NOW)
    groups.add("g", "c0", 20, NOW)
    assert sorted(groups.remaining(NOW)) == [("g", "c0", 20.0), ("g", "c1", 10.0)]


def test_expired_memberships_are_freed_in_batches() -> None:
    groups = ChannelGroups()
    for number in range(30):
        groups.add("group", f"c{number}", 1, NOW)
    assert [groups.expire(NOW + 2, 7) for _ in range(6)] == [7, 7, 7, 7, 2, 0]
    assert len(groups) == 0
