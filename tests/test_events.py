"""`events`: one suite for the blocking functions and their `a...` twins; processes that track as fast as they can."""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils.safestring import mark_safe

from django_clusterstate import cluster as functions
from django_clusterstate import events, runtime
from django_clusterstate.client import event_batches, event_sender
from django_clusterstate.client.event_sender import EventSender
from django_clusterstate.client.routing import Target
from django_clusterstate.core.event_counts import PAGE, EventTotals
from django_clusterstate.exceptions import Unavailable
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress
from testproject.processes import ROOT, LocalCluster, Process, wait_until
from tests.conftest import NODES, using
from tests.forks import InChild
from tests.timing import check_seconds

Ask = Callable[..., Any]
SECONDS = 60.0
TRACK = """
import sys, time, django
django.setup()
from django_clusterstate import events
name, number, keys, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
start = time.perf_counter()
for i in range(number):
    events.track(name, key=i % keys, worker=name)
    if seconds and i % 100 == 0:
        time.sleep(seconds * 100 / number)
took = time.perf_counter() - start
sent = events.flush(30)
print(took, time.perf_counter() - start, sent, events.dropped())
"""


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a function of `events` by name, the blocking one or its asynchronous twin."""
    if request.param == "sync":
        return lambda name, *args, **kwargs: getattr(events, name)(*args, **kwargs)
    return lambda name, *args, **kwargs: async_to_sync(getattr(events, f"a{name}"))(*args, **kwargs)


@pytest.fixture
def name() -> str:
    """The name of an event that no other test tracks."""
    return f"event {uuid.uuid4()}"


def start_tracking(cluster: LocalCluster, number: int, name: str, *, keys: int = 10, seconds: float = 0) -> Process:
    """A process that tracks 25,000 events of a name within `seconds`."""
    node = cluster.names[number % len(cluster.names)]
    env = {**cluster.env(node), "CLUSTERSTATE_DEADLINE": "10"}
    command = [sys.executable, "-c", TRACK, name, str(25_000), str(keys), str(seconds)]
    return Process(command, cluster.folder / f"tracks-{uuid.uuid4().hex}.log", env)


def said(process: Process) -> tuple[float, float, bool, int]:
    """Seconds to track, seconds until all was sent, whether it was, and how many were dropped."""
    assert process.wait(60) == 0, process.output()
    took, whole, sent, dropped = process.output().splitlines()[-1].split()
    return float(took), float(whole), sent == "True", int(dropped)


@pytest.mark.usefixtures("cluster")
class TestThreeNodes:
    def test_counts_keys_and_samples_are_those_that_were_tracked(
        self, ask: Ask, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(event_sender, "INTERVAL", SECONDS)  # however long this takes, few batches are sent
        for number in range(30):
            ask("track", name, key=number % 3, number=number, text="x" * 300, share=0.5, good=True)
        ask("track", name, key="often", times=100)
        assert events.flush(SECONDS)
        counts = ask("counts", name)
        assert (counts.total, sum(counts.minutes), sum(counts.hours)) == (130, 130, 130)
        assert (len(counts.minutes), len(counts.hours)) == (60, 48)
        assert ask("top", name, n=2)[0] == ("often", 100, 0)
        assert sorted(ask("top", name)) == [("0", 10, 0), ("1", 10, 0), ("2", 10, 0), ("often", 100, 0)]
        recent = ask("recent", name)
        assert 3 * 3 + 1 <= len(recent) <= 2 * (3 * 3) + 1  # of each sum in a batch a few; the first event may go alone
        shown = next(sample for sample in recent if sample.key == "1")
        assert shown.fields == {"number": shown.fields["number"], "text": "x" * 200, "share": 0.5, "good": True}
        assert [sample.ago for sample in recent] == sorted(sample.ago for sample in recent)
        assert 0 <= recent[0].ago < SECONDS
        assert len(ask("recent", name, n=2)) == 2

    def test_process_that_must_have_no_thread_sends_each_event_at_once(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(event_sender, "is_uwsgi_master", lambda: True)
        sender = EventSender(runtime.get_client())
        sender.track(name, "key", 3, {"field": 1})
        assert events.counts(name).total == 3
        assert [sample.fields for sample in events.recent(name)] == [{"field": 1}]
        assert sender._thread is None

    def test_names_are_merged_over_all_nodes(self, ask: Ask, name: str) -> None:
        for key in range(50):
            ask("track", name, key)
        assert events.flush(SECONDS)
        [totals] = [totals for totals in ask("names") if totals.name == name]
        assert (totals.minute, totals.hour, totals.total) == (50, 50, 50)
        assert {sample.node for sample in ask("recent", name)} == set(NODES)

    def test_more_names_than_one_reply_holds_are_all_returned(self, ask: Ask, name: str) -> None:
        wanted = [f"{name}{number:03}" for number in range(350)]
        for one in wanted:
            events.track(one)
        assert events.flush(SECONDS)
        told = [totals.name for totals in ask("names")]
        assert [one for one in told if one.startswith(name)] == wanted
        assert told == sorted(told)

    def test_event_that_was_never_tracked_has_zeros(self, ask: Ask, name: str) -> None:
        details = ask("details", name)
        assert details == (((0, [0] * 60, [0] * 48)), [], [])

    def test_keys_are_text_numbers_or_uuids_of_any_class(self, name: str) -> None:
        class Color(str, Enum):  # noqa: UP042 - its hash is another than that of its text
            RED = "red"

        key = uuid.uuid4()
        for given in (mark_safe("text"), 17, key, Color.RED):
            events.track(name, given, value=mark_safe("safe"), color=Color.RED)
        assert events.flush(SECONDS)
        assert {one.key for one in events.top(name)} == {"text", "17", str(key), "red"}
        assert {tuple(sample.fields.values()) for sample in events.recent(name)} == {("safe", "red")}

    def test_events_arrive_without_a_flush(self, name: str) -> None:
        events.track(name)
        wait_until(lambda: events.counts(name).total == 1, SECONDS, "the event")
        events.track(name)  # the thread has slept meanwhile
        wait_until(lambda: events.counts(name).total == 2, SECONDS, "the second event")

    def test_threads_lose_none(self, name: str) -> None:
        def track() -> None:
            for number in range(5000):
                events.track(name, number % 7)

        threads = [threading.Thread(target=track) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert events.flush(SECONDS)
        assert events.counts(name).total == 20_000

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_forked_child_sends_its_own_events_and_not_its_parents(self, name: str, in_child: InChild) -> None:
        def child() -> bool:
            events.track(name, "child", times=10)
            return events.flush(SECONDS)

        events.track(name, "parent")
        assert in_child(child)()
        assert events.flush(SECONDS)
        assert sorted(events.top(name)) == [("child", 10, 0), ("parent", 1, 0)]

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_forked_child_that_ends_at_once_sends_nothing_of_its_parents(self, name: str, in_child: InChild) -> None:
        def end() -> bool:
            runtime.get_event_sender().close()  # as at exit
            return True

        events.track(name, "parent")
        assert in_child(end)()
        assert events.flush(SECONDS)
        assert events.counts(name).total == 1

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_forked_child_has_locks_that_nobody_holds(self, name: str, in_child: InChild) -> None:
        held, done = threading.Event(), threading.Event()
        tracker = runtime.get_event_sender()

        def hold() -> None:
            with tracker._lock, tracker._sending:
                held.set()
                done.wait(SECONDS)

        def child() -> bool:
            events.track(name, "child")
            return events.flush(30)

        with ThreadPoolExecutor(1) as threads:
            threads.submit(hold)
            assert held.wait(SECONDS)
            child_done = in_child(child)
            try:
                assert child_done()
            finally:
                done.set()

    def test_remaining_events_are_sent_at_the_end_of_a_process(self, cluster: LocalCluster, name: str) -> None:
        code = f"""
