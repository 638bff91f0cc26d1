"""A node that holds a million limits and a million entries is replaced. Figures are printed (-s).

ENTRIES says how many there are of each; `make deploys` is the whole proof.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from testproject.processes import LocalCluster, wait_until
from tests.deploys.fill import fill
from tests.deploys.probe import Probe, at
from tests.deploys.rolling import SECONDS, add, leave

pytestmark = pytest.mark.deploy

ENTRIES = int(os.environ.get("ENTRIES", "100000"))
AT_MOST = 600.0  # seconds for any step
EVERY = 0.5  # seconds between two looks at the nodes, which have other things to do
REST = 5.0  # seconds of gets and hits with nothing else to do
ROOM = {
    "CLUSTERSTATE_LIMITS_MAX_BYTES": str(4 << 30),
    "CLUSTERSTATE_CACHE_MAX_BYTES": str(4 << 30),
    "CLUSTERSTATE_DRAIN": "100",  # so that the node that is replaced hands all over
}

Figure = Callable[[str, object], None]


def holds_all(cluster: LocalCluster, name: str) -> bool:
    status = cluster.status(name)
    return status is not None and min(status.stats.cache_entries, status.stats.limit_entries) >= ENTRIES


def test_node_with_a_million_limits_and_entries_is_replaced_in_a_minute(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ("a", "b"), env=ROOM) as cluster:
        cluster.start()
        cluster.wait_until_synced(seconds=SECONDS)
        start = time.monotonic()
        for task in ("write_entries", "use_limits"):
            assert not fill(cluster, ["a", "b"], task, ENTRIES)
        # With two nodes, each has all.
        wait_until(lambda: holds_all(cluster, "a") and holds_all(cluster, "b"), AT_MOST, "both hold all", EVERY)
        cluster.wait_until_synced(seconds=AT_MOST, every=EVERY)
        figure(f"{ENTRIES:,} entries and limits written in", f"{time.monotonic() - start:.0f} s")
        with Probe(cluster, "a") as probe:
            time.sleep(REST)
            figure("at rest", probe.take())
            start = time.monotonic()
            add(cluster, "c")
            cluster.wait_until_synced(seconds=AT_MOST, every=EVERY)
            joined = time.monotonic() - start
            joining = probe.take()
            figure("while it is filled", joining)
            cluster.names.remove("b")
            leave(cluster, "b")
            cluster.wait_until_synced(seconds=AT_MOST, every=EVERY)
            replaced = time.monotonic() - start
            leaving = probe.take()
            figure("while the other one leaves", leaving)
        memory = [status.memory >> 20 for name in ("a", "c") if (status := cluster.status(name)) is not None]
        lost = [fill(cluster, ["a", "c"], task, ENTRIES) for task in ("lost_entries", "lost_limits")]
    figure("the joiner was synced after", f"{joined:.1f} s, and the other one gone after {replaced:.1f} s")
    figure("resident MiB of each node", memory)
    figure("entries and limits lost", lost)
    assert joined <= 60
    assert replaced - joined <= 60
    for latencies in (joining, leaving):
        assert at(0.999, latencies.hits) <= 0.010
        assert latencies.failed <= 1e-4 * len(latencies.hits + latencies.gets)
    assert lost == [0, 0]
