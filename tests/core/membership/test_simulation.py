"""Clusters of 2 to 50 simulated nodes under faults. The invariants themselves stand in `simulation`."""

import pytest

from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState, Observation, View
from django_clusterstate.core.membership.joining import WaitReason
from django_clusterstate.core.membership.members import Effects, Member, move
from django_clusterstate.core.membership.membership import RETIRED_BOOTS, TICK, Membership
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from tests.core.membership.judge import ROUGH, Scenario, displaced, namesake, recordings, storm
from tests.core.membership.simulation import Bus, Simulation, Violation


def cluster(seed: int, size: int, bus: Bus | None = None, membership: type[Membership] = Membership) -> Simulation:
    """`size` nodes, started at the same instant, three seconds ago."""
    sim = Simulation(seed, bus, membership=membership)
    sim.start(*(f"n{number}" for number in range(size)))
    sim.run(3)
    return sim


def said(sim: Simulation, state: MemberState, of: str) -> dict[str, float]:
    """Who said so of whom, and when first."""
    found: dict[str, float] = {}
    for when, by, change in sim.changes:
        if change.new is state and change.identity.name == of and by != of:
            found.setdefault(by, when)
    return found


def swarm(seed: int, size: int, steps: int = 60, membership: type[Membership] = Membership) -> Simulation:
    """The judge's storm, from the first instant on."""
    sim = Simulation(seed, membership=membership)
    sim.start(*(f"n{number}" for number in range(size)))
    storm(sim, steps)
    return sim


# -- scenarios ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5, 10, 20, 50])
def test_nodes_started_in_the_same_instant_become_one_cluster(size: int) -> None:
    sim = Simulation(size)
    sim.start(*(f"n{number}" for number in range(size)))
    sim.run(1.7)  # two heartbeats of joining, and one more to tell
    assert {len(node.membership.view.members) for node in sim.running} == {size}
    assert len({node.membership.view.epoch for node in sim.running}) == 1


@pytest.mark.parametrize("size", [3, 10, 30])
def test_joiner_knows_everybody_within_a_round_trip(size: int) -> None:
    sim = cluster(size, size)
    sim.start("joiner")
    sim.run(0.02)
    assert len(sim.nodes["joiner"].membership.members) == size
    assert sim.converge() < 1.7


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 8])
def test_crash_is_seen_within_four_seconds(seed: int, size: int) -> None:
    sim = cluster(seed, size)
    sim.crash("n0")
    sim.run(4)
    assert set(said(sim, MemberState.DOWN, "n0")) == {node.name for node in sim.running}
    assert not sim.false_downs


@pytest.mark.parametrize("size", [2, 5, 50])
def test_crash_with_refusal_is_seen_at_once(size: int) -> None:
    sim = cluster(size, size)
    sim.crash("n0", refused=True)
    sim.run(0.1)
    assert len(said(sim, MemberState.DOWN, "n0")) == size - 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 5])
def test_loss_delay_and_duplicates_make_no_false_down(seed: int, size: int) -> None:
    sim = cluster(seed, size, Bus(loss=0.05, delay=(0.1, 0.5), duplicates=0.2))
    sim.run(60)
    assert not sim.false_downs
    sim.converge()


@pytest.mark.parametrize("delay", [(0.001, 0.005), (0.1, 0.5)])
@pytest.mark.parametrize("seed", range(5))
def test_pauses_up_to_two_seconds_make_no_false_down(seed: int, delay: tuple[float, float]) -> None:
    sim = cluster(seed, 5, Bus(delay=delay))
    for _ in range(40):
        sim.pause(sim.random.choice(list(sim.nodes)), sim.random.uniform(0, 2))
        sim.run(1)
    assert not sim.false_downs
    sim.converge()


@pytest.mark.parametrize("seed", range(5))
def test_false_down_under_loss_delay_and_pauses_is_rare_and_taken_back(seed: int) -> None:
    """Two seconds of pause and a lost heartbeat before it are three of silence: here it can happen."""
    sim = cluster(seed, 5, Bus(loss=0.2, delay=(0.1, 0.5), duplicates=0.1))
    for _ in range(40):
        sim.pause(sim.random.choice(list(sim.nodes)), sim.random.uniform(0, 2))
        sim.run(1)
    assert len(sim.false_downs) <= 10  # of 800 spans between two members, a second each
    assert sim.converge() < 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("size", "minority"), [(2, 1), (5, 2), (20, 8)])
