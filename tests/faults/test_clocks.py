"""Wall clocks that jump, or differ between hosts, by an hour. Figures are printed (-s)."""

import contextlib
import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from django_clusterstate.client.blocking import Client
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import DecisionsReply, Get, Hit, Set, ValuesReply, encode
from testproject.processes import ROOT, LocalCluster
from tests.faults.observing import moves
from tests.faults.requesters import client_on

SOURCE = Path(__file__).with_name("wall_clock.c")

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (Debian: apt-get install gcc)"),
]

Figure = Callable[[str, object], None]
NAMES = ("a", "b", "c")
RULES = [Rule(Algorithm.FIXED_WINDOW, 10, 600.0), Rule(Algorithm.SLIDING_WINDOW, 10, 600.0)]


class SkewedCluster(LocalCluster):
    """The wall clock of each node is set by a file.

    libfaketime isn't used: with it, threads that start hold up a process for up to two seconds now and then.
    """

    def clock(self, name: str) -> Path:
        return self.folder / f"{name}.clock"

    def shift(self, name: str, hours: int) -> None:
        self.clock(name).touch()
        with self.clock(name).open("r+b") as file:  # which a running node has mapped
            file.write((hours * 3600).to_bytes(8, sys.byteorder, signed=True))

    def env(self, name: str) -> dict[str, str]:
        return {
            **super().env(name),
            "LD_PRELOAD": str(self.folder / "wall_clock.so"),
            "WALL_CLOCK": str(self.clock(name)),
        }


def hours_ahead(cluster: LocalCluster, name: str) -> int:
    """By the time of the last line of the node's log, written this moment."""
    said = cluster.processes[name].output().splitlines()[-1][:19]
    logged = datetime.datetime.strptime(said, "%Y-%m-%d %H:%M:%S").astimezone()
    return round((logged.timestamp() - time.time()) / 3600)


def retry_after(client: Client, key: bytes) -> list[float]:
    """Of each rule, when all deny."""
    decided = client.call(key, frame(encode(Hit(b"\0" + key, RULES))))
    assert isinstance(decided, DecisionsReply)
    assert not any(decision.allowed for decision in decided.decisions)
    return [decision.retry_after for decision in decided.decisions]


@pytest.mark.parametrize("discovery", ["", "database"])
def test_wall_clocks_decide_nothing(folder: Path, figure: Figure, discovery: str) -> None:
    env = {"DEMO_RUN_DIR": str(folder)}
    if discovery:
        settings = {"DJANGO_SETTINGS_MODULE": "testproject.settings"}
        migrate = [sys.executable, "manage.py", "migrate", "-v0"]
        subprocess.run(migrate, cwd=ROOT, env=os.environ | settings | env, check=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "wall_clock.so", SOURCE], check=True)
    cluster = SkewedCluster(folder, NAMES, env=env, discovery=discovery)
    with cluster:
        for name, jump in zip(NAMES, (0, 1, -1), strict=True):
            cluster.shift(name, jump)
        cluster.start()
        figure("one view with clocks an hour apart after", f"{cluster.wait_for():.2f} s")
        ahead = [hours_ahead(cluster, name) for name in NAMES]
        figure("hours ahead, by their logs", ahead)
        assert ahead == [0, 1, -1]
        with contextlib.closing(client_on(cluster, "a", 5.0)) as client:
            keys = [b"default\0key %d" % number for number in range(30)]
            for key in keys:  # of all owners
                client.call(key, frame(encode(Hit(b"\0" + key, RULES, 10))))
                client.call(key, frame(encode(Set([(key, b"value")], 600.0))))
            start = time.monotonic()
            waits = {key: retry_after(client, key) for key in keys}
            worst = 0.0
            for jumps in ((1, -1, 0), (-1, 0, 1), (0, 0, 0)):
                for name, jump in zip(NAMES, jumps, strict=True):
                    cluster.shift(name, jump)
                time.sleep(4)  # longer than silence is borne
                cluster.wait_for()
                for key in keys:  # no window was reset, nor is anyone locked out for longer
                    passed = time.monotonic() - start
                    drift = [b - passed - now for b, now in zip(waits[key], retry_after(client, key), strict=True)]
                    worst = max(worst, *map(abs, drift))
                    got = client.call(key, frame(encode(Get([key]))))
                    assert isinstance(got, ValuesReply)
                    assert got.values == [b"value"]
        figure("a limit's retry-after moved by at most", f"{worst:.3f} s")
        assert worst < 1
        figure("suspect, times", len(moves(cluster, MemberState.SUSPECT)))
        figure("down, times", len(moves(cluster, MemberState.DOWN)))
        assert not moves(cluster, MemberState.DOWN)
        assert not moves(cluster, MemberState.SUSPECT)
