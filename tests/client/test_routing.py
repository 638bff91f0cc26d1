"""What a requester decides, with the clock in the test's hand and nobody to talk to."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.client.circuit_breaker import FAILURES_TO_OPEN, HALF_OPEN_AFTER
from django_clusterstate.client.operations import refresh_view
from django_clusterstate.client.routing import (
    MAX_CONTACTS,
    MAX_SOURCES,
    VIEW_MAX_AGE,
    VIEW_MIN_AGE,
    Routing,
    RoutingTable,
    Target,
)
from django_clusterstate.core.membership.heartbeat import Identity, View
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.exceptions import ProtocolError, TimedOut, Unavailable
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.framing import HEADER
from django_clusterstate.wire.handshake import OtherInstance, OtherNode
from django_clusterstate.wire.messages import GetView, Request, ViewReply, decode_request
from django_clusterstate.wire.status import RequesterStats
from tests.threads import at_once

NOW = 1000.0
LOCAL = UnixAddress("/run/node.sock")


def member(name: str, *, boot: bytes = b"1", address: str = "", weight: float = 1.0) -> Identity:
    return Identity(name, boot, address or f"10.0.0.{ord(name[0])}:4370", weight)


def viewed(*members: Identity, by: str = "a") -> ViewReply:
    view = View.of(members)
    return ViewReply(view.epoch, view.members, by)


class Retired(list[Target]):
    """A client that notes to which nodes it is to close its connections."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        routing.attach(self)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def retire(self, target: Target) -> None:
        self.append(target)

    def abandon(self) -> None:
        self.append(Target("all", LOCAL))


class Connection:
    """An idle connection of the blocking client."""

    closed = False

    def close(self) -> None:
        self.closed = True


def routing_of(*names: str, by: str = "a") -> Routing:
    routing = Routing(LOCAL)
    routing.learn(viewed(*map(member, names), by=by), routing.local, NOW)
    return routing


def asked(routing: Routing) -> Request:
    """The request for the view."""
    return decode_request(routing.view_request()[0][HEADER:])


# -- the view -------------------------------------------------------------------------------------------------


def test_without_a_view_there_is_no_owner() -> None:
    routing = Routing(LOCAL)
    assert routing.refresh_at <= NOW
    assert routing.table.owner(b"key") is None


def test_local_node_is_reached_by_its_own_socket_and_the_others_by_theirs() -> None:
    routing = routing_of("a", "b")
    assert routing.table.targets["a"] is routing.local
    assert routing.local.address == LOCAL
    assert routing.table.targets["b"].address == TcpAddress("10.0.0.98", 4370)
    assert routing.table.local_name == "a"
    assert str(routing.local) == "node a at /run/node.sock"


def test_view_from_another_node_does_not_make_it_the_local_one() -> None:
    routing = Routing(LOCAL)
    other = Target("b", TcpAddress("10.0.0.98", 4370))
    routing.learn(viewed(member("a"), member("b"), by="b"), other, NOW)
    assert routing.table.local_name == ""
    assert routing.local not in routing.table.targets.values()
    assert str(routing.local) == "the local node at /run/node.sock"


def test_view_grows_old() -> None:
    routing = routing_of("a", "b")
    assert routing.refresh_at == NOW + VIEW_MAX_AGE


@pytest.mark.parametrize("names", ["", "b"])
def test_other_threads_request_the_view_too_until_it_is_known_that_no_member_replies(names: str) -> None:
    routing = Routing(LOCAL)
    refresh = refresh_view(routing, 1.0, lambda: NOW)
    next(refresh)
    with contextlib.suppress(StopIteration):
        refresh.send(viewed(*map(member, names)))
        assert routing.refresh_at <= NOW
        refresh.throw(TimedOut("why"))
    assert routing.refresh_at == NOW + VIEW_MIN_AGE