def test_partition_has_a_view_on_each_side_and_heals_to_one(seed: int, size: int, minority: int) -> None:
    sim = cluster(seed, size)
    names = list(sim.nodes)
    sim.bus.split(names[:minority], names[minority:])
    sim.run(sim.random.uniform(6, 8))
    for side in (names[:minority], names[minority:]):
        views = [[who.name for who in sim.nodes[name].membership.view.members] for name in side]
        assert views == [sorted(side)] * len(side)
    assert sim.converge(within=2.0) < 3


@pytest.mark.parametrize("seed", range(5))
def test_nodes_that_pause_again_and_again_see_a_partition(seed: int) -> None:
    sim = cluster(seed, 5)
    names = list(sim.nodes)
    sim.bus.split(names[:2], names[2:])
    for _ in range(8):
        for name in names:
            sim.pause(name, 0.4)
        sim.run(1.2)
    for side in (names[:2], names[2:]):
        views = [[who.name for who in sim.nodes[name].membership.view.members] for name in side]
        assert views == [side] * len(side)
    assert not [down for down in sim.false_downs if sum(name in names[:2] for name in down[1:]) != 1]
    sim.converge()


def test_node_thought_down_comes_back_though_many_others_are_down_for_good() -> None:
    sim = cluster(1, 30)
    names = list(sim.nodes)
    sim.bus.split(names[:1], names[1:])
    sim.run(6)
    for name in names[1:25]:
        sim.crash(name, refused=True)
    sim.run(6)
    sim.converge()


def test_one_way_drop_is_seen_as_such_and_changes_no_view() -> None:
    sim = cluster(1, 4)
    views = {node.membership.view.epoch for node in sim.nodes.values()}
    sim.bus.cut.add(("n0", "n1"))
    sim.run(20)
    deaf = sim.nodes["n1"].membership
    assert not said(sim, MemberState.DOWN, "n0")
    assert deaf.members["n0"].state is MemberState.SUSPECT
    assert deaf.members["n0"].unreachable
    assert {node.membership.view.epoch for node in sim.nodes.values()} == views
    assert sim.converge() < 1
    sim.run(2)
    assert not deaf.members["n0"].unreachable


@pytest.mark.parametrize("seed", range(5))
def test_rolling_restart_loses_no_name_and_says_no_down(seed: int) -> None:
    sim = cluster(seed, 5)
    for name in list(sim.nodes):
        sim.leave(name)
        sim.run(2.5)
        assert len(said(sim, MemberState.LEAVING, name)) == 4
        sim.start(name)
        sim.run(3)
    assert not [change for _, _, change in sim.changes if change.new is MemberState.DOWN]
    assert sim.converge() == 0


@pytest.mark.parametrize("seed", range(5))
def test_late_messages_of_a_crashed_instance_never_evict_the_next_one(seed: int) -> None:
    sim = cluster(seed, 3, Bus(delay=ROUGH))
    sim.crash("n0")
    sim.crash("n1")
    sim.start("n1", "newcomer")  # neither of them knows the former instance of n0
    sim.run(sim.random.uniform(0, 0.1))
    sim.start("n0")
    sim.run(1.5)
    sim.converge()


