"""Every transition of a member, as one node sees it. Whole clusters are in `test_simulation`."""

import math

import pytest

from django_clusterstate.core.membership import gossip, provisional_instances
from django_clusterstate.core.membership import membership as rules
from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState, Observation, View
from django_clusterstate.core.membership.joining import WaitReason
from django_clusterstate.core.membership.members import TOMBSTONE_SECONDS, TOMBSTONES, Change, Effects, Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.core.membership.name_conflicts import NameConflict

ME = Identity("me", b"m" * 16, "me:4370")
A = Identity("a", b"a" * 16, "a:4370")
A2 = Identity("a", b"A" * 16, "a:4370")
B = Identity("b", b"b" * 16, "b:4370")
C = Identity("c", b"c" * 16, "c:4370")


class Clock:
    """One node under test, its time, and what it was told; heartbeats number themselves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.node = Membership(ME, Timings(), self.now)
        self.sequences: dict[bytes, int] = {}

    def hear(
        self,
        who: Identity = A,
        state: MemberState = MemberState.ALIVE,
        incarnation: int = 0,
        observations: tuple[Observation, ...] = (),
        sequence: int | None = None,
        fresh: bool = True,
    ) -> Effects:
        """A heartbeat of an instance that runs; not `fresh`: it may be a recording."""
        if sequence is None:
            sequence = self.sequences[who.boot] = self.sequences.get(who.boot, 0) + 1
        return self.node.heard(Heartbeat(who, incarnation, sequence, state, 0, observations), self.now, fresh=fresh)

    def wait(self, seconds: float, *heard: Identity) -> list[Change]:
        """Ticks each tenth of a second, and hears `heard` just before each."""
        changes: list[Change] = []
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for who in heard:
                changes += self.hear(who).changes
            changes += self.node.tick(self.now).changes
        return changes

    def state(self, who: Identity = A) -> MemberState:
        return self.node.members[who.name].state


@pytest.fixture
def clock() -> Clock:
    """A node that has joined a cluster in which nobody else is known."""
    clock = Clock()
    clock.wait(1.1)
    return clock


def refused_loopbacks(clock: Clock) -> list[Identity]:
    return clock.node.joining.refused_loopbacks(clock.node.members, clock.node.state)


def observation(of: Identity, state: MemberState, incarnation: int = 0) -> Observation:
    return Observation(of.name, of.boot, of.address, state, incarnation, 0.0)


# -- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [MemberState.JOINING, MemberState.ALIVE, MemberState.LEAVING])
def test_unknown_node_becomes_what_it_says(clock: Clock, state: MemberState) -> None:
    effects = clock.hear(A, state)
    assert effects == Effects([Change(A, None, state)], answer=True, dial=True)
    assert (A in clock.node.view.members) is (state is MemberState.ALIVE)


def test_joining_node_is_alive_once_it_says_so(clock: Clock) -> None:
    clock.hear(A, MemberState.JOINING)
    assert clock.hear(A, MemberState.ALIVE).changes == [Change(A, MemberState.JOINING, MemberState.ALIVE)]
    assert A in clock.node.view.members


def test_alive_node_is_suspect_after_silence_and_keeps_its_place_in_the_view(clock: Clock) -> None:
    clock.hear(A)
    view = clock.node.view
    assert clock.wait(1.4) == []
    assert clock.wait(0.2) == [Change(A, MemberState.ALIVE, MemberState.SUSPECT)]
    assert clock.node.view == view


def test_suspect_node_is_alive_as_soon_as_it_is_heard(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(1.6)
    assert clock.hear(A).changes == [Change(A, MemberState.SUSPECT, MemberState.ALIVE)]


def test_suspect_node_is_down_after_longer_silence(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(2.9)
    assert clock.state() is MemberState.SUSPECT
    assert clock.wait(0.2) == [Change(A, MemberState.SUSPECT, MemberState.DOWN)]
    assert clock.node.view.members == (ME,)


def test_joining_node_that_falls_silent_is_down_and_never_suspect(clock: Clock) -> None:
    clock.hear(A, MemberState.JOINING)
    assert clock.wait(3.1) == [Change(A, MemberState.JOINING, MemberState.DOWN)]


@pytest.mark.parametrize("before", [MemberState.JOINING, MemberState.ALIVE])
def test_leaving_node_owns_nothing_at_once(clock: Clock, before: MemberState) -> None:
    clock.hear(A, before)
    assert clock.hear(A, MemberState.LEAVING).changes == [Change(A, before, MemberState.LEAVING)]
    assert A not in clock.node.view.members


def test_leaving_node_has_left_when_it_says_so(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    assert clock.hear(A, MemberState.LEFT).changes == [Change(A, MemberState.LEAVING, MemberState.LEFT)]


def test_leaving_node_that_falls_silent_has_left_and_is_not_down(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    assert clock.wait(3.1) == [Change(A, MemberState.LEAVING, MemberState.LEFT)]


def test_leaving_node_does_not_come_back(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    assert clock.hear(A, MemberState.ALIVE).changes == []
    assert clock.state() is MemberState.LEAVING


def test_left_node_stays_left_whatever_its_boot_says(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    clock.hear(A, MemberState.LEFT)
    assert clock.hear(A, MemberState.ALIVE, incarnation=9) == Effects()
    assert clock.state() is MemberState.LEFT
    assert clock.node.dropped == 1


def test_left_node_comes_back_with_a_new_boot(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    clock.hear(A, MemberState.LEFT)
    assert clock.hear(A2).changes == [Change(A2, None, MemberState.ALIVE)]


def test_down_node_stays_down_until_it_refutes_and_is_answered(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(3.1)
    assert clock.hear(A) == Effects(answer=True, dial=True)
    assert clock.state() is MemberState.DOWN
    assert clock.hear(A, incarnation=1).changes == [Change(A, MemberState.DOWN, MemberState.ALIVE)]


def test_down_node_that_refutes_is_what_it_says(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(3.1)
    assert clock.hear(A, MemberState.LEAVING, incarnation=1).changes == [
        Change(A, MemberState.DOWN, MemberState.LEAVING)
    ]


def test_last_heartbeat_of_an_unknown_node_makes_no_member(clock: Clock) -> None:
    assert clock.hear(A, MemberState.LEFT) == Effects()
    assert clock.node.members == {}


def test_late_message_after_the_last_of_an_unknown_node_makes_no_member(clock: Clock) -> None:
    clock.hear(A, MemberState.LEFT, sequence=9)
    assert clock.hear(A, MemberState.ALIVE, sequence=8) == Effects()
    assert clock.node.members == {}


# -- instances ----------------------------------------------------------------------------------------------


def test_new_boot_under_the_name_of_a_refused_one_is_a_restart(clock: Clock) -> None:
    clock.hear(A)
    epoch = clock.node.view.epoch
    clock.node.refused("a", A.boot, clock.now)
    effects = clock.hear(A2)
    assert effects.changes == [Change(A2, None, MemberState.ALIVE)]
    assert effects.answer
    assert clock.node.view.epoch != epoch
    assert clock.node.restarts == 1


def test_new_boot_that_answers_at_the_address_of_the_old_one_is_a_restart_at_once(clock: Clock) -> None:
    clock.hear(A)
    clock.hear(A2, MemberState.JOINING)
    assert clock.node.identified("a", A2.boot, clock.now, A.address).changes == [
        Change(A, MemberState.ALIVE, MemberState.DOWN),
        Change(A2, None, MemberState.JOINING),
    ]


def test_new_boot_that_answers_there_before_it_is_heard_has_ended_the_old_one(clock: Clock) -> None:
    clock.hear(A)
    assert clock.node.identified("a", A2.boot, clock.now, A.address).changes == [
        Change(A, MemberState.ALIVE, MemberState.DOWN)
    ]
    assert clock.hear(A2, MemberState.JOINING, fresh=False).changes == [Change(A2, None, MemberState.JOINING)]


def test_handshake_with_a_new_boot_elsewhere_ends_nobody(clock: Clock) -> None:
    clock.hear(A)
    assert clock.node.identified("a", A2.boot, clock.now, "elsewhere:4370") == Effects()
    assert clock.node.identified("a", A2.boot, clock.now) == Effects()
    assert clock.state() is MemberState.ALIVE


def test_open_link_to_a_replaced_boot_ends_nobody(clock: Clock) -> None:
    clock.hear(A)
    clock.node.identified("a", A.boot, clock.now, A.address)
    clock.node.refused("a", A.boot, clock.now)
    clock.hear(A2)
    clock.node.still_linked(A.boot, clock.now)
    assert clock.node.identified("a", A.boot, clock.now, A.address) == Effects()
    assert clock.state() is MemberState.ALIVE


def test_restart_of_a_leaving_node_ends_its_leave(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    assert clock.hear(A2).changes == [
        Change(A, MemberState.LEAVING, MemberState.LEFT),
        Change(A2, None, MemberState.ALIVE),
    ]


class Pair:
    """Two nodes that send each other heartbeats twice a second, and answer; each way can be lost."""

    def __init__(self) -> None:
        self.now = 0.0
        identities = Identity("x", b"x" * 16, "10.0.0.1:1"), Identity("y", b"y" * 16, "10.0.0.2:1")
        self.x, self.y = (Membership(who, Timings(), self.now) for who in identities)
        self.declared_down: list[str] = []

    def states(self) -> list[MemberState]:
        """What x holds y for, and y x."""
        return [self.x.members["y"].state, self.y.members["x"].state]

    def send(self, sender: Membership, to: Membership, answer_to: Identity | None = None) -> bool:
        """Whether it is to be answered."""
        effects = to.heard(sender.heartbeat(self.now, answer_to=answer_to), self.now, fresh=True)
        if effects.declared_down:
            self.declared_down.append(to.me.name)
        return effects.answer

    def run(self, seconds: float, *, x_to_y: bool = True, y_to_x: bool = True) -> None:
        for step in range(round(seconds * 10)):
            self.now += 0.1
            self.x.tick(self.now)
            self.y.tick(self.now)
            if step % 5:
                continue
            for sender, to, there, back in ((self.x, self.y, x_to_y, y_to_x), (self.y, self.x, y_to_x, x_to_y)):
                if there and self.send(sender, to) and back:
                    self.send(to, sender, sender.me)


def test_node_that_was_down_learns_it_once_though_it_had_refuted_a_suspicion_before() -> None:
    pair = Pair()
    pair.run(4)
    pair.run(6, x_to_y=False)  # x hears that it is suspected, and then that it is down, of an earlier incarnation
    assert pair.states() == [MemberState.ALIVE, MemberState.DOWN]
    pair.run(5)
    assert pair.states() == [MemberState.ALIVE, MemberState.ALIVE]
    assert pair.declared_down == ["x"]


def test_node_that_was_down_is_notified_even_if_it_refuted_something_earlier() -> None:
    pair = Pair()
    pair.run(4)
    pair.run(2.2, x_to_y=False)  # x refutes the suspicion, which y doesn't hear
    pair.run(10, x_to_y=False, y_to_x=False)
    pair.run(5)
    assert pair.states() == [MemberState.ALIVE, MemberState.ALIVE]
    assert sorted(pair.declared_down) == ["x", "y"]


def test_replaced_instance_never_returns_and_is_notified(clock: Clock) -> None:
    clock.hear(A)
    clock.node.refused("a", A.boot, clock.now)
    clock.hear(A2)
    assert clock.hear(A, incarnation=9) == Effects()
    assert clock.node.members["a"].identity == A2
    told = [clock.node.heartbeat(clock.now).observations for _ in range(gossip.NOTICES + 1)]
    assert [seen[0].boot for seen in told] == [A.boot] * gossip.NOTICES + [A2.boot]
    assert told[0][0].state is MemberState.LEFT


@pytest.mark.parametrize("state", [MemberState.JOINING, MemberState.ALIVE])
def test_instance_that_others_have_replaced_is_superseded(state: MemberState) -> None:
    clock = Clock()
    clock.wait(1.1 if state is MemberState.ALIVE else 0.1)
    clock.hear(B)
    assert clock.hear(B, observations=(observation(ME, MemberState.LEFT),)).superseded
    clock.node.leave()
    assert not clock.hear(B, observations=(observation(ME, MemberState.LEFT),)).superseded


@pytest.mark.parametrize(("theirs", "over"), [(b"a" * 16, True), (b"z" * 16, False)])
def test_of_two_instances_that_have_replaced_each_other_one_is_superseded(
    clock: Clock, theirs: bytes, over: bool
) -> None:
    other = Identity("a", theirs, "a:4370")
    clock.hear(other)
    clock.node.refused("a", theirs, clock.now)
    clock.hear(Identity("a", b"n" * 16, "elsewhere:4370"))
    assert clock.hear(other, observations=(observation(ME, MemberState.LEFT),)).superseded is over
    assert not clock.hear(other, observations=(observation(ME, MemberState.ALIVE),)).superseded


def test_instance_that_has_said_more_replaces_one_that_is_silent(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(1.6)
    assert clock.hear(A2, sequence=500).changes == [
        Change(A, MemberState.SUSPECT, MemberState.DOWN),
        Change(A2, None, MemberState.ALIVE),
    ]


# -- two running nodes of one name --------------------------------------------------------------------------


def test_newcomer_displaces_nobody_who_is_still_heard(clock: Clock) -> None:
    clock.hear(A)
    view = clock.node.view
    assert clock.hear(A2, MemberState.JOINING) == Effects(answer=True, dial=True)
    clock.wait(9, A, A2)
    assert clock.node.view == view
    assert clock.node.name_conflicts(clock.now) == [NameConflict("a", A.address, A2.address)]
    assert clock.hear(A2, MemberState.LEFT).changes == []
    assert clock.node.name_conflicts(clock.now) == []
    assert clock.hear(A2) == Effects()
    assert clock.node.view == view


def test_newcomer_displaces_nobody_whom_others_still_hear(clock: Clock) -> None:
    clock.hear(A)
    for _ in range(20):
        clock.hear(B, observations=(observation(A, MemberState.ALIVE),))
        clock.hear(A2)
        clock.wait(0.2)
    assert clock.node.members["a"].identity == A


def test_instance_in_conflict_takes_the_place_of_a_member_that_leaves_or_goes_down(clock: Clock) -> None:
    clock.hear(A)
    clock.hear(A2, MemberState.JOINING)
    clock.hear(A, MemberState.LEAVING)
    assert clock.hear(A2, MemberState.JOINING).changes == [
        Change(A, MemberState.LEAVING, MemberState.LEFT),
        Change(A2, None, MemberState.JOINING),
    ]


def test_silent_instance_in_conflict_is_forgotten(clock: Clock) -> None:
    clock.hear(A)
    clock.hear(A2, MemberState.JOINING)
    clock.wait(3.1, A)
    assert clock.node.name_conflicts(clock.now) == []
    assert clock.node._conflicts.instances == {}


def test_serving_instance_takes_the_place_of_a_joining_member_unless_it_is_a_late_message(clock: Clock) -> None:
    clock.hear(A2, MemberState.JOINING)
    clock.hear(A, sequence=500)
    assert clock.node.members["a"].identity == A2
    for number in range(20):
        clock.now += 0.1
        clock.hear(A2, MemberState.JOINING)
        clock.hear(A, sequence=501 + number)
    assert clock.node.members["a"].identity == A
    assert [twins.name for twins in clock.node.name_conflicts(clock.now)] == ["a"]


def test_node_whose_name_is_taken_stays_joining_until_it_is_free() -> None:
    clock, holder = Clock(), Identity("me", b"x" * 16, "elsewhere:4370")
    assert clock.wait(9, holder) == []
    assert clock.node.wait_reason(clock.now) is WaitReason.NAME_TAKEN
    assert clock.node.name_conflicts(clock.now) == [NameConflict("me", "elsewhere:4370", "me:4370")]
    clock.hear(holder, MemberState.LEFT)
    assert clock.wait(0.1) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]


def test_node_whose_name_is_taken_by_the_word_of_others_stays_joining() -> None:
    clock, holder = Clock(), Identity("me", b"x" * 16, "elsewhere:4370")
    for _ in range(30):
        clock.hear(B, observations=(observation(holder, MemberState.ALIVE),))
        assert clock.wait(0.1) == []
    assert clock.node.wait_reason(clock.now) is WaitReason.NAME_TAKEN
    assert clock.wait(2.8, B) == []
    assert clock.wait(0.3, B) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]


def test_of_two_that_join_under_one_name_the_first_boot_id_goes_on() -> None:
    for other, waits in ((b"a" * 16, WaitReason.NAME_TAKEN), (b"z" * 16, None)):
        clock = Clock()
        clock.wait(1.1)
        clock = Clock()
        for _ in range(12):
            clock.hear(Identity("me", other, "elsewhere:4370"), MemberState.JOINING)
            clock.wait(0.1)
        assert clock.node.wait_reason(clock.now) is waits


def test_of_two_that_serve_under_one_name_the_younger_is_superseded(clock: Clock) -> None:
    other = Identity("me", b"x" * 16, "elsewhere:4370")
    for _ in range(30):
        clock.node.heartbeat(clock.now)
    assert not clock.hear(other, sequence=1).superseded
    clock.now += 0.5
    assert not clock.hear(other, sequence=2).superseded
    assert clock.hear(other, sequence=500).superseded


def test_of_two_that_began_together_the_first_boot_id_goes_on(clock: Clock) -> None:
    for boot, over in ((b"a" * 16, True), (b"z" * 16, False)):
        other = Identity("me", boot, "elsewhere:4370")
        clock.hear(other)
        clock.now += 0.5
        assert clock.hear(other).superseded is over
        clock.hear(other, MemberState.LEFT)


def test_late_message_of_our_former_instance_ends_nobody(clock: Clock) -> None:
    assert not clock.hear(Identity("me", b"x" * 16, "me:4370"), sequence=500).superseded


def test_own_heartbeat_is_no_name_conflict_and_no_member(clock: Clock) -> None:
    assert [clock.hear(ME) for _ in range(5)] == [Effects()] * 5
    assert clock.node.members == {}
    assert clock.node.name_conflicts(clock.now) == []


# -- who runs now -------------------------------------------------------------------------------------------


def test_unknown_instance_is_answered_and_no_member_until_it_has_shown_that_it_runs(clock: Clock) -> None:
    assert clock.hear(A, fresh=False) == Effects(answer=True)
    assert clock.node.members == {}
    assert (
        clock.hear(A, fresh=False, observations=(observation(B, MemberState.ALIVE),)) == Effects()
    )  # just answered, no dials
    clock.now += 2 * provisional_instances.ANSWER_EVERY
    assert clock.hear(A, fresh=False) == Effects(answer=True)
    assert clock.hear(A, fresh=False, observations=(observation(ME, MemberState.JOINING),)).changes == [
        Change(A, None, MemberState.ALIVE)
    ]


def test_answer_names_the_instance_that_it_is_for_first(clock: Clock) -> None:
    crowd(clock, 20)
    clock.hear(A, fresh=False)
    for known in (False, True):
        seen = clock.node.heartbeat(clock.now, answer_to=A).observations
        assert len(seen) == gossip.OBSERVATIONS
        assert (seen[0].boot, seen[0].state) == (A.boot, MemberState.ALIVE if known else MemberState.JOINING)
        clock.hear(A)


def test_handshake_shows_that_an_instance_runs_before_or_after_it_is_heard(clock: Clock) -> None:
    clock.hear(A, fresh=False)
    assert clock.node.identified("a", A.boot, clock.now).changes == [Change(A, None, MemberState.ALIVE)]
    assert clock.node.identified("b", B.boot, clock.now) == Effects()
    assert clock.hear(B, fresh=False).changes == [Change(B, None, MemberState.ALIVE)]


def test_handshake_of_long_ago_shows_nothing_unless_its_link_is_still_open(clock: Clock) -> None:
    clock.node.identified("a", A.boot, clock.now)
    clock.node.identified("b", B.boot, clock.now)
    clock.wait(2)
    clock.node.still_linked(B.boot, clock.now)
    clock.node.still_linked(C.boot, clock.now)  # never met
    clock.wait(1.5)
    assert [clock.hear(who, fresh=False).changes != [] for who in (A, B, C)] == [False, True, False]


def test_recorded_heartbeats_of_one_that_is_gone_bring_nobody_in(clock: Clock) -> None:
    for sequence in range(1, 100):
        clock.hear(A, fresh=False, sequence=sequence, observations=(observation(B, MemberState.ALIVE),))
        assert clock.wait(0.1) == []
    assert clock.node.view == View.of([ME])
    assert clock.node.members == {}


def test_recording_of_the_own_name_is_no_name_conflict() -> None:
    clock, former = Clock(), Identity("me", b"x" * 16, "me:4370")
    for sequence in range(1, 15):
        clock.hear(former, fresh=False, sequence=sequence)
        clock.wait(0.1)
    assert ME in clock.node.view.members
    assert clock.node.name_conflicts(clock.now) == []


def test_recording_of_a_member_that_runs_keeps_nobody_alive(clock: Clock) -> None:
    clock.hear(B)
    clock.hear(A, sequence=1, observations=(observation(B, MemberState.ALIVE),))
    for sequence in range(2, 40):
        clock.now += 0.1
        clock.hear(A, sequence=sequence)
        clock.hear(A, sequence=1, observations=(observation(B, MemberState.ALIVE),))
        clock.node.tick(clock.now)
    assert clock.state(B) is MemberState.DOWN


def test_last_heartbeat_of_a_provisional_instance_is_final(clock: Clock) -> None:
    clock.hear(A, fresh=False)
    clock.hear(A, MemberState.LEFT, fresh=False)
    assert clock.node.identified("a", A.boot, clock.now) == Effects()
    assert clock.hear(A) == Effects()


def test_provisional_instances_and_handshakes_are_bounded_and_forgotten(clock: Clock) -> None:
    for number in range(provisional_instances.MAX_PROVEN + 5):
        clock.hear(Identity(f"n{number}", b"%016d" % number, "n:1"), fresh=False)
        clock.node.identified(f"m{number}", b"m%015d" % number, clock.now)
    assert len(clock.node._provisional.provisional) == provisional_instances.MAX_PROVISIONAL
    assert len(clock.node._provisional.proven) == provisional_instances.MAX_PROVEN
    clock.wait(3.1)
    assert not clock.node._provisional.provisional
    assert not clock.node._provisional.proven


def test_node_that_serves_answers_whoever_holds_it_for_joining(clock: Clock) -> None:
    clock.hear(B)
    assert clock.hear(B, observations=(observation(ME, MemberState.JOINING),)).answer
    assert not clock.hear(B, observations=(observation(ME, MemberState.ALIVE),)).answer


# -- when a node serves -------------------------------------------------------------------------------------


def joiner(address: str = "me:4370") -> Clock:
    clock = Clock()
    clock.node = Membership(replace_address(ME, address), Timings(), clock.now, must_be_reached=True)
    return clock


def replace_address(who: Identity, address: str) -> Identity:
    return Identity(who.name, who.boot, address, who.weight)


def test_joiner_serves_once_one_peer_has_connected_to_it() -> None:
    clock = joiner()
    assert ME not in {change.identity for change in clock.wait(20, A, B)}
    assert clock.node.wait_reason(clock.now) is WaitReason.UNREACHED
    clock.node.reached_by("b", B.boot, clock.now)
    assert clock.wait(0.1, A) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]


def test_joiner_that_is_alone_serves_after_two_heartbeats() -> None:
    clock = joiner()
    assert clock.wait(1.1) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]


def test_joiner_that_hears_nobody_but_has_connected_to_others_is_not_alone() -> None:
    clock = joiner()
    clock.node.identified("a", A.boot, clock.now, A.address)
    for _ in range(20):
        clock.node.still_linked(A.boot, clock.now)
        assert clock.wait(0.5) == []
    assert clock.node.wait_reason(clock.now) is WaitReason.UNREACHED
    assert clock.wait(3.1) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]  # nobody is there any more


def test_joiner_does_not_count_on_nodes_that_only_their_own_host_reaches() -> None:
    clock = joiner()
    assert Change(ME, MemberState.JOINING, MemberState.ALIVE) in clock.wait(1.1, replace_address(A, "127.0.0.1:4370"))


def test_node_that_serves_is_not_demoted_for_a_missing_link(clock: Clock) -> None:
    clock.node.joining.must_be_reached = True
    assert [change.identity for change in clock.wait(20, A)] == [A]


def test_joiner_waits_a_while_for_members_that_others_know() -> None:
    clock = Clock()
    for _ in range(12):
        clock.hear(B, observations=(observation(A, MemberState.ALIVE),))
        clock.wait(0.1)
    assert clock.node.wait_reason(clock.now) is WaitReason.UNKNOWN_MEMBERS
    clock.hear(A)
    assert clock.wait(0.1) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]


def test_joiner_waits_a_while_for_those_that_are_about_to_show_that_they_run() -> None:
    clock = Clock()
    changes = []
    for sequence in range(1, 50):
        clock.hear(A, fresh=False, sequence=sequence)
        changes += clock.wait(0.1)
        if sequence == 35:
            assert clock.node.wait_reason(clock.now) is WaitReason.UNKNOWN_MEMBERS
    assert changes == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]


# -- loopback addresses -------------------------------------------------------------------------------------

LOCAL_A, LOCAL_B = replace_address(A, "127.0.0.1:4371"), replace_address(B, "[::1]:4372")


def test_nodes_that_all_have_loopback_addresses_are_a_cluster() -> None:
    clock = joiner("localhost:4370")
    clock.hear(LOCAL_A)
    clock.node.reached_by("a", A.boot, clock.now)
    clock.wait(1.1, LOCAL_A, LOCAL_B)
    assert {who.name for who in clock.node.view.members} == {"me", "a", "b"}
    assert refused_loopbacks(clock) == []


def test_node_with_a_loopback_address_owns_nothing_once_another_serves(clock: Clock) -> None:
    clock.hear(LOCAL_A)
    assert clock.node.view.members == (ME,)
    assert refused_loopbacks(clock) == [LOCAL_A]
    clock.hear(C)
    assert clock.node.view == View.of([ME, C])


def test_node_with_a_loopback_address_steps_back_while_another_serves() -> None:
    clock = joiner("127.0.0.1:4370")
    clock.node.reached_by("a", A.boot, clock.now)
    clock.wait(1.5, LOCAL_A)
    assert clock.node.state is MemberState.ALIVE
    assert clock.hear(C, MemberState.JOINING).changes == [Change(C, None, MemberState.JOINING)]
    assert clock.hear(C).changes == [
        Change(C, MemberState.JOINING, MemberState.ALIVE),
        Change(clock.node.me, MemberState.ALIVE, MemberState.JOINING),
    ]
    assert clock.node.view == View.of([C])
    clock.wait(5, C, LOCAL_A)
    assert clock.node.wait_reason(clock.now) is WaitReason.LOOPBACK_ADDRESS
    assert {who.name for who in refused_loopbacks(clock)} == {"me", "a"}
    clock.hear(C, MemberState.LEAVING)
    clock.hear(C, MemberState.LEFT)
    assert clock.wait(0.1, LOCAL_A) == [Change(clock.node.me, MemberState.JOINING, MemberState.ALIVE)]
    assert clock.node.view == View.of([clock.node.me, LOCAL_A])


def test_joiner_with_a_loopback_address_knows_others_by_their_links_too() -> None:
    clock = joiner("127.0.0.1:4370")
    clock.node.identified("c", C.boot, clock.now, C.address)
    assert clock.wait(2) == []
    assert clock.node.wait_reason(clock.now) is WaitReason.LOOPBACK_ADDRESS


# -- refutation and replays ---------------------------------------------------------------------------------


def test_node_that_was_declared_down_raises_its_incarnation_once_and_answers(clock: Clock) -> None:
    clock.hear(B)
    assert clock.hear(B, observations=(observation(ME, MemberState.DOWN),)).answer
    assert clock.node.incarnation == 1
    assert not clock.hear(B, observations=(observation(ME, MemberState.DOWN),)).answer
    assert clock.node.incarnation == 1
    assert clock.node.heartbeat(clock.now).incarnation == 1


def test_suspected_node_answers_each_time_and_does_not_raise_its_incarnation(clock: Clock) -> None:
    clock.hear(B)
    for _ in range(2):  # an answer may be lost too
        assert clock.hear(B, observations=(observation(ME, MemberState.SUSPECT),)).answer
    assert clock.node.incarnation == 0  # or a peer that has declared it down meanwhile would take it to know that


def test_suspicion_of_another_or_a_former_instance_is_not_refuted(clock: Clock) -> None:
    former = Identity("me", b"x" * 16, "me:4370")
    clock.hear(B)
    seen = (observation(A, MemberState.DOWN), observation(former, MemberState.DOWN), observation(ME, MemberState.ALIVE))
    assert clock.hear(B, observations=seen) == Effects(dial=True)
    assert clock.node.incarnation == 0


def test_others_become_members_by_their_own_heartbeats_only(clock: Clock) -> None:
    clock.hear(B, observations=(observation(A, MemberState.ALIVE),))
    assert set(clock.node.members) == {"b"}


def test_repeated_and_overtaken_heartbeats_are_ignored(clock: Clock) -> None:
    clock.hear(A, sequence=5)
    clock.wait(1.6)
    assert clock.hear(A, sequence=5) == Effects()
    assert clock.hear(A, MemberState.JOINING, sequence=4) == Effects()
    assert clock.state() is MemberState.SUSPECT
    assert clock.node.dropped == 2


def test_incarnation_of_a_member_never_falls(clock: Clock) -> None:
    clock.hear(A, incarnation=3)
    clock.hear(A, incarnation=2)
    assert clock.node.members["a"].incarnation == 3


# -- own stall, isolation, refusal --------------------------------------------------------------------------


def test_node_that_stalled_convicts_nobody_on_waking(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(1.0)
    clock.now += 60
    effects = clock.node.tick(clock.now)
    assert effects.stalled == pytest.approx(60)
    assert effects.changes == []
    assert clock.wait(1.4) == []
    assert clock.wait(1.8)[-1] == Change(A, MemberState.SUSPECT, MemberState.DOWN)


def test_punctual_tick_is_no_stall(clock: Clock) -> None:
    assert clock.node.tick(clock.now + 0.1).stalled == 0


def test_most_peers_silent_at_once_holds_the_verdicts_for_one_period(clock: Clock) -> None:
    for who in (A, B, C):
        clock.hear(who)
    clock.wait(1.6, C)
    assert clock.node.isolated
    clock.wait(2.8, C)
    assert (clock.state(A), clock.state(B)) == (MemberState.SUSPECT, MemberState.SUSPECT)
    clock.wait(0.2, C)
    assert (clock.state(A), clock.state(B)) == (MemberState.DOWN, MemberState.DOWN)
    clock.wait(0.1, C)
    assert not clock.node.isolated


def test_peers_that_fall_silent_one_after_the_other_are_judged_without_delay(clock: Clock) -> None:
    clock.hear(A)
    clock.hear(B)
    clock.wait(1.2, B)
    changes = clock.wait(2.0)
    assert Change(A, MemberState.SUSPECT, MemberState.DOWN) in changes
    assert not clock.node.isolated


def test_refused_node_is_down_at_once(clock: Clock) -> None:
    clock.hear(A)
    assert clock.node.refused("a", A.boot, clock.now).changes == [Change(A, MemberState.ALIVE, MemberState.DOWN)]
    assert A not in clock.node.view.members


def test_refused_leaving_node_has_left(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    assert clock.node.refused("a", A.boot, clock.now).changes == [Change(A, MemberState.LEAVING, MemberState.LEFT)]


def test_refusal_of_an_unknown_another_or_a_gone_instance_changes_nothing(clock: Clock) -> None:
    clock.hear(A2)
    assert clock.node.refused("a", A.boot, clock.now) == Effects()
    assert clock.node.refused("b", B.boot, clock.now) == Effects()
    clock.node.refused("a", A2.boot, clock.now)
    assert clock.node.refused("a", A2.boot, clock.now) == Effects()


# -- this node itself ---------------------------------------------------------------------------------------


def test_node_joins_after_two_heartbeats_and_owns_nothing_before() -> None:
    clock = Clock()
    assert clock.wait(0.9) == []
    assert ME not in clock.node.view.members
    assert clock.wait(0.2) == [Change(ME, MemberState.JOINING, MemberState.ALIVE)]
    assert ME in clock.node.view.members


def test_leaving_node_says_so_and_leaves_the_view(clock: Clock) -> None:
    assert clock.node.leave().changes == [Change(ME, MemberState.ALIVE, MemberState.LEAVING)]
    assert clock.node.view.members == ()
    assert clock.node.heartbeat(clock.now).state is MemberState.LEAVING
    assert clock.node.leave_done().changes == [Change(ME, MemberState.LEAVING, MemberState.LEFT)]
    assert clock.node.heartbeat(clock.now).state is MemberState.LEFT


def test_node_that_leaves_while_joining_never_serves() -> None:
    clock = Clock()
    clock.node.leave()
    assert clock.wait(2) == []
    assert clock.node.view.members == ()


def test_heartbeats_number_themselves_and_carry_the_view(clock: Clock) -> None:
    first, second = clock.node.heartbeat(clock.now), clock.node.heartbeat(clock.now, "answer-here")
    assert second.sequence == first.sequence + 1
    assert (second.identity, second.epoch, second.channel) == (ME, clock.node.view.epoch, "answer-here")


def test_equal_views_have_equal_epochs_in_whatever_order_members_came() -> None:
    views = []
    for order in ([A, B, C], [C, A, B]):
        clock = Clock()
        for who in order:
            clock.hear(who)
        clock.wait(1.1, A, B, C)
        views.append(clock.node.view)
    assert views[0] == views[1] == View.of([C, ME, B, A])


def test_other_boot_address_or_weight_is_another_epoch() -> None:
    others = [A2, Identity("a", A.boot, "other:4370"), Identity("a", A.boot, A.address, 2.0)]
    assert len({View.of([who]).epoch for who in [A, *others]}) == 4


# -- bounds -------------------------------------------------------------------------------------------------


def crowd(clock: Clock, size: int, state: MemberState = MemberState.ALIVE) -> list[Identity]:
    members = [Identity(f"n{i}", f"boot-{i:011}".encode(), f"n{i}:4370") for i in range(size)]
    for who in members:
        clock.hear(who, state)
    return members


def test_gone_members_are_bounded_and_the_newest_stay(clock: Clock) -> None:
    for who in crowd(clock, TOMBSTONES + 5):
        clock.now += 0.001
        clock.node.refused(who.name, who.boot, clock.now)
    clock.wait(0.1)
    assert len(clock.node.members) == TOMBSTONES
    assert "n4" not in clock.node.members
    assert "n5" in clock.node.members


def test_gone_member_is_forgotten_after_an_hour(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(3.1)
    clock.now += TOMBSTONE_SECONDS + 1
    clock.node.tick(clock.now)
    assert clock.node.members == {}


def test_left_boot_stays_away_after_it_is_forgotten(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    clock.hear(A, MemberState.LEFT)
    clock.now += TOMBSTONE_SECONDS + 1
    clock.node.tick(clock.now)
    assert clock.hear(A) == Effects()
    assert clock.node.members == {}


def test_down_boot_may_return_after_it_is_forgotten(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(3.1)
    clock.now += TOMBSTONE_SECONDS + 1
    clock.node.tick(clock.now)
    assert clock.hear(A).changes == [Change(A, None, MemberState.ALIVE)]


def test_replaced_boots_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RETIRED_BOOTS", 3)
    for number in range(10):
        clock.hear(Identity("a", bytes([number] * 16), "a:4370"))
        clock.node.refused("a", bytes([number] * 16), clock.now)
    assert list(clock.node._retired) == [bytes([number] * 16) for number in (6, 7, 8)]


def test_observations_are_bounded_and_name_every_member_in_turn(clock: Clock) -> None:
    crowd(clock, 50)
    named: list[str] = []
    for _ in range(math.ceil(50 / gossip.OBSERVATIONS)):
        seen = clock.node.heartbeat(clock.now).observations
        assert len(seen) == gossip.OBSERVATIONS
        named += [one.name for one in seen]
    assert len(set(named)) == 50


def test_small_cluster_is_named_once_each(clock: Clock) -> None:
    crowd(clock, 3)
    clock.now += 0.25
    seen = clock.node.heartbeat(clock.now).observations
    assert sorted(one.name for one in seen) == ["n0", "n1", "n2"]
    assert [one.age for one in seen] == pytest.approx([0.25] * 3)


def test_suspects_are_named_first_and_take_half_of_the_observations(clock: Clock) -> None:
    members = crowd(clock, 50)
    clock.wait(1.6, *members[20:])
    states = [one.state for one in clock.node.heartbeat(clock.now).observations]
    half = gossip.OBSERVATIONS // 2
    assert states == [MemberState.SUSPECT] * half + [MemberState.ALIVE] * half


def test_down_node_that_talks_is_named_before_those_that_are_silent(clock: Clock) -> None:
    clock.hear(A)
    clock.wait(3.1)
    for who in crowd(clock, 20):
        clock.node.refused(who.name, who.boot, clock.now)
    clock.wait(0.1)
    assert clock.hear(A).answer
    assert clock.node.heartbeat(clock.now).observations[0].name == "a"


def test_left_members_are_not_named(clock: Clock) -> None:
    clock.hear(A, MemberState.LEAVING)
    assert [one.state for one in clock.node.heartbeat(clock.now).observations] == [MemberState.LEAVING]
    clock.hear(A, MemberState.LEFT)
    assert clock.node.heartbeat(clock.now).observations == ()


@pytest.mark.parametrize(
    ("timings", "message"),
    [
        ((0.0, 1.5, 3.0), "the heartbeat interval must be above 0 seconds, not 0"),
        ((0.5, 0.9, 3.0), r"suspect after \(0.9 s\) must be at least two heartbeats \(1 s\)"),
        ((0.5, 1.5, 1.5), r"down after \(1.5 s\) must be more than suspect after \(1.5 s\)"),
    ],
)
def test_timings_that_cannot_work_are_refused(timings: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timings(*timings)


def test_least_timings_that_work_are_taken() -> None:
    assert Timings(0.5, 1.0, 1.1).down_after == 1.1


def test_node_learns_that_others_had_given_it_up(clock: Clock) -> None:
    clock.hear(B)
    assert not clock.hear(B, observations=(observation(ME, MemberState.SUSPECT),)).declared_down
    assert clock.hear(B, observations=(observation(ME, MemberState.DOWN, 1),)).declared_down
    assert not clock.hear(B, observations=(observation(ME, MemberState.DOWN, 1),)).declared_down


def test_node_that_can_hear_nobody_judges_nobody_by_silence(clock: Clock) -> None:
    clock.hear(A)
    clock.node.layer_failing = True
    assert clock.wait(60) == []
    assert clock.node.refused("a", A.boot, clock.now).changes == [Change(A, MemberState.ALIVE, MemberState.DOWN)]


def test_silence_counts_from_when_others_can_be_heard_again(clock: Clock) -> None:
    clock.hear(A)
    clock.node.layer_failing = True
    clock.wait(60)
    clock.node.layer_failing = False
    assert clock.wait(1.3) == []
    assert clock.wait(0.3) == [Change(A, MemberState.ALIVE, MemberState.SUSPECT)]
