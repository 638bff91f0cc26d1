"""What a node logs when it takes over keys, and when it hands them over."""

import logging
from collections.abc import Iterable

import pytest

from django_clusterstate.core.membership.heartbeat import Identity, MemberState, View
from django_clusterstate.core.membership.members import Change, Effects, Timings
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.core.replication.messages import Filled, Settled, Yours
from django_clusterstate.core.replication.slots import SlotSet
from django_clusterstate.node.hand_over_log import HandOverLog
from django_clusterstate.node.handler import Handler
from tests.node.test_handler import CONFIG, Peers

ME, *OTHERS = (
    Identity(f"web-{number}", b"%d" % number * 16, f"10.0.0.{number}:4370") for number in (1, 2, 3, 4, 5, 6, 7, 8)
)


class Bench:
    """The log of a node among others, of which no message comes by itself."""

    def __init__(self, *, others: int, serves: bool) -> None:
        self.now = 1000.0
        self.membership = Membership(ME, Timings(), self.now)
        self.handler = Handler(CONFIG, self.membership, lambda: self.now, Peers())
        self.replication = self.handler.copies.replication
        self.log = HandOverLog(self.handler, lambda: self.now)
        self.view = View.of([*OTHERS[:others], *([ME] if serves else [])])
        self.replication.update(self.view, [], self.now)

    def take_over(self, owner: Identity, slots: Iterable[int]) -> None:
        placement = self.replication.placement
        yours = Yours(placement.epoch, placement.turn, SlotSet(slots))
        self.replication.receive(owner.boot, yours, self.now)

    def serve(self) -> None:
        self.log.take_effects(Effects(changes=[Change(ME, MemberState.JOINING, MemberState.ALIVE)]))


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "django_clusterstate.node")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def owned_by(bench: Bench, owner: Identity, number: int) -> list[int]:
    return list(bench.replication.placement.by_owner(SlotSet.all())[owner.boot])[:number]


def test_a_node_that_has_joined_says_what_it_took_over(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=2, serves=False)
    bench.now += 1.25
    for owner, number in zip(OTHERS[:2], (100, 50), strict=True):
        bench.take_over(owner, owned_by(bench, owner, number))
    bench.handler.cache.of(b"ns").set(b"ns\0key", b"value", None, bench.now)
    bench.serve()
    assert lines(caplog) == [
        ("INFO", "node web-1 (10.0.0.1:4370) took over 150 slots from 2 nodes in 1.2 s; entries held: 1")
    ]


def test_a_node_that_joins_again_counts_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=1, serves=False)
    bench.now += 500
    bench.log.take_effects(Effects(changes=[Change(ME, MemberState.ALIVE, MemberState.JOINING)]))
    bench.now += 9
    bench.take_over(OTHERS[0], owned_by(bench, OTHERS[0], 3))
    bench.serve()
    assert " took over 3 slots from 1 node in 9.0 s" in caplog.text


def test_a_node_that_serves_without_all_copies_warns_and_names_who_sent_none(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=7, serves=False)
    bench.serve()
    ((level, line),) = lines(caplog)
    assert level == "WARNING"
    assert line.startswith("node web-1 (10.0.0.1:4370) serves before web-2 (10.0.0.2:4370), web-3 (")
    assert "web-6 (10.0.0.6:4370), 2 more handed over: no copies came for 5 s;" in line


def test_a_node_that_serves_too_early_names_only_those_that_have_not_filled_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(others=2, serves=False)
    bench.replication.receive(OTHERS[0].boot, Filled(bench.replication.placement.epoch), bench.now)
    bench.serve()
    assert "serves before web-3 (10.0.0.3:4370) handed over: " in caplog.text


def test_a_join_that_takes_a_while_is_said_once_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=2, serves=False)
    for _ in range(2):
        bench.log.tick()
    ((level, line),) = lines(caplog)
    held = len(bench.replication.placement.held)
    assert (level, line) == ("INFO", f"node web-1 (10.0.0.1:4370) joins, and receives {held} slots from 2 nodes")
    bench.log.take_effects(Effects(changes=[Change(ME, MemberState.ALIVE, MemberState.JOINING)]))
    bench.log.tick()
    assert len(lines(caplog)) == 2


