"""Hosts that lose each other, or some packets. Figures are printed (-s)."""

import itertools
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from django_clusterstate.core.limits.algorithms import Algorithm, Rule
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.wire.framing import frame
from django_clusterstate.wire.messages import DecisionsReply, Hit, Reply, encode
from testproject.processes import wait_until
from tests.faults.hosts import HostCluster, needs_hosts
from tests.faults.kept import KEYS, Kept
from tests.faults.observing import SECONDS, moves, unreachable
from tests.faults.requesters import SILENCE, Requesters, hits
from tests.layers import EMBEDDED, LAYERS, Redis, layer_env

pytestmark = [pytest.mark.fault, needs_hosts]

Figure = Callable[[str, object], None]
FIVE = ("a", "b", "c", "d", "e")
LIMIT = 50
REDIS = "10.89.0.6:6379"  # on the sixth host


def split_and_heal(folder: Path, layer: str, figure: Figure, seconds: float) -> None:
    if layer != EMBEDDED and shutil.which("redis-server") is None:
        pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
    with HostCluster(folder, (*FIVE, "r"), {} if layer == EMBEDDED else layer_env(layer, REDIS)) as cluster:
        if layer != EMBEDDED:
            assert REDIS.startswith(cluster.addresses["r"])
            cluster.processes["r"] = Redis(folder, REDIS, cluster.on("r")).process  # ended with the nodes
        cluster.start(*FIVE)
        kept = Kept(cluster, FIVE)
        with Requesters(cluster, FIVE, hits()) as requesters:
            split = time.monotonic()
            cluster.split(("a", "b", "c", "r"), ("d", "e"))
            if layer == EMBEDDED:
                wait_until(lambda: cluster.agreed(FIVE[:3]) and cluster.agreed(FIVE[3:]), SECONDS, "two clusters")
                figure("two clusters after", f"{time.monotonic() - split:.2f} s")
            time.sleep(max(0.0, split + seconds - time.monotonic()))
            requesters.go_on()
            healed = time.monotonic()
            cluster.heal()
            cluster.wait_for(*FIVE, seconds=90)
            took = time.monotonic() - healed
            requesters.go_on()
        cluster.wait_until_synced(*FIVE)
        figure(f"one view after the heal of {seconds:g} s", f"{took:.2f} s")
        figure("requesters", requesters)
        assert not requesters.errors
        # After the heal, a node that joins again can't forward to the owners before it is connected to them.
        assert not requesters.alone_outside((split, split + SILENCE), (healed, healed + 5))
        # The lesser side was declared down, so it joins again, and serves once it was heard for 9 s.
        assert 9 <= took < 20
        assert not kept.lost(*FIVE)


def test_after_a_partition_all_have_what_the_greater_side_has_written(folder: Path, figure: Figure) -> None:
    with HostCluster(folder, FIVE) as cluster:
        cluster.start()
        kept = Kept(cluster, FIVE)
        cluster.split(FIVE[:3], FIVE[3:])
        for side in (FIVE[:3], FIVE[3:]):
            cluster.wait_for(*side, seconds=SECONDS)
        kept.write("a", KEYS[:100], b"second")
        kept.write("b", KEYS[100:150], None)
        cluster.heal()
        figure("all synced after the heal", f"{cluster.wait_until_synced(seconds=90):.2f} s")
        assert not kept.lost(*FIVE)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda path: path.rpartition(".")[2])
def test_both_sides_of_a_partition_serve_and_become_one_again(folder: Path, layer: str, figure: Figure) -> None:
    split_and_heal(folder, layer, figure, 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS, ids=lambda path: path.rpartition(".")[2])
def test_both_sides_of_a_partition_become_one_again_after_a_minute(folder: Path, layer: str, figure: Figure) -> None:
    """TCP waits longer and longer before it tries again what was lost."""
    split_and_heal(folder, layer, figure, 60.0)


