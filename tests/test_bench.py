"""The benchmark runs and reports everything. Its figures are judged by nobody here: they are a machine's.

In `make timing`, since it takes the whole machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testproject.processes import ROOT

pytestmark = pytest.mark.timing(alone=True)

GROUPS = {
    "floor",
    "cache.get",
    "cache.set",
    "cache.incr",
    "cache.get_many(100)",
    "cache.get_or_set",
    "cache.get_or_set, a miss",
    "limit, fixed window",
    "limit, sliding window",
    "limit, token bucket",
    "limit, two rates at once",
    "limit, a key that was just denied",
    "limit, decorated view",
    "cache.aget",
    "cache.aset",
    "cache.aincr",
    "cache.aget_many(100)",
    "cache.aget_or_set",
    "cache.aget_or_set, a miss",
    "ahit, fixed window",
    "ahit, sliding window",
    "ahit, token bucket",
    "ahit, two rates at once",
    "ahit, a key that was just denied",
    "owner lookup",
}


PATIENT = {"CLUSTERSTATE_DEADLINE": "10"}  # a busy machine may hold up a node


def run(report: Path, **environment: str) -> tuple[str, dict[str, Any]]:
    """What a quick run prints, and what it writes."""
    command = [sys.executable, "-m", "bench", "--quick", "--json", str(report)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **PATIENT, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(report.read_text())


def test_every_case_is_measured_or_says_why_not(tmp_path: Path) -> None:
    printed, report = run(tmp_path / "bench.json")
    cases = report["cases"].values()
    assert {case["group"] for case in cases} == GROUPS
    for case in cases:
        assert case["microseconds"] or case["not_measured"], case
        assert case["group"] in printed
        assert case["who"] in printed
        for figures in case["microseconds"].values():
            assert 0 < figures["median"] <= figures["p99"]
    assert all(case["microseconds"] for case in cases if case["who"].startswith("this, "))
    assert len(report["claims"]) == 11
    for claim in report["claims"]:
        assert claim["text"] in printed
        assert (claim["held"] is None) == (None in claim["times"].values())


def test_some_rows_alone_are_measured_for_who_works_on_them(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "limit, two", "--json", str(report)]
    subprocess.run(command, cwd=ROOT, env=os.environ | PATIENT, capture_output=True, check=True, timeout=600)
    assert {case["group"] for case in json.loads(report.read_text())["cases"].values()} == {"limit, two rates at once"}


def test_peers_that_are_not_installed_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    printed, report = run(tmp_path / "bench.json", PATH=str(tmp_path / "empty"))
    reasons = {case["who"]: case["not_measured"] for case in report["cases"].values()}
    assert reasons["Redis (TCP)"] == "no redis-server"
    assert reasons["Memcached (TCP)"] == "no memcached"
    assert "not measured" in printed
    claims = {claim["text"]: claim["held"] for claim in report["claims"]}
    assert list(claims.values()).count(None) == 7


def test_a_full_cache_is_measured_at_three_sizes() -> None:
    command = [sys.executable, "-m", "bench.million", "--kinds", "full", "--count", "100000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    figures = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in figures] == ["1,000", "10,000", "100,000"]
    assert all(len(row) == 5 and min(map(float, row[1:])) > 0 for row in figures)


def test_each_option_is_explained() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    for option in ("--rounds", "--only", "--check", "--quick", "--json"):
        assert option in done.stdout
