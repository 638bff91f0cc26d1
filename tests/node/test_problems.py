"""What a node says is wrong, and for how long."""

import pytest

from django_clusterstate.core.membership.heartbeat import Heartbeat, Identity, MemberState, Observation
from django_clusterstate.core.membership.members import Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.node.problems import MAX_PROBLEMS, Misdirected, problems

ME = Identity("me", b"m" * 16, "10.0.0.1:4370")
A = Identity("a", b"a" * 16, "10.0.0.2:4370")
A2 = Identity("a", b"A" * 16, "10.0.0.9:4370")
LOCAL = Identity("local", b"l" * 16, "127.0.0.1:4370")
NAME = (
    "two running nodes have the name {0}: the one at {1} keeps it, the one at {2} owns no keys; give each node its own "
    "CLUSTERSTATE_NODE_NAME"
)


class Scene:
    """One node, and those that it hears twice a second."""

    def __init__(self, me: Identity = ME, *, must_be_reached: bool = False) -> None:
        self.now, self.sequence = 100.0, 0
        self.misdirected: dict[str, Misdirected] = {}
        self.node = Membership(me, Timings(), self.now, must_be_reached=must_be_reached)

    def run(self, seconds: float, *heard: tuple[Identity, MemberState]) -> list[str]:
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.sequence += 1
            for who, state in heard:
                self.node.heard(Heartbeat(who, 0, self.sequence, state, 0), self.now, fresh=True)
            self.node.tick(self.now, 0.5)
        return problems(self.node, self.misdirected, self.now)


def test_nothing_is_wrong_while_all_is_well() -> None:
    assert Scene().run(5, (A, MemberState.ALIVE)) == []


def test_peer_whose_address_leads_to_another_node_is_told_of() -> None:
    scene = Scene()
    scene.misdirected["web-2"] = Misdirected("10.0.0.5:4370", "web-3", 100.0)
    assert scene.run(1, (A, MemberState.ALIVE)) == [
        "node web-2 advertises 10.0.0.5:4370, but web-3 answers there, so web-2 is unreachable: set its "
        "CLUSTERSTATE_ADVERTISE to an address of its own"
    ]


def test_name_used_twice_is_told_in_the_same_words_by_all_for_as_long_as_it_lasts() -> None:
    observer, said = Scene(), [NAME.format("a", A.address, A2.address)]
    assert observer.run(5, (A, MemberState.ALIVE), (A2, MemberState.JOINING)) == said
    holder = Scene(A)
    holder.run(2)
    assert holder.run(2, (A2, MemberState.JOINING)) == said
    assert Scene(A2).run(5, (A, MemberState.ALIVE)) == said
    assert observer.run(4, (A, MemberState.ALIVE)) == []


def test_loopback_address_among_others_is_told_in_the_same_words_by_all() -> None:
    [said] = Scene().run(2, (LOCAL, MemberState.JOINING))
    assert said.startswith("node local advertises 127.0.0.1:4370, which is reachable only from its own host")
    assert "CLUSTERSTATE_BIND or CLUSTERSTATE_ADVERTISE" in said
    assert Scene(LOCAL).run(2, (ME, MemberState.ALIVE)) == [said]
    assert Scene(LOCAL).run(2) == []


def test_node_that_nobody_reaches_says_so_once_it_has_waited() -> None:
    scene = Scene(must_be_reached=True)
    assert scene.run(2, (A, MemberState.ALIVE)) == []
    [said] = scene.run(2, (A, MemberState.ALIVE))
    assert said.startswith("node me is still joining: no other node has connected to it at 10.0.0.1:4370;")
    assert said.endswith("It receives heartbeats from: a (10.0.0.2:4370)")
    scene.node.reached_by("a", A.boot, scene.now)
    assert scene.run(0.5, (A, MemberState.ALIVE)) == []


def test_node_that_was_cut_off_says_how_often_and_for_how_long_it_waits() -> None:
    scene = Scene()
    scene.node.rejoins = True
    assert scene.run(4, (A, MemberState.ALIVE)) == []
    said = []
    for incarnation in range(2):
        scene.now += 4
        verdict = Observation(ME.name, ME.boot, ME.address, MemberState.DOWN, incarnation, 3.0)
        scene.sequence += 1
        beat = Heartbeat(A, 0, scene.sequence, MemberState.ALIVE, 0, (verdict,), members=1, first="a")
        scene.node.heard(beat, scene.now, fresh=True)
        said += scene.run(2, (A, MemberState.ALIVE))
    text = (
        "node me was cut off or paused{}: it owns no keys until others have received its heartbeats without a gap for"
    )
    assert [line[: line.index(" s;")] for line in said] == [
        f"{text.format('')} 9",
        f"{text.format(' 2 times in short succession')} 18",
    ]


def test_node_that_has_only_connected_to_others_says_so() -> None:
    scene = Scene(must_be_reached=True)
    scene.node.identified("a", A.boot, scene.now, A.address)
    for _ in range(8):
        scene.node.still_linked(A.boot, scene.now)
        said = scene.run(0.5)
    assert said[0].endswith("It receives heartbeats from: none, but has connected to some")


@pytest.mark.parametrize("number", [1, MAX_PROBLEMS, 50])
def test_problems_are_bounded(number: int) -> None:
    loopbacks = [Identity(f"n{n}", b"%016d" % n, f"127.0.0.1:{n + 1}") for n in range(number)]
    assert len(Scene().run(1, *((who, MemberState.JOINING) for who in loopbacks))) == min(number, MAX_PROBLEMS)
