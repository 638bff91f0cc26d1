"""What `events.track()` costs, and how many events three nodes take in: `python -m bench.events`."""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import django

from testproject.processes import ROOT, LocalCluster

NODES = ("one", "two", "three")
CALLS = 5_000  # fewer sums than a process has room for
ROUNDS = 20
PROCESSES = 8
SECONDS = 5.0
RATE = 100_000  # events a second, of all processes together

CASES = {
    "a name": "track('login')",
    "with a key and a field": "track('export.failed', key='17', reason='timeout')",
    "with a key and eight fields": "track('failed', key='17', a='a', b=1, c=1.5, d=True, e='e', f=2, g=2.5, h=0)",
    "with a new key each time": "track('export.failed', key=next(numbers), reason='timeout')",
}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench.settings")
    with (
        tempfile.TemporaryDirectory(prefix="clusterstate-bench-") as folder,
        LocalCluster(Path(folder), NODES) as nodes,
    ):
        nodes.start()
        nodes.wait_for()
        os.environ.update(nodes.env(NODES[0]))
        django.setup()
        _cost()
        for keys in (20, 10_000):
            _throughput(nodes, keys)


def _cost() -> None:
    from django_clusterstate import events  # noqa: PLC0415 - after the settings are known

    for what, statement in CASES.items():
        names = {"track": events.track, "numbers": itertools.count()}
        rounds = []
        for _ in range(ROUNDS):
            rounds.append(timeit.timeit(statement, globals=names, number=CALLS) / CALLS * 1e6)
            events.flush()
        print(f"track() {what:<30} median {statistics.median(rounds):5.2f} us, slowest round {max(rounds):5.2f} us")
    print(f"dropped: {events.dropped()}")


def _throughput(nodes: LocalCluster, keys: int) -> None:
    """Processes that track at a steady rate; what has arrived, and what it took of the CPUs."""
    from django_clusterstate import events  # noqa: PLC0415 - after the settings are known

    name = f"bench with {keys} keys"
    number = int(RATE * SECONDS / PROCESSES)
    command = [sys.executable, "-m", "bench.tracking", name, str(number), str(keys), str(SECONDS)]
    before = _cpu(nodes)
    start = time.perf_counter()
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=nodes.env(NODES[i % 3]), stdout=subprocess.PIPE, text=True)
        for i in range(PROCESSES)
    ]
    said = [worker.communicate()[0].split() for worker in workers]
    seconds = max(float(took) for took, _, _ in said)
    used = sum(float(cpu) for _, cpu, _ in said)
    dropped = sum(int(lost) for _, _, lost in said)
    counted = events.counts(name).total
    print(
        f"{PROCESSES} processes, {keys} keys: {number * PROCESSES / seconds:,.0f} events/s; of {number * PROCESSES:,} "
        f"{counted:,} counted, {dropped:,} dropped; CPU seconds: {used:.1f} of the processes, "
        f"{_cpu(nodes) - before:.1f} of the nodes, in {time.perf_counter() - start:.1f} s"
    )


def _cpu(nodes: LocalCluster) -> float:
    """Seconds of CPU that the nodes have used."""
    ticks = 0
    for process in nodes.processes.values():
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
