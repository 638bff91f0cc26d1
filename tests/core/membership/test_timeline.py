"""What happened to the members of late."""

from django_clusterstate.core.membership.timeline import MOMENTS, Moment, Timeline, What

BOOT = bytes(16)


def test_moments_are_told_the_latest_first_and_how_long_ago() -> None:
    timeline = Timeline()
    timeline.note(What.JOINED, "one", BOOT, 10.0)
    timeline.note(What.DOWN, "two", BOOT, 12.0)
    assert timeline.moments(15.0) == [Moment(3.0, What.DOWN, "two", BOOT), Moment(5.0, What.JOINED, "one", BOOT)]


def test_only_the_last_ones_are_kept() -> None:
    timeline = Timeline()
    for number in range(MOMENTS + 10):
        timeline.note(What.JOINED, str(number), BOOT, float(number))
    moments = timeline.moments(1000.0)
    assert [moment.name for moment in moments] == [str(number) for number in range(MOMENTS + 9, 9, -1)]