@pytest.mark.parametrize("seed", range(5))
def test_leave_is_known_at_once_and_is_never_a_down(seed: int) -> None:
    sim = cluster(seed, 5, Bus(delay=(0.001, 0.05), loss=0.1 * (seed % 2), duplicates=0.2))
    left = sim.now
    sim.leave("n0")
    sim.run(8)
    assert not said(sim, MemberState.DOWN, "n0")
    assert len(said(sim, MemberState.LEFT, "n0")) == 4
    if not sim.bus.loss:
        assert max(said(sim, MemberState.LEAVING, "n0").values()) - left < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_long_stop_convicts_nobody_on_waking_and_rejoins(seed: int) -> None:
    sim = cluster(seed, 5)
    sim.pause("n0", 60)
    sim.run(30)
    sim.crash("n1")  # in its sleep: n0 may not know better than the others
    sim.run(31)
    assert sim.converge() < 3.5
    assert set(said(sim, MemberState.DOWN, "n1")) == {"n0", "n2", "n3", "n4"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_everything_at_once_breaks_no_invariant_and_ends_in_one_view(seed: int, size: int) -> None:
    swarm(seed, size).converge()


def test_everything_at_once_among_fifty() -> None:
    swarm(1, 50, steps=10).converge()


# -- who may serve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [0, 1])
def test_joiner_serves_if_one_of_ten_reaches_its_address_and_not_before(good: int) -> None:
    sim = cluster(1, 10)
    names = list(sim.nodes)
    views = {name: sim.nodes[name].membership.view for name in names}
    sim.bus.undialed.update((name, "joiner") for name in names[good:])
    sim.start("joiner")
    sim.run(30)
    joiner = sim.nodes["joiner"].membership
    if not good:
        assert joiner.wait_reason(sim.now) is WaitReason.UNREACHED
        assert {name: sim.nodes[name].membership.view for name in names} == views
        sim.bus.undialed.clear()
        sim.run(1.7)
    assert joiner.state is MemberState.ALIVE
    assert {node.membership.view for node in sim.running} == {joiner.view}
    assert len(joiner.view.members) == 11


def test_joiner_with_one_good_and_nine_broken_ways_meets_no_half_cluster() -> None:
    sim = cluster(2, 10)
    names = list(sim.nodes)
    sim.bus.split(["joiner"], names[1:])
    sim.start("joiner")
    sim.run(3)
    assert (
        sim.nodes["joiner"].membership.wait_reason(sim.now) is WaitReason.UNKNOWN_MEMBERS
    )  # it may yet hear the other nine
    sim.run(3)
    assert sim.nodes["joiner"].membership.state is MemberState.ALIVE
    sim.converge()


@pytest.mark.parametrize("seed", range(5))
def test_second_node_of_a_name_has_it_when_the_first_is_gone(seed: int) -> None:
    sim = cluster(seed, 4)
    sim.start("second", name="n0")
    sim.run(5)
    assert sim.nodes["second"].membership.wait_reason(sim.now) is WaitReason.NAME_TAKEN
    assert len({twins for node in sim.running for twins in node.membership.name_conflicts(sim.now)}) == 1
    sim.crash("n0", refused=bool(seed % 2))
    sim.run(4.5)
    assert sim.nodes["second"].membership.state is MemberState.ALIVE
    assert not any(node.membership.name_conflicts(sim.now) for node in sim.running)
    sim.converge()


# -- owners -------------------------------------------------------------------------------------------------

KEYS = [f"key-{number}".encode() for number in range(5000)]


def owners(sim: Simulation, name: str) -> list[str | None]:
    view = sim.nodes[name].membership.view
    ring = Rendezvous({who.name: who.weight for who in view.members})
    return [ring.owner(key) for key in KEYS]


@pytest.mark.parametrize("size", [2, 5, 20])
def test_equal_views_have_equal_owners_and_a_join_moves_keys_to_the_joiner_only(size: int) -> None:
    sim = cluster(size, size)
    before = owners(sim, "n0")
    assert owners(sim, "n1") == before
    sim.start("joiner")
    sim.run(2)
    after = owners(sim, "joiner")
    assert owners(sim, "n0") == after
    moved = [now for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {"joiner"}
    assert len(moved) / len(KEYS) == pytest.approx(1 / (size + 1), rel=0.25)


def test_leave_moves_only_the_keys_of_the_leaver_and_a_restart_brings_them_back() -> None:
    sim = cluster(1, 5)
    before = owners(sim, "n1")
    sim.leave("n0")
    sim.run(3)
    moved = [was for was, now in zip(before, owners(sim, "n1"), strict=True) if was != now]
    assert set(moved) == {"n0"}
    sim.start("n0")
    sim.run(2)
    assert owners(sim, "n1") == before


def test_suspect_keeps_its_keys() -> None:
    sim = cluster(1, 3)
    before = owners(sim, "n1")
    sim.crash("n0")
    sim.run(2.2)
    assert sim.nodes["n1"].membership.members["n0"].state is MemberState.SUSPECT
    assert owners(sim, "n1") == before


# -- the simulator itself -----------------------------------------------------------------------------------


def test_same_seed_gives_the_same_trace() -> None:
    first, again, other = (swarm(seed, 5).trace.hexdigest() for seed in (7, 7, 8))
    assert first == again != other


class RemembersNoBoot(Membership):
    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        self._retired.clear()
        known = self.members.get(beat.identity.name)
        if known and known.identity.boot != beat.identity.boot:
            del self.members[beat.identity.name]
        return super().heard(beat, now, fresh=fresh)


class RevivesLeftMembers(Membership):
    def _hear_member(self, member: Member, beat: Heartbeat, now: float, effects: Effects) -> bool:
        if member.state is MemberState.LEFT:
            move(member, beat.state, now, effects)
            return True
        return super()._hear_member(member, beat, now, effects)


class CountsItsOwnPause(Membership):
    def _discount(self, late: float, now: float) -> None:
        pass


class DeclaresDownTooSoon(Membership):
    def _update_silent(self, now: float, effects: Effects) -> None:
        for member in self.members.values():
            if member.state is MemberState.ALIVE and now - member.heard > 0.45:
                move(member, MemberState.DOWN, now, effects)


class SuspectsAnother(Membership):
    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        effects = super().heard(beat, now, fresh=fresh)
        for member in self.members.values():
            if member.identity.name != beat.identity.name and member.state is MemberState.ALIVE:
                move(member, MemberState.DOWN, now, effects)
        return effects


class RaisesOthers(Membership):
    def _hear_member(self, member: Member, beat: Heartbeat, now: float, effects: Effects) -> bool:
        member.incarnation += 1
        return super()._hear_member(member, beat, now, effects)


class LowersIncarnation(Membership):
    def tick(self, now: float, due: float = TICK) -> Effects:
        self.incarnation = max(0, self.incarnation - 1)
        return super().tick(now, due)


class OwnEpoch(Membership):
    def _settle(self, effects: Effects) -> None:
        super()._settle(effects)
        if effects.changes:
            self.view = View(self.view.members, self.view.epoch ^ self.me.boot[0])


class NeverRefutes(Membership):
    def _refute(self, observation: Observation, sender: Member | None, effects: Effects) -> None:
        return


class AnswersAll(Membership):
    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        effects = super().heard(beat, now, fresh=fresh)
        effects.answer = True
        return effects


class NamesAll(Membership):
    def heartbeat(self, now: float, channel: str = "", answer_to: Identity | None = None) -> Heartbeat:
        beat = super().heartbeat(now, channel, answer_to)
        return Heartbeat(self.me, 0, beat.sequence, self.state, 0, beat.observations * 20)


class KeepsEveryBoot(Membership):
    def tick(self, now: float, due: float = TICK) -> Effects:
        self._retired.update((number.to_bytes(16), None) for number in range(RETIRED_BOOTS + 1))
        return super().tick(now, due)


class IgnoresDownMembers(Membership):
    def _hear_member(self, member: Member, beat: Heartbeat, now: float, effects: Effects) -> bool:
        if member.state is not MemberState.DOWN or now - member.since > 10:
            return super()._hear_member(member, beat, now, effects)
        return False


class BelievesRecordings(Membership):
    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        return super().heard(beat, now, fresh=True)


class TakesTheNewer(Membership):
    def _is_replaced_by(self, member: Member, beat: Heartbeat, now: float) -> bool:
        return True


class NeverEnds(Membership):
    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        effects = super().heard(beat, now, fresh=fresh)
        effects.superseded = False
        return effects


@pytest.mark.parametrize(
    ("broken", "scenario", "caught"),
    [
        (BelievesRecordings, recordings, "begun after its end"),
        (TakesTheNewer, namesake, "a namesake brought"),
        (NeverEnds, displaced, "has another view|of two nodes called"),
    ],
)
def test_broken_node_is_caught_by_the_scenario_for_it(
    broken: type[Membership], scenario: Scenario, caught: str
) -> None:
    def search() -> None:
        for seed in range(50):
            scenario(seed, cluster(seed, 5, membership=broken))

    with pytest.raises(Violation, match=rf"({caught}).*\(seed \d+"):
        search()


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (RemembersNoBoot, "replaced instance"),
        (RevivesLeftMembers, "a node that left stays away"),
        (CountsItsOwnPause, "it has just woken itself"),
        (DeclaresDownTooSoon, "it was heard .* ago"),
        (SuspectsAnother, "that was about another"),
        (RaisesOthers, "raises the incarnation"),
        (LowersIncarnation, "incarnation of .* falls"),
        (OwnEpoch, "another epoch for an equal view"),
        (NeverRefutes, "floods|has another view"),
        (IgnoresDownMembers, "one view only|has another view"),
        (AnswersAll, "floods"),
        (NamesAll, "names .* members"),
        (KeepsEveryBoot, "grows without bound"),
    ],
)
def test_broken_node_is_caught_and_the_seed_is_named(broken: type[Membership], caught: str) -> None:
    def search() -> None:
        for seed in range(200):
            swarm(seed, 5, membership=broken).converge()

    with pytest.raises(Violation, match=rf"({caught}).*\(seed \d+, at [\d.]+ s\)"):
        search()
