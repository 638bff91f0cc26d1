"""A disk that is full, and a host where nothing but the directory of the socket is writable."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testproject.processes import ROOT, LocalCluster, Process, wait_until
from tests.faults.hosts import run
from tests.faults.observing import SECONDS

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare"),
]

PROJECT = {"DJANGO_SETTINGS_MODULE": "testproject.settings"}


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        run("umount", "-l", str(disk))


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 512)


def test_nodes_meet_while_the_disk_of_the_database_is_full(folder: Path, small_disk: Path) -> None:
    env = {"DEMO_RUN_DIR": str(small_disk)}
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=os.environ | PROJECT | env, check=True
    )
    with LocalCluster(folder, ("a", "b"), env=env, discovery="database") as cluster:
        cluster.start("a")
        cluster.wait_for("a")
        _fill(small_disk)
        cluster.start("b")
        cluster.wait_for("a", "b")
        said = cluster.processes["b"].output
        wait_until(lambda: "this node's row cannot be written" in said(), SECONDS, "said")
        assert "full" in said()
        (small_disk / "filler").unlink()
        wait_until(lambda: "discovery recovered" in said(), 2 * SECONDS, "said")


READ_ONLY = """
for folder in /tmp /var/tmp /dev/shm "$0"; do
    mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 9
done
exec "$@"
"""
WEB = """
import tempfile
try:
    print("temporary directory:", tempfile.gettempdir())
except FileNotFoundError:
    print("no temporary directory")
import django
django.setup()
from django.core.cache import cache
cache.set("key", "value")
print("read:", cache.get("key"))
"""


@pytest.fixture
def run_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/run") as folder:
        yield Path(folder)


def test_node_and_web_run_where_only_the_sockets_directory_can_be_written_to(run_folder: Path) -> None:
    read_only = ("unshare", "--mount", "sh", "-c", READ_ONLY, str(ROOT))
    with LocalCluster(run_folder, ("a",)) as cluster:
        env = {key: value for key, value in cluster.env("a").items() if key not in ("TMPDIR", "TEMP", "TMP")}
        command = [*read_only, sys.executable, "manage.py", "clusternode"]
        cluster.processes["a"] = Process(command, run_folder / "a.log", env)
        cluster.wait_for("a")
        command = [*read_only, sys.executable, "-c", WEB]
        done = subprocess.run(
            command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        assert done.stdout.splitlines() == ["no temporary directory", "read: value"], done.stderr
