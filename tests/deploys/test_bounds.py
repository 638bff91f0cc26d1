"""Backups that are full or stopped: memory is bounded, and requests are as fast. Figures are printed (-s)."""

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from django_clusterstate.wire.messages import StatusReply
from testproject.processes import LocalCluster
from tests.deploys.fill import fill
from tests.deploys.load import SiteProcess, statuses, until_copied
from tests.deploys.probe import Latencies, Probe, check_as_fast
from tests.deploys.rolling import nodes, wait_until_synced

pytestmark = pytest.mark.deploy

STOPPED = 30.0  # seconds
STOPS = 2
SAMPLE = 1000  # entries
LARGE = {"FILL_SIZE": "1000"}
SMALL_CACHE = 64 << 20  # bytes

Figure = Callable[[str, object], None]


def check_bounds(found: Iterable[StatusReply]) -> None:
    for status in found:
        assert status.stats.cache_bytes <= 1.05 * status.stats.cache_max_bytes
        assert status.stats.limit_bytes <= 1.05 * status.stats.limit_max_bytes


def test_full_caches_lose_copies_and_no_entry_of_their_own(folder: Path, figure: Figure) -> None:
    """All entries fit once, and not twice."""
    with LocalCluster(folder, nodes(3), env={"CLUSTERSTATE_CACHE_MAX_BYTES": str(SMALL_CACHE)}) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        assert not fill(cluster, cluster.names, "write_entries", SAMPLE, **LARGE)
        until_copied(cluster, cluster.names)
        assert held(cluster) == 2 * SAMPLE
        each = sum(status.stats.cache_bytes for status in statuses(cluster, cluster.names)) / (2 * SAMPLE)
        count = int(0.8 * 3 * SMALL_CACHE / each)
        memory = []
        for _ in range(4):
            assert not fill(cluster, cluster.names, "write_entries", count, **LARGE)
            until_copied(cluster, cluster.names)
            memory.append(max(status.memory for status in statuses(cluster, cluster.names)))
        lost = fill(cluster, cluster.names, "lost_entries", count, **LARGE)
        found = statuses(cluster, cluster.names)
        figure(f"of {count:,} entries lost", lost)
        figure("copies held", f"{held(cluster) - count:,}")
        figure("MiB held", [round(status.stats.cache_bytes / 2**20, 1) for status in found])
        figure("resident MiB after each time that all were written", [round(size / 2**20, 1) for size in memory])
        assert lost == 0
        assert held(cluster) < 2 * count
        assert not any(status.stats.cache_evictions for status in found)
        check_bounds(found)
        assert max(memory) <= 1.05 * memory[0]


def held(cluster: LocalCluster) -> int:
    return sum(status.stats.cache_entries for status in statuses(cluster, cluster.names))


def test_stopped_backup_costs_its_owners_no_time_and_no_memory(folder: Path, figure: Figure) -> None:
    """All caches are full, and entries are written all the time."""
    env = {"CLUSTERSTATE_DOWN_AFTER": "600", "CLUSTERSTATE_CACHE_MAX_BYTES": str(256 << 20)}
    count = 400_000  # more than all caches hold with their copies
    running, stopped = Latencies(), Latencies()
    memory: dict[str, list[int]] = {"running": [], "stopped": []}
    with LocalCluster(folder, nodes(3), env=env) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        owners, backup = ("n0", "n1"), cluster.processes["n2"]
        assert not fill(cluster, cluster.names, "write_entries", count, **LARGE)
        written = LARGE | {"FILL_OWNERS": "n0 n1"}
        writer = SiteProcess(cluster, "n0", "fill", "rewrite_entries", "0", str(count), env=written)
        with closing(writer), Probe(cluster, "n0", "n2") as probe:
            for _ in range(STOPS):
                time.sleep(STOPPED)
                running.add(probe.take())
                memory["running"] += [status.memory for status in statuses(cluster, owners)]
                backup.signal(signal.SIGSTOP)
                time.sleep(STOPPED)
                stopped.add(probe.take())
                found = statuses(cluster, owners)
                memory["stopped"] += [status.memory for status in found]
                check_bounds(found)
                assert all(status.copies.behind for status in found)
                backup.signal(signal.SIGCONT)
                wait_until_synced(cluster)
                probe.take()
        figure("changes dropped for the stopped backup, times", [status.copies.behind for status in found])
    figure("with the backup running", running)
    figure("with the backup stopped", stopped)
    figure("resident MiB of the owners", {name: [size >> 20 for size in sizes] for name, sizes in memory.items()})
    check_as_fast(stopped, running)
    assert not running.failed + stopped.failed
    assert max(memory["stopped"]) <= 1.05 * max(memory["running"])
