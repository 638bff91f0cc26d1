"""Processes of sites under load beside a cluster, and what they found."""

import json
import math
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django_clusterstate.core.limits.algorithms import Algorithm
from django_clusterstate.wire.messages import StatusReply
from testproject.processes import ROOT, LocalCluster, wait_until
from tests.deploys.rolling import LOOK, SECONDS
from tests.deploys.worker import LIMIT
from tests.faults.hosts import HostCluster

SILENT = 1800.0  # seconds after which a process that prints nothing has failed
PACED = {"PAUSE": "0.01"}  # of workers beside which latencies are measured: they leave processors idle


@dataclass
class Found:
    """What all workers found together. Times are those of the monotonic clock, which all processes of a host share."""

    operations: int = 0
    missed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    late: int = 0
    increments: Counter[str] = field(default_factory=Counter)
    admitted: Counter[str] = field(default_factory=Counter)
    hits: list[tuple[str, float, float]] = field(default_factory=list)  # those that passed: limit, start, end
    fallbacks: Counter[str] = field(default_factory=Counter)
    held: list[tuple[str, float, float]] = field(default_factory=list)
    slowest: float = 0.0
    read: list[float] = field(default_factory=list)  # of each entry that was read in the end, when it was written last
    wrong: dict[str, tuple[Any, int, float]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            held = getattr(self, name)
            if isinstance(held, Counter | dict):
                held.update(value)
            elif name == "slowest":
                self.slowest = max(held, value)
            else:
                setattr(self, name, held + value)

    def entries(self, before: float) -> int:
        """How many entries were written last before that time."""
        return sum(at < before for at in self.read)

    def readable(self, before: float = math.inf) -> float:
        """The share of the entries written before that time which were read in the end, with their last values."""
        lost = sum(at < before for _, _, at in self.wrong.values())
        return 1 - lost / max(self.entries(before), 1)

    @property
    def used_up(self) -> set[str]:
        """The algorithms of the limits that were reached."""
        return {key.partition(":")[0] for key, count in self.admitted.items() if count >= LIMIT}

    @property
    def older(self) -> list[str]:
        """The entries that were read in the end with another value than the last."""
        return [f"{key} is {found}, not {value}" for key, (found, value, _) in self.wrong.items() if found is not None]

    @property
    def above_limit(self) -> list[str]:
        """The limits of which more hits passed than promised."""
        most = LIMIT + max(1, LIMIT * 5 // 100)
        return [f"{key}: {count}" for key, count in self.admitted.items() if count > most]

    def admitted_above(self, since: float, until: float) -> list[str]:
        """The limits of which more hits passed than 1.02 times the limit and those that were under way in that time."""
        lost = Counter(key for key, start, end in self.hits if end >= since and start <= until)
        return [
            f"{key}: {count}, and {lost[key]} were under way"
            for key, count in self.admitted.items()
            if count > LIMIT * 102 // 100 + lost[key]
        ]

    @property
    def miscounted(self) -> list[str]:
        return [
            f"{key} is {self.counters.get(key)}, not {count}"
            for key, count in self.increments.items()
            if self.counters.get(key) != count
        ]

    @property
    def held_twice(self) -> list[str]:
        """Locks that two had at the same time."""
        last: dict[str, float] = {}
        twice = []
        for name, start, end in sorted(self.held, key=lambda one: one[1]):
            if start < last.get(name, 0.0):
                twice.append(f"{name} at {start:.4f}, held until {last[name]:.4f}")
            last[name] = max(end, last.get(name, 0.0))
        return twice

    @property
    def fallback_share(self) -> float:
        hits = self.fallbacks.total()
        return (hits - self.fallbacks[""]) / max(hits, 1)

    def __str__(self) -> str:
        return (
            f"{self.operations} operations; {self.readable():.2%} of {len(self.read)} entries read in the end; "
            f"missed {len(self.missed)}, stale {len(self.stale)}, errors {len(self.errors)} {self.errors[:3]}; "
            f"admitted at most {max(self.admitted.values(), default=0)} of {LIMIT}; fallbacks {dict(self.fallbacks)}; "
            f"counters wrong {self.miscounted[:5]}; locks held twice {len(self.held_twice)} of {len(self.held)}; "
            f"over 100 ms took {self.late}, the slowest {self.slowest * 1000:.0f} ms"
        )


def check_nothing_lost(found: Found) -> None:
    assert not found.errors
    assert not found.missed
    assert not found.stale
    assert not found.older
    assert not found.held_twice
    assert not found.miscounted
    assert not found.above_limit
    assert len(found.used_up) == len(Algorithm)  # otherwise there was nothing to exceed
    assert found.fallback_share <= 1e-4
    assert found.readable() >= 0.999


class SiteProcess:
    """A process on the host of a node: `python -m tests.deploys.MODULE ARGUMENTS`. It reads and prints lines."""

    def __init__(
        self, cluster: LocalCluster, host: str, module: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = (cluster.folder / f"{'-'.join([module, host, *arguments])}.log").open("w+")
        on_host = cluster.on(host) if isinstance(cluster, HostCluster) else ()
        self._process = subprocess.Popen(
            [*on_host, sys.executable, "-m", f"tests.deploys.{module}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            cwd=ROOT, env=cluster.env(host) | {"CLUSTERSTATE_DEADLINE": "1"} | dict(env or {}), text=True,
        )  # fmt: skip

    def line(self) -> str:
        """Waits for the next line that it prints."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], SILENT)
        assert readable, f"{self._log.name} is silent"
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"{self._log.name} has ended:\n{self._log.read()[-3000:]}")
        return line

    def send_line(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Workers:
    """A worker on each of these hosts, from entering to leaving the context. `stop()` gives what they found."""

    def __init__(self, cluster: LocalCluster, hosts: Iterable[str], env: Mapping[str, str] | None = None) -> None:
        self._workers = [SiteProcess(cluster, host, "worker", host, env=env) for host in hosts]

    def __enter__(self) -> "Workers":
        for worker in self._workers:
            assert worker.line() == "ready\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self._workers:
            worker.close()

    def stop(self) -> Found:
        """Ends the load. `verify()` then reads all that was written again."""
        found = Found()
        for worker in self._workers:
            worker.send_line()
        for worker in self._workers:
            found.add(json.loads(worker.line()))
        return found

    def verify(self, found: Found) -> None:
        for worker in self._workers:
            worker.send_line()
        for worker in self._workers:
            found.add(json.loads(worker.line()))


def until_served(cluster: LocalCluster, names: Iterable[str], requests: int) -> None:
    """Waits until these nodes have answered this number of further requests."""
    names = list(names)
    goal = sum(status.stats.requests for status in statuses(cluster, names)) + requests

    def are_served() -> bool:
        found = [cluster.status(name) for name in names]
        return sum(status.stats.requests for status in found if status is not None) >= goal

    wait_until(are_served, SECONDS, f"{requests} requests on {', '.join(names)}", LOOK)


def until_copied(cluster: LocalCluster, names: Iterable[str]) -> None:
    """Waits until these nodes are synced, and no change is on its way."""

    def are_copied() -> bool:
        found = [cluster.status(name) for name in names]
        return all(status is not None and status.copies.synced and not status.copies.lag for status in found)

    wait_until(are_copied, SECONDS, "all is copied", LOOK)


def statuses(cluster: LocalCluster, names: Iterable[str]) -> list[StatusReply]:
    """Waits until all these nodes answer."""
    found: list[StatusReply | None] = []

    def answer() -> bool:
        found[:] = [cluster.status(name) for name in names]
        return None not in found

    wait_until(answer, SECONDS, f"{', '.join(names)} answer", LOOK)
    return [status for status in found if status is not None]
