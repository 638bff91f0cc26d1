"""Processes of sites under load beside a cluster, and what they found."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from testproject.processes import ROOT, LocalCluster, wait_until
from tests.deploys.worker import LIMIT

SECONDS = 120.0


@dataclass
class Found:
    """What all workers found together."""

    operations: int = 0
    written: int = 0
    missed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    increments: Counter[str] = field(default_factory=Counter)
    admitted: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    held: list[tuple[str, float, float]] = field(default_factory=list)
    slowest: float = 0.0
    read: int = 0
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

    @property
    def readable(self) -> float:
        """The share of the written entries that were read in the end, with their last values."""
        return 1 - len(self.wrong) / max(self.read, 1)

    @property
    def most_admitted(self) -> int:
        return max(self.admitted.values(), default=0)

    @property
    def above_limit(self) -> list[str]:
        """The limits of which more hits passed than promised."""
        most = LIMIT + max(1, LIMIT * 5 // 100)
        return [f"{key}: {count}" for key, count in self.admitted.items() if count > most]

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
            f"{self.operations} operations; {self.readable:.2%} of {self.read} entries read in the end; "
            f"missed {len(self.missed)}, stale {len(self.stale)}, errors {len(self.errors)} {self.errors[:3]}; "
            f"admitted at most {self.most_admitted} of {LIMIT}; fallbacks {dict(self.fallbacks)}; "
            f"counters wrong {self.miscounted[:5]}; locks held twice {len(self.held_twice)} of {len(self.held)}; "
            f"slowest {self.slowest * 1000:.0f} ms"
        )


class Worker:
    """One process on the host of a node."""

    def __init__(self, cluster: LocalCluster, host: str, number: int) -> None:
        self._log = (cluster.folder / f"worker-{host}-{number}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploys.worker", f"{host}-{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            cwd=ROOT, env=cluster.env(host) | {"CLUSTERSTATE_DEADLINE": "1"}, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"a worker has ended:\n{self._log.read()[-3000:]}")
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
    """Workers on these hosts, from entering to leaving the context. `stop()` gives what they found."""

    def __init__(self, cluster: LocalCluster, hosts: Iterable[str], each: int = 1) -> None:
        self._workers = [Worker(cluster, host, number) for host in hosts for number in range(each)]

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


def wait_until_synced(cluster: LocalCluster, names: Iterable[str]) -> float:
    """Seconds until these nodes are one cluster in which each key has its backup."""
    names = list(names)
    cluster.wait_for(*names)
    return wait_until(
        lambda: all((status := cluster.status(name)) is not None and status.copies.synced for name in names),
        SECONDS,
        f"{', '.join(names)} are synced",
    )
