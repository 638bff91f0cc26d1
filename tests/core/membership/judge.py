"""`python -m tests.core.membership.judge`: membership judged over many seeds, and measured for the cluster's size.

--seeds 1000      as many runs of each scenario, from seed 0 on; exit code 1 if any invariant is broken
--seed 17         one run of each scenario, with the hash of its trace: the same seed gives the same
--report          detection times, messages and false `down`, from 3 members to 1,000 (takes a quarter of an hour)
"""

import argparse
import gc
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from django_clusterstate.core.membership.heartbeat import MemberState
from tests.core.membership.simulation import Bus, Simulation, Violation

JOIN = 3.0  # seconds in which nodes started together become one cluster
LOSS = 0.2
LOSSES = (0.0, 0.05, 0.1, 0.2, 0.3)  # at which the report counts false downs
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
    unseen = [node.name for node in sim.running if node.membership.members["n0"].state is not MemberState.DOWN]
    if unseen:
        raise Violation(f"{unseen} do not hold n0 for down after 4 s (seed {seed})")
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


def namesake(seed: int, sim: Simulation) -> None:
    """Again and again a second node has a taken name for a while: nobody else's view changes."""
    names = list(sim.nodes)
    for number in range(4):
        begun, second = sim.now, f"second-{number}"
        sim.start(second, name=sim.random.choice(names))
        sim.run(sim.random.uniform(0.1, 9))
        if sim.random.random() < 0.5:
            sim.leave(second)
        else:
            sim.crash(second, refused=sim.random.random() < 0.5)
        sim.run(sim.random.uniform(0, 4))
        changed = [
            change
            for when, by, change in sim.changes
            if when >= begun and by in names and MemberState.SUSPECT not in (change.old, change.new)
        ]
        if changed or sim.superseded:
            raise Violation(f"a namesake brought {changed}, and {sim.superseded} were superseded (seed {seed})")
    sim.converge()