def test_first_view_stays_when_a_thread_that_began_before_finds_no_member() -> None:
    routing = Routing(LOCAL)
    refresh = refresh_view(routing, 1.0, lambda: NOW)
    next(refresh)
    refresh.send(viewed(member("b")))
    routing.learn(viewed(member("a"), member("b")), routing.local, NOW)
    with pytest.raises(StopIteration):
        refresh.throw(TimedOut("why"))
    assert routing.refresh_at == NOW + VIEW_MAX_AGE


def test_counts_are_never_reported_twice_though_the_request_is_cancelled() -> None:
    routing = Routing(LOCAL)
    routing.stats.too_big = 1
    refresh = refresh_view(routing, 1.0, lambda: NOW)
    next(refresh)
    with pytest.raises(asyncio.CancelledError):
        refresh.throw(asyncio.CancelledError())
    assert routing.stats == RequesterStats()


def test_same_view_keeps_the_table() -> None:
    routing = routing_of("a", "b")
    table = routing.table
    assert routing.learn(viewed(member("a"), member("b")), routing.local, NOW + 1)
    assert routing.table is table
    assert routing.refresh_at == NOW + 1 + VIEW_MAX_AGE


def test_targets_that_stay_keep_their_breakers_and_the_connections_to_others_are_closed() -> None:
    routing = routing_of("a", "b", "c")
    retired = Retired(routing)
    b, c = routing.table.targets["b"], routing.table.targets["c"]
    b.failed(NOW, "why")
    kept, closed, used = Connection(), Connection(), Connection()
    b.pool.append(kept)
    c.pool.append(closed)
    assert routing.learn(viewed(member("a"), member("b"), member("d")), routing.local, NOW)
    assert retired == [c]
    c.pool.append(used)  # by a thread that waited for its reply meanwhile
    assert (kept.closed, closed.closed, used.closed) == (False, True, True)
    assert routing.table.targets["b"] is b
    assert list(routing.table.targets) == ["a", "b", "d"]


def test_node_that_moved_is_another_target() -> None:
    routing = routing_of("a", "b")
    old = routing.table.targets["b"]
    moved = viewed(member("a"), member("b", boot=b"2", address="10.9.9.9:1"))
    retired = Retired(routing)
    assert routing.learn(moved, routing.local, NOW)
    assert retired == [old]
    assert routing.table.targets["b"].address == TcpAddress("10.9.9.9", 1)


def test_local_node_that_is_not_in_the_view_still_gets_the_request_first() -> None:
    routing = routing_of("a", "b")
    b = routing.table.targets["b"]
    assert routing.learn(viewed(member("b"), by="b"), b, NOW)
    assert routing.sources(NOW)[0] is routing.local
    assert list(routing.table.targets) == ["b"]


# -- nodes that don't serve -----------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["", "b", "bc"], ids=["nobody", "one", "two"])
def test_view_without_its_sender_never_replaces_the_view_that_there_is(half: str) -> None:
    routing = routing_of("a", "b", "c", "d")
    table = routing.table
    retired = Retired(routing)
    assert not routing.learn(viewed(*map(member, half), by="a"), routing.local, NOW + 1)
    assert retired == []
    assert routing.table.view is table.view
    assert routing.more_sources([]) == [table.targets[name] for name in half]


def test_view_of_another_node_that_leaves_is_not_used_either() -> None:
    routing = routing_of("a", "b", "c")
    table = routing.table
    assert not routing.learn(viewed(member("a"), member("c"), by="b"), table.targets["b"], NOW)
    assert routing.table is table


def test_process_without_a_view_requests_it_from_the_members_that_a_joining_node_names() -> None:
    routing = Routing(LOCAL)
    sources = routing.sources(NOW)
    assert not routing.learn(viewed(member("b"), member("c")), routing.local, NOW)
    assert routing.table.owner(b"k") is None
    sources += routing.more_sources(sources)
    assert [source.name for source in sources] == ["a", "b", "c"]
    assert routing.learn(viewed(member("b"), member("c"), member("d"), by="b"), sources[1], NOW)
    assert list(routing.table.targets.values())[:2] == sources[1:]  # with their connections
    assert routing.table.local_name == "a"


