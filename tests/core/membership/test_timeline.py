"""What happened to the members of late."""

from django_clusterstate.core.membership.timeline import TIMELINE_LENGTH, EventKind, MemberEvent, Timeline

BOOT = bytes(16)


def test_events_come_the_latest_first_with_their_age() -> None:
    timeline = Timeline()
    timeline.note(EventKind.JOINED, "one", BOOT, 10.0)
    timeline.note(EventKind.DOWN, "two", BOOT, 12.0)
    assert timeline.events(15.0) == [
        MemberEvent(3.0, EventKind.DOWN, "two", BOOT),
        MemberEvent(5.0, EventKind.JOINED, "one", BOOT),
    ]


def test_only_the_last_ones_are_kept() -> None:
    timeline = Timeline()
    for number in range(TIMELINE_LENGTH + 10):
        timeline.note(EventKind.JOINED, str(number), BOOT, float(number))
    moments = timeline.events(1000.0)
    assert [moment.name for moment in moments] == [str(number) for number in range(TIMELINE_LENGTH + 9, 9, -1)]
