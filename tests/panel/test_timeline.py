"""The nodes' accounts of what happened, as one."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.timeline import Moment, What
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


def test_only_the_last_are_shown() -> None:
    happenings = merged({"a": [Moment(float(ago), What.JOINED, str(ago), BOOT) for ago in range(SHOWN + 5)]}, NOW)
    assert [one.ago for one in happenings] == list(range(SHOWN))


def test_everything_has_a_label() -> None:
    assert set(LABELS) == set(What)
    assert set(_LOOKS) <= set(What)
