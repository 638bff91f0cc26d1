"""A node that was cut off or paused waits until it has been heard for long enough. Clusters: `judge`, "flapping"."""

import itertools

import pytest

from django_clusterstate.core.membership.damping import DOUBLINGS, PERIOD, Damping
from django_clusterstate.core.membership.heartbeat import Identity, MemberState, Observation
from django_clusterstate.core.membership.joining import WaitReason
from django_clusterstate.core.membership.members import Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.core.membership.mentions import MAX_PEERS, Mentions
from tests.core.membership.simulation import Simulation

ME = Identity("me", b"m" * 16, "me:4370")


class Rejoining(Simulation):
    rejoins = True


class Undamped(Membership):
    """Joins again as if it were the first time, for whoever says so."""

    def __init__(
        self, me: Identity, timings: Timings, now: float, *, must_be_reached: bool = False, rejoins: bool = False
    ) -> None:
        super().__init__(me, timings, now, must_be_reached=must_be_reached, rejoins=rejoins)
        self.damping = self.joining.damping = Never(timings, Mentions(timings.suspect_after))
        self._verdicts._mentions = NeverDisregarded(timings.suspect_after)


class Never(Damping):
    def waits(self, now: float) -> bool:
        return False


class NeverDisregarded(Mentions):
    def disregard(self, peer: str, *, is_cut_off: bool) -> bool:
        return False


def cluster(seed: int, size: int, membership: type[Membership] = Membership) -> Simulation:
    sim = Rejoining(seed, membership=membership)
    sim.start(*(f"n{number}" for number in range(size)))
    sim.run(4)
    sim.view_changes.clear()
    sim.changes.clear()
    return sim


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lesser", [1, 2])
def test_what_was_said_before_a_cut_and_comes_after_it_revives_nobody(seed: int, lesser: int) -> None:
    sim = cluster(seed, 5)
    names = list(sim.nodes)
    sim.bus.keeps = 0.3
    sim.bus.split(names[:lesser], names[lesser:])
    sim.run(sim.random.uniform(5, 8))
    healed = sim.now
    sim.heal()
    sim.run(20)
    revived = [
        (by, change)
        for when, by, change in sim.changes
        if when >= healed and change.identity.name in names[:lesser] and by in names[lesser:]
        and (change.old, change.new) == (MemberState.DOWN, MemberState.ALIVE)
    ]  # fmt: skip
    assert not revived
    sim.converge()


def cut_four_times(sim: Simulation, *ways: set[tuple[str, str]]) -> None:
    for _ in range(4):
        sim.bus.cut = set().union(*ways)
        sim.run(6)
        sim.bus.cut.clear()
        sim.run(6)


def ways(sim: Simulation) -> list[set[tuple[str, str]]]:
    """To n1, and from it."""
    others = [name for name in sim.nodes if name != "n1"]
    return [set(itertools.product(others, ["n1"])), set(itertools.product(["n1"], others))]


def moves(sim: Simulation) -> int:
    """How often keys have moved at another node than n1, at most."""
    found = [by for _, by, _ in sim.view_changes if by != "n1"]
    return max(map(found.count, found), default=0)


@pytest.mark.parametrize("directions", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("size", [3, 5, 10])
def test_keys_move_away_from_a_node_that_is_cut_off_again_and_again_once_and_back_once(
    size: int, directions: tuple[int, ...]
) -> None:
    sim = cluster(size, size)
    cut_four_times(sim, *(ways(sim)[direction] for direction in directions))
    assert moves(sim) == 1
    assert sim.nodes["n1"].membership.wait_reason(sim.now) is WaitReason.DAMPED
    sim.run(75)
    assert moves(sim) == 2
    assert all(node.membership.state is MemberState.ALIVE for node in sim.running)
    assert {change.identity.name for _, by, change in sim.changes if by != "n1"} == {"n1"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 3, 5])
def test_keys_move_at_most_twice_while_most_of_what_a_node_sends_is_lost(size: int, seed: int) -> None:
    sim = cluster(seed, size)
    sim.bus.faulty["n1"] = 0.8
    sim.run(40)
    assert moves(sim) <= 2
    sim.bus.faulty.clear()
    sim.run(75)
    assert all(node.membership.state is MemberState.ALIVE for node in sim.running)