def test_contacts_keep_their_breakers_and_are_closed_when_no_longer_named() -> None:
    routing = Routing(LOCAL)
    retired = Retired(routing)
    routing.learn(viewed(member("b"), member("c")), routing.local, NOW)
    b, c = routing.more_sources([])
    b.failed(NOW, "why")
    routing.learn(viewed(member("b"), member("d")), routing.local, NOW)
    d, again = routing.more_sources([])
    assert d.name == "d"  # a failing one comes last
    assert again is b
    assert retired == [c]
    assert routing.learn(viewed(member("a"), member("d")), routing.local, NOW)
    assert retired == [c, b]


def test_contacts_and_sources_are_bounded() -> None:
    routing = routing_of(*"abcdefg")
    retired = Retired(routing)
    sources = routing.sources(NOW)
    names = [chr(c) for c in range(ord("k"), ord("z"))]
    for number in range(9):
        members = [member(name, boot=b"%d" % number) for name in names]
        routing.learn(viewed(*members, by="b"), routing.local, NOW)
        new = routing.more_sources(sources)
        assert len(new) <= 2
        sources += new
    assert len(sources) == MAX_SOURCES
    routing.learn(viewed(*map(member, "abcdefg")), routing.local, NOW)
    assert len([target for target in retired if target.name in names]) == 9 * MAX_CONTACTS


def test_local_node_that_joins_under_another_name_is_known_by_it() -> None:
    routing = routing_of("a", "b")
    assert not routing.learn(viewed(member("b"), by="new"), routing.local, NOW)
    assert routing.table.local_name == "new"
    assert routing.table.targets["a"] is not routing.local
    assert str(routing.local) == "node new at /run/node.sock"


def test_member_with_the_name_of_a_local_node_that_does_not_serve_is_another_node() -> None:
    routing = routing_of("a", "b")
    for view in (viewed(member("b")), viewed(member("b"))):
        routing.learn(view, routing.local, NOW)
        assert routing.table.local_name == "a"
        assert routing.table.targets["a"].address == TcpAddress("10.0.0.97", 4370)
    routing.learn(viewed(member("a"), member("b"), member("c"), by="b"), routing.table.targets["b"], NOW)
    assert routing.table.targets["a"] is not routing.local
    routing.learn(viewed(member("a"), member("b"), member("c"), by="a"), routing.local, NOW)
    assert routing.table.targets["a"] is routing.local


def test_view_is_requested_again_soon_while_there_are_no_members() -> None:
    routing = routing_of("a", "b")
    routing.learn(viewed(member("b")), routing.local, NOW + 5)
    assert routing.refresh_at == NOW + 5 + HALF_OPEN_AFTER


def test_other_epoch_in_a_reply_makes_the_view_old() -> None:
    routing = routing_of("a", "b")
    routing.answered(routing.local, routing.table.view.epoch, NOW + 0.5, NOW + 0.5)
    assert routing.refresh_at == NOW + VIEW_MAX_AGE
    routing.answered(routing.local, routing.table.view.epoch + 1, NOW + 0.5, NOW + 0.5)
    assert routing.refresh_at == NOW + 0.5


def test_requests_for_the_view_are_rationed_while_views_differ() -> None:
    routing = routing_of("a", "b")
    routing.sources(NOW + 0.5)
    routing.learn(viewed(member("a"), member("b")), routing.local, NOW + 0.5)
    routing.answered(routing.local, routing.table.view.epoch + 1, NOW + 0.51, NOW + 0.51)
    assert routing.refresh_at == NOW + 0.5 + VIEW_MIN_AGE


def test_other_epoch_never_delays_the_refresh() -> None:
    routing = routing_of("a", "b")
    began = NOW + VIEW_MAX_AGE + 5
    routing.answered(routing.local, routing.table.view.epoch + 1, began, began)
    assert routing.refresh_at == NOW + VIEW_MAX_AGE


