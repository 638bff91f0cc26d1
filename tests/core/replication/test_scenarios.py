"""A part of what `make simulate` runs over thousands of seeds, and the histories that broke simpler rules."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from django_clusterstate.core.replication import outbox
from django_clusterstate.core.replication.replication import Replication
from tests.core.replication import simpler
from tests.core.replication.scenarios import SCENARIOS, begin, call, holders, judge
from tests.core.replication.simulation import LIMIT, DataSimulation, Request, few_slots


@pytest.mark.parametrize("seed", [1000])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_copies_keep_every_invariant(scenario: str, seed: int) -> None:
    assert judge(scenario, seed).broken == ""


@pytest.mark.parametrize("scenario", ["many at once", "partition"])
def test_same_seed_gives_the_same_trace(scenario: str) -> None:
    assert judge(scenario, 7).figures == judge(scenario, 7).figures != judge(scenario, 8).figures


@pytest.mark.parametrize(
    ("rule", "scenario"),
    [
        ({"make": simpler.AddsOnly}, "behind"),  # history 5
        ({"make": simpler.ServesUnfilled}, "rolling restart"),  # history 12
        ({"make": simpler.ForgetsCopies}, "rolling restart"),  # history 18
        ({"make": simpler.LeavesAtOnce}, "many at once"),  # history 14
        ({"make": simpler.SendsLate}, "crash"),
        ({"make": simpler.JoinersExecute}, "crash and back"),
        ({"make": simpler.TrustsEveryChange}, "three sides"),
        ({"simulation": simpler.NoForward}, "rolling restart"),  # histories 6, 7 and 8: locks, counters and limits
        ({"simulation": simpler.NoForward}, "cut off requesters"),  # history 9
        ({"simulation": simpler.NoForward}, "crash and back"),  # history 13
        ({"simulation": simpler.BothSidesGiveWay}, "partition"),  # history 3
        ({"simulation": simpler.TakesAllForWinners}, "short partition"),
        ({"simulation": simpler.OwnsWhileItEmpties}, "partition"),  # history 4
    ],
)
def test_simpler_rules_are_broken(rule: dict[str, Any], scenario: str) -> None:
    # Begins with seeds that break nearly all of them.
    assert any(judge(scenario, seed, **rule).broken for seed in chain((5, 18), range(6, 60), range(5)))


@pytest.mark.parametrize(("rule", "drops"), [(Replication, True), (simpler.DropsOnce, False)])
def test_what_is_not_held_is_dropped_again_in_a_view_that_comes_back(rule: type[Replication], drops: bool) -> None:
    with few_slots():
        sim = DataSimulation(3, make=rule)
        names = begin(sim, 4)
        for number in range(100):
            call(sim, "n2", "set", b"own:%d" % number, b"value")
        sim.run(1)
        before = entries(sim)
        sim.bus.split(["n3"], names[:3])
        sim.run(10)
        assert entries(sim) != before
        sim.heal()
        sim.run(10)
        sim.settle()
        sim.run(1)
        assert (entries(sim) == before) is drops


def entries(sim: DataSimulation) -> dict[str, int]:
    """How many each node has, whether it serves them or not."""
    return {node.name: sum(len(store.cells) for store in sim.data[node.boot].stores) for node in sim.running}


# -- histories of single keys -----------------------------------------------------------------------------------


@pytest.fixture
def sim() -> Iterator[DataSimulation]:
    """Three nodes that are synced."""
    with few_slots():
        simulation = DataSimulation(3)
        begin(simulation, 3)
        yield simulation


def key_of(sim: DataSimulation, kind: str) -> bytes:
    """A key whose owner is n0 and whose backup is n1."""
    keys = (f"{kind}:{number}".encode() for number in range(1000))
    return next(key for key in keys if holders(sim, key) == ("n0", "n1"))


def kill_owner(sim: DataSimulation) -> None:
    sim.run(0.1)
    sim.crash("n0")
    sim.run(4)


def test_a_reset_outlives_its_owner(sim: DataSimulation) -> None:
    # history 11
    key = key_of(sim, "limit")
    assert [call(sim, "n2", "hit", key) for _ in range(LIMIT + 1)] == [True] * LIMIT + [False]
    sim.run(0.1)
    call(sim, "n2", "reset", key)
    kill_owner(sim)
    assert call(sim, "n2", "hit", key)


def test_a_count_outlives_its_owner(sim: DataSimulation) -> None:
    with few_slots():
        key = key_of(sim, "limit")
        for _ in range(LIMIT):
            assert call(sim, "n2", "hit", key)
        kill_owner(sim)
        assert not call(sim, "n2", "hit", key)


def test_a_touch_outlives_its_owner(sim: DataSimulation) -> None:
    # history 15
    key = key_of(sim, "own")
    call(sim, "n2", "set", key, b"value")
    call(sim, "n2", "touch", key, 2.0)
    sim.run(0.1)
    call(sim, "n2", "touch", key, 100.0)
    kill_owner(sim)
    assert call(sim, "n2", "get", key) == b"value"


def test_a_value_that_was_evicted_before_it_was_sent_leaves_no_older_one(sim: DataSimulation) -> None:
    # history 16
    key = key_of(sim, "own")
    call(sim, "n2", "set", key, b"older")
    sim.run(0.1)
    call(sim, "n2", "set", key, b"newer")
    owner = sim.data[sim.nodes["n0"].boot]
    owner.stores[0].drop(key)
    owner.replication.changed(0, key)
    kill_owner(sim)
    assert call(sim, "n2", "get", key) is None


def test_a_leaver_whose_heir_is_killed_hands_over_to_the_next(sim: DataSimulation) -> None:
    with few_slots():
        key = key_of(sim, "own")
        call(sim, "n2", "set", key, b"value")
        sim.run(0.1)
        sim.leave("n0")
        while sim.data[sim.nodes["n0"].boot].replication.placement.owned:
            sim.run(0.001)
        sim.crash("n1")
        sim.run(8)
        assert call(sim, "n2", "get", key) == b"value"


def test_a_clear_reaches_a_node_that_joins(sim: DataSimulation) -> None:
    with few_slots():
        keys = [b"own:%d" % number for number in range(40)]
        for key in keys:
            call(sim, "n2", "set", key, b"value")
        data = sim.data[sim.nodes["n2"].boot]
        version = data.replication.clear(b"own", 0, data.now)
        sim.run(0.1)
        sim.start("n3")
        sim.run(4)
        assert {call(sim, "n3", "get", key) for key in keys} == {None}
        assert sim.data[sim.nodes["n3"].boot].replication.clock.last() > version


def test_memory_for_a_backup_that_is_stopped_is_bounded(sim: DataSimulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_PENDING", 100)
    sim.pause("n1", 2.0)
    data, most = sim.data[sim.nodes["n0"].boot], 0
    box = data.replication.outboxes.by_boot[sim.nodes["n1"].boot]
    for key in [key for key in (b"own:%d" % number for number in range(3000)) if holders(sim, key) == ("n0", "n1")]:
        data.execute(Request("set", key, b"x"), data.now)
        sim.run(0.002)
        most = max(most, box.lag)
    assert box.behind
    assert most <= outbox.MAX_PENDING + outbox.WINDOW * outbox.SLICE
    sim.run(4)
    assert box.is_filled
    assert not box.lag
    sim.check_copies()
