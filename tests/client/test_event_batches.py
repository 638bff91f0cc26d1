"""Where events are sent, and when they are dropped; each test sets the clock, and no node runs."""

from collections.abc import Callable

import pytest

from django_clusterstate.client.circuit_breaker import FAILURES_TO_OPEN
from django_clusterstate.client.event_batches import MAX_AGE, MAX_BATCH, MAX_SUMS, EventSum, Outbox, routing_key
from django_clusterstate.client.routing import RoutingTable, Target
from django_clusterstate.core.event_counts import MAX_ENTRIES
from django_clusterstate.core.membership.heartbeat import Identity, View
from django_clusterstate.exceptions import CircuitOpen, ClusterStateError, Refused, TimedOut
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress
from django_clusterstate.wire.framing import HEADER

TARGETS = {name: Target(name, TcpAddress(name, 4370)) for name in ("a", "b", "c")}


def table(*names: str) -> RoutingTable:
    members = tuple(Identity(name, b"boot", f"{name}:4370") for name in names)
    return RoutingTable(View(members, 1), "", {name: TARGETS[name] for name in names})


@pytest.fixture(autouse=True)
def no_failures() -> None:
    for target in TARGETS.values():
        target.failures = 0


def gathered(number: int, at: float = 100.0, fields: dict[str, object] | None = None) -> list[EventSum]:
    sums = []
    for key in range(number):
        one = EventSum("login", str(key), at, 2)
        if fields is not None:
            one.add_sample(at, fields)
        sums.append(one)
    return sums


class Nodes:
    """Counts batches, or fails with the given error."""

    def __init__(self, error: Callable[[], BaseException | None] = lambda: None) -> None:
        self.taken: list[tuple[str, wire.Track]] = []
        self.asked: list[tuple[str, bytes]] = []
        self._error = error

    def call(self, target: Target, request: bytes) -> wire.Reply:
        track = wire.decode_request(request[HEADER:])
        assert isinstance(track, wire.Track)
        self.asked.append((target.name, track.batch))
        if (error := self._error()) is not None:
            raise error
        self.taken.append((target.name, track))
        return wire.DoneReply(1)

    def send(self, outbox: Outbox, now: float = 100.0) -> None:
        for batch in outbox.batches():
            outbox.send(batch, self.call, now)

    @property
    def events(self) -> int:
        return sum(entry.times for _, track in self.taken for entry in track.entries)


def filled(number: int = 10, names: tuple[str, ...] = ("a", "b", "c")) -> Outbox:
    outbox = Outbox()
    outbox.put(gathered(number), 100.0)
    outbox.assign(table(*names))
    return outbox


def late() -> BaseException:
    return TimedOut("no answer within the deadline")


def refused() -> BaseException:
    return Refused("no node")


def test_events_are_sent_to_their_owners_with_their_age() -> None:
    nodes, outbox = Nodes(), filled(50)
    nodes.send(outbox, 101.5)
    assert outbox.empty
    assert nodes.events == 100
    for name, track in nodes.taken:
        for entry in track.entries:
            owner = table("a", "b", "c").owner(routing_key(entry.name, entry.key))
            assert owner is not None
            assert owner.name == name
            assert entry.ago == 1.5


def test_batches_are_bounded_in_entries_and_bytes() -> None:
    nodes, outbox = Nodes(), Outbox()
    text = "\U0001f600" * 200
    outbox.put(gathered(1000, fields={str(number): text for number in range(8)}), 100.0)
    outbox.assign(table("a"))
    nodes.send(outbox)
    assert nodes.events == 2000
    assert all(len(track.entries) <= MAX_ENTRIES for _, track in nodes.taken)
    sizes = [sum(len(fields) for e in track.entries for _, fields in e.samples) for _, track in nodes.taken]
    assert max(sizes) <= MAX_BATCH


def test_lone_surrogates_are_replaced() -> None:
    nodes, outbox = Nodes(), Outbox()
    one = EventSum("login", "\udcff", 100.0, 1)
    one.add_sample(100.0, {"\udcff": "\udcff"})
    outbox.put([one], 100.0)
    outbox.assign(table("a"))
    nodes.send(outbox)
    assert nodes.taken[0][1].entries[0].key == "?"


def test_batch_that_may_have_been_counted_is_sent_again_only_to_its_node_with_its_id() -> None:
    outbox = filled(1)
    first, second = Nodes(late), Nodes()
    first.send(outbox)
    outbox.assign(table("a", "b", "c"))
    second.send(outbox)
    assert second.asked == first.asked
    assert (outbox.empty, outbox.dropped) == (True, 0)


def test_batch_that_may_have_been_counted_is_dropped_when_its_node_leaves() -> None:
    outbox = filled(1, ("a",))
    Nodes(late).send(outbox)
    outbox.assign(table("b"))
    assert (outbox.empty, outbox.dropped) == (True, 2)


def test_refused_batch_goes_to_the_next_owner() -> None:
    outbox = filled(20, ("a",))
    Nodes(refused).send(outbox)
    outbox.assign(table("b"))
    nodes = Nodes()
    nodes.send(outbox)
    assert {name for name, _ in nodes.taken} == {"b"}
    assert (nodes.events, outbox.empty, outbox.dropped) == (40, True, 0)


def test_batch_that_an_ended_process_may_have_counted_goes_to_the_next_owner() -> None:
    outbox = filled(1, ("a",))
    Nodes(late).send(outbox)
    Nodes(refused).send(outbox)
    outbox.assign(table("b"))
    assert (outbox.empty, outbox.dropped) == (False, 0)


def test_owner_whose_circuit_breaker_is_open_is_passed_over() -> None:
    TARGETS["a"].failures = FAILURES_TO_OPEN
    nodes = Nodes()
    nodes.send(filled(50))
    assert {name for name, _ in nodes.taken} == {"b", "c"}


def test_batch_that_an_open_circuit_breaker_held_back_goes_to_the_next_owner() -> None:
    def breaker_open(target: Target, request: bytes) -> wire.Reply:
        raise CircuitOpen

    outbox = filled(1, ("a",))
    outbox.send(outbox.batches()[0], breaker_open, 100.0)
    outbox.assign(table("b"))
    assert [batch.target.name for batch in outbox.batches()] == ["b"]


@pytest.mark.parametrize("error", [late, refused])
def test_events_that_no_node_counts_are_dropped_after_five_seconds(error: Callable[[], ClusterStateError]) -> None:
    outbox = filled(10)
    Nodes(error).send(outbox)
    outbox.put([], 100 + MAX_AGE - 0.1)
    assert (outbox.empty, outbox.dropped) == (False, 0)
    outbox.put([], 100 + MAX_AGE)
    assert (outbox.empty, outbox.dropped) == (True, 20)


def test_events_without_an_owner_wait() -> None:
    outbox = filled(10, ())
    assert (outbox.batches(), outbox.empty) == ([], False)
    outbox.assign(table("a"))
    nodes = Nodes()
    nodes.send(outbox)
    assert nodes.events == 20


def test_outbox_is_bounded_and_drops_the_oldest() -> None:
    outbox = Outbox()
    outbox.put(gathered(MAX_SUMS, 100.0), 100.0)
    outbox.put(gathered(10, 101.0), 101.0)
    assert outbox.dropped == 20
    outbox.put([], 100 + MAX_AGE)
    assert outbox.dropped == 20 + 2 * (MAX_SUMS - 10)
