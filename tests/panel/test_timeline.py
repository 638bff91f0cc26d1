"""Merging the timelines of several nodes."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.membership.timeline import EventKind, MemberEvent
from django_clusterstate.panel.formatting import LONGEST
from django_clusterstate.panel.timeline import _STYLES, LABELS, MERGE_WITHIN, SHOWN, merge

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOOT = bytes(16)

moments = st.builds(
    MemberEvent,
    st.floats(0, 100),
    st.sampled_from(EventKind),
    st.sampled_from(["x", "y"]),
    st.sampled_from([b"1", b"2"]),
)


def test_reports_of_several_nodes_are_one_entry_at_the_time_of_the_first() -> None:
    entries = merge(
        {
            "a": [
                MemberEvent(1.0, EventKind.JOINED, "x", b"2"),
                MemberEvent(9.0, EventKind.DOWN, "x", b"1"),
            ],
            "b": [MemberEvent(8.0, EventKind.DOWN, "x", b"1")],
        },
        NOW,
    )
    assert [(str(one.what), one.boot, one.ago, one.reporters) for one in entries] == [
        ("joined", b"2", 1.0, ["a"]),
        ("down", b"1", 9.0, ["a", "b"]),
    ]
    assert entries[1].at == NOW - timedelta(seconds=9)


def test_two_reports_of_one_node_are_two_entries() -> None:
    twice = [MemberEvent(ago, EventKind.SUSPECTED, "x", BOOT) for ago in (3.0, 5.0)]
    assert [one.ago for one in merge({"a": twice}, NOW)] == [3.0, 5.0]


def test_entry_keeps_its_key_as_time_goes_by() -> None:
    reported = [MemberEvent(ago, what, "x", boot) for ago, what, boot in (
        (2.9, EventKind.SUSPECTED, b"1"), (3.9, EventKind.SUSPECTED, b"1"),
        (4.9, EventKind.DOWN, b"1"), (5.9, EventKind.SUSPECTED, b"2"),
    )]  # fmt: skip
    keys = [one.key for one in merge({"a": reported}, NOW)]
    assert keys == ["suspected-31-2", "suspected-31-1", "down-31-1", "suspected-32-1"]
    later = [MemberEvent(one.ago + 7.5, one.what, one.name, one.boot) for one in reported]
    new = MemberEvent(0.5, EventKind.SUSPECTED, "x", b"1")
    assert [one.key for one in merge({"a": [new, *later]}, NOW + timedelta(seconds=7.6))] == [
        "suspected-31-3", *keys
    ]  # fmt: skip


def test_entry_older_than_the_longest_time_is_shown_at_the_longest_time() -> None:
    (one,) = merge({"a": [MemberEvent(8e10, EventKind.JOINED, "x", BOOT)]}, NOW)
    assert one.at == NOW - timedelta(seconds=LONGEST)


def test_report_that_comes_much_later_is_another_entry() -> None:
    reported = {
        "a": [MemberEvent(30.0, EventKind.SUSPECTED, "x", BOOT)],
        "b": [MemberEvent(30.0 - 2 * MERGE_WITHIN, EventKind.SUSPECTED, "x", BOOT)],
    }
    assert [one.reporters for one in merge(reported, NOW)] == [["b"], ["a"]]


@given(st.dictionaries(st.sampled_from("abc"), st.lists(moments, max_size=10)))
def test_nothing_is_lost_and_all_is_in_order(timelines: dict[str, list[MemberEvent]]) -> None:
    entries = merge(timelines, NOW)
    assert [one.ago for one in entries] == sorted(one.ago for one in entries)
    if len(entries) < SHOWN:
        assert sum(len(one.reporters) for one in entries) == sum(map(len, timelines.values()))
    for one in entries:
        assert len(set(one.reporters)) == len(one.reporters)
    assert len({one.key for one in entries}) == len(entries)


def test_only_the_last_are_shown() -> None:
    entries = merge({"a": [MemberEvent(float(ago), EventKind.JOINED, str(ago), BOOT) for ago in range(SHOWN + 5)]}, NOW)
    assert [one.ago for one in entries] == list(range(SHOWN))


def test_unknown_change_of_a_newer_version_is_shown_by_its_name() -> None:
    (one,) = merge({"a": [MemberEvent(1.0, "handed over", "x", BOOT)]}, NOW)
    assert (one.label, one.style) == ("handed over", "other")


def test_each_change_has_a_label() -> None:
    assert set(LABELS) == set(EventKind)
    assert set(_STYLES) <= set(EventKind)
