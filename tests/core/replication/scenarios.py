"""Scenarios of nodes that come and go while requesters write, each with what has to hold in the end.

`python -m tests.core.replication.scenarios --seeds 1000`: exit code 1 if any is broken; `--seed 17`: one run of each.
"""

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock

from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.core.rendezvous_hashing import Rendezvous, slot_of
from django_clusterstate.core.replication import outbox
from django_clusterstate.core.replication.replication import Replication
from tests.core.membership.simulation import Bus, Violation
from tests.core.replication.simulation import DataSimulation, Request, few_slots
from tests.core.replication.stored import StoredSimulation
from tests.core.replication.workload import Workload

WAN = (0.02, 0.06)  # seconds one way
LAN = (0.0002, 0.001)
LOSS = 0.03  # of heartbeats; copies travel over connections
LIMIT_SECONDS = 14.0  # for a node to leave, or to serve


@dataclass
class Verdict:
    """What one run brought. `lost`: what `Workload.check` counts; `figures`: seconds, requests and messages."""

    scenario: str
    seed: int
    broken: str = ""
    lost: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def begin(sim: DataSimulation, size: int) -> list[str]:
    """So many nodes that are synced."""
    names = [f"n{number}" for number in range(size)]
    sim.start(*names)
    sim.run(3)
    sim.settle()
    return names


def wait_for(sim: DataSimulation, condition: Callable[[], bool], seconds: float, what: str) -> None:
    start = sim.now
    while not condition():
        sim._hold(sim.now - start < seconds, f"{what}: not within {seconds:g} s: {sim.unsynced()}")
        sim.run(0.02)


def stop(sim: DataSimulation, name: str) -> None:
    sim.leave(name)
    until_gone(sim, [name])


def until_gone(sim: DataSimulation, names: Sequence[str]) -> None:
    wait_for(sim, lambda: not any(sim.nodes[name].running for name in names), LIMIT_SECONDS, f"{names} have left")


def join(sim: DataSimulation, name: str) -> None:
    sim.start(name)
    until_serving(sim, [name])


def until_serving(sim: DataSimulation, names: Sequence[str]) -> None:
    def serve() -> bool:
        return all(sim.nodes[name].membership.state is MemberState.ALIVE for name in names)

    wait_for(sim, serve, LIMIT_SECONDS, f"{names} serve")


def begin_load(
    sim: DataSimulation, sizes: Sequence[int], *, exact: bool = True, but: int = 0
) -> tuple[list[str], Workload]:
    """Nodes that are synced, as many as one of `sizes`, and requesters on their hosts, but on the first few."""
    names = begin(sim, sim.random.choice(sizes))
    load = Workload(sim, names[but:], exact=exact)
    load.start()
    return names, load


def call(sim: DataSimulation, host: str, name: str, key: bytes, value: Any = None) -> Any:
    """The reply to a request of a process on a host."""
    found: list[Any] = []
    sim.request(host, Request(name, key, value), found.append)
    while not found:
        sim.run(0.0005)
    return found[0]


def holders(sim: DataSimulation, key: bytes) -> tuple[str | None, str | None]:
    return Rendezvous(dict.fromkeys(sim.nodes, 1.0)).holders(slot_of(key))


def end(sim: DataSimulation, load: Workload) -> dict[str, int]:
    load.stop()
    sim.run(1.5)
    sim.settle()
    lost = load.check()
    sim.check_copies()
    return lost


def end_unharmed(sim: DataSimulation, load: Workload) -> dict[str, int]:
    """What nobody wrote meanwhile is there, whatever was cut off."""
    lost = end(sim, load)
    sim._hold(not lost["static"], f"lost {lost}")
    return lost


def exact(sim: DataSimulation, load: Workload) -> dict[str, int]:
    """Nothing is lost, doubled or brought back, and no request fails."""
    lost = end(sim, load)
    sim._hold(not any(lost.values()), f"lost {lost}: {load.missing}")
    sim._hold(load.unavailable * 10_000 <= load.requests, f"{load.unavailable} of {load.requests} failed")
    return lost


def rolling_restart(sim: DataSimulation) -> dict[str, int]:
    """Each node in turn is stopped, and started again under its name or another; the next one when it is synced."""
    names, load = begin_load(sim, [2, 3, 6])
    rename = sim.random.random() < 0.5
    for name in names:
        stop(sim, name)
        sim.run(sim.random.uniform(0, 0.5))
        join(sim, name + "x" if rename else name)
        sim.settle()
    return exact(sim, load)


def rolling_restart_without_backups(sim: DataSimulation) -> dict[str, int]:
    """Nodes that leave and join hand over all the same."""
    sim.backups = 0
    return rolling_restart(sim)


