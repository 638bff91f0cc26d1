"""`python -m tests.core.membership.grids`: the faults for which other membership protocols publish figures.

--grid lifeguard   runs in which a running member is declared down, while messages are lost and some nodes read what
                   they receive 0.5 to 2.5 s late, for 120 s
--grid rapid       views, keys that move, and messages, while one node in a hundred crashes, hears nobody for 20 s of
                   each 40, or loses 80 % of what it sends (Suresh et al., USENIX ATC 2018)
--seeds 200        runs of each cell, from seed 0 on
--sizes 50 200     members

Each line is printed when it is known. 200 members take minutes of a core for each run.
"""

import argparse
import contextlib
import gc
import itertools
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, View
from django_clusterstate.core.membership.members import Effects
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.node.heartbeat import encode_heartbeat
from django_clusterstate.wire.derived_keys import derive_heartbeat_keys
from tests.core.membership.simulation import Bus, Node, Simulation

JOIN = 4.0  # seconds in which nodes started together become one cluster
SECONDS = 120.0
DELAY = (0.001, 0.02)
GRAIN = 0.05
LATE = (0.5, 2.5)  # seconds by which a starved node reads what it receives late
STARVED = (0.0, 0.01, 0.05, 0.1)  # shares of the nodes
LOSSES = (0.01, 0.03, 0.05)
AFFECTED = 0.01  # of the nodes, in Rapid's grid
PERIOD = 20.0  # seconds
EGRESS_LOSS = 0.8
SETTLE = 30.0  # seconds after a crash
T = TypeVar("T")
KEYS = [b"key-%d" % number for number in range(5000)]
SIGNING_KEYS = derive_heartbeat_keys(["what the grids sign with"], "default")


class Grid(Simulation):
    """A cluster whose state is checked only where it changes, since most of its messages change nothing."""

    rejoins = True

    def __init__(self, seed: int, size: int, loss: float = 0.0) -> None:
        super().__init__(seed, Bus(loss=loss, delay=DELAY, grain=GRAIN))
        self.names = [f"n{number}" for number in range(size)]
        self.starved: frozenset[str] = frozenset()
        self.messages = self.bytes = 0  # sent to others
        self.known: dict[int, View] = {}  # by epoch
        self.start(*self.names)
        self.run(JOIN)

    def some(self, share: float) -> list[str]:
        return self.random.sample(self.names, math.ceil(share * len(self.names)))

    def _check(self, node: Node, call: str, effects: Effects, about: Identity | None) -> None:
        for change in effects.changes:
            self._check_change(node, call, change, about)
        if node.membership.view is not node.view:
            self._check_view(node)
            self.known[node.membership.view.epoch] = node.membership.view

    def _send(self, sender: str, receivers: Iterable[str], beat: Heartbeat) -> None:
        others = sum(receiver != sender for receiver in receivers)
        self.messages += others
        self.bytes += others * len(msgspec.msgpack.encode(encode_heartbeat(beat, SIGNING_KEYS)))
        super()._send(sender, receivers, beat)

    def _post(self, due: float, receiver: str, beat: Heartbeat) -> None:
        if receiver in self.starved:
            due += self.random.uniform(*LATE)
        super()._post(due, receiver, beat)


# -- Lifeguard's --------------------------------------------------------------------------------------------


def has_false_down(cell: tuple[int, float, float, int]) -> bool:
    """Whether a running member is declared down, in a run of (members, share of starved ones, loss, seed)."""
    size, starved, loss, seed = cell
    sim = Grid(seed, size, loss)
    sim.false_downs.clear()
    sim.starved = frozenset(sim.some(starved))
    sim.run(SECONDS)
    return bool(sim.false_downs)


@contextlib.contextmanager
def parallel(processes: int) -> Iterator[Callable[[Callable[[Any], T], Sequence[Any]], list[T]]]:
    """`map` in this many processes; a single one is this one."""
    if processes == 1:
        yield lambda work, cells: list(map(work, cells))
        return
    with multiprocessing.Pool(processes, initializer=gc.disable, maxtasksperchild=4) as pool:
        yield partial(pool.map, chunksize=1)