def displaced(seed: int, sim: Simulation) -> None:
    """A node is stopped or cut off while another has its name: one of them has it in the end, and when that one goes,
    the other."""
    name, other, *rest = sim.random.sample(list(sim.nodes), len(sim.nodes))
    if sim.random.random() < 0.5:
        sim.start("second", name=name)
        sim.run(sim.random.uniform(0, 3))
        sim.pause(name, sim.random.uniform(1, 9))
        sim.run(sim.random.uniform(3, 9))
    else:
        sim.bus.split([name, *rest[: len(rest) // 2]], ["second", other, *rest[len(rest) // 2 :]])
        sim.run(sim.random.uniform(0, 3))
        sim.start("second", name=name)
        sim.run(sim.random.uniform(0, 9))
    sim.converge(within=5.0)
    serving = [node for node in (sim.nodes["second"], sim.nodes[name]) if node.membership.state is MemberState.ALIVE]
    if len(serving) != 1:
        raise Violation(f"{len(serving)} of two nodes called {name} serve (seed {seed})")
    sim.crash(serving[0].name, refused=sim.random.random() < 0.5)
    sim.run(5)
    sim.converge(within=5.0)
    if [node.membership.state for node in sim.running] != [MemberState.ALIVE] * len(sim.running):
        raise Violation(f"{name} does not serve, though nobody else has its name any more (seed {seed})")


def flapping(seed: int, sim: Simulation) -> None:
    """A node is cut off every few seconds, in one direction or both, or most of what it sends is lost: keys move away
    from it once, and back once when that is over. No other node loses any."""
    name, *others = sim.random.sample(list(sim.nodes), len(sim.nodes))
    begun = sim.now
    if sim.random.random() < 0.3:
        sim.bus.faulty[name] = 0.8
        sim.run(40)
        sim.bus.faulty.clear()
    else:
        ways = [set(itertools.product(others, [name])), set(itertools.product([name], others))]
        for _ in range(4):
            sim.bus.cut = set.union(*sim.random.sample(ways, sim.random.randint(1, 2)))
            sim.run(sim.random.uniform(2, 6))
            sim.bus.cut = set()
            sim.run(sim.random.uniform(1, 6))
    touched = [
        change
        for when, by, change in sim.changes
        if when > begun
        and by in others
        and change.identity.name != name
        and MemberState.SUSPECT not in (change.old, change.new)
    ]
    moved = [sum(by == other and when > begun for when, by, _ in sim.view_changes) for other in others]
    if touched or max(moved) > 2:
        raise Violation(f"keys of others moved {max(moved)} times while {name} flapped, {touched} (seed {seed})")
    sim.run(80)
    if any(node.membership.state is not MemberState.ALIVE for node in sim.running):
        raise Violation(f"{name} does not serve though it is heard (seed {seed})")
    sim.converge()


def recordings(seed: int, sim: Simulation) -> None:
    """Somebody repeats old heartbeats all the time while nodes come and go: who has gone is in nobody's view."""
    names = list(sim.nodes)
    for _ in range(12):
        for _ in range(20):
            sim.replay()
            sim.run(sim.random.uniform(0, 0.1))
        name = sim.random.choice(names)
        if sim.nodes[name].running:
            sim.random.choice([sim.crash, sim.leave])(name)
        else:
            sim.start(name)
        sim.run(sim.random.uniform(0, 2))
    sim.run(4)
    sim.converge()


def swarm(seed: int, sim: Simulation) -> None:
    """Every fault there is, at random, and one view in the end."""
    storm(sim, max(10, 60 - len(sim.nodes)))
    sim.converge()


def twins(seed: int, sim: Simulation) -> None:
    """The same, with second nodes under taken names, which all end before the others have to agree."""
    storm(sim, max(10, 60 - len(sim.nodes)), TWINS)
    for node in sim.running:
        if node.name.startswith("twin"):
            sim.crash(node.name, refused=sim.random.random() < 0.5)
    sim.converge(within=5.0)


def storm(sim: Simulation, steps: int, faults: Sequence[str] = ()) -> None:
    """A fault each half second, then two quiet seconds: what was stopped or ended last is noticed."""
    for _ in range(steps):
        stir(sim, faults or FAULTS)
        sim.run(sim.random.uniform(0.0, 1.0))
    for node in sim.running:
        sim.wake(node)
    sim.run(2)


def stir(sim: Simulation, faults: Sequence[str]) -> None:
    """One fault, or the end of some."""
    fault = sim.random.choice(faults)
    if fault in NETWORK:
        _stir_network(sim, fault)
    else:
        _stir_node(sim, fault, sim.random.choice(list(sim.nodes)))


def _stir_network(sim: Simulation, fault: str) -> None:
    random, bus, names = sim.random, sim.bus, list(sim.nodes)
    match fault:
        case "split":
            side = random.sample(names, len(names) // 2)
            bus.split(side, set(names).difference(side))
        case "drop":
            bus.cut.add((random.choice(names), random.choice(names)))
        case "weather":
            bus.loss, bus.duplicates = random.uniform(0, 0.3), random.uniform(0, 0.3)
            bus.delay = random.choice([(0.001, 0.005), (0.1, 0.5), ROUGH])
        case "mend":
            bus.cut.clear()
            sim.slow.clear()


def _stir_node(sim: Simulation, fault: str, name: str) -> None:
    random, node = sim.random, sim.nodes[name]
    # Younger than a message may be late, a start can't be ordered with the next one, by whatever it sends.
    up = node.running and sim.now - node.membership.started > ROUGH[1] + 2 * SLOW
    spare = len(sim.running) > (2 * len(sim.nodes)) // 3
    match fault:
        case "join":
            sim.start(f"n{len(sim.nodes)}")
        case "start" if not node.running:
            sim.start(name)
        case "end" if up and spare:
            sim.crash(name, refused=random.random() < 0.5)
        case "leave" if up and spare:
            sim.leave(name)
        case "restart" if up:
            sim.crash(name, refused=random.random() < 0.5)
            sim.at(random.uniform(0.0, 1.0), lambda: None if sim.nodes[name].running else sim.start(name))
        case "pause" if up:
            sim.pause(name, random.uniform(0.1, 5.0))
        case "twin" if not name.startswith("twin"):
            twin = f"twin{len(sim.nodes)}"
            sim.start(twin, name=name)
            sim.at(random.uniform(0.2, 8), lambda: _end(sim, twin))
        case "slow":
            sim.slow[name] = random.uniform(0, SLOW)


def _end(sim: Simulation, name: str) -> None:
    if sim.nodes[name].running:
        sim.crash(name, refused=sim.random.random() < 0.5)


NETWORK = ("split", "drop", "weather", "mend")
FAULTS = ("end", "end", "start", "start", "leave", "restart", "join", "pause", "slow", *NETWORK)
TWINS = (*FAULTS, "twin", "twin")
ROUGH = (0.0, 0.5)  # delays between these seconds also reorder, since heartbeats are half a second apart
SLOW = 0.25  # seconds by which all that a slow node sends and hears is later, at most
SIZES = (*(2, 3, 4, 5, 6, 8, 12, 20) * 12, 50, 50, 100, 200)  # of a swarm: the large ones take half a minute each

Scenario = Callable[[int, Simulation], None]
SCENARIOS: dict[str, tuple[Scenario, Callable[[int], Bus], Sequence[int]]] = {
    "lossy": (lossy, lambda seed: Bus(loss=LOSS * (seed % 5) / 4, delay=(0.001, 0.2), duplicates=0.1), range(3, 10)),
    "host crash": (host_crash, lambda seed: Bus(loss=0.02 * (seed % 3), delay=(0.001, 0.05)), range(2, 30)),
    "partition": (partition, lambda seed: Bus(delay=(0.001, 0.05)), range(2, 20)),
    "one way": (one_way, lambda seed: Bus(delay=(0.001, 0.02)), range(4, 12)),
    "namesake": (namesake, lambda seed: Bus(loss=0.02 * (seed % 3), delay=(0.001, 0.05)), range(2, 12)),
    "displaced": (displaced, lambda seed: Bus(delay=(0.001, 0.05)), range(3, 12)),
    "flapping": (flapping, lambda seed: Bus(delay=(0.001, 0.05)), range(3, 12)),
    "recordings": (recordings, lambda seed: Bus(delay=(0.001, 0.05)), range(2, 9)),
    "swarm": (swarm, lambda seed: Bus(), SIZES),
    "twins": (twins, lambda seed: Bus(), SIZES[:-4]),
}


def judge(name: str, seed: int) -> Verdict:
    """One run of a scenario."""
    scenario, bus, sizes = SCENARIOS[name]
    sim = Simulation(seed, bus(seed))
    sim.rejoins = scenario is flapping
    verdict = Verdict(name, seed)
    sim.start(*(f"n{number}" for number in range(sizes[seed % len(sizes)])))
    try:
        sim.run(JOIN)
        scenario(seed, sim)
    except Violation as violation:
        verdict.broken = str(violation)
    if scenario not in (
        partition,
        displaced,
        flapping,
        swarm,
        twins,
    ):  # there each side of a cut rightly loses the other
        verdict.downs = len(sim.false_downs)
        verdict.detections = list(sim.detections)
    verdict.node_hours = (sim.now - EPOCH) * len(sim.nodes) / 3600
    verdict.trace = sim.trace.hexdigest()
    return verdict


def judge_all(names: Iterable[str], seeds: Iterable[int], processes: int | None = None) -> list[Verdict]:
    with multiprocessing.Pool(processes) as pool:
        return pool.starmap(judge, itertools.product(names, seeds), chunksize=1)


def summary(verdicts: list[Verdict], seconds: float) -> str:
    lines = [f"{'scenario':<12}{'runs':>6}{'broken':>8}{'false down':>12}{'node-hours':>12}{'down p50':>10}{'p99':>7}"]
    for name in dict.fromkeys(verdict.scenario for verdict in verdicts):
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


@dataclass(frozen=True, slots=True)
class Sample:
    """How much is measured in a cluster of so many members: what a large one costs in a second is a minute's work."""

    size: int
    hours: float  # node-hours for each rate of false downs
    losses: tuple[float, ...] = LOSSES


SAMPLES = (Sample(3, 50), Sample(10, 20), Sample(30, 5), Sample(100, 2), Sample(300, 1), Sample(1000, 1, LOSSES[-1:]))
DETECTIONS = 200  # a lost host is found by each of the others
GRAIN = 0.01


def report(samples: Sequence[Sample], processes: int | None = None) -> str:
    """A table against the number of members. The largest cluster, which takes longest, is begun first."""
    head = f"{'members':>8}{'sent/s':>8}{'heard/s':>9}{'named':>7}{'one view':>10}{'down p50':>10}{'p99':>7}{'of':>6}"
    head += "".join(f"{loss:>8.0%}" for loss in LOSSES) + f"{'node-hours':>12}{'took':>7}"
    with multiprocessing.Pool(processes, initializer=gc.disable, maxtasksperchild=1) as pool:
        rows = pool.map(measure, reversed(samples), chunksize=1)
    return "\n".join(
        [head, *reversed(rows), "false down a node-hour at each loss, of so many node-hours; all times in s"]
    )


def measure(sample: Sample) -> str:
    """A row of the report."""
    begun = time.monotonic()
    sim = Simulation(sample.size, Bus(delay=(0.001, 0.02), grain=GRAIN))
    sim.start(*(f"n{number}" for number in range(sample.size)))
    together = _until_one_view(sim)
    sent, heard, named = _traffic(sim)
    found = _detections(sim)
    rates = {loss: _false_downs(sim, loss, sample.hours) for loss in sample.losses}
    return (
        f"{sample.size:8}{sent:8.1f}{heard:9.0f}{named:7.1f}{together:10.2f}"
        f"{_quantile(found, 50):>10}{_quantile(found, 99):>7}{len(found):6}"
        + "".join(f"{rates[loss]:8.2f}" if loss in rates else f"{'-':>8}" for loss in LOSSES)
        + f"{sample.hours:12.0f}{time.monotonic() - begun:7.0f}"
    )


def _until_one_view(sim: Simulation) -> float:
    """Seconds since all started."""
    while any(len(node.membership.view.members) < len(sim.nodes) for node in sim.running):
        sim.run(0.05)
        if sim.now - EPOCH > 30:
            raise Violation("no one view within 30 s of the start")
    return sim.now - EPOCH


def _traffic(sim: Simulation, seconds: float = 2.0) -> tuple[float, float, float]:
    """Messages a node sends and hears in a second, and members named in each."""
    sent, heard, named = sim.sent, sim.heard, sim.named
    sim.run(seconds)
    spent = seconds * len(sim.nodes)
    return (sim.sent - sent) / spent, (sim.heard - heard) / spent, (sim.named - named) / (sim.sent - sent)


def _detections(sim: Simulation) -> list[float]:
    """Seconds until each of the others says down of a lost host."""
    while True:
        sim.crash("n0")
        enough = len(sim.detections) + len(sim.running)
        until = sim.now + 4
        while len(sim.detections) < enough:
            sim.run(0.1)
            if sim.now > until:
                raise Violation("a lost host is not down everywhere after 4 s")
        sim.start("n0")
        if enough >= DETECTIONS:
            return sim.detections
        sim.run(sim.random.uniform(2, 3))


def _false_downs(sim: Simulation, loss: float, hours: float) -> float:
    """So many a node-hour, once the silence of before is over."""
    sim.bus = Bus(loss=loss, delay=(0.001, 0.2), duplicates=0.1, grain=GRAIN)
    sim.run(sim.timings.down_after)
    before = len(sim.false_downs)
    sim.run(hours * 3600 / len(sim.nodes))
    return (len(sim.false_downs) - before) / hours


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.core.membership.judge", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="runs of each scenario; default: %(default)s")
    parser.add_argument("--seed", type=int, help="only this one, with the hash of its trace")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="only this one; may be repeated")
    parser.add_argument("--report", action="store_true", help="against the number of members")
    parser.add_argument("--processes", type=int, help="how many at once; default: as many as there are cores")
    options = parser.parse_args()
    if options.report:
        print(report(SAMPLES, options.processes))
        return 0
    names = options.scenario or list(SCENARIOS)
    if options.seed is not None:
        verdicts = [judge(name, options.seed) for name in names]
        print("\n".join(f"{v.scenario}: {v.trace} {v.broken or 'holds'}" for v in verdicts))
        return int(any(verdict.broken for verdict in verdicts))
    start = time.monotonic()
    verdicts = judge_all(names, range(options.seeds), options.processes)
    print(summary(verdicts, time.monotonic() - start))
    return int(any(verdict.broken for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