def rolling_replacement(sim: DataSimulation) -> dict[str, int]:
    """A node with a new name is added and synced before an old one is stopped, for each."""
    names, load = begin_load(sim, [1, 2, 3, 6])
    for name in names:
        join(sim, name + "x")
        sim.settle()
        stop(sim, name)
        sim.settle()
    return exact(sim, load)


def many_at_once(sim: DataSimulation) -> dict[str, int]:
    """Several nodes join and leave at the same time, and as soon as the ones before serve."""
    names = begin(sim, sim.random.randint(3, 5))
    load = Workload(sim, list(names))
    load.start()
    for round_ in range(3):
        serving = [node.name for node in sim.running]
        new = [f"r{round_}-{number}" for number in range(sim.random.randint(1, 3))]
        sim.start(*new)
        if sim.random.random() < 0.5:
            sim.run(sim.random.uniform(0, 2))
        leaving = sim.random.sample(serving, min(sim.random.randint(1, 2), len(serving) - 1))
        for name in leaving:
            sim.leave(name)
            sim.run(sim.random.choice([0, 0.001, 0.01, 0.3]))
        until_gone(sim, leaving)
        until_serving(sim, new)
    return exact(sim, load)


def scale_down(sim: DataSimulation) -> dict[str, int]:
    """All but one leave, some at the same moment."""
    names, load = begin_load(sim, [3, 5])
    sim.run(1)
    while len(names) > 1:
        leaving = [names.pop() for _ in range(min(sim.random.randint(1, 2), len(names) - 1))]
        for name in leaving:
            sim.leave(name)
        until_gone(sim, leaving)
    return exact(sim, load)


def crash(sim: DataSimulation) -> dict[str, int]:
    """A node is killed: only what changed in the last moment is lost."""
    _, load = begin_load(sim, [3, 6], exact=False, but=1)
    sim.run(2)
    load.crash("n0", refused=sim.random.random() < 0.7)
    sim.run(5)
    if sim.random.random() < 0.5:
        join(sim, "n0")
    lost = end(sim, load)
    sim._hold(not lost["static"] and not lost["older"], f"lost {lost}")
    return lost


def partition(sim: DataSimulation) -> dict[str, int]:
    """The network is cut for longer than silence is borne, and healed: what nobody wrote meanwhile is all there."""
    names, load = begin_load(sim, [2, 3, 5], exact=False)
    sim.run(1)
    shuffled = sim.random.sample(names, len(names))
    cut = sim.random.randint(1, len(names) - 1)
    sim.bus.split(shuffled[:cut], shuffled[cut:])
    sim.run(sim.random.uniform(4, 9))
    sim.heal()
    sim.run(8)
    return end_unharmed(sim, load)


def short_partition(sim: DataSimulation) -> dict[str, int]:
    """The network is cut until only the larger side has declared the other down, as the smaller waits longer."""
    names, load = begin_load(sim, [5, 6], exact=False)
    sim.run(1)
    lesser = sim.random.sample(names, 2)
    sim.bus.split(lesser, [name for name in names if name not in lesser])
    sim.run(sim.random.uniform(3.2, 4.4))
    sim.heal()
    sim.run(8)
    return end_unharmed(sim, load)


def three_sides(sim: DataSimulation) -> dict[str, int]:
    """The network falls into three parts, and is healed at once or one part after the other."""
    names, load = begin_load(sim, [3, 6], exact=False)
    sim.run(1)
    sides = [names[0::3], names[1::3], names[2::3]]
    sim.bus.split(*sides)
    sim.run(sim.random.uniform(3.2, 9))
    if sim.random.random() < 0.5:
        sim.bus.cut.clear()
        last = sim.random.choice(sides)
        sim.bus.split(last, [name for name in names if name not in last])
        sim.run(sim.random.uniform(0, 6))
    sim.heal()
    sim.run(8)
    return end_unharmed(sim, load)


def flapping(sim: DataSimulation) -> dict[str, int]:
    """A node is cut off, in one direction or both, again and again: in the end what nobody wrote meanwhile is there."""
    names, load = begin_load(sim, [3, 5], exact=False)
    sim.run(1)
    node, *others = sim.random.sample(names, len(names))
    ways = [set(itertools.product(others, [node])), set(itertools.product([node], others))]
    for _ in range(4):
        sim.bus.cut = set.union(*sim.random.sample(ways, sim.random.randint(1, 2)))
        sim.run(sim.random.uniform(2, 8))
        sim.bus.cut = set()
        sim.run(sim.random.uniform(1, 8))
    load.stop()
    sim.run(80)
    return end_unharmed(sim, load)


def long_stop(sim: DataSimulation) -> dict[str, int]:
    """A node is stopped until the others have declared it down, and woken."""
    _, load = begin_load(sim, [2, 3, 5], exact=False)
    sim.run(1)
    sim.pause("n1", sim.random.uniform(1, 9))
    sim.run(12)
    return end_unharmed(sim, load)


