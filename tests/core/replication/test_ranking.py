"""All rankings at once against the ranking of each slot."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core import rendezvous_hashing
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.core.replication import ranking
from django_clusterstate.core.replication.ranking import Ranking, Rankings, result
from django_clusterstate.core.replication.slots import SlotSet
from tests.core.replication.simulation import few_slots

NAMES = st.sampled_from("abcdefgh")
NODES = st.one_of(
    st.dictionaries(NAMES, st.just(1.0), max_size=8),
    st.dictionaries(NAMES, st.sampled_from([0.5, 1.0, 2.0]), max_size=8),
)


@pytest.fixture(scope="module", params=["draws", "equal draws"], autouse=True)
def _draws(request: Any) -> Any:
    """Some names have equal hashes."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "equal draws":
            patch.setattr(rendezvous_hashing, "_seed", lambda name: ord(name) // 3)
        patch.setattr(ranking, "STEP", 10)
        with few_slots():
            yield


def holders_of(found: Ranking, slot: int) -> tuple[str | None, str | None]:
    return found.names[found.first[slot]] or None, found.names[found.second[slot]] or None


@given(st.lists(NODES, min_size=1, max_size=6))
def test_a_ranking_that_follows_from_others_is_that_of_each_slot(views: list[dict[str, float]]) -> None:
    rankings = Rankings()
    for weights in views:
        found, expected = rankings.get(weights), Rendezvous(weights)
        for slot in range(rendezvous_hashing.SLOTS):
            assert holders_of(found, slot) == expected.holders(slot)
            for name in weights:
                first, second = slot in found.holders.owned(name), slot in found.holders.backed_up(name)
                assert (first, second) == tuple(holder == name for holder in expected.holders(slot))


@given(NODES, st.sampled_from("xyz"), st.sampled_from([0.5, 1.0]), st.sets(st.integers(0, 63)))
def test_a_joining_node_takes_what_the_ranking_with_it_gives(
    weights: dict[str, float], joiner: str, weight: float, slots: set[int]
) -> None:
    owned, held = result(Rankings().get(weights).challenge(joiner, weight, slots))
    expected = Rendezvous({**weights, joiner: weight})
    assert set(owned) == {slot for slot in slots if expected.holders(slot)[0] == joiner}
    assert set(held) == {slot for slot in slots if joiner in expected.holders(slot)}


def test_more_nodes_than_a_byte_counts_are_ranked() -> None:
    weights = {chr(300 + number): 1.0 for number in range(300)}
    found, expected = Rankings().get(weights), Rendezvous(weights)
    owned = {name: set(found.holders.owned(name)) for name in weights}
    for slot in range(rendezvous_hashing.SLOTS):
        assert holders_of(found, slot) == expected.holders(slot)
        assert {name for name, slots in owned.items() if slot in slots} == {expected.holders(slot)[0]}


def test_a_step_compares_a_bounded_number_of_slots() -> None:
    steps = sum(1 for _ in Rankings().prepare({"a": 1.0, "b": 1.0}))
    assert steps == 2 * len(range(0, rendezvous_hashing.SLOTS, 10)) + 1


def test_a_bounded_number_of_rankings_is_remembered() -> None:
    rankings = Rankings()
    for number in range(10):
        rankings.get({chr(97 + number): 1.0})
    assert len(rankings._recent) == ranking.MAX_RANKINGS


def test_nobody_owns_a_slot_of_no_nodes() -> None:
    assert Rankings().get({}).holders.held("abc") == SlotSet()
