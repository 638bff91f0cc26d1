"""Real faults: real processes, on hosts of their own where the fault needs them. Each prints its figure (-s)."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_clusterstate.core.messages import State
from testproject.processes import LocalCluster, Process, free_port, wait_until
from tests.faults.hosts import HostCluster, needs_hosts

pytestmark = pytest.mark.fault

SECONDS = 15.0
FIVE = ("a", "b", "c", "d", "e")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cs-") as path:
        yield Path(path)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Notes a measured figure."""

    def note(what: str, value: object) -> None:
        record_property(what, value)
        print(f"\n  {what}: {value}", end="", flush=True)

    return note


Figure = Callable[[str, object], None]


class Redis:
    """A real redis-server on a free port, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self.start()

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program is not None
        command = [program, "--port", str(self.port), "--save", "", "--dir", str(self._folder)]
        self.process = Process(command, self._folder / "redis.log", os.environ)


LAYERS = ("embedded", "channels_redis.core.RedisChannelLayer", "channels_redis.pubsub.RedisPubSubChannelLayer")


@pytest.fixture(params=LAYERS)
def layered(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[dict[str, str], Redis | None]]:
    """The environment of nodes whose heartbeats take each of the layers, and its Redis."""
    if request.param == "embedded":
        yield {}, None
        return
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
    redis = Redis(folder)
    settings = {"DJANGO_SETTINGS_MODULE": "tests.node_settings", "REDIS_PORT": str(redis.port)}
    yield settings | {"REDIS_LAYER": request.param}, redis
    redis.process.stop()


Layered = tuple[dict[str, str], Redis | None]


def states(cluster: LocalCluster, of: str, by: tuple[str, ...]) -> set[State]:
    """What these nodes hold that one for."""
    return {
        member.state
        for name in by
        if (status := cluster.status(name)) is not None
        for member in status.members
        if member.identity.name == of
    }


def until_all_say(cluster: LocalCluster, state: State, of: str, by: tuple[str, ...], seconds: float = SECONDS) -> float:
    return wait_until(lambda: states(cluster, of, by) == {state}, seconds, f"all say {state} of {of}")


def ever_down(cluster: LocalCluster) -> list[str]:
    return [
        line for name in cluster.names for line in cluster.processes[name].output().splitlines() if "> down" in line
    ]


# -- 1 and 6: processes ---------------------------------------------------------------------------------------------


def test_row_1_a_killed_process_is_down_within_half_a_second(folder: Path, layered: Layered, figure: Figure) -> None:
    times = []
    with LocalCluster(folder, ("a", "b", "c"), env=layered[0]) as cluster:
        cluster.start()
        for _ in range(10):
            cluster.wait_for()
            cluster.kill("c")
            times.append(until_all_say(cluster, State.DOWN, "c", ("a", "b")))
            cluster.start("c")
    figure("down after, median and worst of 10", f"{statistics.median(times):.3f} s, {max(times):.3f} s")
    assert max(times) < 0.5


def test_row_6_a_leave_is_seen_within_a_tenth_of_a_second(folder: Path, layered: Layered, figure: Figure) -> None:
    times = []
    with LocalCluster(folder, ("a", "b", "c"), env=layered[0]) as cluster:
        cluster.start()
        for _ in range(10):
            cluster.wait_for()
            cluster.processes["c"].signal(signal.SIGTERM)
            times.append(until_all_say(cluster, State.LEAVING, "c", ("a", "b")))
            cluster.kill("c")
            cluster.start("c")
        assert not ever_down(cluster)
    figure("leave seen after, median and worst of 10", f"{statistics.median(times):.3f} s, {max(times):.3f} s")
    assert max(times) < 0.1


@pytest.mark.parametrize("layered", LAYERS[1:], indirect=True)
def test_row_16_a_restarted_redis_costs_no_node_its_life_and_one_line_each_way(
    folder: Path, layered: Layered, figure: Figure
) -> None:
    env, redis = layered
    assert redis is not None
    with LocalCluster(folder, ("a", "b", "c"), env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        redis.process.kill()
        wait_until(lambda: all("fails" in cluster.processes[n].output() for n in cluster.names), SECONDS, "all say so")
        time.sleep(6)
        assert all(cluster.processes[name].running for name in cluster.names)
        redis.start()
        heard = [status.stats.heartbeats_heard for n in cluster.names if (status := cluster.status(n)) is not None]
        seconds = wait_until(lambda: all(_heard(cluster, n) > max(heard) + 1 for n in cluster.names), SECONDS, "heard")
        figure("all hear each other after Redis is back", f"{seconds:.2f} s")
        assert seconds < 3
        assert cluster.agreed(cluster.names)
        assert not ever_down(cluster)
        for name in cluster.names:
            log = cluster.processes[name].output()
            assert log.count("the channel layer fails") == 1, log
            wait_until(lambda n=name: "works again" in cluster.processes[n].output(), SECONDS, "it says so")  # type: ignore[misc]


def _heard(cluster: LocalCluster, name: str) -> int:
    status = cluster.status(name)
    return 0 if status is None else status.stats.heartbeats_heard


# -- 3 to 5: stalls -------------------------------------------------------------------------------------------------


def test_row_3_a_node_that_is_stopped_for_two_seconds_again_and_again_is_never_down(folder: Path) -> None:
    with LocalCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        for name in ("a", "b", "c", "a"):
            cluster.processes[name].signal(signal.SIGSTOP)
            time.sleep(2.0)
            cluster.processes[name].signal(signal.SIGCONT)
            cluster.wait_for()
        assert not ever_down(cluster)


def test_row_4_a_node_that_was_stopped_for_long_comes_back(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.processes["c"].signal(signal.SIGSTOP)
        figure("down after", f"{until_all_say(cluster, State.DOWN, 'c', ('a', 'b')):.2f} s")
        time.sleep(3)
        cluster.processes["c"].signal(signal.SIGCONT)
        figure("one view after waking", f"{cluster.wait_for():.2f} s")
        log = cluster.processes["c"].output()
        assert "was stopped for" in log
        assert "-> down" not in log


def test_row_5_nodes_short_of_processor_time_are_never_down(folder: Path) -> None:
    with LocalCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8 * (os.cpu_count() or 2))]
        try:
            time.sleep(8)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        cluster.wait_for()
        assert not ever_down(cluster)


# -- 2, 8, 9, 10, 18: hosts and the network between them ------------------------------------------------------------


@needs_hosts
def test_row_2_a_lost_host_is_down_within_four_seconds(folder: Path, figure: Figure) -> None:
    times = []
    with HostCluster(folder, FIVE) as cluster:
        cluster.start()
        cluster.wait_for()
        for name in FIVE[2:]:
            left = tuple(other for other in FIVE if other < name)
            cluster.cut(name)
            times.append(until_all_say(cluster, State.DOWN, name, left))
    figure("down after", ", ".join(f"{seconds:.2f} s" for seconds in times))
    assert max(times) < 4


@needs_hosts
def test_row_8_both_sides_of_a_partition_go_on_and_become_one_again(folder: Path, figure: Figure) -> None:
    with HostCluster(folder, FIVE) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.split(FIVE[:3], FIVE[3:])
        wait_until(lambda: cluster.agreed(FIVE[:3]) and cluster.agreed(FIVE[3:]), SECONDS, "two clusters")
        cluster.heal()
        seconds = cluster.wait_for()
        figure("one view after the heal", f"{seconds:.2f} s")
        assert seconds < 3


@needs_hosts
def test_row_9_one_lost_direction_is_seen_as_such_and_changes_no_view(folder: Path, figure: Figure) -> None:
    with HostCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.drop("b", "a")
        start = time.monotonic()
        wait_until(lambda: ("a", "b") in unreachable(cluster), SECONDS, "a cannot reach b")
        figure("`a cannot reach b` after", f"{time.monotonic() - start:.2f} s")
        time.sleep(3)
        assert cluster.agreed(("a", "b", "c")), [cluster.processes[n].output() for n in ("a", "b", "c")]
        assert not ever_down(cluster)
        cluster.heal()
        wait_until(lambda: not unreachable(cluster), SECONDS, "all reach all")


def unreachable(cluster: LocalCluster) -> set[tuple[str, str]]:
    return {
        (member.identity.name, name)
        for name in cluster.names
        if (status := cluster.status(name)) is not None
        for member in status.members
        if member.unreachable
    }


@needs_hosts
def test_row_10_loss_of_a_twentieth_makes_nobody_down(folder: Path) -> None:
    with HostCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.lose(0.05)
        time.sleep(20)
        assert not ever_down(cluster)
        cluster.heal()
        cluster.wait_for()


@needs_hosts
def test_row_18_links_stopped_one_by_one_and_restored_end_in_one_view(folder: Path, figure: Figure) -> None:
    with HostCluster(folder, ("a", "b", "c", "d")) as cluster:
        cluster.start()
        cluster.wait_for()
        pairs = [("a", "b"), ("c", "d"), ("a", "c"), ("b", "d"), ("a", "d"), ("b", "c")]
        for one, other in pairs:
            cluster.drop(one, other)
            cluster.drop(other, one)
            time.sleep(1)
        for one, other in reversed(pairs):
            cluster.drop(one, other, add=False)
            cluster.drop(other, one, add=False)
        seconds = cluster.wait_for()
        figure("one view after the last", f"{seconds:.2f} s")
        assert seconds < 3
