"""Nodes that are stopped, blocked or short of processors. Figures are printed (-s)."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_clusterstate.client.blocking import Client
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import Get, Reply, Set, Value, ValuesReply, encode
from testproject.processes import LocalCluster, wait_until
from tests.faults.observing import SECONDS, moves, until_all_say
from tests.faults.requesters import Requesters, client_on, hits
from tests.layers import SETTINGS

pytestmark = pytest.mark.fault

Figure = Callable[[str, object], None]
ALL = ("a", "b", "c")


@contextlib.contextmanager
def longest_silence(cluster: LocalCluster) -> Iterator[list[float]]:
    """The longest that any running node had not heard a peer, looked at while the context is entered."""
    longest = [0.0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for name in ALL:
                status = cluster.status(name)
                if status is not None:
                    longest[0] = max(longest[0], *(member.heard_ago for member in status.members))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


def test_a_node_that_is_stopped_again_and_again_is_never_down(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ALL) as cluster:
        cluster.start()
        cluster.wait_for()
        process = cluster.processes["c"]
        for _ in range(8):
            process.signal(signal.SIGSTOP)
            time.sleep(2.0)
            process.signal(signal.SIGCONT)
            time.sleep(0.3)
        figure("one view after the last", f"{cluster.wait_for():.2f} s")
        figure("suspect, times", len(moves(cluster, MemberState.SUSPECT)))
        assert not moves(cluster, MemberState.DOWN)


def stop_for(folder: Path, figure: Figure, seconds: float) -> None:
    """Stops `c` for `seconds`; meanwhile its keys get new values, and all hosts read them constantly."""
    wrong: list[tuple[float, list[Value | None]]] = []  # when, after the last new value was stored; and what
    written = [float("inf")]  # when that was: earlier reads may see the old one
    with LocalCluster(folder, ALL) as cluster, contextlib.ExitStack() as stack:
        cluster.start()
        cluster.wait_until_synced()
        client = stack.enter_context(contextlib.closing(client_on(cluster, "a", 1.0)))
        keys = [key for key in (b"default\0key %d" % n for n in range(300)) if _owner(client, key) == "c"]
        for key in keys:
            client.call(key, frame(encode(Set([(key, b"old")], None))))

        def read(number: int) -> tuple[bytes, bytes]:
            key = keys[number % len(keys)]
            return key, frame(encode(Get([key])))

        def hear(when: float, _: str, __: bytes, reply: Reply) -> None:
            if when > written[0] and isinstance(reply, ValuesReply) and reply.values != [b"new"]:
                wrong.append((when - written[0], reply.values))

        with Requesters(cluster, ALL, hits()) as requesters, Requesters(cluster, ALL, read, hear) as readers:
            stopped = time.monotonic()
            cluster.processes["c"].signal(signal.SIGSTOP)
            figure("down after", f"{until_all_say(cluster, MemberState.DOWN, 'c', ('a', 'b')):.2f} s")
            wait_until(lambda: len(client.table().targets) == 2, SECONDS, "the writer knows it")
            for key in keys:
                got = client.call(key, frame(encode(Get([key]))))
                assert isinstance(got, ValuesReply)
                assert got.values == [b"old"]  # its backup had it
                client.call(key, frame(encode(Set([(key, b"new")], None))))
            written[0] = time.monotonic()
            time.sleep(max(0.0, stopped + seconds - time.monotonic()))
            cluster.processes["c"].signal(signal.SIGCONT)
            took = cluster.wait_for()
            figure("one view after waking", f"{took:.2f} s")
            readers.go_on(3 * len(keys))
        for name, group in (("hits", requesters), ("reads", readers)):
            figure(name, group)
        figure("no or old values read after newer were written", len(wrong))
        log = cluster.processes["c"].output()
        assert "was paused for" in log
        assert took >= 9  # it was declared down, so it joins again, and serves once it was heard for 9 s
        assert not wrong
        assert not requesters.errors
        assert not readers.errors
        lost = {tally.host: tally.deadlines for tally in (*requesters.tallies, *readers.tallies)}
        assert max(lost.values()) <= 3, f"whole deadlines lost, by the requester's host: {lost}"


def _owner(client: Client, key: bytes) -> str:
    owner = client.table().owner(key)
    return owner.name if owner is not None else ""


def test_a_node_that_was_stopped_comes_back_without_its_old_values(folder: Path, figure: Figure) -> None:
    stop_for(folder, figure, 6.0)


@pytest.mark.slow
def test_a_node_that_was_stopped_for_a_minute_comes_back_without_its_old_values(folder: Path, figure: Figure) -> None:
    stop_for(folder, figure, 60.0)


def test_a_node_whose_loop_is_blocked_for_two_seconds_is_never_down(folder: Path, figure: Figure) -> None:
    env = {"DJANGO_SETTINGS_MODULE": SETTINGS, "TEST_BLOCK": "2"}
    with LocalCluster(folder, ALL, env=env) as cluster, contextlib.ExitStack() as stack:
        cluster.start()
        cluster.wait_for()
        client = stack.enter_context(contextlib.closing(client_on(cluster, "c", 5.0)))
        blocked = []
        for name in ("c", "c", "a", "c"):
            cluster.processes[name].signal(signal.SIGUSR1)
            time.sleep(0.2)
            start = time.monotonic()
            if name == "c":
                client.call_node(client.routing.local, frame(encode(Get([b"default\0key"]))))
                blocked.append(time.monotonic() - start)
            cluster.wait_for()
        figure("blocked for", f"{min(blocked) + 0.2:.2f} s at least")
        figure("suspect, times", len(moves(cluster, MemberState.SUSPECT)))
        assert min(blocked) > 1
        assert not moves(cluster, MemberState.DOWN)


def test_nodes_among_sixteen_hogs_on_two_cores_are_never_down(folder: Path, figure: Figure) -> None:
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    with LocalCluster(folder, ALL) as cluster:
        cluster.start()
        cluster.wait_for()
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(16)]
        try:
            for pid in [hog.pid for hog in hogs] + [process.pid for process in cluster.processes.values()]:
                os.sched_setaffinity(pid, cores)
            with longest_silence(cluster) as longest:
                time.sleep(15)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        figure("longest silence", f"{longest[0]:.2f} s")
        figure("suspect, times", len(moves(cluster, MemberState.SUSPECT)))
        cluster.wait_for()
        assert not moves(cluster, MemberState.DOWN)
