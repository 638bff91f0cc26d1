"""The ports that nodes and sites of the tests are given."""

import subprocess
import sys

from testproject.processes import ROOT, free_port, is_free

DRAWS = 500
DRAW = f"""
from testproject.processes import free_port
print(*[free_port() for _ in range({DRAWS})], flush=True)
input()  # runs on until it is told
"""


def drawing() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRAW]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def drawn_by(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_processes_that_draw_at_the_same_time_share_no_port() -> None:
    with drawing() as one, drawing() as other:
        drawn = drawn_by(one) + drawn_by(other)  # and both run on
        one.communicate("\n")
        other.communicate("\n")
    assert len(drawn) == len(set(drawn)) == 2 * DRAWS


def test_port_is_free_and_drawn_once() -> None:
    drawn = [free_port() for _ in range(DRAWS)]
    assert len(set(drawn)) == DRAWS
    assert all(map(is_free, drawn))