def test_local_node_gets_the_request_first_then_the_two_with_fewest_failures() -> None:
    routing = routing_of("a", "b", "c", "d", "e")
    targets = routing.table.targets
    for name, failures in (("b", 2), ("c", 1), ("d", 3)):
        targets[name].failures = failures
    assert routing.sources(NOW) == [routing.local, targets["e"], targets["c"]]


def test_other_threads_use_the_old_view_during_a_refresh() -> None:
    routing = routing_of("a", "b")
    routing.sources(NOW + 1)
    assert routing.refresh_at == NOW + 1 + HALF_OPEN_AFTER


def test_without_a_view_all_threads_request_it() -> None:
    routing = Routing(LOCAL)
    routing.sources(NOW)
    assert routing.refresh_at <= NOW


def test_each_of_several_threads_that_learn_the_same_view_at_once_has_its_owners() -> None:
    reply = viewed(*map(member, "abcdefgh"))
    for _ in range(1000):
        routing = Routing(LOCAL)

        def learn(routing: Routing = routing) -> int:
            routing.learn(reply, routing.local, NOW)
            return len(routing.table.targets)

        assert at_once(learn) == [8] * 8
        assert len(routing.table.targets) == 8


def test_no_thread_takes_the_table_for_current_before_it_has_owners() -> None:
    reply = viewed(*map(member, "abcdefgh"))
    for _ in range(200):
        routing = Routing(LOCAL)

        def table(routing: Routing = routing) -> int:
            """As `Client.table()`, without the request."""
            if routing.refresh_at <= NOW:
                routing.learn(reply, routing.local, NOW)
            return len(routing.table.targets)

        assert at_once(table) == [8] * 8


def test_targets_that_several_threads_learn_at_once_are_closed_when_they_are_not_used() -> None:
    for _ in range(200):
        routing, used = Routing(LOCAL), set[Target]()
        retired = Retired(routing)

        def learn(routing: Routing = routing, used: set[Target] = used) -> None:
            routing.learn(viewed(*map(member, "abcd")), routing.local, NOW)
            used.update(routing.table.targets.values())

        at_once(learn)
        assert used - set(routing.table.targets.values()) <= set(retired)


def test_each_count_is_reported_once_by_threads_that_request_the_view_at_once() -> None:
    routing = Routing(LOCAL)

    def report() -> int:
        reported = 0
        for _ in range(500):
            routing.put_back(RequesterStats(failures=1))
            reported += routing.view_request()[1].failures
        return reported

    assert sum(at_once(report)) + routing.stats.failures == 8 * 500


def test_each_count_is_reported_once_though_a_signal_handler_requests_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    routing, reported = Routing(LOCAL), list[int]()
    routing.stats.failures = 1
    handlers = [lambda: reported.append(routing.view_request()[1].failures)]

    def interrupted() -> RequesterStats:
        if handlers:
            handlers.pop()()
        return RequesterStats()

    monkeypatch.setattr("django_clusterstate.client.routing.RequesterStats", interrupted)
    reported.append(routing.view_request()[1].failures)
    assert reported == [1, 0]


# -- owners ---------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_keys_are_grouped_by_the_owner_that_each_has(keys: list[bytes]) -> None:
    members = [member("a"), member("b", weight=2.0), member("c")]
    targets = {each.name: Target(each.name, LOCAL) for each in members}
    table = RoutingTable(View.of(members), "a", targets)
    ring = Rendezvous({each.name: each.weight for each in members})
    groups = table.group(keys)
    assert sorted(key for _, group in groups for key in group) == sorted(keys)
    assert len({target for target, _ in groups}) == len(groups)
    for target, group in groups:
        for key in group:
            assert target is table.owner(key) is targets[str(ring.owner(key))]
            assert [each.name for each in table.ranking(key)] == ring.ranking(key)


