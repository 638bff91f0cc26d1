import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.rendezvous_hashing import SLOTS, Rendezvous

names = st.text(min_size=1, max_size=12)
weights = st.one_of(
    st.dictionaries(names, st.just(1.0), min_size=1, max_size=12),
    st.dictionaries(names, st.floats(0.01, 100), min_size=1, max_size=12),
)
keys = st.lists(st.binary(max_size=40), min_size=1, max_size=30)

KEYS = [b"user:%d" % i for i in range(50_000)]

# key, ranking among four equal nodes, owner at weights 1, 2, 0.5, 4. A change here moves every user's keys,
# and makes hosts of two versions disagree: it needs a major version.
GOLDEN = [
    (b"", ["web-2", "web-3", "web-1", "web-4"], "web-2"),
    (b"a", ["web-4", "web-3", "web-1", "web-2"], "web-4"),
    (b"user:1", ["web-2", "web-3", "web-1", "web-4"], "web-2"),
    (b"user:2", ["web-3", "web-4", "web-2", "web-1"], "web-4"),
    (b"10.0.0.1", ["web-3", "web-4", "web-1", "web-2"], "web-4"),
    (b"login\x00203.0.113.7", ["web-1", "web-3", "web-2", "web-4"], "web-1"),
    (b"\xff\x00\xff", ["web-3", "web-1", "web-4", "web-2"], "web-4"),
    (b"k" * 100, ["web-2", "web-1", "web-4", "web-3"], "web-2"),
]


def equal(count: int) -> dict[str, float]:
    return {f"10.0.0.{i}": 1.0 for i in range(count)}


@pytest.mark.parametrize(("key", "ranking", "weighted_owner"), GOLDEN)
def test_placement_stays_the_same_from_version_to_version(key: bytes, ranking: list[str], weighted_owner: str) -> None:
    nodes = ["web-1", "web-2", "web-3", "web-4"]
    assert Rendezvous(dict.fromkeys(nodes, 1)).ranking(key) == ranking
    assert Rendezvous(dict(zip(nodes, [1, 2, 0.5, 4], strict=True))).owner(key) == weighted_owner


@given(weights, keys)
def test_ranking_holds_every_node_once_and_begins_with_the_owner(nodes: dict[str, float], some: list[bytes]) -> None:
    hrw = Rendezvous(nodes)
    assert hrw.names == tuple(sorted(nodes))
    for key in some:
        ranking = hrw.ranking(key)
        assert sorted(ranking) == sorted(nodes)
        assert hrw.owner(key) == ranking[0]


@given(weights, keys, st.randoms())
def test_order_of_nodes_and_of_questions_is_irrelevant(
    nodes: dict[str, float], some: list[bytes], random: Random
) -> None:
    shuffled = list(nodes.items())
    random.shuffle(shuffled)
    one, other = Rendezvous(nodes), Rendezvous(dict(shuffled))
    assert [one.owner(key) for key in some] == [other.owner(key) for key in reversed(some)][::-1]


@given(weights, names, st.floats(0.01, 100), keys)
def test_joining_node_takes_keys_only_to_itself(
    nodes: dict[str, float], joiner: str, weight: float, some: list[bytes]
) -> None:
    nodes.pop(joiner, None)
    before, after = Rendezvous(nodes), Rendezvous({**nodes, joiner: weight})
    for key in some:
        assert after.owner(key) in (before.owner(key), joiner)
        # Those behind keep their order: the next owner is the one that had the key before the join.
        assert [name for name in after.ranking(key) if name != joiner] == before.ranking(key)


@given(weights, keys, st.data())
def test_only_the_keys_of_a_leaving_node_move(nodes: dict[str, float], some: list[bytes], data: st.DataObject) -> None:
    leaver = data.draw(st.sampled_from(sorted(nodes)))
    before = Rendezvous(nodes)
    after = Rendezvous({name: weight for name, weight in nodes.items() if name != leaver})
    for key in some:
        owner, *rest = before.ranking(key)
        assert after.owner(key) == (next(iter(rest), None) if owner == leaver else owner)


@given(st.lists(names, min_size=1, max_size=8, unique=True), st.floats(0.01, 100), keys)
def test_equal_weights_rank_as_no_weights(nodes: list[str], weight: float, some: list[bytes]) -> None:
    # The shortcut for equal weights gives the order of the full formula; a far lighter node forces the
    # formula.
    plain = Rendezvous(dict.fromkeys(nodes, weight))
    formula = Rendezvous({**dict.fromkeys(nodes, weight), "\0light": weight / 2})
    for key in some:
        assert [name for name in formula.ranking(key) if name != "\0light"] == plain.ranking(key)


@pytest.mark.parametrize("count", [3, 10, 100])
def test_slots_are_balanced_as_independent_draws_would_be(count: int) -> None:
    hrw = Rendezvous(equal(count))
    owned = Counter(hrw.owner(key) for key in KEYS)
    # Two sources of deviation: which slots a node wins, and how many keys fall into each slot.
    expected = len(KEYS) / count
    deviation = math.sqrt(1 / expected + count / SLOTS)
    chi_square = sum(((owned[name] / expected - 1) / deviation) ** 2 for name in hrw.names)
    freedom = count - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_balance_error_at_a_thousand_nodes_is_about_12_percent() -> None:
    # Judged on a sample of 4,096 slots, since the whole contest is 65 million hashes.
    hrw = Rendezvous(equal(1000))
    owned = Counter(hrw.owner(key) for key in KEYS[:4096])
    spread = math.sqrt(sum((owned[name] - 4.096) ** 2 for name in hrw.names) / 1000) / 4.096
    # A perfect draw of 4,096 keys alone spreads by 1 / sqrt(4.096) = 0.49.
    assert spread == pytest.approx(math.sqrt(1 / 4.096 + 1000 / SLOTS), rel=0.15)


def test_nodes_own_keys_in_proportion_to_their_weights() -> None:
    weights = {"a": 1, "b": 2, "c": 3, "d": 0.5}
    hrw = Rendezvous(weights)
    owned = Counter(hrw.owner(key) for key in KEYS)
    for name, weight in weights.items():
        assert owned[name] / len(KEYS) == pytest.approx(weight / 6.5, rel=0.05)


def test_names_of_equal_hash_are_ranked_by_name() -> None:
    hrw = Rendezvous({"b": 1, "a": 1, "c": 1})
    hrw._seeds = [7, 7, 7]
    assert hrw.ranking(b"key") == ["a", "b", "c"]
    assert hrw.owner(b"key") == "a"


def test_nobody_owns_a_key_when_there_are_no_nodes() -> None:
    hrw = Rendezvous({})
    assert hrw.owner(b"key") is None
    assert hrw.ranking(b"key") == []


@pytest.mark.parametrize("weight", [0, -1, math.inf, -math.inf, math.nan])
def test_weight_that_is_not_positive_and_finite_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of node 'web-1'"):
        Rendezvous({"web-1": weight})
