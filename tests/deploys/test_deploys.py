"""Deploys under load: each node of a cluster is replaced, and nothing is lost. Figures are printed (-s).

DEPLOYS says how often each node is replaced; `make deploys` is the whole proof.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from testproject.processes import LocalCluster
from tests.deploys.load import PACED, Workers, check_nothing_lost, statuses, until_served
from tests.deploys.probe import Latencies, Probe, check_as_fast
from tests.deploys.rolling import leave, nodes, replace, restart, wait_until_synced

pytestmark = pytest.mark.deploy

ROUNDS = int(os.environ.get("DEPLOYS", "1"))
SERVED = 1000  # requests
ENOUGH = 40_000  # requests, those of a probe included: more hits than all limits allow

Figure = Callable[[str, object], None]


@pytest.mark.parametrize("count", [3, 6])
def test_rolling_restart_under_load_loses_nothing(folder: Path, figure: Figure, count: int) -> None:
    with LocalCluster(folder, nodes(count)) as cluster:
        cluster.start()
        wait_until_synced(cluster)
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
        wait_until_synced(cluster)
        with Workers(cluster, cluster.names[:3]) as workers:
            for number in range(ROUNDS):
                for name in list(cluster.names):
                    replace(cluster, name, f"r{number}-{name.rpartition('-')[2]}")
            found = workers.stop()
            workers.verify(found)
    figure(f"{count} nodes replaced {ROUNDS} times each", found)
    check_nothing_lost(found)


@pytest.mark.parametrize("count", [3, 5], ids=["one stays", "three stay"])
def test_two_leaves_at_once_and_two_joins_at_once_under_load_lose_nothing(
    folder: Path, figure: Figure, count: int
) -> None:
    during, starting = Latencies(), Latencies()
    with LocalCluster(folder, nodes(count)) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        staying, leaving = cluster.names[:-2], cluster.names[-2:]
        with Workers(cluster, staying, env=PACED) as workers, Probe(cluster, staying[0]) as probe:
            probe.take()
            until_served(cluster, cluster.names, ENOUGH)
            before = probe.take()
            for _ in range(ROUNDS):
                until_served(cluster, staying, SERVED)
                leave(cluster, *leaving)
                wait_until_synced(cluster, *staying)
                until_served(cluster, staying, SERVED)
                during.add(probe.take())
                cluster.start(*leaving)
                statuses(cluster, leaving)
                starting.add(probe.take())  # a Python that starts takes processors from everybody
                wait_until_synced(cluster)
            during.add(probe.take())
            found = workers.stop()
            workers.verify(found)
    figure("before", before)
    figure("meanwhile", during)
    figure("while the nodes' processes start", starting)
    figure(f"two of {count} nodes left and came back {ROUNDS} times", found)
    check_nothing_lost(found)
    check_as_fast(during, before)
    assert not during.failed + starting.failed
