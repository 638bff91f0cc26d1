"""Nodes as real processes: how they find each other, leave, are killed, come back, and refuse to start."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from django_clusterstate.client.blocking import Client
from django_clusterstate.client.dialing import Dialer
from django_clusterstate.client.routing import Routing
from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.exceptions import ClusterStateError, Unavailable
from django_clusterstate.node.server import MAX_CONNECTIONS
from django_clusterstate.wire.address import UnixAddress
from django_clusterstate.wire.aio import AsyncConnection
from django_clusterstate.wire.derived_keys import derive_link_keys
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import Get, GetReport, Hit, ReportReply, Set, StatusReply, ValuesReply, encode
from django_clusterstate.wire.status import Changes
from testproject import settings as demo_settings
from testproject.processes import ROOT, LocalCluster, Process, free_port, wait_until
from tests.layers import LAYERS, SETTINGS, Layer
from tests.timing import check_seconds

PROJECT = {"DJANGO_SETTINGS_MODULE": "testproject.settings"}
SECONDS = 60.0
# A busy machine may hold up a node.
PATIENT = {"CLUSTERSTATE_SUSPECT_AFTER": "20", "CLUSTERSTATE_DOWN_AFTER": "30", "CLUSTERSTATE_DEADLINE": "10"}
_CACHE = {"BACKEND": "django_clusterstate.cache.ClusterCache"}
CACHES = {"default": _CACHE, "small": {**_CACHE, "LOCATION": "small", "OPTIONS": {"MAX_BYTES": 1024 * 1024}}}
KEYS = derive_link_keys([demo_settings.SECRET_KEY], "default")


def sees(cluster: LocalCluster, observer: str, name: str, *states: str) -> bool:
    status = cluster.status(observer)
    return status is not None and any(m.identity.name == name and m.state in states for m in status.members)


def client_of(cluster: LocalCluster, name: str) -> Client:
    return Client(Routing(UnixAddress(str(cluster.socket(name)))), Dialer(KEYS, 10.0))


# -- becoming a cluster -------------------------------------------------------------------------------------------


def test_nodes_started_in_the_same_instant_become_one_cluster(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b", "c"), env=layer.env) as cluster:
        cluster.start()
        cluster.wait_for()


def test_nodes_started_in_the_same_instant_become_one_cluster_by_the_database(folder: Path) -> None:
    env = {"DEMO_RUN_DIR": str(folder)}
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=os.environ | PROJECT | env, check=True
    )
    with LocalCluster(folder, ("a", "b", "c"), env=env, discovery="database") as cluster:
        cluster.start()
        cluster.wait_for()


def test_a_node_finds_another_by_dns(folder: Path) -> None:
    with LocalCluster(folder, ("a", "b"), ports=[port := free_port(), free_port()]) as cluster:
        cluster.discovery = f"dns://localhost:{port}"
        cluster.start()
        cluster.wait_for()


def test_one_known_address_is_enough_to_meet_all(folder: Path) -> None:
    with LocalCluster(folder, ("a", "b", "c", "d")) as cluster:
        cluster.discovery = f"127.0.0.1:{cluster.ports['a']}"
        cluster.start()
        cluster.wait_for()


@pytest.mark.parametrize("layer", LAYERS[1:], indirect=True)
def test_no_discovery_is_needed_where_the_layer_brings_the_heartbeats_to_all(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b"), env=layer.env, discovery="database") as cluster:  # which doesn't exist
        cluster.start()
        cluster.wait_for()


def test_two_clusters_on_one_host_ignore_each_other(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b"), env=layer.env) as cluster:
        cluster.start("a")
        other = Process(
            [sys.executable, "manage.py", "clusternode"], folder / "b.log",
            cluster.env("b") | {"CLUSTERSTATE_CLUSTER": "another"},
        )  # fmt: skip
        cluster.processes["b"] = other
        cluster.wait_for("a")
        cluster.wait_for("b")
        wait_until(lambda: "belongs to a different cluster" in other.output(), SECONDS, "b is refused")


# -- leaving, dying, coming back ----------------------------------------------------------------------------------


@pytest.mark.timing
def test_a_killed_node_is_down_within_half_a_second_and_no_requester_gets_an_error(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b", "c"), env=layer.env) as cluster:
        cluster.start()
        cluster.wait_for()
        errors: list[Exception] = []
        asked = [0]
        over = threading.Event()
        threads = [
            threading.Thread(target=_hit_until, args=(cluster, name, over, errors, asked)) for name in ("a", "b")
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: asked[0] > 200, SECONDS, "requests under way")
        killed = time.monotonic()
        cluster.kill("c")
        wait_until(lambda: all(sees(cluster, n, "c", "down") for n in ("a", "b")), SECONDS, "c down")
        seconds = time.monotonic() - killed
        before = asked[0]
        wait_until(lambda: asked[0] > before + 200, SECONDS, "requests go on")
        said = ": all keys have backups again, "
        wait_until(lambda: all(said in cluster.processes[n].output() for n in ("a", "b")), SECONDS, "new backups")
        over.set()
        for thread in threads:
            thread.join()
        assert not errors
        check_seconds(seconds, below=0.5)


def _hit_until(
    cluster: LocalCluster, name: str, over: threading.Event, errors: list[Exception], asked: list[int]
) -> None:
    """Hits many keys, of all owners; an owner that doesn't answer is replaced by this host's node."""
    client = client_of(cluster, name)
    rules = [Rule(Algorithm.FIXED_WINDOW, 10**6, 3600.0)]
    while not over.is_set():
        key = b"\0key %d" % (asked[0] % 100)
        request = frame(encode(Hit(key, rules)))
        try:
            try:
                client.call(key, request)
            except ClusterStateError:
                with contextlib.suppress(Unavailable):  # from a node that has forwarded it: the process decides alone
                    client.call_node(client.routing.local, request)
        except Exception as error:  # what a view would see
            errors.append(error)
        asked[0] += 1
    client.close()


def test_a_node_that_is_told_to_stop_leaves_first_and_serves_on(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b"), env=layer.env | PATIENT) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.processes["b"].signal(signal.SIGTERM)
        wait_until(lambda: sees(cluster, "a", "b", "leaving"), SECONDS, "b leaving")
        assert cluster.processes["b"].running
        client = client_of(cluster, "b")
        client.call_node(client.routing.local, frame(encode(Get([b"default\0key"]))))
        client.close()
        wait_until(lambda: sees(cluster, "a", "b", "left"), SECONDS, "b left")
        assert cluster.processes["b"].wait(SECONDS) == 0
        assert not cluster.socket("b").exists()
        assert "down" not in cluster.processes["a"].output()


@pytest.mark.timing
def test_a_second_signal_stops_a_node_at_once(folder: Path) -> None:
    with LocalCluster(folder, ("a", "b")) as cluster:
        cluster.start()
        cluster.wait_for()
        process = cluster.processes["b"]
        process.signal(signal.SIGTERM)
        wait_until(lambda: sees(cluster, "a", "b", "leaving"), SECONDS, "b leaving")
        start = time.monotonic()
        process.signal(signal.SIGINT)
        assert process.wait(SECONDS) == 1  # and not 0, as if it had left
        check_seconds(time.monotonic() - start, below=1.0)


def test_a_killed_node_comes_back_under_its_name_and_takes_its_socket_again(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b", "c"), env=layer.env) as cluster:
        cluster.start()
        cluster.wait_for()
        before = _boots(cluster)
        cluster.kill("b")
        cluster.start("b")
        cluster.wait_for()
        after = _boots(cluster)
        assert before["b"] != after["b"]
        assert before["c"] == after["c"]


def _boots(cluster: LocalCluster) -> dict[str, bytes]:
    return {member.identity.name: member.identity.boot for member in _status(cluster).members}


def _status(cluster: LocalCluster) -> StatusReply:
    """That of the node a, however long it takes."""
    found: list[StatusReply] = []

    def answers() -> bool:
        status = cluster.status("a")
        found.extend([] if status is None else [status])
        return status is not None

    wait_until(answers, SECONDS, "the status of a")
    return found[-1]


def test_the_log_has_a_line_for_each_state_change_and_nothing_else(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b"), env=layer.env | PATIENT) as cluster:
        cluster.start()
        cluster.wait_for()
        beats = _heard(cluster)
        wait_until(lambda: _heard(cluster) > beats + 4, SECONDS, "more heartbeats")
        lines = cluster.processes["a"].output().splitlines()
        assert " started, " in lines[0]
        assert all(" -> " in line or " took over " in line or " joins, and receives " in line for line in lines[1:])
        assert len([line for line in lines if " took over " in line]) <= 1
        assert len([line for line in lines if " joins, and receives " in line]) <= 1
        assert len(lines) <= 7, lines


def _heard(cluster: LocalCluster) -> int:
    return _status(cluster).stats.heartbeats_heard


def test_signals_tell_a_project_of_every_change_even_past_a_broken_receiver(folder: Path, layer: Layer) -> None:
    file = folder / "signals"
    env = layer.env | {"DJANGO_SETTINGS_MODULE": SETTINGS, "SIGNALS_FILE": str(file)}
    with LocalCluster(folder, ("a", "b", "c"), env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.kill("b")
        wait_until(lambda: sees(cluster, "a", "b", "down"), SECONDS, "b down")
        cluster.processes["c"].signal(signal.SIGTERM)
        wait_until(lambda: sees(cluster, "a", "c", "left"), SECONDS, "c left")
        cluster.start("b")
        cluster.wait_for("a", "b")
        wanted = {"member_up a", "member_up b", "member_up c", "member_down b", "member_left c", "view a,b,c -> a,c"}
        wait_until(lambda: wanted <= set(file.read_text().splitlines()), SECONDS, "all signals")
        assert "a receiver of the user's that fails" in cluster.processes["a"].output()
        wait_until(lambda: _changes(cluster).restarted == 1, SECONDS, "the restart is counted")
        changes = _changes(cluster)
        assert (changes.joined, changes.down, changes.left, changes.isolated) == (4, 1, 1, 0)
        told = [(str(moment.what), moment.name) for moment in reversed(_report(cluster).timeline)]
        assert sorted(told[:3]) == [("joined", "a"), ("joined", "b"), ("joined", "c")]
        assert [moment for moment in told[3:] if moment[0] not in ("suspected", "heard again")] == [
            ("down", "b"), ("left", "c"), ("joined", "b"),
        ]  # fmt: skip


def _report(cluster: LocalCluster) -> ReportReply:
    client = client_of(cluster, "a")
    report = client.call_node(client.routing.local, frame(encode(GetReport())))
    client.close()
    assert isinstance(report, ReportReply)
    return report


def _changes(cluster: LocalCluster) -> Changes:
    return _status(cluster).stats.changes


def test_a_value_from_before_another_node_owned_the_key_is_never_read_again(folder: Path) -> None:
    with LocalCluster(folder, ("a", "b")) as cluster:
        cluster.start("a")
        cluster.wait_for("a")
        client = client_of(cluster, "a")
        keys = [b"default\0key %d" % number for number in range(100)]
        for key in keys:
            client.call(key, frame(encode(Set([(key, b"old")], None))))
        cluster.start("b")
        cluster.wait_for()
        wait_until(lambda: len(client.table().targets) == 2, SECONDS, "the client knows b")
        for key in keys:
            client.call(key, frame(encode(Set([(key, b"new")], None))))
        cluster.processes["b"].stop()
        wait_until(lambda: len(client.table().targets) == 1, SECONDS, "the client knows that b left")
        replies = [client.call(key, frame(encode(Get([key])))) for key in keys]
        client.close()
        values = [reply.values[0] for reply in replies if isinstance(reply, ValuesReply)]
        assert values == [b"new"] * len(keys)


def test_a_cache_with_a_bound_of_its_own_takes_no_room_from_the_others(folder: Path) -> None:
    env = {"DJANGO_SETTINGS_MODULE": SETTINGS, "TEST_CACHES": json.dumps(CACHES)}
    with LocalCluster(folder, ("a",), env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        client = client_of(cluster, "a")
        for number in range(500):  # 5 MB for 1 MB
            client.call(b"x", frame(encode(Set([(b"small\0%d" % number, b"v" * 10_000)], None))))
            client.call(b"x", frame(encode(Set([(b"any\0%d" % number, b"v" * 1000)], None))))
        assert 390 < _status(cluster).stats.cache_evictions < 410
        reply = client.call(b"x", frame(encode(Get([b"any\x000", b"small\x000", b"small\x00499"]))))
        assert isinstance(reply, ValuesReply)
        assert [value is not None for value in reply.values] == [True, False, True]
        client.close()


def test_a_secret_is_rotated_in_a_rolling_deploy_without_splitting_the_cluster(folder: Path, layer: Layer) -> None:
    old, new = "the old secret " + 30 * "x", "the new secret " + 30 * "y"
    with LocalCluster(folder, ("a", "b"), env=layer.env | {"CLUSTERSTATE_SECRET": old}) as cluster:
        cluster.start()
        cluster.wait_for()
        cluster.processes["b"].stop()
        rotated = cluster.env("b") | {"CLUSTERSTATE_SECRET": new, "CLUSTERSTATE_SECRET_FALLBACKS": old}
        cluster.processes["b"] = Process([sys.executable, "manage.py", "clusternode"], folder / "b2.log", rotated)
        cluster.wait_for()


def test_a_foreign_secret_on_the_same_channel_layer_is_said_once(folder: Path, layer: Layer) -> None:
    with LocalCluster(folder, ("a", "b"), env=layer.env) as cluster:
        cluster.start("a")
        cluster.wait_for("a")
        foreign = cluster.env("b") | {"CLUSTERSTATE_SECRET": 50 * "z"}
        cluster.processes["b"] = Process([sys.executable, "manage.py", "clusternode"], folder / "b.log", foreign)
        cluster.wait_for("b")
        wait_until(lambda: "belongs to a different cluster" in cluster.processes["a"].output(), SECONDS, "a says so")
        cluster.wait_for("a")
        kinds = re.findall(r"WARNING (\w+ \w+).* a different cluster", cluster.processes["a"].output())
        assert len(kinds) == len(set(kinds))  # a heartbeat dropped, a connection closed, a link that failed


def test_a_node_may_open_as_many_files_as_the_system_lets_it(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with LocalCluster(folder, ("a",)) as cluster:
            cluster.start()
            cluster.wait_for()
            assert resource.prlimit(cluster.processes["a"].pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- refusing to start --------------------------------------------------------------------------------------------


def start_and_fail(folder: Path, *options: str, **env: str) -> str:
    """What a node says that can't start: one message on stderr, exit code 1, no traceback."""
    command = [sys.executable, "manage.py", "clusternode", "--socket", str(folder / "x.sock"), *options]
    whole = (
        os.environ | PROJECT | {"CLUSTERSTATE_BIND": f"127.0.0.1:{free_port()}", "CLUSTERSTATE_NODE_NAME": "x"} | env
    )
    done = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_taken_port_is_said(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        said = start_and_fail(folder, "--bind", where, "--discovery", where)
    assert where in said
    assert "taken" in said
    assert "--bind" in said


def test_a_taken_socket_is_said(folder: Path) -> None:
    with LocalCluster(folder, ("x",)) as cluster:
        cluster.start()
        cluster.wait_for()
        said = start_and_fail(folder, "--discovery", "127.0.0.1:1")
    assert "x.sock is taken" in said
    assert "--socket" in said


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:notaport", "127.0.0.1:99999", ":"])
def test_a_bad_address_is_said(folder: Path, address: str) -> None:
    said = start_and_fail(folder, "--bind", address, "--discovery", "127.0.0.1:1")
    assert repr(address) in said
    assert "HOST:PORT" in said


def test_an_address_that_this_host_does_not_have_is_said(folder: Path) -> None:
    assert "192.0.2.1:4370" in start_and_fail(folder, "--bind", "192.0.2.1:4370", "--discovery", "127.0.0.1:1")


@pytest.mark.parametrize("secret", ["short", "django-insecure-" + 50 * "x"])
def test_a_weak_secret_is_refused_where_other_hosts_reach_the_node(folder: Path, secret: str) -> None:
    bind = f"0.0.0.0:{free_port()}"
    said = start_and_fail(folder, "--bind", bind, "--discovery", "127.0.0.1:1", CLUSTERSTATE_SECRET=secret)
    assert "CLUSTERSTATE_SECRET" in said
    assert secret not in said


def test_a_database_without_the_migration_is_said(folder: Path) -> None:
    said = start_and_fail(folder, DEMO_RUN_DIR=str(folder))
    assert "manage.py migrate" in said


def test_caches_that_need_more_than_there_is_are_said(folder: Path) -> None:
    assert "more than the 1,000,000 of CLUSTERSTATE['CACHE_MAX_BYTES']" in start_and_fail(
        folder, DJANGO_SETTINGS_MODULE=SETTINGS, TEST_CACHES=json.dumps(CACHES), CLUSTERSTATE_CACHE_MAX_BYTES="1000000"
    )


def test_impossible_timings_are_said(folder: Path) -> None:
    said = start_and_fail(folder, CLUSTERSTATE_SUSPECT_AFTER="5", CLUSTERSTATE_DOWN_AFTER="4")
    assert "DOWN_AFTER" in said
    assert "4 s" in said


def test_an_unknown_discovery_is_said(folder: Path) -> None:
    assert "dns://NAME:PORT" in start_and_fail(folder, "--discovery", "carrier pigeons")


def test_a_channel_layer_that_does_not_exist_is_said(folder: Path) -> None:
    assert "'nowhere'" in start_and_fail(folder, CLUSTERSTATE_CHANNEL_LAYER="nowhere")


# -- when all connections are taken -------------------------------------------------------------------------------


async def test_full_table_of_connections_keeps_out_neither_a_restarted_peer_nor_this_hosts_processes(
    folder: Path,
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    with LocalCluster(folder, ("a", "b")) as cluster:
        cluster.start()
        await asyncio.to_thread(cluster.wait_for)

        async def requester() -> AsyncConnection:
            """On a host that holds on to each of its connections."""
            _, connection = await loop.create_connection(
                lambda: AsyncConnection(KEYS, SECONDS), "127.0.0.1", cluster.ports["a"], local_addr=("127.0.0.9", 0)
            )
            await connection.ready
            return connection

        async def connections() -> int:
            return (await asyncio.to_thread(_status, cluster)).stats.connections

        held: list[AsyncConnection] = []
        while await connections() < MAX_CONNECTIONS:
            # Few at a time: on a busy machine, too, each has to complete its handshake within five seconds.
            dialed = await asyncio.gather(*(requester() for _ in range(20)), return_exceptions=True)
            held += [connection for connection in dialed if isinstance(connection, AsyncConnection)]
        try:
            cluster.kill("b")
            await asyncio.to_thread(wait_until, lambda: sees(cluster, "a", "b", "down"), SECONDS, "b down")
            # A process that held no connection before.
            client = client_of(cluster, "a")
            assert await asyncio.to_thread(client.table)
            cluster.start("b")
            await asyncio.to_thread(cluster.wait_for)
            assert await asyncio.to_thread(_status, cluster)
            client.close()
            output = cluster.processes["a"].output()
            assert output.count("connections are in use, most of them by 127.0.0.9:") == 1
        finally:
            for connection in held:
                connection.close()
