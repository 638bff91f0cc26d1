"""The table in which nodes find each other's addresses: rows that grow old, and databases that fail."""

import asyncio
import contextlib
import datetime
import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from django.db import DatabaseError, OperationalError
from django.utils import timezone

from django_clusterstate.database_discovery import (
    ANNOUNCE_EVERY,
    FRESH,
    RETRY_AFTER,
    DatabaseDiscovery,
    table_problem,
)
from django_clusterstate.models import NodeAddress
from testproject.processes import ROOT, LocalCluster, wait_until
from tests.layers import SETTINGS
from tests.postgres import PostgreSQL, program

SECONDS = 60.0
PROJECT = {"DJANGO_SETTINGS_MODULE": "testproject.settings"}
OURS, THEIRS = "10.0.0.1:4370", "10.0.0.2:4370"
database = pytest.mark.django_db(transaction=True)


def ask(discovery: DatabaseDiscovery) -> list[str]:
    return list(asyncio.run(discovery.addresses()))


def seen(name: str, address: str, age: datetime.timedelta, cluster: str = "default") -> None:
    """A node renewed its row so long ago."""
    NodeAddress.objects.update_or_create(
        cluster=cluster, name=name, defaults={"address": address, "seen": timezone.now() - age}
    )


SECOND = datetime.timedelta(seconds=1)
STARTED = timezone.now()


@database
def test_address_is_used_only_while_its_node_renews_it() -> None:
    discovery = DatabaseDiscovery("a", "default", OURS)
    seen("b", THEIRS, FRESH - 10 * SECOND)
    seen("of another cluster", "10.0.0.9:1", 0 * SECOND, "shop")
    assert ask(discovery) == [THEIRS]
    seen("b", THEIRS, FRESH + 10 * SECOND)
    assert ask(discovery) == []
    seen("b", THEIRS, 0 * SECOND)
    assert ask(discovery) == [THEIRS]


@database
def test_row_that_was_renewed_since_the_last_read_is_used_whatever_its_time() -> None:
    discovery = DatabaseDiscovery("a", "default", OURS)
    for seconds, given in ((3600, []), (3600, []), (3590, [THEIRS]), (3590, [])):
        NodeAddress.objects.update_or_create(
            cluster="default", name="b", defaults={"address": THEIRS, "seen": STARTED - seconds * SECOND}
        )
        assert ask(discovery) == given


@database
def test_rows_are_deleted_after_a_day() -> None:
    seen("b", THEIRS, 23 * 3600 * SECOND)
    seen("c", THEIRS, 25 * 3600 * SECOND)
    assert ask(DatabaseDiscovery("a", "default", OURS)) == []
    assert {row.name for row in NodeAddress.objects.all()} == {"a", "b"}


@database
def test_node_keeps_one_row_and_deletes_it_when_it_leaves() -> None:
    discovery = DatabaseDiscovery("a", "default", OURS)
    ask(discovery)
    ask(discovery)
    (row,) = NodeAddress.objects.all()
    assert (row.cluster, row.name, row.address) == ("default", "a", OURS)
    assert abs(timezone.now() - row.seen) < 10 * SECOND
    asyncio.run(discovery.withdraw())
    assert not NodeAddress.objects.exists()


@database
def test_others_are_found_while_our_own_row_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others probably can't renew theirs either, so the ages are relative to the newest row."""
    discovery = DatabaseDiscovery("a", "default", OURS)
    seen("b", THEIRS, 3600 * SECOND)
    seen("c", "10.0.0.3:1", 3600 * SECOND + FRESH / 2)
    seen("d", "10.0.0.4:1", 3600 * SECOND + FRESH * 2)

    def full() -> None:
        raise OperationalError("database or disk is full")

    monkeypatch.setattr(discovery._announcing, "_work", full)
    assert ask(discovery) == [THEIRS, "10.0.0.3:1"]
    assert "this node's row cannot be written: OperationalError: database or disk is full" in discovery.problem
    monkeypatch.undo()
    discovery._intervals.clear()
    assert discovery.interval == RETRY_AFTER
    assert ask(discovery) == []
    assert discovery.problem == ""
    assert discovery.interval == ANNOUNCE_EVERY


@database
def test_our_own_row_is_written_while_the_others_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    discovery = DatabaseDiscovery("a", "default", OURS)

    def fail() -> dict[str, str]:
        raise DatabaseError("permission denied")

    monkeypatch.setattr(discovery._reading, "_work", fail)
    with pytest.raises(DatabaseError):
        ask(discovery)
    assert NodeAddress.objects.filter(name="a", address=OURS).exists()


@database
def test_row_without_a_valid_address_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    discovery = DatabaseDiscovery("a", "default", OURS)
    seen("b", "nonsense", 0 * SECOND)
    seen("d", "web-4:4370", 0 * SECOND)
    seen("c", THEIRS, 0 * SECOND)
    with caplog.at_level(logging.WARNING, "django_clusterstate.node"):
        assert [ask(discovery), ask(discovery)] == [[THEIRS], [THEIRS]]
    assert (
        caplog.text.count("address of node b in the discovery table is invalid, so it is not dialed: 'nonsense'") == 1
    )


@database
def test_loopback_address_of_a_node_is_logged_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    ours = DatabaseDiscovery("a", "default", OURS)
    theirs = DatabaseDiscovery("b", "default", "127.0.0.1:4370")
    with caplog.at_level(logging.WARNING, "django_clusterstate.node"):
        ask(theirs)
        assert ask(ours) == []
        assert ask(theirs) == [OURS]
    assert "node b advertises 127.0.0.1:4370, which is reachable only from its own host" in caplog.text
    assert "this node advertises 127.0.0.1:4370, which node a cannot reach" in caplog.text


