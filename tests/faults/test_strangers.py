"""Connections, requesters and releases that are admitted or refused, and the log lines. Figures are printed (-s)."""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.exceptions import ClusterStateError, ProtocolError
from django_clusterstate.layers import ClusterChannelLayer
from django_clusterstate.node.channels.queues import NODE_GROUPS
from django_clusterstate.node.heartbeat import decode_heartbeat
from django_clusterstate.wire.address import TcpAddress
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.derived_keys import derive_heartbeat_keys, derive_link_keys
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.handshake import Challenge
from django_clusterstate.wire.messages import Ping, PongReply, encode
from testproject import settings as demo_settings
from testproject.processes import ROOT, LocalCluster, Process, wait_until
from tests.conftest import using
from tests.faults.kept import Kept
from tests.faults.observing import SECONDS, lines, moves, states, status_of, until_all_say
from tests.faults.proxy import Proxy
from tests.faults.requesters import Requesters, hits, link_keys
from tests.layers import SETTINGS
from tests.peers import ScriptedNode, read_frame

pytestmark = pytest.mark.fault

Figure = Callable[[str, object], None]
PING = frame(encode(Ping()))
GROUP = NODE_GROUPS + "default"


def refused(cluster: LocalCluster, name: str) -> int:
    return status_of(cluster, name).stats.refused


def start_with(cluster: LocalCluster, name: str, **env: str) -> None:
    command = [sys.executable, str(ROOT / "manage.py"), "clusternode"]
    cluster.processes[name] = Process(command, cluster.folder / f"{name}.log", cluster.env(name) | env)


# -- 13: strangers ------------------------------------------------------------------------------------------------


def test_a_wrong_secret_admits_nobody_and_is_said_once(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ("a",)) as cluster:
        cluster.start()
        cluster.wait_for()
        before, admitted = refused(cluster, "a"), 0
        wrong = derive_link_keys(["another secret"], "default")
        for _ in range(100):
            try:
                BlockingConnection(TcpAddress("127.0.0.1", cluster.ports["a"]), wrong, 1.0).close()
                admitted += 1
            except ClusterStateError:
                pass
        wait_until(lambda: refused(cluster, "a") >= before + 100, SECONDS, "all are counted")
        counted, said = refused(cluster, "a") - before, lines(cluster, "a", "a different secret")
        figure("of 100", f"{admitted} admitted, {counted} counted, {len(said)} log lines")
        assert (admitted, counted, len(said)) == (0, 100, 1)


def test_a_recorded_session_admits_nobody(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ("a",)) as cluster, Proxy(cluster.ports["a"]) as proxy:
        cluster.start()
        cluster.wait_for()
        connection = BlockingConnection(TcpAddress("127.0.0.1", proxy.port), link_keys(cluster, "a"), 1.0)
        assert isinstance(connection.call(PING), PongReply)
        connection.close()
        before, answers = refused(cluster, "a"), 0
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", cluster.ports["a"]), 2.0) as sock:
                read_frame(sock)
                sock.sendall(b"".join(proxy.sent[0]))
                with contextlib.suppress(ConnectionResetError):
                    answers += len(sock.recv(4096))
        wait_until(lambda: refused(cluster, "a") >= before + 20, SECONDS, "all are counted")
        counted, said = refused(cluster, "a") - before, lines(cluster, "a", "more than the handshake's offers")
        figure("of 20", f"{answers} bytes answered, {counted} counted, {len(said)} log lines")
        assert (answers, counted, len(said)) == (0, 20, 1)