def kill_while_filling(sim: DataSimulation) -> dict[str, int]:
    """A node is killed while another one is being filled."""
    _, load = begin_load(sim, [3, 5], exact=False, but=1)
    sim.run(1)
    sim.start("new")
    sim.run(sim.random.uniform(0, 1.5))
    sim.crash(sim.random.choice(["n0", "new"]))
    sim.run(6)
    return end_unharmed(sim, load)


def behind(sim: DataSimulation) -> dict[str, int]:
    """A backup is stopped until it is behind, and later its owner is killed: nothing deleted comes back."""
    begin(sim, 3)
    keys = [key for key in (b"own:%d" % number for number in range(300)) if holders(sim, key) == ("n0", "n1")]
    for key in keys:
        call(sim, "n2", "set", key, b"before")
    sim.run(0.1)
    with mock.patch.object(outbox, "MAX_PENDING", 3):
        sim.pause("n1", 1.0)
        for key in keys[::2]:
            sim.request("n2", Request("delete", key), lambda _: None)
        for key in keys[1::4]:
            sim.request("n2", Request("set", key, b"after"), lambda _: None)
        sim.run(1)
    boxes = [box for data in sim.data.values() for box in data.replication.outboxes.by_boot.values()]
    sim._hold(any(box.behind for box in boxes), "no backup was behind")
    sim.run(0.5)
    sim.settle()
    sim.crash("n0")
    sim.run(4)
    lost = {"resurrected": 0, "entries": 0}
    for key in keys:
        value = call(sim, "n2", "get", key)
        lost["resurrected"] += key in keys[::2] and value is not None
        lost["entries"] += value != (b"after" if key in keys[1::4] else b"before") and key not in keys[::2]
    sim._hold(not any(lost.values()), f"lost {lost}")
    return lost


def cut_off_requesters(sim: DataSimulation) -> dict[str, int]:
    """The processes of a host can't reach a node, while others can: they are served as exactly as others."""
    names = begin(sim, 3)
    sim.unreachable.add(("n0", "n1"))
    load = Workload(sim, list(names))
    load.start()
    sim.run(4)
    return exact(sim, load)


def crash_and_back(sim: DataSimulation) -> dict[str, int]:
    """A node is killed and started again at once, in half of the runs before others have noticed."""
    _, load = begin_load(sim, [3, 5], exact=False, but=1)
    sim.run(1)
    load.crash("n0", refused=sim.random.random() < 0.5)
    sim.run(sim.random.uniform(0, 0.3))
    join(sim, "n0")
    lost = end(sim, load)
    sim._hold(not lost["static"] and not lost["doubled"] and not lost["older"], f"lost {lost}")
    return lost


SCENARIOS: dict[str, Callable[[DataSimulation], dict[str, int]]] = {
    "rolling restart": rolling_restart,
    "rolling restart without backups": rolling_restart_without_backups,
    "rolling replacement": rolling_replacement,
    "many at once": many_at_once,
    "scale down": scale_down,
    "crash": crash,
    "partition": partition,
    "short partition": short_partition,
    "three sides": three_sides,
    "flapping": flapping,
    "long stop": long_stop,
    "kill while filling": kill_while_filling,
    "behind": behind,
    "cut off requesters": cut_off_requesters,
    "crash and back": crash_and_back,
}


def judge(
    scenario: str,
    seed: int,
    make: type[Replication] = Replication,
    simulation: type[DataSimulation] = DataSimulation,
) -> Verdict:
    """Runs a scenario."""
    verdict = Verdict(scenario, seed)
    with few_slots():
        sim = simulation(seed, make=make)
        delay = sim.random.choice([LAN, LAN, (0.001, 0.005), WAN])
        sim.bus = Bus(Random(seed).choice([0.0, 0.0, LOSS]), delay)
        try:
            verdict.lost = SCENARIOS[scenario](sim)
        except Violation as violation:
            verdict.broken = str(violation)
        verdict.figures = {"seconds": sim.now - 1000, **sim.messages}
    return verdict


def _judge(job: tuple[str, int, bool]) -> Verdict:
    scenario, seed, stored = job
    return judge(scenario, seed, simulation=StoredSimulation if stored else DataSimulation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--stored", action="store_true", help="with the stores of real nodes")
    options = parser.parse_args()
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    scenarios = [name for name in SCENARIOS if options.only in name]
    begun, broken = time.monotonic(), 0
    with multiprocessing.Pool(options.processes) as pool:
        for verdict in pool.imap_unordered(_judge, itertools.product(scenarios, seeds, [options.stored])):
            if verdict.broken:
                broken += 1
                print(f"{verdict.scenario}, seed {verdict.seed}: {verdict.broken}")
    print(f"{len(scenarios) * len(seeds)} runs, {broken} broken, in {time.monotonic() - begun:.0f} s")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
