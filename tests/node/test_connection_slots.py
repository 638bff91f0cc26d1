"""Who keeps a place when the table of connections is full."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.node.connection_slots import SECOND_CHANCES, ConnectionSlots, Source, SourceKind, network_of

HOG, HOST = Source(SourceKind.REMOTE, "10.0.0.9"), Source(SourceKind.REMOTE, "10.0.0.1")
WEB, JOB = Source(SourceKind.LOCAL, "100"), Source(SourceKind.LOCAL, "200")
PEER, BAD_PEER = Source(SourceKind.NODE, "10.0.0.2"), Source(SourceKind.NODE, "10.0.0.3")


class Link:
    def __init__(self, *, used: bool = False) -> None:
        self.used = used


def table() -> ConnectionSlots[Link]:
    return ConnectionSlots(10, for_nodes=6, for_local=3)


def filled(places: ConnectionSlots[Link], source: Source, count: int, *, used: bool = False) -> list[Link]:
    links = [Link(used=used) for _ in range(count)]
    assert [places.enter(link, source) for link in links] == [None] * count
    return links


def test_nothing_is_evicted_before_the_table_is_full() -> None:
    places = table()
    links = filled(places, HOG, 10)
    assert len(places) == 10
    assert list(places) == links
    places.discard(links[0])
    places.discard(links[0])
    assert links[0] not in places
    assert places.enter(Link(), HOG) is None


@pytest.mark.parametrize("newcomer", [HOST, WEB, PEER])
@pytest.mark.parametrize("used", [False, True])
def test_connection_of_the_source_that_holds_most_is_evicted_for_any_other(newcomer: Source, used: bool) -> None:
    places = table()
    filled(places, HOST, 2)
    hog = filled(places, HOG, 8, used=used)
    assert places.enter(Link(), newcomer) in hog
    assert len(places) == 10


def test_idle_connection_goes_before_one_in_use() -> None:
    places = table()
    links = filled(places, HOG, 10, used=True)
    links[7].used = False
    assert places.enter(Link(), HOST) is links[7]


def test_source_that_holds_most_gets_no_more_of_those_in_use_but_replaces_its_idle_ones() -> None:
    places = table()
    links = filled(places, HOG, 10, used=True)
    newcomer = Link()
    assert places.enter(newcomer, HOG) is newcomer
    assert newcomer not in places
    links[3].used = True
    assert places.enter(Link(), HOG) is links[0]  # not used since it was last looked at


def test_places_of_nodes_are_left_to_them() -> None:
    places = table()
    filled(places, PEER, 5)
    remote = filled(places, HOST, 5)
    assert places.enter(Link(), WEB) in remote
    assert places.enter(Link(), HOG) in remote
    assert places.enter(Link(), PEER) in remote


def test_nodes_have_no_more_than_their_places() -> None:
    places = table()
    filled(places, PEER, 2)
    bad = filled(places, BAD_PEER, 4)
    assert places.enter(Link(), PEER) in bad  # though the table isn't full
    assert len(places) == 6


def test_processes_of_this_host_keep_some_places_from_other_hosts() -> None:
    places = table()
    local = filled(places, WEB, 3)
    for number in range(7):
        filled(places, Source(SourceKind.REMOTE, f"10.0.1.{number}"), 1)
    for _ in range(20):
        assert places.enter(Link(), HOST) not in local


def test_processes_of_this_host_that_hold_more_give_way() -> None:
    places = table()
    local = filled(places, WEB, 10)
    assert places.enter(Link(), HOST) in local
    assert places.enter(Link(), JOB) in local


def test_search_for_an_idle_connection_is_bounded() -> None:
    places = ConnectionSlots[Link](1000, 10, 10)
    links = filled(places, HOG, 1000, used=True)
    places.enter(Link(), HOST)
    assert sum(not link.used for link in links) == SECOND_CHANCES


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_host_is_known_by_its_network(host: str, network: str) -> None:
    assert network_of(host) == network


steps = st.lists(st.tuples(st.sampled_from([HOG, HOST, WEB, JOB, PEER, BAD_PEER, None]), st.integers(0, 9)))


@given(steps)
def test_table_is_never_too_full_and_reserved_places_are_kept(steps: list[tuple[Source | None, int]]) -> None:
    places = table()
    for source, number in steps:
        links = list(places)
        if source is None:
            if links:
                links[number % len(links)].used = True
                places.discard(links[(number + 1) % len(links)])
            continue
        counts = {kind: sum(places.sources[link].kind is kind for link in links) for kind in SourceKind}
        evicted = places.enter(Link(used=number > 4), source)
        after = list(places)
        assert len(after) <= places.most
        assert len(after) == len(links) + (evicted is None)
        for kind in SourceKind:
            count = sum(places.sources[link].kind is kind for link in after)
            if kind is SourceKind.NODE:
                assert count <= places.for_nodes
                assert source.kind is kind or count == counts[kind]
            if kind is SourceKind.LOCAL and source.kind is SourceKind.REMOTE:
                assert count == counts[kind] or count >= places.for_local
        assert places._counts == {k: sum(places.sources[link].kind is k for link in after) for k in SourceKind}
        assert all(places._connections.values())
