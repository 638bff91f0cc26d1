"""A second node with a used name; recorded heartbeats; a loopback address among others."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.utils.module_loading import import_string

from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.node.channels.queues import NODE_GROUPS
from django_clusterstate.node.heartbeat import decode_heartbeat
from django_clusterstate.wire.derived_keys import derive_heartbeat_keys
from testproject import settings as demo_settings
from testproject.processes import ROOT, LocalCluster, wait_until
from tests.faults.hosts import HostCluster, needs_hosts
from tests.faults.kept import Kept
from tests.faults.observing import SECONDS, lines, states, status_of
from tests.faults.requesters import Requesters, hits
from tests.layers import LAYERS, Layer

pytestmark = pytest.mark.fault

Figure = Callable[[str, object], None]
THREE = ("a", "b", "c")
TAKEN = "two running nodes have the name b"


@contextmanager
def second(cluster: LocalCluster, layer: Layer) -> Iterator[LocalCluster]:
    """Another node called b, with an address and a socket of its own."""
    folder = cluster.folder / "2"
    folder.mkdir()
    with LocalCluster(folder, ("b",), env=layer.env, discovery=cluster.discovery) as other:
        other.start()
        wait_until(lambda: other.status("b") is not None, SECONDS, "the second b answers")
        yield other


def boot_of(cluster: LocalCluster, name: str) -> bytes:
    return status_of(cluster, name).identity.boot


def has_restarted(cluster: LocalCluster, name: str, boot: bytes) -> bool:
    status = cluster.status(name)
    return status is not None and status.identity.boot != boot


def addresses(cluster: LocalCluster, of: str, by: tuple[str, ...]) -> set[str]:
    """Where these nodes have a serving member of that name."""
    members = [member for name in by for member in status_of(cluster, name).members]
    return {m.identity.address for m in members if m.identity.name == of and m.state is MemberState.ALIVE}


def all_name_it(cluster: LocalCluster) -> bool:
    statuses = [cluster.status(name) for name in cluster.names]  # one that restarts does not answer for a moment
    return all(status is not None and any(TAKEN in text for text in status.problems) for status in statuses)


def nobody_names_it(cluster: LocalCluster) -> bool:
    return not any(status_of(cluster, name).problems for name in cluster.names)


def test_a_second_node_under_a_taken_name_changes_no_view_and_all_say_so(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    with LocalCluster(folder, THREE, env=layer.env) as cluster:
        cluster.start()
        kept = Kept(cluster, THREE)
        boot = boot_of(cluster, "b")
        with Requesters(cluster, THREE, hits()) as requesters, second(cluster, layer) as other:
            seconds = wait_until(lambda: all_name_it(cluster) and all_name_it(other), SECONDS, "all name it")
            figure("all name it after", f"{seconds:.2f} s")
            until = time.monotonic() + 7
            while time.monotonic() < until:
                assert cluster.agreed(THREE)
                assert status_of(other, "b").state is MemberState.JOINING
                time.sleep(0.1)
            shown = subprocess.run(
                [sys.executable, "manage.py", "clusterstatus"], cwd=ROOT, env=cluster.env("a"), capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert shown.returncode == 1
            assert shown.stdout.count(TAKEN) == 1
            other.processes["b"].signal(signal.SIGTERM)
            ending = time.monotonic()
            assert other.processes["b"].wait(SECONDS) == 0
            assert time.monotonic() - ending < 5  # it owns nothing, so it doesn't hand over for up to `DRAIN`
            seconds = wait_until(lambda: nobody_names_it(cluster), 5, "nobody names it any more")
            figure("nobody names it after its end", f"{seconds:.2f} s")
        assert cluster.agreed(THREE)
        assert boot_of(cluster, "b") == boot
        assert all(len(lines(cluster, name, f"ERROR problem: {TAKEN}")) == 1 for name in THREE)
        assert not requesters.errors
        assert not any(tally.unanswered for tally in requesters.tallies)
        assert not kept.lost(*THREE)


def test_a_node_that_was_displaced_while_it_was_stopped_comes_back_by_itself(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    with LocalCluster(folder, THREE, env=layer.env) as cluster:
        cluster.start()
        kept = Kept(cluster, THREE)
        boot = boot_of(cluster, "b")
        cluster.processes["b"].signal(signal.SIGSTOP)
        with second(cluster, layer) as other:
            there = status_of(other, "b").identity.address
            wait_until(lambda: addresses(cluster, "b", ("a", "c")) == {there}, SECONDS, "the second has the name")
            cluster.processes["b"].signal(signal.SIGCONT)
            seconds = wait_until(lambda: has_restarted(cluster, "b", boot), 5, "the first restarts")
            figure("it has restarted after", f"{seconds:.2f} s")
            wait_until(lambda: all_name_it(cluster) and all_name_it(other), SECONDS, "all name it")
            wait_until(
                lambda: all(status_of(cluster, name).copies.synced for name in ("a", "c")),
                SECONDS,
                "the second is synced",
            )
            other.processes["b"].kill()
            # It is filled before it serves.
            figure("one view after its end", f"{cluster.wait_for(seconds=10):.2f} s")
        assert not kept.lost(*THREE)
        assert len(lines(cluster, "b", "is restarting empty")) == 1


def test_a_killed_node_that_comes_back_at_once_has_its_name_at_once(folder: Path, layer: Layer, figure: Figure) -> None:
    with LocalCluster(folder, THREE, env=layer.env) as cluster:
        cluster.start()
        kept = Kept(cluster, THREE)
        for _ in range(3):
            boot = boot_of(cluster, "b")
            cluster.kill("b")
            cluster.start("b")
            wait_until(lambda: cluster.status("b") is not None, SECONDS, "b is back")
            assert boot_of(cluster, "b") != boot
            # It is filled before it serves.
            figure("one view after it answers", f"{cluster.wait_for(seconds=5):.2f} s")
            assert not kept.lost(*THREE)
            cluster.wait_until_synced()
        assert not any(lines(cluster, name, TAKEN) for name in THREE)


# -- recorded heartbeats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS[1:], indirect=True)  # the embedded one takes nothing without the secret
def test_heartbeats_of_a_node_that_is_gone_deceive_none_that_was_started_since(
    folder: Path, layer: Layer, figure: Figure
) -> None:
    with LocalCluster(folder, ("a", "b", "c", "d"), env=layer.env) as cluster:
        cluster.start("a", "b", "c")
        cluster.wait_for("a", "b", "c")
        recorded = [beat for beat in asyncio.run(listen(layer, 15)) if speaker(beat) == "c"]
        assert len(recorded) > 2
        cluster.kill("c")
        cluster.wait_for("a", "b")
        cluster.start("d")
        cluster.wait_for("a", "b", "d")
        for _ in range(20):
            asyncio.run(say(layer, recorded))
            assert cluster.agreed(("a", "b", "d"))
            assert states(cluster, "c", ("d",)) == {None}
        cluster.start("c")
        cluster.wait_for()


def speaker(message: dict[str, Any]) -> str:
    return decode_heartbeat(message, derive_heartbeat_keys([demo_settings.SECRET_KEY], "default")).identity.name


async def listen(layer: Layer, count: int) -> list[dict[str, Any]]:
    """What nodes say to all. Whoever can reach the Redis can do that."""
    channels = layer_of(layer)
    channel = await channels.new_channel()
    await channels.group_add(f"{NODE_GROUPS}default", channel)
    heard = [await channels.receive(channel) for _ in range(count)]
    await channels.group_discard(f"{NODE_GROUPS}default", channel)
    return heard


async def say(layer: Layer, messages: list[dict[str, Any]]) -> None:
    channels = layer_of(layer)
    for message in messages:
        await channels.group_send(f"{NODE_GROUPS}default", message)
        await asyncio.sleep(0.02)


def layer_of(layer: Layer) -> Any:
    assert layer.redis is not None
    return import_string(layer.env["TEST_LAYER"])(hosts=[f"redis://{layer.redis.address}"])


# -- an address that nobody reaches ---------------------------------------------------------------------------


@needs_hosts
def test_a_host_that_advertises_its_loopback_address_owns_nothing_and_all_say_so(folder: Path, figure: Figure) -> None:
    said = "node c advertises 127.0.0.1:4370, which is reachable only from its own host"
    with HostCluster(folder, THREE) as cluster:
        cluster.addresses["c"] = "127.0.0.1"
        cluster.start()
        seconds = cluster.wait_for("a", "b")
        figure("the others are one cluster after", f"{seconds:.2f} s")
        wait_until(
            lambda: all(any(said in text for text in status_of(cluster, name).problems) for name in THREE),
            SECONDS,
            "all say so",
        )
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert cluster.agreed(("a", "b"))
            assert status_of(cluster, "c").state is MemberState.JOINING
            time.sleep(0.1)
        assert all(len(lines(cluster, name, f"ERROR problem: {said}")) == 1 for name in THREE)