def lifeguard(sizes: Iterable[int], seeds: int, processes: int) -> Iterator[str]:
    yield f"runs of {SECONDS:g} s with a false down, of {seeds} each"
    yield f"{'members':>8}{'starved':>9}" + "".join(f"{f'loss {loss:.0%}':>10}" for loss in LOSSES)
    total = runs = 0
    with parallel(processes) as run:
        for size, starved in itertools.product(sizes, STARVED):
            cells = [(size, starved, loss, seed) for loss in LOSSES for seed in range(seeds)]
            found = run(has_false_down, cells)
            sums = [sum(found[start : start + seeds]) for start in range(0, len(found), seeds)]
            total, runs = total + sum(sums), runs + len(found)
            yield f"{size:8}{starved:9.0%}" + "".join(f"{number:10}" for number in sums)
    yield f"{total} of {runs}"


# -- Rapid's ------------------------------------------------------------------------------------------------


def crash(sim: Grid, affected: list[str]) -> None:
    for name in affected:
        sim.crash(name)
    sim.run(SETTLE)


def deaf_by_turns(sim: Grid, affected: list[str]) -> None:
    for _ in range(int(SECONDS / PERIOD / 2)):
        sim.bus.cut = set(itertools.product(sim.names, affected))
        sim.run(PERIOD)
        sim.bus.cut = set()
        sim.run(PERIOD)


def egress_loss(sim: Grid, affected: list[str]) -> None:
    sim.bus.faulty = dict.fromkeys(affected, EGRESS_LOSS)
    sim.run(SECONDS)


FAULTS: dict[str, Callable[[Grid, list[str]], None]] = {
    "crash": crash,
    "ingress cut, 20 s of 40": deaf_by_turns,
    "egress loss of 80 %": egress_loss,
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. `views`: distinct ones of the nodes without a fault, the first included. `moved`: the share of the
    keys that such a node sees move, all times added. `messages` and `bytes` are sent by a node in a second."""

    views: int
    moved: float
    messages: float
    bytes: float


def measure(cell: tuple[int, str, int]) -> Figures:
    """A run of (members, fault, seed)."""
    size, fault, seed = cell
    sim = Grid(seed, size)
    affected = sim.some(AFFECTED)
    healthy = [name for name in sim.names if name not in affected]
    before, begun, messages, sent = sim.nodes[healthy[0]].membership.view, sim.now, sim.messages, sim.bytes
    sim.view_changes.clear()
    FAULTS[fault](sim, affected)
    epochs = {name: [before.epoch] for name in healthy}
    for _, name, epoch in sim.view_changes:
        if name in epochs:
            epochs[name].append(epoch)
    owners = {epoch: _owners(sim.known[epoch]) for epoch in set(itertools.chain(*epochs.values()))}
    steps = [pair for seen in epochs.values() for pair in itertools.pairwise(seen)]
    moved = sum(_moved(owners[old], owners[new]) for old, new in steps) / len(healthy)
    spent = (sim.now - begun) * size
    return Figures(len(owners), moved, (sim.messages - messages) / spent, (sim.bytes - sent) / spent)


def _owners(view: View) -> list[str | None]:
    ring = Rendezvous({who.name: who.weight for who in view.members})
    return [ring.owner(key) for key in KEYS]


def _moved(old: list[str | None], new: list[str | None]) -> float:
    return sum(was != now for was, now in zip(old, new, strict=True)) / len(KEYS)


def rapid(sizes: Iterable[int], seeds: int, processes: int) -> Iterator[str]:
    yield f"means of {seeds} runs; messages and bytes are sent by a node in a second"
    yield f"{'members':>8}{'fault':>26}{'views':>8}{'most':>6}{'keys moved':>12}{'messages':>10}{'bytes':>9}"
    with parallel(processes) as run:
        for size, fault in itertools.product(sizes, FAULTS):
            found = run(measure, [(size, fault, seed) for seed in range(seeds)])
            means = [statistics.fmean(getattr(one, name) for one in found) for name in Figures.__slots__]
            yield (
                f"{size:8}{fault:>26}{means[0]:8.1f}{max(one.views for one in found):6}{means[1]:12.2%}"
                f"{means[2]:10.0f}{means[3]:9.0f}"
            )


GRIDS = {"lifeguard": (lifeguard, (50, 200)), "rapid": (rapid, (100, 200))}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.core.membership.grids", description=__doc__)
    parser.add_argument("--grid", choices=GRIDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--seeds", type=int, default=200, help="runs of each cell; default: %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", help="members; default: 50 and 200, and 100 and 200")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    for name in options.grid or GRIDS:
        grid, sizes = GRIDS[name]
        print(f"{name}:", flush=True)
        for line in grid(options.sizes or sizes, options.seeds, options.processes):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
