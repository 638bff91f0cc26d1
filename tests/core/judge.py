"""`python -m tests.core.judge`: membership judged over many seeds, and measured against the size of the cluster.

--seeds 1000      as many runs of each scenario, from seed 0 on; exit code 1 if any invariant is broken
--seed 17         one run of each scenario, with the hash of its trace: the same seed gives the same
--report          detection times, messages and sightings, from 3 members to 1,000
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from django_clusterstate.core.messages import State
from tests.core.simulation import Bus, Simulation, Violation

JOIN = 3.0  # seconds in which nodes started together become one cluster
LOSS = 0.2
EPOCH = 1000.0  # where a simulation's clock begins
PAUSE = 2.0


@dataclass
class Verdict:
    """What one run brought. `downs` are false ones, `detections` are seconds until each peer said down."""

    scenario: str
    seed: int
    broken: str = ""
    downs: int = 0
    node_hours: float = 0.0
    detections: list[float] = field(default_factory=list)
    trace: str = ""


def lossy(seed: int, sim: Simulation) -> None:
    """Loss up to a fifth, delays, duplicates, and stalls of up to two seconds: nobody may be found down."""
    for _ in range(30):
        sim.pause(sim.random.choice(list(sim.nodes)), sim.random.uniform(0, PAUSE))
        sim.run(1)
    sim.converge()
    if sim.false_downs:
        raise Violation(f"{len(sim.false_downs)} false down, first {sim.false_downs[0]} (seed {seed})")


def host_crash(seed: int, sim: Simulation) -> None:
    """A host is lost: down everywhere in under four seconds."""
    sim.run(sim.random.uniform(0, 1))
    sim.crash("n0")
    sim.run(4)
    unseen = [node.name for node in sim.running if node.membership.members["n0"].state is not State.DOWN]
    if unseen:
        raise Violation(f"{unseen} don't hold n0 for down after 4 s (seed {seed})")
    if sim.false_downs:
        raise Violation(f"false down {sim.false_downs[0]} (seed {seed})")


def partition(seed: int, sim: Simulation) -> None:
    """Cut in two at random, and healed: one view within three seconds."""
    names = sim.random.sample(list(sim.nodes), len(sim.nodes))
    cut = sim.random.randint(1, len(names) - 1)
    sim.bus.split(names[:cut], names[cut:])
    sim.run(sim.random.uniform(1, 8))
    sim.converge()


def one_way(seed: int, sim: Simulation) -> None:
    """Some directions are lost, but everybody is heard by somebody who is heard: no view changes."""
    names = list(sim.nodes)
    for _ in range(len(names) // 3):
        sim.bus.cut.add(tuple(sim.random.sample(names[:-1], 2)))  # type: ignore[arg-type] # a pair
    sim.run(15)
    if sim.false_downs:
        raise Violation(f"false down {sim.false_downs[0]} with {sorted(sim.bus.cut)} cut (seed {seed})")
    sim.converge()


Scenario = Callable[[int, Simulation], None]
SCENARIOS: dict[str, tuple[Scenario, Callable[[int], Bus], range]] = {
    "lossy": (lossy, lambda seed: Bus(loss=LOSS * (seed % 5) / 4, delay=(0.001, 0.2), duplicates=0.1), range(3, 10)),
    "host crash": (host_crash, lambda seed: Bus(loss=0.02 * (seed % 3), delay=(0.001, 0.05)), range(2, 30)),
    "partition": (partition, lambda seed: Bus(delay=(0.001, 0.05)), range(2, 20)),
    "one way": (one_way, lambda seed: Bus(delay=(0.001, 0.02)), range(4, 12)),
}


def judge(name: str, seed: int) -> Verdict:
    """One run of a scenario."""
    scenario, bus, sizes = SCENARIOS[name]
    sim = Simulation(seed, bus(seed))
    verdict = Verdict(name, seed)
    sim.start(*(f"n{number}" for number in range(sizes[seed % len(sizes)])))
    try:
        sim.run(JOIN)
        scenario(seed, sim)
    except Violation as violation:
        verdict.broken = str(violation)
    verdict.downs = 0 if scenario is partition else len(sim.false_downs)  # there each side rightly loses the other
    verdict.detections = list(sim.detections)
    verdict.node_hours = (sim.now - EPOCH) * len(sim.nodes) / 3600
    verdict.trace = sim.trace.hexdigest()
    return verdict


def judge_all(names: Iterable[str], seeds: Iterable[int]) -> list[Verdict]:
    work = list(itertools.product(names, seeds))
    with multiprocessing.Pool() as pool:
        return pool.starmap(judge, work, chunksize=8)


def summary(verdicts: list[Verdict], seconds: float) -> str:
    lines = [f"{'scenario':<12}{'runs':>6}{'broken':>8}{'false down':>12}{'node-hours':>12}{'down p50':>10}{'p99':>7}"]
    for name in SCENARIOS:
        of = [verdict for verdict in verdicts if verdict.scenario == name]
        found = [when for verdict in of for when in verdict.detections]
        lines.append(
            f"{name:<12}{len(of):6}{sum(bool(v.broken) for v in of):8}{sum(v.downs for v in of):12}"
            f"{sum(v.node_hours for v in of):12.1f}{_quantile(found, 50):>10}{_quantile(found, 99):>7}"
        )
    lines += [f"  {v.scenario}: {v.broken}" for v in verdicts if v.broken][:10]
    return "\n".join([*lines, f"{seconds:.0f} s"])


def _quantile(values: list[float], percent: int) -> str:
    return f"{statistics.quantiles(values, n=100)[percent - 1]:.2f}" if len(values) > 1 else "-"


def report(sizes: Iterable[int]) -> str:
    """Against the number of members: what a node sends and hears, and how soon a lost host is down."""
    lines = [f"{'members':>8}{'heard/s':>10}{'sightings':>11}{'one view':>10}{'down p50':>10}{'p99':>7}"]
    for size in sizes:
        sim = Simulation(size, Bus(delay=(0.001, 0.02)))
        sim.start(*(f"n{number}" for number in range(size)))
        together = _until_one_view(sim)
        sim.crash("n0")
        sim.run(4)
        member = sim.nodes[f"n{size - 1}"].membership
        interval = member.timings.heartbeat
        lines.append(
            f"{size:8}{(size - 1) / interval:10.0f}{len(member.heartbeat(sim.now).sightings):11}{together:10.2f}"
            f"{_quantile(sim.detections, 50):>10}{_quantile(sim.detections, 99):>7}"
        )
    return "\n".join(lines)


def _until_one_view(sim: Simulation) -> float:
    while len({node.membership.view.epoch for node in sim.running}) > 1 or not sim.running[0].membership.view.members:
        sim.run(0.05)
        if sim.now - EPOCH > 30:
            raise Violation("no one view within 30 s of the start")
    return sim.now - EPOCH


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.core.judge", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="runs of each scenario; default: %(default)s")
    parser.add_argument("--seed", type=int, help="only this one, with the hash of its trace")
    parser.add_argument("--report", action="store_true", help="against the number of members")
    options = parser.parse_args()
    if options.report:
        print(report((3, 10, 30, 100, 300)))
        return 0
    if options.seed is not None:
        verdicts = [judge(name, options.seed) for name in SCENARIOS]
        print("\n".join(f"{v.scenario}: {v.trace} {v.broken or 'holds'}" for v in verdicts))
        return int(any(verdict.broken for verdict in verdicts))
    start = time.monotonic()
    verdicts = judge_all(SCENARIOS, range(options.seeds))
    print(summary(verdicts, time.monotonic() - start))
    return int(any(verdict.broken for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
