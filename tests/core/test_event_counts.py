"""What an owner keeps of events, against a plain list of all of them."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core import event_counts as module
from django_clusterstate.core.event_counts import (
    HOURS,
    MAX_NAMES,
    MAX_SAMPLES,
    MAX_TOP,
    MINUTES,
    PAGE,
    EventCounts,
    EventEntry,
    Series,
)

Steps = list[tuple[float, str, int, int, float, int]]

steps = st.lists(
    st.tuples(
        st.floats(0, 4000),  # seconds since the last one
        st.sampled_from(["login", "export", "search"]),
        st.integers(0, 20),  # the key
        st.integers(1, 9),  # times
        st.floats(0, 100),  # seconds ago
        st.integers(0, 3),  # samples
    ),
    max_size=60,
)


def one(name: str = "login", key: str = "k", times: int = 1, ago: float = 0.0, samples: int = 0) -> EventEntry:
    return EventEntry(name, key, times, ago, [(ago, f"{number}".encode()) for number in range(samples)])


def tracked(*entries: EventEntry, now: float = 1000.0) -> EventCounts:
    events = EventCounts()
    for number, entry in enumerate(entries):
        events.track(str(number).encode(), [entry], now)
    return events


@given(steps)
def test_counts_and_samples_are_those_of_a_list_of_all_events(
    steps: list[tuple[float, str, int, int, float, int]],
) -> None:
    events, now = EventCounts(), 5000.0
    model: list[tuple[str, int, float]] = []
    samples: list[tuple[str, int, str, bytes]] = []
    for number, (pause, name, key, times, ago, count) in enumerate(steps):
        now += pause
        entry = one(name, str(key), times, ago, count)
        assert events.track(str(number).encode(), [entry], now) == times
        model.append((name, times, now - ago))
        samples += [
            (name, sum(s[0] == name for s in samples) + 1 + i, str(key), f[1]) for i, f in enumerate(entry.samples)
        ]
    for name in ("login", "export", "search"):
        account = events.account(name, now)
        mine = [(times, at) for event, times, at in model if event == name]
        if account is None:
            assert not mine
            continue
        assert account.total == sum(times for times, _ in mine)
        assert len(account.minutes) == MINUTES
        assert len(account.hours) == HOURS
        for span, counted in ((60, account.minutes), (3600, account.hours)):
            for spans in (1, 2, len(counted)):
                # The latest span lacks a sixth at most, and so the first so many begin a sixth late at most.
                assert sum(counted[:spans]) >= sum(t for t, at in mine if now - at < spans * span - span / 6 - 0.001)
                assert sum(counted[:spans]) <= sum(t for t, at in mine if now - at <= spans * span + 0.001)
        kept = [(number, key, fields) for event, number, key, fields in samples if event == name][-MAX_SAMPLES:]
        assert [(s.number, s.key, s.fields) for s in reversed(account.recent)] == kept


@given(steps)
def test_totals_say_the_same_as_the_account(steps: Steps) -> None:
    events, now = EventCounts(), 5000.0
    for number, (pause, name, key, times, ago, count) in enumerate(steps):
        now += pause
        events.track(str(number).encode(), [one(name, str(key), times, ago, count)], now)
    for totals in events.names("", now):
        account = events.account(totals.name, now)
        assert account is not None
        assert (totals.minute, totals.hour, totals.total) == (account.minutes[0], sum(account.minutes), account.total)
        assert totals.last_ago >= 0


@given(st.lists(st.tuples(st.floats(0, 500), st.integers(1, 5), st.floats(0, 500)), max_size=50))
def test_a_series_counts_each_event_in_the_span_of_its_age(events: list[tuple[float, int, float]]) -> None:
    now = 0.0
    series = Series(60.0, 3, now)
    model: Counter[int] = Counter()
    for pause, times, ago in events:
        now += pause
        series.add(times, now - ago, now)
        model[int((now - ago) // 10)] += times
    newest = int(now // 10)
    expected = [sum(model[newest - 6 * span - back] for back in range(6)) for span in range(3)]
    assert series.spans(now) == expected
    assert series.latest(now) == expected[0]
    assert series.all(now) == sum(expected)


def test_a_batch_that_comes_again_is_not_counted_again() -> None:
    events = EventCounts()
    assert events.track(b"batch 1", [one(times=3, samples=1)], 1000.0) == 3
    assert events.track(b"batch 1", [one(times=3, samples=1)], 1001.0) == 0
    assert events.track(b"batch 2", [one(times=3, samples=1)], 1001.0) == 3
    account = events.account("login", 1002.0)
    assert account is not None
    assert (account.total, len(account.recent)) == (6, 2)


def test_only_the_last_batches_are_remembered() -> None:
    events = EventCounts()
    for number in range(module.MAX_BATCHES + 1):
        events.track(str(number).encode(), [], 1000.0)
    assert events.track(b"1", [one()], 1000.0) == 0
    assert events.track(b"0", [one()], 1000.0) == 1


def test_the_name_that_was_not_tracked_for_longest_makes_room() -> None:
    events = tracked(*(one(f"event {number}") for number in range(MAX_NAMES)), one("event 0"), one("new"))
    assert events.evictions == 1
    assert events.account("event 1", 1000.0) is None
    assert events.account("event 0", 1000.0) is not None
    assert events.account("new", 1000.0) is not None


def test_samples_are_bounded_in_bytes_over_all_names() -> None:
    big = EventEntry("", "", 1, 0.0, [(0.0, bytes(module.MAX_FIELDS_BYTES))] * 8)
    events = EventCounts()
    names = [f"event {number}" for number in range(500)]
    for number, name in enumerate(names):
        entries = [EventEntry(name, big.key, big.times, big.ago, big.samples)] * 5
        events.track(str(number).encode(), entries, 1000.0)
    kept = [account for name in names if (account := events.account(name, 1000.0)) is not None]
    assert events.evictions == len(names) - len(kept) > 0
    held = sum(len(sample.fields) for account in kept for sample in account.recent)
    assert module.MAX_SAMPLES_BYTES / 2 < held <= module.MAX_SAMPLES_BYTES


def test_names_come_in_pages_in_their_order() -> None:
    events = tracked(*(one(f"event {number:03}") for number in range(PAGE + 5)))
    first = events.names("", 1000.0)
    assert [totals.name for totals in first] == [f"event {number:03}" for number in range(PAGE)]
    assert len(events.names(first[-1].name, 1000.0)) == 5


def test_frequent_keys_are_known_for_an_hour_or_two() -> None:
    events = tracked(*(one(key=f"rare {number}") for number in range(1000)), one(key="often", times=200))
    account = events.account("login", 1000.0)
    assert account is not None
    assert account.top[0].key == "often"
    assert account.top[0].times - account.top[0].error <= 200 <= account.top[0].times
    assert len(account.top) <= MAX_TOP
    later = events.account("login", 1000.0 + 3600)
    gone = events.account("login", 1000.0 + 7200)
    assert later is not None
    assert gone is not None
    assert later.top[0].key == "often"
    assert (gone.top, gone.total) == ([], 1200)
