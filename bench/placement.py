"""On which processors the two sides of an exchange run.

Waking a process on another processor costs tens of microseconds on some machines, virtual ones above all, and next to
nothing on others; left to itself, the scheduler places each pair as it happens to. So a run measures two placements,
and says for each which it is: on one processor a figure is the work of both sides and nothing else; on two it is
that and two wake-ups, as between two hosts, unless a side looks for what comes before it sleeps.

On two, the servers are held on one processor, and this process begins each batch on the other. It isn't held there: who
may use one processor only never looks for an answer.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SETTLE = 0.02  # seconds; for 0.01 a process goes by what it has last seen of idle processors


@dataclass(frozen=True)
class Placement:
    """The processors of this process, where it begins, and those of the servers; none: where the system puts them."""

    name: str
    ours: frozenset[int] = frozenset()
    home: frozenset[int] = frozenset()
    theirs: frozenset[int] = frozenset()

    def apply(self, servers: Iterable[int]) -> None:
        """Moves this process and the servers, given by their process ids, with all their threads."""
        if self.ours:
            _pin(os.getpid(), self.ours)
            for pid in servers:
                _pin(pid, self.theirs)
            time.sleep(SETTLE)

    def begin(self) -> None:
        """Moves this thread to where it begins; from there the system may move it."""
        if self.ours:
            os.sched_setaffinity(0, self.home)
            os.sched_setaffinity(0, self.ours)

    def stayed(self) -> bool:
        """Whether this thread is where it began."""
        return not self.ours or _processor() in self.home


def placements() -> Sequence[Placement]:
    """What this machine allows."""
    if not hasattr(os, "sched_getaffinity"):
        return [Placement("unpinned")]
    cpus = sorted(os.sched_getaffinity(0))
    first = frozenset(cpus[:1])
    one = Placement("one CPU", first, first, first)
    return [one, Placement("two CPUs", frozenset(cpus[:2]), first, frozenset(cpus[1:2]))] if len(cpus) > 1 else [one]


def _processor() -> int:
    return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])


def _pin(pid: int, cpus: frozenset[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(thread.name), cpus)