def test_a_partition_in_two_admits_at_most_twice_a_limit_once_it_is_known(folder: Path, figure: Figure) -> None:
    with HostCluster(folder, FIVE) as cluster:
        cluster.start()
        cluster.wait_for()
        allowed = [Counter[str](), Counter[str](), Counter[str]()]  # before the cut, until it is known, after that
        work = [one_limit(number) for number in range(3)]
        phase = 0

        def ask(number: int) -> tuple[bytes, bytes]:
            return work[phase]

        def hear(_: float, host: str, request: bytes, reply: Reply) -> None:
            assert isinstance(reply, DecisionsReply)
            allowed[[asked for _, asked in work].index(request)][host] += reply.decisions[0].allowed

        with Requesters(cluster, FIVE, ask, hear) as requesters:
            phase = 1
            cluster.split(FIVE[:3], FIVE[3:])
            wait_until(lambda: cluster.agreed(FIVE[:3]) and cluster.agreed(FIVE[3:]), SECONDS, "two clusters")
            time.sleep(1.5)  # requesters ask for the view each second
            phase = 2
            requesters.go_on(200)
        for when, passed in zip(("before the cut", "until it is known", "after that"), allowed, strict=True):
            figure(f"hits that passed a limit of {LIMIT}, {when}", f"{passed.total()}: {dict(passed)}")
        assert not requesters.errors
        assert allowed[0].total() == LIMIT
        # Until then those who can't reach the owner count at the next owner, but for what a busy machine delays.
        assert allowed[1].total() <= 2.5 * LIMIT
        assert allowed[2].total() <= 2 * LIMIT


def one_limit(number: int) -> tuple[bytes, bytes]:
    """A key, and a hit of it against `LIMIT`."""
    key = b"\0limit %d" % number
    return key, frame(encode(Hit(key, [Rule(Algorithm.FIXED_WINDOW, LIMIT, 3600.0)])))


def test_one_lost_direction_is_seen_as_such_and_changes_no_view(folder: Path, figure: Figure) -> None:
    names = FIVE[:3]
    with HostCluster(folder, names) as cluster:
        cluster.start()
        kept = Kept(cluster, names)
        cluster.drop("b", "a")
        seconds = wait_until(lambda: ("a", "b") in unreachable(cluster), SECONDS, "a cannot reach b")
        figure("`a cannot reach b` is shown after", f"{seconds:.2f} s")
        time.sleep(3)
        assert cluster.agreed(names)
        assert not moves(cluster, MemberState.DOWN)
        cluster.heal()
        wait_until(lambda: not unreachable(cluster), SECONDS, "all reach all")
        cluster.wait_until_synced()
        assert not kept.lost(*names)


def lose_packets(folder: Path, figure: Figure, seconds: float) -> None:
    names = FIVE[:3]
    with HostCluster(folder, names) as cluster:
        cluster.start()
        cluster.wait_for()
        with Requesters(cluster, names, hits()) as requesters:
            cluster.lose(0.05)
            time.sleep(seconds)
            cluster.heal()
            cluster.wait_for()
        figure(f"suspect in {seconds:g} s, times", len(moves(cluster, MemberState.SUSPECT)))
        figure("down, times", len(moves(cluster, MemberState.DOWN)))
        figure("requesters", requesters)
        assert not requesters.errors
        assert not moves(cluster, MemberState.DOWN)


def test_the_loss_of_a_twentieth_makes_nobody_down(folder: Path, figure: Figure) -> None:
    lose_packets(folder, figure, 20.0)


@pytest.mark.slow
def test_the_loss_of_a_twentieth_for_ten_minutes_makes_nobody_down(folder: Path, figure: Figure) -> None:
    lose_packets(folder, figure, 600.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_links_stopped_one_by_one_and_restored_in_any_order_end_in_one_view(
    folder: Path, figure: Figure, seed: int
) -> None:
    chance = random.Random(seed)
    pairs = list(itertools.combinations(FIVE, 2))
    with HostCluster(folder, FIVE) as cluster:
        cluster.start()
        cluster.wait_for()
        chance.shuffle(pairs)
        for one, other in pairs:
            cluster.cut_link(one, other)
            time.sleep(chance.uniform(0, 1))
        time.sleep(chance.uniform(0, 5))
        chance.shuffle(pairs)
        for one, other in pairs:
            cluster.cut_link(one, other, restore=True)
            time.sleep(chance.uniform(0, 0.3))
        # A node that was cut off joins again, and waits for twice as long each time that this recurs soon.
        figure("one view after the last", f"{cluster.wait_for(seconds=90):.2f} s")
