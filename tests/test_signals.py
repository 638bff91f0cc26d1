"""Receivers of the cluster's signals that use the database, while a real PostgreSQL is restarted beneath them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from testproject.processes import ROOT, LocalCluster, wait_until
from tests.layers import SETTINGS
from tests.postgres import PostgreSQL, program

SECONDS = 60.0
RESTARTS = 2


@pytest.fixture
def postgres() -> Iterator[PostgreSQL]:
    if program("initdb") is None:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="cs-pg-") as folder:
        server = PostgreSQL(Path(folder))
        yield server
        server.stop()


def open_connections(postgres: PostgreSQL) -> int:
    """Of all clients but this one."""
    with psycopg.connect(host="127.0.0.1", port=postgres.port, user="test", dbname="postgres") as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def has_lines(file: Path, wanted: set[str]) -> bool:
    return file.exists() and wanted <= set(file.read_text().splitlines())


@pytest.mark.parametrize("max_age", [0, None], ids=["CONN_MAX_AGE=0", "CONN_MAX_AGE=None"])
def test_receivers_that_use_the_database_outlive_its_restart_and_keep_no_connection(
    folder: Path, postgres: PostgreSQL, max_age: int | None
) -> None:
    file = folder / "signals"
    env = {
        "DJANGO_SETTINGS_MODULE": SETTINGS,
        "SIGNALS_FILE": str(file),
        "SIGNALS_STORED": "1",
        "TEST_DATABASE": json.dumps({**postgres.settings, "CONN_MAX_AGE": max_age}),
    }
    migrate = [sys.executable, "manage.py", "migrate", "-v0", "django_clusterstate"]
    subprocess.run(migrate, cwd=ROOT, env=os.environ | env, check=True)
    with LocalCluster(folder, ("a", "b"), env=env) as cluster:
        cluster.start()
        for number in range(1, RESTARTS + 2):
            cluster.wait_for()
            cluster.kill("b")
            wanted = {f"sync stored b {number}", f"async stored b {number}"}
            wait_until(partial(has_lines, file, wanted), SECONDS, f"{wanted}")
            wait_until(lambda: open_connections(postgres) == 0, SECONDS, "no connection is left open")
            postgres.restart()
            cluster.start("b")
        assert "OperationalError" not in cluster.processes["a"].output()
