"""Processes and hosts that end, with and without leaving, under load. Figures are printed (-s)."""

import random
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from django_clusterstate.core.membership.heartbeat import MemberState
from testproject.processes import LocalCluster, wait_until
from tests.faults.hosts import HostCluster, needs_hosts
from tests.faults.kept import Kept
from tests.faults.observing import SECONDS, changes, moves
from tests.faults.requesters import SILENCE, Requesters, hits
from tests.layers import Layer

pytestmark = pytest.mark.fault

Figure = Callable[[str, object], None]
KILLS = 5
LONG = 5.0  # seconds for which a request waits


def seconds_of(values: list[float]) -> str:
    return f"median {statistics.median(values):.3f} s, worst {max(values):.3f} s of {len(values)}"


def logged(cluster: LocalCluster, peers: tuple[str, ...], of: str, to: MemberState, since: float) -> list[float]:
    """How long after `since` each of the peers logged that change; empty until all have."""
    found = []
    for peer in peers:
        times = [
            when - since
            for when, member, _, new in changes(cluster.folder / f"{peer}.log")
            if member == of and new == to and when >= since - 0.001
        ]
        if not times:
            return []
        found.append(times[0])
    return found


def until_logged(cluster: LocalCluster, peers: tuple[str, ...], of: str, to: MemberState, since: float) -> list[float]:
    wait_until(lambda: bool(logged(cluster, peers, of, to, since)), SECONDS, f"all log that {of} is {to}")
    return logged(cluster, peers, of, to, since)


def test_a_killed_node_is_down_for_all_in_half_a_second_and_no_request_raises(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    names, staying = ("a", "b", "c", "d"), ("a", "b", "c")
    times: list[float] = []
    lost: list[str] = []
    with LocalCluster(folder, names, env=layer.env) as cluster:
        cluster.start()
        kept = Kept(cluster, names)
        with Requesters(cluster, staying, hits()) as requesters:
            for _ in range(KILLS):
                since = time.time()
                cluster.kill("d")
                times += until_logged(cluster, staying, "d", MemberState.DOWN, since)
                requesters.go_on()
                lost += kept.lost(*staying)
                cluster.start("d")
                cluster.wait_until_synced()
                requesters.go_on()
    figure("down for each peer after", seconds_of(times))
    figure("requesters", requesters)
    assert not requesters.errors
    # A request that is on its way to the killed node may have been executed there, so no other node executes it.
    assert all(len(tally.alone) <= KILLS for tally in requesters.tallies)
    assert max(times) < 0.5
    assert not lost


def leave_times(cluster: LocalCluster, staying: tuple[str, ...], leaving: tuple[str, ...]) -> list[float]:
    """How long each peer took to hear of each leave, which a node announces once it has handed over its keys."""
    times = []
    for name in leaving:
        since = time.time()
        cluster.processes[name].signal(signal.SIGTERM)
        (handed_over,) = until_logged(cluster, (name,), name, MemberState.LEAVING, since)
        times += until_logged(cluster, staying, name, MemberState.LEAVING, since + handed_over)
        time.sleep(random.uniform(0.1, 0.4))
    for name in leaving:
        assert cluster.processes[name].wait(SECONDS) == 0
    return times


def leaves(folder: Path, layer: Layer, figure: Figure, rounds: int) -> None:
    staying, leaving = ("a", "b", "c"), ("d", "e", "f", "g")
    times: list[float] = []
    # Where ten processes share two processors, a reply may be late. It may not be refused.
    env = layer.env | {"CLUSTERSTATE_DEADLINE": str(LONG)}
    with LocalCluster(folder, staying + leaving, env=env) as cluster:
        cluster.start()
        kept = Kept(cluster, staying + leaving)
        with Requesters(cluster, staying, hits(), deadline=LONG) as requesters:
            for number in range(rounds):
                if number:
                    cluster.start(*leaving)
                    cluster.wait_until_synced()
                requesters.reset()
                times += leave_times(cluster, staying, leaving)
                requesters.go_on()
                assert not kept.lost(*staying)
                refused = [reason for tally in requesters.tallies for reason in tally.refused]
                assert not refused  # a node that leaves serves on until all requesters know
        assert not moves(cluster, MemberState.DOWN)
    times.sort()
    figure("leave heard by each peer after", seconds_of(times))
    figure("p99", f"{times[int(0.99 * len(times))]:.3f} s")
    figure("requesters", requesters)
    assert not requesters.errors
    assert not any(tally.alone for tally in requesters.tallies)
    assert statistics.median(times) < 0.1
    assert max(times) < 1


def test_peers_hear_of_a_leave_in_a_tenth_of_a_second_and_requesters_notice_nothing(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    leaves(folder, layer, figure, rounds=2)


@pytest.mark.slow
def test_peers_hear_of_each_of_many_leaves_in_a_tenth_of_a_second(folder: Path, layer: Layer, figure: Figure) -> None:
    leaves(folder, layer, figure, rounds=12)


def lose_hosts(folder: Path, figure: Figure, runs: int) -> None:
    names = ("a", "b", "c", "d")
    times: list[float] = []
    silenced: list[float] = []
    with HostCluster(folder, names) as cluster:
        cluster.start()
        kept = Kept(cluster, names)
        with Requesters(cluster, ("a", "b"), hits()) as requesters:
            for number in range(runs):
                lost = ("c", "d")[number % 2]
                time.sleep(random.uniform(0, 0.5))  # at any moment between two heartbeats
                since = time.time()
                silenced.append(time.monotonic())
                cluster.silence(lost)
                peers = tuple(name for name in names if name != lost)
                times.append(max(until_logged(cluster, peers, lost, MemberState.DOWN, since)))
                assert not kept.lost(*peers)
                cluster.silence(lost, over=True)
                # It joins again, and waits for twice as long each time that this recurs soon: for 72 s at most.
                cluster.wait_until_synced(seconds=120)
                assert not kept.lost(lost)
        figure("down for all after", seconds_of(times))
        figure("requesters", requesters)
        assert not requesters.errors
        assert not requesters.alone_outside(*((at, at + SILENCE) for at in silenced))
        assert max(times) < 4


@needs_hosts
def test_a_lost_host_is_down_in_four_seconds_and_no_request_raises(folder: Path, figure: Figure) -> None:
    lose_hosts(folder, figure, runs=2)


@needs_hosts
@pytest.mark.slow
def test_twenty_lost_hosts_of_twenty_are_down_in_four_seconds(folder: Path, figure: Figure) -> None:
    lose_hosts(folder, figure, runs=20)