def sync(bench: Bench, *others: Identity) -> None:
    """These nodes and the bench's are the cluster, and all are synced."""
    bench.replication.update(View.of([ME, *others]), [], bench.now)
    for peer in others:
        bench.replication.opened(peer.boot, bench.now)
        bench.replication.outboxes.get(peer.boot).take_as_filled(SlotSet.all())
        bench.replication.receive(peer.boot, Settled(bench.replication.placement.epoch), bench.now)
    bench.replication.complete = SlotSet.all()
    list(bench.replication.tick(bench.now))


def lose(bench: Bench, peer: Identity, state: MemberState, *others: Identity) -> None:
    bench.log.take_effects(Effects(changes=[Change(peer, state, MemberState.DOWN)]))
    bench.replication.update(View.of([ME, *others]), [], bench.now)
    bench.now += 1
    bench.log.tick()


def test_after_a_crash_a_node_says_once_when_all_keys_have_backups_again(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=2, serves=True)
    lose(bench, OTHERS[1], MemberState.SUSPECT, OTHERS[0])
    assert not lines(caplog)
    bench.now += 2
    sync(bench, OTHERS[0])
    bench.log.tick()
    bench.log.tick()
    assert lines(caplog) == [
        ("INFO", f"node {ME}: all keys have backups again, 3 s after the loss of web-3 (10.0.0.3:4370)")
    ]


def test_a_node_that_is_alone_has_no_backups_until_another_has_joined(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=1, serves=True)
    lose(bench, OTHERS[0], MemberState.ALIVE)
    bench.log.tick()
    assert not lines(caplog)
    bench.now += 60
    sync(bench, OTHERS[1])
    bench.log.tick()
    assert "all keys have backups again, 61 s after the loss of web-2 (10.0.0.2:4370)" in caplog.text


def test_no_backups_are_announced_without_backups_or_after_a_joining_node_has_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    without, bench = Bench(others=2, serves=True), Bench(others=1, serves=True)
    without.replication.placement.backups = 0
    lose(without, OTHERS[1], MemberState.ALIVE, OTHERS[0])
    lose(bench, OTHERS[1], MemberState.JOINING, OTHERS[0])
    for log in (without, bench):
        sync(log, OTHERS[0])
        log.log.tick()
    assert not lines(caplog)


def test_the_first_node_takes_nothing_over_and_the_last_hands_nothing_over(caplog: pytest.LogCaptureFixture) -> None:
    first = Bench(others=0, serves=False)
    first.serve()
    last = Bench(others=0, serves=True)
    last.replication.leave(10.0, last.now)
    with last.log.leaving(10.0):
        pass
    assert not lines(caplog)


def test_a_node_that_leaves_says_what_it_hands_over_and_when_that_is_done(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=2, serves=True)
    owned = len(bench.replication.placement.owned)
    bench.replication.leave(10.0, bench.now)
    with bench.log.leaving(10.0):
        for outbox in bench.replication.outboxes.by_boot.values():
            outbox.take_as_filled(SlotSet.all())
        bench.now += 0.5
    assert lines(caplog) == [
        ("INFO", f"node web-1 (10.0.0.1:4370) hands over {owned} slots to 2 nodes within 10 s; entries owned: 0"),
        ("INFO", f"node web-1 (10.0.0.1:4370) handed over {owned} slots in 0.5 s"),
    ]


def test_a_node_that_ends_warns_of_changes_that_nobody_has_acknowledged(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=1, serves=True)
    bench.log.ended()
    assert not lines(caplog)
    bench.handler.cache.of(b"ns").set(b"ns\0key", b"value", None, bench.now)
    bench.log.ended()
    ((level, line),) = lines(caplog)
    assert level == "WARNING"
    assert "ends before other nodes have acknowledged 1 changes: these may be lost; " in line


def test_a_node_that_has_no_more_time_warns_of_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(others=1, serves=True)
    bench.replication.leave(10.0, bench.now)
    with bench.log.leaving(10.0):
        bench.now += 10
    level, line = lines(caplog)[-1]
    assert level == "WARNING"
    unfilled = bench.replication.outboxes.unfilled
    assert f"handed over after 10.0 s, before other nodes had received {unfilled} of its slots: " in line
