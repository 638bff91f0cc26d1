"""Nodes that are killed or stopped under load: next to nothing is lost. Figures are printed (-s).

RUNS says how often a node is killed; `make deploys` is the whole proof.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from django_clusterstate.core.limits.algorithms import Algorithm
from django_clusterstate.core.membership.heartbeat import MemberState
from testproject.processes import LocalCluster, wait_until
from tests.deploys.fill import fill
from tests.deploys.load import PACED, Found, Workers, check_nothing_lost, until_served
from tests.deploys.probe import Probe, check_as_fast
from tests.deploys.rolling import SECONDS, add, nodes, others, wait_until_synced

pytestmark = pytest.mark.deploy

RUNS = int(os.environ.get("RUNS", "1"))
RECENT = 0.05  # seconds before a kill: what was written then may be lost
BEFORE, AFTER = 12_000, 40_000  # requests: more hits than all limits allow, and about a third as many before the kill
WRITTEN = 300  # entries of which some are the killed node's, or the share says nothing
FILLED = 200_000  # entries: to send them to a node that joins takes seconds
STOPPED = 30.0  # seconds
# A lock of which the release was lost keeps others waiting; here, what they do is of no interest.
LOCKS = {"LOCK_SECONDS": "1"}

Figure = Callable[[str, object], None]


def kill(cluster: LocalCluster, name: str) -> tuple[float, float]:
    """When the last changes began that may be lost, and when the node was gone."""
    killed = time.monotonic()
    cluster.kill(name)
    return killed - RECENT, time.monotonic()


def check(found: Found, since: float, gone: float) -> None:
    assert found.readable(before=since) >= 0.999
    assert found.entries(before=since) >= WRITTEN
    assert len(found.used_up) == len(Algorithm)  # otherwise there was nothing to exceed
    assert not found.admitted_above(since, gone)


@pytest.mark.parametrize("run", range(RUNS))
def test_killed_node_loses_only_what_was_written_just_before(folder: Path, figure: Figure, run: int) -> None:
    victim = f"n{run % 3}"
    with LocalCluster(folder, nodes(3)) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        staying = others(cluster, victim)
        with Workers(cluster, cluster.names, env=LOCKS) as workers:
            until_served(cluster, cluster.names, BEFORE)
            since, gone = kill(cluster, victim)
            until_served(cluster, staying, AFTER)
            found = workers.stop()
            wait_until_synced(cluster, *staying)
            workers.verify(found)
    figure(f"{victim} of 3 nodes killed", found)
    figure("of the entries written more than 50 ms before, read", f"{found.readable(before=since):.3%}")
    check(found, since, gone)


def is_being_filled(cluster: LocalCluster, name: str) -> bool:
    status = cluster.status(name)
    return (
        status is not None
        and status.state is MemberState.JOINING
        and status.stats.cache_entries > 0
        and status.copies.missing > 0
    )


@pytest.mark.parametrize("victim", ["n1", "n3"], ids=["an owner", "the joining node"])
def test_node_killed_while_another_is_filled_loses_only_what_was_written_just_before(
    folder: Path, figure: Figure, victim: str
) -> None:
    with LocalCluster(folder, nodes(3)) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        assert not fill(cluster, cluster.names, "write_entries", FILLED)
        with Workers(cluster, cluster.names, env=LOCKS | PACED) as workers, Probe(cluster, "n0") as probe:
            until_served(cluster, cluster.names, BEFORE)
            before = probe.take()
            add(cluster, "n3")
            wait_until(lambda: is_being_filled(cluster, "n3"), SECONDS, "n3 is being filled")
            starting = probe.take()  # a Python that starts takes processors from everybody
            since, gone = kill(cluster, victim)
            staying = others(cluster, victim)
            wait_until_synced(cluster, *staying)
            during = probe.take()
            until_served(cluster, staying, AFTER)
            found = workers.stop()
            workers.verify(found)
        lost = fill(cluster, staying, "lost_entries", FILLED)
    figure(f"{victim} killed while n3 was filled", found)
    figure("of the entries written more than 50 ms before, read", f"{found.readable(before=since):.3%}")
    figure(f"lost of {FILLED:,} older ones", lost)
    figure("before", before)
    figure("while the process of n3 starts", starting)
    figure("from the kill until all were synced", during)
    check(found, since, gone)
    if victim == "n3":  # nobody needs it yet
        check_nothing_lost(found)
    assert lost <= FILLED // 1000
    check_as_fast(during, before)


def test_stopped_backup_costs_the_keys_of_other_owners_nothing(folder: Path, figure: Figure) -> None:
    """It is declared down, others take its place, and then it comes back."""
    with LocalCluster(folder, nodes(3)) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        staying, backup = others(cluster, "n2"), cluster.processes["n2"]
        keys = {"NODES": " ".join(cluster.names), "OWNERS": " ".join(staying)}
        with Workers(cluster, staying, env=keys) as workers:
            until_served(cluster, staying, BEFORE)
            backup.signal(signal.SIGSTOP)
            time.sleep(STOPPED)
            wait_until_synced(cluster, *staying)
            backup.signal(signal.SIGCONT)
            wait_until_synced(cluster)
            until_served(cluster, staying, BEFORE)
            found = workers.stop()
            workers.verify(found)
    figure(f"n2 of 3 nodes stopped for {STOPPED:g} s", found)
    check_nothing_lost(found)
