"""Deploys under load: each node of a cluster is replaced, and nothing is lost. Figures are printed (-s).

DEPLOYS says how often each node is replaced; `make deploys` is the whole proof.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from testproject.processes import LocalCluster, free_port
from tests.deploys.load import SECONDS, Found, Workers, wait_until_synced

pytestmark = pytest.mark.deploy

ROUNDS = int(os.environ.get("DEPLOYS", "1"))

Figure = Callable[[str, object], None]


def nodes(count: int) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(count))


def restart(cluster: LocalCluster, name: str) -> None:
    """Ends a node in an orderly way, and starts it again under its name."""
    cluster.processes[name].signal(signal.SIGTERM)
    assert cluster.processes[name].wait(SECONDS) == 0
    cluster.start(name)
    wait_until_synced(cluster, cluster.names)


def replace(cluster: LocalCluster, name: str, by: str) -> None:
    """Starts a node under a new name, and ends an old one once the new one is synced."""
    cluster.names.append(by)
    cluster.ports[by] = free_port()
    cluster.discovery = ",".join(f"127.0.0.1:{cluster.ports[known]}" for known in cluster.names[-3:])
    cluster.start(by)
    wait_until_synced(cluster, cluster.names)
    cluster.names.remove(name)
    cluster.processes[name].signal(signal.SIGTERM)
    assert cluster.processes[name].wait(SECONDS) == 0
    wait_until_synced(cluster, cluster.names)


def check_nothing_lost(found: Found) -> None:
    assert not found.errors
    assert not found.stale
    assert not found.held_twice
    assert not found.miscounted
    assert not found.above_limit
    assert found.fallback_share <= 1e-4
    assert found.readable >= 0.999


@pytest.mark.parametrize("count", [3, 6])
def test_rolling_restart_under_load_loses_nothing(folder: Path, figure: Figure, count: int) -> None:
    with LocalCluster(folder, nodes(count)) as cluster:
        cluster.start()
        wait_until_synced(cluster, cluster.names)
        with Workers(cluster, cluster.names[:3]) as workers:
            for _ in range(ROUNDS):
                for name in cluster.names:
                    restart(cluster, name)
            found = workers.stop()
            workers.verify(found)
    figure(f"{count} nodes restarted {ROUNDS} times each", found)
    check_nothing_lost(found)


@pytest.mark.parametrize("count", [3, 6])
def test_rolling_replacement_under_load_loses_nothing(folder: Path, figure: Figure, count: int) -> None:
    with LocalCluster(folder, nodes(count)) as cluster:
        cluster.start()
        wait_until_synced(cluster, cluster.names)
        with Workers(cluster, cluster.names[:3]) as workers:
            for number in range(ROUNDS):
                for name in list(cluster.names):
                    replace(cluster, name, f"r{number}-{name}"[:20])
            found = workers.stop()
            workers.verify(found)
    figure(f"{count} nodes replaced {ROUNDS} times each", found)
    check_nothing_lost(found)
