"""A node that others have declared down gives way to them, or stays, and finds out which of them have served."""

import pytest

from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState, Observation, View
from django_clusterstate.core.membership.members import Effects, Timings
from django_clusterstate.core.membership.membership import Membership

ME, A, B, C, D = (Identity(name, name.encode() * 16, f"{name}:4370") for name in "mabcd")
ALL = (A, B, C, D, ME)


class Cluster:
    """The node `m` serves, and has heard a, b, c and d in a view of all five."""

    def __init__(self) -> None:
        self.now = 100.0
        self.node = Membership(ME, Timings(), self.now, rejoins=True)
        self._sequence = 0
        self.wait(1.1)
        for who in ALL[:-1]:
            self.hear(who, *ALL)

    def wait(self, seconds: float, *heard: Identity) -> None:
        """`heard` are heard meanwhile, and nobody else."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for who in heard:
                self.hear(who, *heard, ME)
            self.node.tick(self.now)

    def hear(
        self,
        who: Identity,
        *view: Identity,
        down: int | None = None,
        state: MemberState = MemberState.ALIVE,
        incarnation: int = 0,
        age: float | None = None,
    ) -> Effects:
        """A heartbeat of a node with this view. `down`: the incarnation of m that it has declared down. `age`: it has
        heard m these seconds before it sent this."""
        self._sequence += 1
        seen = () if down is None else (Observation(ME.name, ME.boot, ME.address, MemberState.DOWN, down, 0.0),)
        if age is not None:
            seen = (Observation(ME.name, ME.boot, ME.address, MemberState.ALIVE, 0, age),)
        ordered = View.of(view)
        beat = Heartbeat(
            who, incarnation, self._sequence, state, ordered.epoch, seen, "", len(ordered.members), ordered.first
        )
        return self.node.heard(beat, self.now, fresh=True)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def boots(*of: Identity) -> frozenset[bytes]:
    return frozenset(who.boot for who in of)


def test_winners_are_known_when_each_was_heard_with_the_view_of_one_that_has_declared_the_node_down(
    cluster: Cluster,
) -> None:
    effects = cluster.hear(A, A, B, C, down=0)
    assert effects.declared_down
    assert not effects.winners
    assert cluster.node.state is MemberState.JOINING
    assert not cluster.hear(B, A, B, C).winners
    assert not cluster.hear(D, *ALL).winners  # declared down as well, and doesn't know yet
    assert not cluster.hear(C, A, B, C).winners  # c may have that view for another reason
    assert cluster.hear(A, A, B, C).winners == boots(A, B, C)
    assert not cluster.hear(A, A, B, C).winners


def test_another_winner_tells_who_they_are_if_the_first_one_ends(cluster: Cluster) -> None:
    cluster.hear(A, A, B, C, down=0)
    cluster.node.refused("a", A.boot, cluster.now)
    cluster.hear(C, B, C)
    assert cluster.hear(B, B, C, down=0).winners == boots(B, C)


def test_verdict_that_made_a_node_give_way_has_no_effect_when_others_repeat_it(cluster: Cluster) -> None:
    assert cluster.hear(A, A, B, C, down=0).declared_down
    assert not cluster.hear(A, A, B, C, down=0).declared_down
    assert not cluster.hear(B, A, B, C, down=0).declared_down
    assert cluster.hear(B, A, B, C, down=1).declared_down


def test_larger_side_stays_and_the_other_gives_way(cluster: Cluster) -> None:
    cluster.wait(4.6, A, B)
    assert cluster.node.members["c"].state is MemberState.DOWN
    assert not cluster.hear(C, C, D, down=0).declared_down
    assert cluster.node.state is MemberState.ALIVE
    assert cluster.node.incarnation == 1


def test_side_that_stays_against_one_gives_way_to_a_third(cluster: Cluster) -> None:
    cluster.wait(4.6, A)
    assert not cluster.hear(D, D, down=0).declared_down
    assert cluster.hear(C, A, B, C, down=0).declared_down
    assert cluster.node.state is MemberState.JOINING


@pytest.mark.parametrize("state", [MemberState.JOINING, MemberState.LEAVING])
def test_nobody_gives_way_to_a_node_that_does_not_serve(cluster: Cluster, state: MemberState) -> None:
    assert not cluster.hear(A, B, C, D, down=0, state=state).declared_down
    assert cluster.node.incarnation == 1
    assert cluster.hear(B, B, C, D, down=0).declared_down


def test_what_others_said_before_a_gap_and_comes_after_it_keeps_no_node_that_was_cut_off(cluster: Cluster) -> None:
    cluster.wait(3.2)
    for age in (0.2, 0.7, 1.2):  # as long as the gap on their way
        for who in (A, B, C, D):
            cluster.hear(who, *ALL, age=age)
    effects = [cluster.hear(who, A, B, C, D, down=0) for who in (A, B, C, D)]
    assert [effect.declared_down for effect in effects] == [True, False, False, False]
    assert cluster.node.state is MemberState.JOINING


def test_node_that_its_peers_hear_disregards_one_that_does_not(cluster: Cluster) -> None:
    cluster.wait(1.0, A, B, C)
    for who in (A, B, C):
        cluster.hear(who, *ALL, age=0.2)
    assert not cluster.hear(D, A, B, C, D, down=0).declared_down
    assert cluster.node.state is MemberState.ALIVE
