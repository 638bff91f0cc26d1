"""A cluster that is split in two under load, and becomes one again. Figures are printed (-s)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploys.fill import fill
from tests.deploys.load import PACED, Workers, check_nothing_lost, until_copied, until_served
from tests.deploys.probe import Probe, check_as_fast
from tests.deploys.rolling import SECONDS, wait_until_synced
from tests.deploys.worker import LIMIT
from tests.faults.hosts import HostCluster, needs_hosts

pytestmark = [pytest.mark.deploy, needs_hosts]

GREATER, LESSER = ("a", "b", "c"), ("d", "e")
BOTH = GREATER + LESSER
FILLED = 20_000  # entries and limits from before the partition
ENOUGH = 40_000  # requests, those of a probe included: more hits than all limits allow

Figure = Callable[[str, object], None]


def test_partition_loses_nothing_of_its_greater_side(folder: Path, figure: Figure) -> None:
    with HostCluster(folder, BOTH) as cluster:
        cluster.start()
        wait_until_synced(cluster)
        for task in ("write_entries", "use_limits"):
            assert not fill(cluster, BOTH, task, FILLED)
        until_copied(cluster, BOTH)
        with Probe(cluster, "a", "b") as probe:  # keys that the greater side has in any case
            # Keys that the greater side owns all the time.
            with Workers(cluster, GREATER, env=PACED | {"NODES": " ".join(BOTH), "OWNERS": " ".join(GREATER)}) as owned:
                until_served(cluster, GREATER, ENOUGH)
                before = probe.take()
                cluster.split(GREATER, LESSER)
                for side in (GREATER, LESSER):
                    cluster.wait_for(*side, seconds=SECONDS)
                until_served(cluster, GREATER, ENOUGH)
                cut = owned.stop()
                owned.verify(cut)
            with Workers(cluster, GREATER, env=PACED) as greater:
                with Workers(cluster, LESSER, env=PACED) as lesser:
                    until_served(cluster, LESSER, ENOUGH)
                    cut_off = lesser.stop()
                    lesser.verify(cut_off)
                probe.take()
                until_served(cluster, GREATER, ENOUGH)
                split = probe.take()
                cluster.heal()
                wait_until_synced(cluster)
                healing = probe.take()
                until_served(cluster, BOTH, ENOUGH)
                found = greater.stop()
                greater.verify(found)
        lost = [fill(cluster, BOTH, task, FILLED) for task in ("lost_entries", "lost_limits")]
    figure("keys of the greater side while the network is cut", cut)
    figure("the greater side, also after the heal", found)
    figure("the lesser side, until the heal", cut_off)
    figure("entries and limits from before that are lost", lost)
    figure("before", before)
    figure("while it was split", split)
    figure("from the heal until all were synced", healing)
    for each in (cut, found, cut_off):
        check_nothing_lost(each)
    both = found.admitted + cut_off.admitted
    assert not {key: count for key, count in both.items() if count > 2 * LIMIT}
    assert lost == [0, 0]
    assert not split.failed + healing.failed
    check_as_fast(split, before)
    check_as_fast(healing, before)
