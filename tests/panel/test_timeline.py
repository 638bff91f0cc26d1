"""The nodes' accounts of what happened, as one."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.membership.timeline import Moment, What
from django_clusterstate.panel.formatting import LONGEST
from django_clusterstate.panel.timeline import _LOOKS, LABELS, SHOWN, TOGETHER, merged

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOOT = bytes(16)

moments = st.builds(
    Moment, st.floats(0, 100), st.sampled_from(What), st.sampled_from(["x", "y"]), st.sampled_from([b"1", b"2"])
)


def test_what_several_tell_is_one_happening_at_the_time_of_the_first() -> None:
    happenings = merged(
        {
            "a": [Moment(1.0, What.JOINED, "x", b"2"), Moment(9.0, What.DOWN, "x", b"1")],
            "b": [Moment(8.0, What.DOWN, "x", b"1")],
        },
        NOW,
    )
    assert [(str(one.what), one.boot, one.ago, one.tellers) for one in happenings] == [
        ("joined", b"2", 1.0, ["a"]),
        ("down", b"1", 9.0, ["a", "b"]),
    ]
    assert happenings[1].at == NOW - timedelta(seconds=9)


def test_what_one_node_tells_twice_happened_twice() -> None:
    twice = [Moment(ago, What.SUSPECTED, "x", BOOT) for ago in (3.0, 5.0)]
    assert [one.ago for one in merged({"a": twice}, NOW)] == [3.0, 5.0]


def test_each_happening_has_a_key_that_stays_as_time_goes_by() -> None:
    told = [Moment(ago, what, "x", boot) for ago, what, boot in (
        (2.9, What.SUSPECTED, b"1"), (3.9, What.SUSPECTED, b"1"), (4.9, What.DOWN, b"1"), (5.9, What.SUSPECTED, b"2"),
    )]  # fmt: skip
    keys = [one.key for one in merged({"a": told}, NOW)]
    assert keys == ["suspected-31-2", "suspected-31-1", "down-31-1", "suspected-32-1"]
    later = [Moment(one.ago + 7.5, one.what, one.name, one.boot) for one in told]
    new = Moment(0.5, What.SUSPECTED, "x", b"1")
    assert [one.key for one in merged({"a": [new, *later]}, NOW + timedelta(seconds=7.6))] == [
        "suspected-31-3", *keys
    ]  # fmt: skip


def test_what_happened_before_all_calendars_is_told_too() -> None:
    (one,) = merged({"a": [Moment(8e10, What.JOINED, "x", BOOT)]}, NOW)
    assert one.at == NOW - timedelta(seconds=LONGEST)


def test_what_is_told_much_later_happened_again() -> None:
    told = {
        "a": [Moment(30.0, What.SUSPECTED, "x", BOOT)],
        "b": [Moment(30.0 - 2 * TOGETHER, What.SUSPECTED, "x", BOOT)],
    }
    assert [one.tellers for one in merged(told, NOW)] == [["b"], ["a"]]


@given(st.dictionaries(st.sampled_from("abc"), st.lists(moments, max_size=10)))
def test_nothing_is_lost_and_all_is_in_order(timelines: dict[str, list[Moment]]) -> None:
    happenings = merged(timelines, NOW)
    assert [one.ago for one in happenings] == sorted(one.ago for one in happenings)
    if len(happenings) < SHOWN:
        assert sum(len(one.tellers) for one in happenings) == sum(map(len, timelines.values()))
    for one in happenings:
        assert len(set(one.tellers)) == len(one.tellers)
    assert len({one.key for one in happenings}) == len(happenings)


def test_only_the_last_are_shown() -> None:
    happenings = merged({"a": [Moment(float(ago), What.JOINED, str(ago), BOOT) for ago in range(SHOWN + 5)]}, NOW)
    assert [one.ago for one in happenings] == list(range(SHOWN))


def test_word_of_a_newer_version_is_shown_as_it_is() -> None:
    (one,) = merged({"a": [Moment(1.0, "handed over", "x", BOOT)]}, NOW)
    assert (one.label, one.looks) == ("handed over", "other")


def test_everything_has_a_label() -> None:
    assert set(LABELS) == set(What)
    assert set(_LOOKS) <= set(What)