def test_without_damping_keys_move_each_time() -> None:
    for direction in (0, 1):
        sim = cluster(1, 5, Undamped)
        cut_four_times(sim, ways(sim)[direction])
        assert moves(sim) >= 8
    counts = []
    for seed in range(10):
        sim = cluster(seed, 3, Undamped)
        sim.bus.faulty["n1"] = 0.8
        sim.run(40)
        counts.append(moves(sim))
    assert max(counts) > 2


@pytest.mark.parametrize("size", [2, 3, 5])
def test_some_node_serves_though_most_of_what_all_send_is_lost(size: int) -> None:
    sim = cluster(size, size)
    sim.bus.loss = 0.8
    for _ in range(120):
        sim.run(0.5)
        joining = [node for node in sim.running if node.membership.state is MemberState.JOINING]
        if len(joining) == size:
            sim.run(1.5)
            assert any(node.membership.state is MemberState.ALIVE for node in sim.running)


@pytest.mark.parametrize(("end", "seconds"), [("crash", 13), ("refuse", 0.2), ("leave", 0.2)])
def test_node_whose_only_peer_is_gone_serves(end: str, seconds: float) -> None:
    sim = cluster(1, 2)
    sim.bus.cut = set().union(*ways(sim))
    sim.run(6)
    sim.bus.cut.clear()
    sim.run(2)
    assert sim.nodes["n1"].membership.wait_reason(sim.now) is WaitReason.DAMPED
    if end == "leave":
        sim.leave("n0")
        sim.run(2.5)
    else:
        sim.crash("n0", refused=end == "refuse")
    sim.run(seconds)
    assert sim.nodes["n1"].membership.state is MemberState.ALIVE


# -- one node -----------------------------------------------------------------------------------------------


def seen(age: float = 0.0, state: MemberState = MemberState.ALIVE) -> Observation:
    return Observation(ME.name, ME.boot, ME.address, state, 0, age)


@pytest.fixture
def mentions() -> Mentions:
    return Mentions(1.5)


def test_each_time_within_a_minute_of_serving_doubles_the_wait_up_to_a_bound(mentions: Mentions) -> None:
    damping, waits, now = Damping(Timings(), mentions), [], 0.0
    for number in range(6):
        damping.cut_off(now)
        damping.cut_off(now + 1)  # another verdict about the same time
        waits.append(damping.seconds)
        if number % 2:
            damping.serve(now + 100)
        now += 100 + PERIOD * (number % 2)
    assert waits == [9, 18, 36, 72, 72, 72]
    assert waits[-1] == waits[0] * 2**DOUBLINGS
    damping.cut_off(now + 1)
    assert (damping.times, damping.seconds) == (1, 9)


def test_wait_begins_again_with_each_gap(mentions: Mentions) -> None:
    damping = Damping(Timings(), mentions)
    assert not damping.waits(0.0)
    damping.cut_off(0.0)
    for now in range(1, 40):
        mentions.hear("a", seen(0.2 if now != 8 else 2.0), float(now))
        damping.tick(float(now))
        assert damping.waits(float(now)) is (now < 17)
    damping.tick(41.0)  # nobody says that it hears this node
    assert damping.waits(49.0)


def test_most_of_those_that_have_just_named_a_node_decide_whether_it_is_heard(mentions: Mentions) -> None:
    for peer, age in (("a", 0.1), ("b", 0.2), ("c", 1.6)):
        mentions.hear(peer, seen(age), 1.0)
    mentions.hear("d", seen(0.1, MemberState.DOWN), 2.0)
    assert mentions.balance(2.0) == 0
    mentions.hear("c", seen(0.1), 2.0)
    assert mentions.balance(2.0) == 2
    assert mentions.balance(2.6) == 0


def test_peer_that_is_cut_off_is_disregarded_until_it_hears_the_node_again(mentions: Mentions) -> None:
    verdict = seen(3.0, MemberState.DOWN)
    mentions.hear("a", verdict, 1.0)
    assert mentions.disregard("a", is_cut_off=True)
    mentions.hear("a", verdict, 2.0)
    assert mentions.disregard("a", is_cut_off=False)
    mentions.hear("a", seen(), 3.0)
    mentions.hear("a", verdict, 4.0)
    assert not mentions.disregard("a", is_cut_off=False)


def test_mentions_are_bounded(mentions: Mentions) -> None:
    for number in range(MAX_PEERS + 10):
        mentions.hear(f"n{number}", seen(), 1.0)
    assert mentions.balance(1.0) == MAX_PEERS