@database
def test_failing_database_is_told_apart_from_a_missing_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        def exists(self) -> bool:
            raise OperationalError("database is locked")

    assert table_problem() == ("", False)
    monkeypatch.setattr(NodeAddress, "objects", Rows())
    assert table_problem() == ("OperationalError: database is locked", False)
    monkeypatch.setattr(NodeAddress._meta, "db_table", "never_made")
    assert table_problem() == ("OperationalError: database is locked", True)


# -- real nodes on a real database ------------------------------------------------------------------------------------


@pytest.fixture
def nodes(folder: Path) -> Iterator[LocalCluster]:
    env = {"DEMO_RUN_DIR": str(folder)}
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=os.environ | PROJECT | env, check=True
    )
    with LocalCluster(folder, ("a", "b"), env=env, discovery="database") as cluster:
        yield cluster


def _locked(folder: Path, kind: str) -> sqlite3.Connection:
    """Another process's transaction: `IMMEDIATE` keeps others from writing, `EXCLUSIVE` from reading too."""
    connection = sqlite3.connect(folder / "db.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute(f"BEGIN {kind}")
    return connection


def test_nodes_meet_while_the_database_cannot_be_written_to(nodes: LocalCluster, folder: Path) -> None:
    nodes.start("a")
    nodes.wait_for("a")
    wait_until(lambda: _rows(folder) == {"a"}, SECONDS, "its row")
    lock = _locked(folder, "IMMEDIATE")
    nodes.start("b")
    nodes.wait_for("a", "b")
    wait_until(
        lambda: "this node's row has not been written after 3 s" in nodes.processes["b"].output(), SECONDS, "said"
    )
    lock.execute("ROLLBACK")
    wait_until(lambda: "discovery recovered" in nodes.processes["b"].output(), 2 * SECONDS, "said")
    wait_until(lambda: _rows(folder) == {"a", "b"}, SECONDS, "both rows")


def test_nodes_start_while_the_database_is_locked_and_meet_when_it_is_not(nodes: LocalCluster, folder: Path) -> None:
    lock = _locked(folder, "EXCLUSIVE")
    nodes.start("a", "b")
    for name in ("a", "b"):
        wait_until(partial(_says, nodes, name, "cannot read discovery table yet"), SECONDS, "said")
        assert "no answer after 3 s: is it locked or unreachable?" in _said(nodes, name)
        assert "manage.py migrate" not in _said(nodes, name)
    lock.execute("ROLLBACK")
    nodes.wait_for("a", "b", seconds=2 * SECONDS)


# -- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.fixture
def postgres() -> Iterator[PostgreSQL]:
    if program("initdb") is None:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        server = PostgreSQL(Path(folder))
        try:
            subprocess.run(
                [sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=os.environ | _env(server), check=True
            )
            yield server
        finally:
            with contextlib.suppress(RuntimeError):  # a test may have stopped it
                server.stop()


def _env(postgres: PostgreSQL) -> dict[str, str]:
    database = {**postgres.settings, "CONN_MAX_AGE": None}
    return {"DJANGO_SETTINGS_MODULE": SETTINGS, "TEST_DATABASE": json.dumps(database)}


def _query(postgres: PostgreSQL, text: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(f"host=127.0.0.1 port={postgres.port} user=test dbname=postgres") as connection:
        return connection.execute(text).fetchall()


def test_nodes_keep_no_connection_and_find_each_other_after_the_database_was_restarted(
    folder: Path, postgres: PostgreSQL
) -> None:
    with LocalCluster(folder, ("a", "b"), env=_env(postgres), discovery="database") as cluster:
        cluster.start("a")
        cluster.wait_for("a")
        others = "SELECT pid FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()"
        wait_until(lambda: not _query(postgres, others), SECONDS, "no connection")
        rows = "SELECT name FROM django_clusterstate_nodeaddress WHERE seen > now() - interval '4 s'"
        postgres.stop()
        cluster.start("b")
        cluster.wait_for("b")
        assert "cannot read discovery table yet" in _said(cluster, "b")
        assert "manage.py migrate" not in _said(cluster, "b")
        postgres.start()
        cluster.wait_for("a", "b", seconds=3 * SECONDS)
        wait_until(lambda: ("b",) in _query(postgres, rows), SECONDS, "its row")


def test_nodes_meet_on_a_database_that_became_read_only(folder: Path, postgres: PostgreSQL) -> None:
    with LocalCluster(folder, ("a", "b"), env=_env(postgres), discovery="database") as cluster:
        cluster.start("a")
        cluster.wait_for("a")
        wait_until(lambda: bool(_query(postgres, "SELECT 1 FROM django_clusterstate_nodeaddress")), SECONDS, "its row")
        with psycopg.connect(f"host=127.0.0.1 port={postgres.port} user=test dbname=postgres") as connection:
            connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        cluster.start("b")
        cluster.wait_for("a", "b")
        assert "this node's row cannot be written" in _said(cluster, "b")


def _says(cluster: LocalCluster, name: str, text: str) -> bool:
    return text in _said(cluster, name)


def _said(cluster: LocalCluster, name: str) -> str:
    return cluster.processes[name].output()


def _rows(folder: Path) -> set[str]:
    with sqlite3.connect(folder / "db.sqlite3") as connection:
        return {name for (name,) in connection.execute("SELECT name FROM django_clusterstate_nodeaddress")}