def test_a_nodes_own_challenge_reflected_to_it_admits_nobody(folder: Path, figure: Figure) -> None:
    """Who is dialed by a node dials it back, and lets it answer its own challenge, as it is and in disguise."""
    offers: list[bytes] = []
    answers: list[bytes] = []
    disguises = iter((b"", b"another instance", None))

    def reflect(dialed: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", cluster.ports["a"])) as sock:
            challenge = msgspec.msgpack.decode(read_frame(sock), type=Challenge)
            boot = next(disguises, None)
            shown = challenge if boot is None else msgspec.structs.replace(challenge, boot=boot)
            dialed.sendall(frame(msgspec.msgpack.encode(shown)))
            offers.append(read_frame(dialed))  # the node's, for its own challenge
            sock.sendall(frame(offers[-1]))
            dialed.sendall(frame(read_frame(sock)))  # its answer to itself
            sock.sendall(PING)
            answers.append(read_frame(sock))

    with LocalCluster(folder, ("a",)) as cluster, ScriptedNode(reflect) as attacker:
        cluster.discovery = str(attacker.address)
        cluster.start()
        cluster.wait_for()
        wait_until(lambda: attacker.accepted == 3, SECONDS, "the node dials again and again")
        # Two were in disguise; on the third the attacker says something that isn't sealed.
        wait_until(lambda: refused(cluster, "a") == 3, SECONDS, "all are counted")
        said = lines(cluster, "a", "a different secret")
        figure(f"of {attacker.accepted} reflected", f"{len(answers)} admitted, {len(said)} log lines")
        assert not answers
        assert len(offers) == 3
        assert len(said) == 1
        time.sleep(2)
        assert attacker.accepted == 3  # where a node has found itself it doesn't dial again for a while


def test_recorded_heartbeats_bring_nobody_back_and_forged_ones_are_said_once(folder: Path, figure: Figure) -> None:
    with LocalCluster(folder, ("a", "b", "c")) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, "a"):
            recorded = asyncio.run(_listen(12))
        keys = derive_heartbeat_keys([demo_settings.SECRET_KEY], "default")
        assert {decode_heartbeat(message, keys).identity.name for message in recorded} == {"a", "b", "c"}
        cluster.kill("c")
        until_all_say(cluster, MemberState.DOWN, "c", ("a", "b"))

        def not_taken(name: str) -> int:
            stats = status_of(cluster, name).stats
            return stats.heartbeats_dropped + stats.heartbeats_ignored

        dropped = {name: not_taken(name) for name in ("a", "b")}
        forged = [{**message, "body": message["body"][:-1] + b"\x00"} for message in recorded]
        with using(cluster, "a"):
            asyncio.run(_say(recorded + forged))
        time.sleep(1.5)
        counted = {name: not_taken(name) - dropped[name] for name in dropped}
        what = ("not signed", "does not match the peer")
        said = {name: sum(len(lines(cluster, name, text)) for text in what) for name in dropped}
        figure(f"of {len(recorded)} recorded and {len(forged)} forged ones dropped", counted)
        figure("log lines", said)
        assert states(cluster, "c", ("a", "b")) == {MemberState.DOWN}
        assert cluster.agreed(("a", "b"))
        cluster.start("c")
        cluster.wait_for()
        with using(cluster, "a"):
            asyncio.run(_say(recorded))  # of the start of c that was killed
        time.sleep(1.5)
        assert cluster.agreed(("a", "b", "c"))
        # Each node ignores what it has said itself; all else that it is told is counted.
        assert all(count >= len(forged) + len(recorded) // 2 for count in counted.values())
        assert all(1 <= count <= 3 for count in said.values())  # one a second, whatever it is about


async def _listen(count: int) -> list[dict[str, Any]]:
    layer = ClusterChannelLayer()
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    heard = [await layer.receive(channel) for _ in range(count)]
    await layer.group_discard(GROUP, channel)
    await layer.close()
    return heard


async def _say(messages: list[dict[str, Any]]) -> None:
    layer = ClusterChannelLayer()
    for message in messages:
        await layer.group_send(GROUP, message)
        await asyncio.sleep(0.02)
    await layer.close()


# -- 14: other releases, other secrets ----------------------------------------------------------------------------


def test_a_secret_is_rotated_node_by_node_while_requesters_ask(folder: Path, figure: Figure) -> None:
    names = ("a", "b", "c")
    old, new = "the old secret " + 30 * "x", "the new secret " + 30 * "y"
    steps = ({"CLUSTERSTATE_SECRET": old, "CLUSTERSTATE_SECRET_FALLBACKS": new},
             {"CLUSTERSTATE_SECRET": new, "CLUSTERSTATE_SECRET_FALLBACKS": old},
             {"CLUSTERSTATE_SECRET": new})  # fmt: skip
    with LocalCluster(folder, names, env={"CLUSTERSTATE_SECRET": old}) as cluster:
        cluster.start()
        kept = Kept(cluster, names)
        slowest = 0.0
        with Requesters(cluster, names, hits()) as requesters:
            for step in steps:
                if step is steps[-1]:
                    break  # the requesters of this test know the old one only
                for name in names:
                    cluster.processes[name].signal(signal.SIGTERM)
                    assert cluster.processes[name].wait(SECONDS) == 0
                    start_with(cluster, name, **step)
                    slowest = max(slowest, cluster.wait_until_synced())
        for name in names:
            cluster.processes[name].stop()
            start_with(cluster, name, **steps[-1])
            slowest = max(slowest, cluster.wait_until_synced())
        figure("synced after each start within", f"{slowest:.2f} s")
        figure("requesters", requesters)
        assert not requesters.errors
        assert not moves(cluster, MemberState.DOWN)
        assert not any(lines(cluster, name, "secret") for name in names)
        assert not kept.lost(*names)


@pytest.mark.parametrize("versions", ["1-2", "2-3"])
def test_a_release_before_or_after_that_shares_a_protocol_version_is_one_of_us(
    folder: Path, figure: Figure, versions: str
) -> None:
    with LocalCluster(folder, ("a", "b", "c"), env={"DJANGO_SETTINGS_MODULE": SETTINGS}) as cluster:
        cluster.start("a", "b")
        start_with(cluster, "c", TEST_VERSIONS=versions)
        cluster.wait_for()
        time.sleep(4)
        assert cluster.agreed(("a", "b", "c"))
        figure(f"one view with a node of versions {versions}", True)
        assert not any(lines(cluster, name, "protocol version") for name in cluster.names)


def test_a_release_without_a_common_version_is_refused_in_clear_words_on_both_sides(
    folder: Path, figure: Figure
) -> None:
    with LocalCluster(folder, ("a", "b", "c"), env={"DJANGO_SETTINGS_MODULE": SETTINGS}) as cluster:
        cluster.start("a", "b")
        cluster.wait_for("a", "b")
        epoch = status_of(cluster, "a").epoch
        start_with(cluster, "c", TEST_VERSIONS="3-3")
        wait_until(lambda: bool(lines(cluster, "c", " started, ")), SECONDS, "it runs")
        time.sleep(5)
        said = {name: lines(cluster, name, "protocol versions") for name in cluster.names}
        figure("log lines", {name: len(found) for name, found in said.items()})
        for found in said.values():
            for line in found[:2]:
                figure("it says", line.split(" ", 2)[2])
        assert status_of(cluster, "a").epoch == epoch
        assert cluster.agreed(("a", "b"))
        assert all("upgrade the older one" in found[0] for found in said.values())
        # Of each node that it meets, once for each way to meet: it dials, and is dialed.
        assert all(len(found) <= 4 for found in said.values())


def test_a_requester_without_a_common_version_learns_why(folder: Path) -> None:
    with LocalCluster(folder, ("a",), env={"DJANGO_SETTINGS_MODULE": SETTINGS}) as cluster:
        start_with(cluster, "a", TEST_VERSIONS="3-4")
        wait_until(lambda: bool(lines(cluster, "a", " started, ")), SECONDS, "it runs")
        with pytest.raises(ProtocolError, match="speaks protocol versions 3 to 4, this side 2 to 2"):
            BlockingConnection(TcpAddress("127.0.0.1", cluster.ports["a"]), link_keys(cluster, "a"), 1.0)
        wait_until(lambda: bool(lines(cluster, "a", "2 to 2, this side 3 to 4")), SECONDS, "the node says it too")