import django
django.setup()
from django_clusterstate import events
from django_clusterstate.client import event_sender
event_sender.EXIT_TIMEOUT = 30
events.track({name!r}, times=7)
"""
        subprocess.run([sys.executable, "-c", code], env=cluster.env("beta"), cwd=ROOT, check=True, timeout=60)
        assert events.counts(name).total == 7

    def test_signal_handler_may_track_while_it_interrupts_track(self, name: str) -> None:
        before = signal.signal(signal.SIGALRM, lambda *_: events.track(name, "handler"))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            for _ in range(50_000):
                events.track(name, "interrupted")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert events.flush(SECONDS)
        times = {one.key: one.times for one in events.top(name)}
        assert times["interrupted"] == 50_000
        assert times["handler"] > 0

    def test_many_processes_lose_none(self, cluster: LocalCluster, name: str) -> None:
        start = time.perf_counter()
        processes = [start_tracking(cluster, number, name) for number in range(8)]
        results = [said(process) for process in processes]
        whole = time.perf_counter() - start
        assert [(sent, dropped) for _, _, sent, dropped in results] == [(True, 0)] * 8
        assert events.counts(name).total == 8 * 25_000
        assert sum(one.times for one in events.top(name)) == 8 * 25_000
        slowest = max(took for _, took, _, _ in results)
        print(
            f"\n200,000 events from 8 processes: {200_000 / slowest:,.0f}/s while they track, {whole:.1f} s with starts"
        )


def test_processes_keep_tracking_while_a_node_is_killed(folder: Path, name: str) -> None:
    with LocalCluster(folder, NODES) as cluster:
        cluster.start()
        cluster.wait_for()
        processes = [start_tracking(cluster, number, name, keys=100, seconds=4) for number in range(4)]
        with using(cluster, "alpha"):
            wait_until(lambda: events.counts(name).total > 10_000, 60, "events")
            asked = time.monotonic()
            before = {node: cluster.status(node) for node in NODES}
            cluster.kill("gamma")
            more = int(10_000 * (time.monotonic() - asked))  # that gamma may have counted until it was killed
            results = [said(process) for process in processes]
            total, lost = events.counts(name).total, before["gamma"]
        dropped = sum(dropped for _, _, _, dropped in results)
        assert lost is not None
        print(f"\nof 100,000 events {total} are counted, {dropped} dropped, {lost.stats.events} and more were gamma's")
        # Gone are what the node had counted, more of which came before it was killed, and what was dropped.
        counted = total + lost.stats.events
        assert counted <= 100_000
        assert counted + dropped >= 90_000 - more
        assert "Traceback" not in "".join(process.output() for process in processes)


def test_node_that_is_stopped_for_a_moment_counts_each_event_once(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batches, "MAX_AGE", SECONDS)  # however long a busy machine holds up the node
    env = {"CLUSTERSTATE_DEADLINE": "0.1", "CLUSTERSTATE_DOWN_AFTER": "60"}
    with LocalCluster(folder, NODES, env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, "alpha"):
            number = 0
            for pause in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
                cluster.processes["gamma"].signal(pause)
                until = time.monotonic() + 1
                while time.monotonic() < until:
                    for key in range(100):
                        events.track(name, key)
                    number += 1
                    time.sleep(0.01)
            assert events.flush(SECONDS)
            assert events.dropped() == 0
            runtime.use_options({"DEADLINE": 10})
            status = functions.status()
            assert not status.silent
            assert status.nodes["gamma"].stats.events > 0
            assert events.counts(name).total == 100 * number


@pytest.mark.parametrize(("first", "after", "goes_on"), [("b", "a", True), ("a", "b", False), ("b", "b", False)])
def test_node_that_repeats_a_page_of_names_is_not_queried_again(first: str, after: str, goes_on: bool) -> None:
    target, page = Target("n", TcpAddress("127.0.0.1", 1)), [EventTotals(first, 0, 0, 1, 1.0)] * PAGE
    more = events._next_pages([], [(target, after)], [wire.EventNamesReply(1, page)])
    assert more == ([(target, first)] if goes_on else [])


@pytest.mark.usefixtures("cluster")
async def test_nodes_without_time_to_reply_are_reported(name: str) -> None:
    await events.anames()  # the view is known now, and the connections stand
    silent: dict[str, str] = {}
    for ask in (events.anames, partial(events.adetails, name)):
        with pytest.raises(Unavailable, match="no answer in time"):
            await ask(patience=0.0, silent=silent)
        assert set(silent) == set(NODES)
        silent.clear()
        await ask(patience=5.0, silent=silent)
        assert silent == {}
    assert all(not target.failures for target in (await runtime.get_async_client().table()).targets.values())


@pytest.mark.usefixtures("no_node")
class TestNoNode:
    def test_tracking_raises_nothing_and_drops_are_counted(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_batches, "MAX_AGE", 0.0)
        monkeypatch.setattr(event_sender, "INTERVAL", SECONDS)  # so that it is flush() that drops them
        ask("track", "login", times=5)
        assert not events.flush(0.2)
        wait_until(lambda: events.dropped() == 5, SECONDS, "the drop")
        assert runtime.get_stats().events_dropped == 5

    def test_process_that_must_have_no_thread_tracks_without_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_sender, "is_uwsgi_master", lambda: True)
        monkeypatch.setattr(event_batches, "MAX_AGE", 0.0)
        sender = EventSender(runtime.get_client())
        for _ in range(5):
            sender.track("login", "key", 1, {})
        assert sender.dropped == 5
        assert sender._thread is None

    @pytest.mark.timing(alone=True)
    def test_tracking_waits_for_nothing(self) -> None:
        start = time.perf_counter()
        for number in range(1000):
            events.track("login", number)
        check_seconds(time.perf_counter() - start, below=1)

    def test_events_without_room_are_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_sender, "MAX_SUMS", 10)
        monkeypatch.setattr(event_sender, "INTERVAL", 60)
        for number in range(15):
            events.track("login", number)
        events.track("login", 3)  # which is being counted
        assert events.dropped() == 5

    def test_event_that_a_signal_handler_tracks_while_its_sum_is_made_is_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(event_sender, "INTERVAL", 60)
        signals = [2]

        def clock() -> float:
            if signals:
                sender.track("login", "key", signals.pop(), {})
            return time.monotonic()

        with contextlib.closing(EventSender(runtime.get_client(), clock)) as sender:
            sender.track("login", "key", 1, {})
            assert [one.times for one in sender._sums.values()] == [3]

    def test_signal_handler_that_tracks_while_the_thread_starts_does_not_start_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[threading.Thread] = []
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            started.append(thread)
            if len(started) == 1:
                sender.track("by the handler", "", 1, {})
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with contextlib.closing(EventSender(runtime.get_client())) as sender:
            sender.track("login", "", 1, {})
            assert started == [sender._thread]

    def test_thread_tries_again_while_flush_empties_the_outbox(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_sender, "INTERVAL", 0.01)
        results, tried = iter([False, True]), queue.SimpleQueue[bool]()

        def send(until: float) -> bool:
            tried.put(True)
            return next(results)

        sender, wake = EventSender(runtime.get_client()), queue.SimpleQueue[bool]()
        monkeypatch.setattr(sender, "_send", send)
        thread = threading.Thread(target=sender._run, args=[wake])
        thread.start()
        wake.put(True)
        try:
            for _ in range(2):
                assert tried.get(timeout=SECONDS)
        finally:
            wake.put(False)
            thread.join(SECONDS)

    @pytest.mark.parametrize("call", [("names",), ("counts", "a"), ("top", "a"), ("recent", "a")], ids=lambda c: c[0])
    def test_reading_is_unavailable(self, ask: Ask, call: tuple[str, ...]) -> None:
        with pytest.raises(Unavailable, match=r"manage\.py clusternode"):
            ask(*call)

    @pytest.mark.parametrize("args", [(), ("login",), ("login", "--follow")], ids=str)
    def test_command_is_an_error(self, args: tuple[str, ...]) -> None:
        with pytest.raises(CommandError, match=r"manage\.py clusternode"):
            call_command("clusterevents", *args)


class TestArguments:
    @pytest.mark.parametrize(
        ("args", "fields", "error"),
        [
            ((7,), {}, TypeError),
            (("",), {}, ValueError),
            (("x" * 101,), {}, ValueError),
            (("x", 1.5), {}, TypeError),
            (("x", None), {}, TypeError),
            (("x", "k" * 201), {}, ValueError),
            (("x", "k", 0), {}, ValueError),
            (("x", "k", 2**31 + 1), {}, ValueError),
            (("x", "k", 1.0), {}, TypeError),
            (("x", "k", True), {}, TypeError),
            (("x",), {str(number): 1 for number in range(9)}, ValueError),
            (("x",), {"y" * 101: 1}, ValueError),
            (("x",), {"y": None}, TypeError),
            (("x",), {"y": [1]}, TypeError),
            (("x",), {"y": 2**63}, ValueError),
        ],
        ids=repr,
    )
    def test_invalid_arguments_raise_at_once(
        self, ask: Ask, args: tuple[Any, ...], fields: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error, match="event|key"):
            ask("track", *args, **fields)

    def test_name_that_is_too_long_to_be_tracked_cannot_be_read(self, cluster: LocalCluster, ask: Ask) -> None:
        with pytest.raises(ValueError, match="100 characters"):
            ask("counts", "x" * 101)


def called(*options: str) -> str:
    output = StringIO()
    call_command("clusterevents", *options, stdout=output, no_color=True)
    return output.getvalue()


@pytest.mark.usefixtures("cluster")
class TestCommand:
    def test_names_are_listed(self, name: str) -> None:
        events.track(name, times=3)
        assert events.flush(SECONDS)
        [line] = [line for line in called().splitlines() if name in line]
        assert line.split()[-6:-3] == ["3", "3", "3"]
        [shown] = [one for one in json.loads(called("--json")) if one["name"] == name]
        assert (shown["minute"], shown["hour"], shown["total"]) == (3, 3, 3)

    def test_one_event_is_shown_with_minutes_keys_and_samples(self, name: str) -> None:
        events.track(name, "somebody", reason="time out")
        assert events.flush(SECONDS)
        shown = called(name)
        assert "somebody" in shown
        assert "reason='time out'" in shown
        assert "#" in shown
        told = json.loads(called(name, "--json"))
        assert (told["total"], told["minutes"][0], told["top"][0]["key"]) == (1, 1, "somebody")
        assert told["recent"][0]["fields"] == {"reason": "time out"}

    def test_unknown_event_exits_with_1(self, name: str) -> None:
        with pytest.raises(CommandError, match="no event"):
            called(name)

    def test_follow_without_a_name_is_an_error(self) -> None:
        with pytest.raises(CommandError, match="name"):
            called("--follow")

    def test_follow_prints_new_events_until_ctrl_c(self, cluster: LocalCluster, name: str) -> None:
        events.track(name, "before")
        assert events.flush(SECONDS)
        command = [sys.executable, "-u", str(ROOT / "manage.py"), "clusterevents", name, "--follow"]
        # What is started from a shell in the background ignores Ctrl-C, and so would its children.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = Process(command, cluster.folder / "follow.log", cluster.env("beta"))
        signal.signal(signal.SIGINT, before)
        try:
            wait_until(lambda: "before" in process.output(), 60, "the event before")
            for number in range(3):
                events.track(name, f"after {number}")
            wait_until(lambda: process.output().count("after ") == 3, SECONDS, "the events after")
            process.signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
            assert len(process.output().splitlines()) == 4
        finally:
            process.stop()


def test_dropped_events_are_reported_to_the_nodes(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def reported() -> int:
        return sum(node.stats.tally.events_dropped for node in functions.status().nodes.values())

    monkeypatch.setattr(event_sender, "MAX_SUMS", 1)
    monkeypatch.setattr(event_sender, "INTERVAL", SECONDS)  # so that the first one waits
    assert events.flush(SECONDS)
    before = reported()
    events.track("one")
    events.track("two", times=4)
    events.flush()

    def told() -> bool:
        functions.members()  # asks for the view now and then
        return reported() == before + 4

    wait_until(told, SECONDS, "the report")
