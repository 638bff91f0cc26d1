"""A node that may open no more files, or whose channel layer is gone. Figures are printed (-s)."""

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_clusterstate.core.membership.heartbeat import MemberState
from testproject.processes import LocalCluster, wait_until
from tests.faults.observing import SECONDS, lines, moves, status_of
from tests.faults.requesters import Requesters, hits, open_files
from tests.layers import LAYERS, Layer

pytestmark = pytest.mark.fault

Figure = Callable[[str, object], None]
NAMES = ("a", "b", "c")
SPARE = 20  # files that the node may open in addition to those that it has


@contextlib.contextmanager
def dialed(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections of someone who says nothing."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                sockets.append(socket.create_connection(("127.0.0.1", port), 1.0))
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def test_a_node_without_free_file_descriptors_lives_and_stays_a_member(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    with LocalCluster(folder, NAMES, env=layer.env) as cluster:
        cluster.start()
        cluster.wait_for()
        node = cluster.processes["c"]
        with Requesters(cluster, NAMES, hits()) as requesters:
            limit = open_files(node.pid) + SPARE
            resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (limit, limit))
            start = time.monotonic()
            spent = node.processor_seconds
            most = 0
            while time.monotonic() < start + 12:  # again and again, since strangers are closed after a while
                with dialed(cluster.ports["c"], 3 * SPARE):
                    for _ in range(20):
                        most = max(most, open_files(node.pid))
                        time.sleep(0.1)
            spent = node.processor_seconds - spent
            requesters.go_on()
        figure("file descriptors", f"{most} open of {limit} allowed")
        figure("processor time of the node", f"{spent:.2f} s in 14 s")
        figure("requesters", requesters)
        assert most >= limit - 1
        assert node.running
        assert not moves(cluster, MemberState.DOWN)
        figure("suspect, times", len(moves(cluster, MemberState.SUSPECT)))
        figure("lines in its log", len(node.output().splitlines()))
        assert "Traceback" not in node.output()
        wait_until(lambda: cluster.agreed(NAMES), SECONDS, "one view")
        assert not requesters.errors
        assert not any(tally.alone for tally in requesters.tallies)
        assert status_of(cluster, "c").state is MemberState.ALIVE


@pytest.mark.parametrize("layer", LAYERS[1:], indirect=True, ids=lambda path: path.rpartition(".")[2])
def test_a_restarted_redis_costs_no_node_its_life_and_one_line_each_way(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    assert layer.redis is not None
    with LocalCluster(folder, NAMES, env=layer.env) as cluster:
        cluster.start()
        cluster.wait_for()
        layer.redis.process.kill()
        wait_until(lambda: all(lines(cluster, name, "layer failed") for name in NAMES), SECONDS, "all say so")
        time.sleep(6)
        assert all(cluster.processes[name].running for name in NAMES)
        layer.redis.start()
        before = max(heard(cluster, name) for name in NAMES)
        seconds = wait_until(lambda: all(heard(cluster, name) > before + 1 for name in NAMES), SECONDS, "heard")
        figure("all hear each other after Redis is back", f"{seconds:.2f} s")
        wait_until(lambda: all(lines(cluster, name, "recovered") for name in NAMES), SECONDS, "all say so")
        assert all(len(lines(cluster, name, "channel layer ")) == 2 for name in NAMES)
        assert cluster.agreed(NAMES)
        assert not moves(cluster, MemberState.DOWN)
        assert seconds < 3


def heard(cluster: LocalCluster, name: str) -> int:
    return status_of(cluster, name).stats.heartbeats_heard