def test_without_members_there_are_no_groups() -> None:
    table = RoutingTable(View.of(()), "", {})
    assert table.group([b"a"]) == []
    assert table.owner(b"a") is None
    assert table.ranking(b"a") == []


# -- results of exchanges, and what is reported -----------------------------------------------------------------


def test_error_gets_the_name_of_its_node_and_keeps_its_type() -> None:
    routing, target = Routing(LOCAL), Target("b", TcpAddress("10.0.0.2", 4370))
    for kind in (Unavailable, TimedOut, ProtocolError, OtherNode, OtherInstance):
        error = routing.failed(target, kind("why"), NOW, NOW)
        assert type(error) is kind
        assert str(error) == "node b at 10.0.0.2:4370: why"


def test_restart_of_a_node_is_not_a_failure_and_makes_the_view_old() -> None:
    routing = routing_of("a", "b")
    target = routing.table.targets["b"]
    routing.failed(target, OtherInstance("restarted"), NOW + 0.5, NOW + 0.6)
    assert (target.failures, list(routing.latencies), routing.stats.failures) == (0, [], 0)
    assert routing.refresh_at == NOW + 0.5


def test_member_whose_breaker_opens_is_named_to_the_local_node_at_once() -> None:
    routing = routing_of("a", "b")
    target = routing.table.targets["b"]
    for _ in range(FAILURES_TO_OPEN):
        assert routing.refresh_at > NOW
        routing.failed(target, Unavailable("why"), NOW, NOW)
    assert routing.refresh_at == NOW
    routing.latencies.clear()
    assert asked(routing) == GetView(["b"], RequesterStats(failures=FAILURES_TO_OPEN))
    routing.learn(ViewReply(1, routing.table.view.members, "a"), routing.local, NOW)
    target.answered()
    assert asked(routing) == GetView()


def test_counts_are_reported_until_they_have_arrived() -> None:
    routing = Routing(LOCAL)
    assert asked(routing) == GetView()
    routing.stats.remembered += 2
    _, counted = routing.view_request()
    assert counted == RequesterStats(remembered=2)
    routing.stats.remembered += 1
    routing.put_back(counted)  # no node has replied
    assert asked(routing) == GetView([], RequesterStats(remembered=3))
    assert asked(routing) == GetView()  # by another thread, before the first has its reply


def test_durations_are_reported_as_a_histogram_and_once() -> None:
    routing = Routing(LOCAL)
    routing.latencies.extend([0.0003, 0.0004, 2.0])
    request = asked(routing)
    assert isinstance(request, GetView)
    assert request.stats is not None
    assert [count for count in request.stats.latencies if count] == [2, 1]
    assert request.stats.latency_sum == pytest.approx(2.0007)
    routing.learn(ViewReply(1, (), "alpha"), routing.local, 0.0)
    assert asked(routing) == GetView()


def test_fallback_of_an_owner_is_the_next_in_the_ranking_then_the_local_node() -> None:
    routing = Routing(LOCAL)
    members = tuple(member(name) for name in "abcde")
    routing.learn(ViewReply(1, members, "a"), routing.local, NOW)
    table, local = routing.table, routing.local
    for key in (b"%d" % n for n in range(50)):
        owner, *others = table.ranking(key)
        assert table.fallback_targets(key, local) == list(
            dict.fromkeys([others[0], *([local] if owner is not local else [])])
        )
    key = next(key for key in (b"%d" % n for n in range(50)) if local not in table.ranking(key)[:3])
    table.ranking(key)[1].failed(NOW, "why")
    assert table.fallback_targets(key, local) == [table.ranking(key)[2], local]
    for target in table.ranking(key):
        target.failed(NOW, "why")
    assert table.fallback_targets(key, local) == [local]


def test_fallback_without_a_view_is_the_local_node() -> None:
    routing = Routing(LOCAL)
    assert routing.table.fallback_targets(b"k", routing.local) == [routing.local]
