"""What users see of a connection that is reset after the owner has executed their request, before its answer comes."""

import os
from collections.abc import Callable, Iterator

import pytest
from django.core.cache import caches

from django_clusterstate import cluster as cluster_state
from django_clusterstate import runtime
from django_clusterstate.cache import ClusterCache
from django_clusterstate.client.routing import RoutingTable, Target
from django_clusterstate.exceptions import ConnectionLost
from django_clusterstate.wire.address import UnixAddress
from testproject.processes import LocalCluster
from tests.cache_variants import CacheVariants
from tests.faults.proxy import Proxy

Lose = Callable[[str], None]


@pytest.fixture
def key(cluster: LocalCluster, variants: CacheVariants) -> str:
    """One whose entry, lock and lease belong to the same node."""
    backend = caches["default"]
    assert isinstance(backend, ClusterCache)
    names = (f"lost-{os.urandom(4).hex()}" for _ in range(10_000))
    return next(
        name
        for name in names
        if {cluster_state.owner(backend.routing_key(one)) for one in (name, f"lock:{name}")} == {"beta"}
    )


@pytest.fixture
def lose(cluster: LocalCluster, variants: CacheVariants, key: str) -> Iterator[Lose]:
    """Loses the answer to the next request of both clients that contains some text, and no other."""
    with Proxy(UnixAddress(str(cluster.socket("beta")))) as proxy:
        variants["default"].get(key)
        runtime.get_client().close()
        for client in (runtime.get_client(), runtime.get_async_client()):
            table, by_proxy = client.routing.table, Target("beta", proxy.address)
            if table.targets:
                client.routing.table = RoutingTable(table.view, table.local_name, {**table.targets, "beta": by_proxy})
        variants["default"].get(key)

        def lose(text: str) -> None:
            assert not proxy.cut_on
            proxy.cut_on.append(text.encode())

        yield lose
        assert not proxy.cut_on
        assert not proxy.cut


def test_incr_counts_once_and_says_that_it_does_not_know(variants: CacheVariants, key: str, lose: Lose) -> None:
    variants["default"].set(key, 1)
    lose(key)
    with pytest.raises(ConnectionLost, match="node beta"):
        variants.made_with({"ON_UNAVAILABLE": "raise"}).incr(key)
    assert variants["default"].get(key) == 2
    lose(key)
    with pytest.raises(ValueError, match="not found"):
        variants["default"].incr(key)
    assert variants["default"].get(key) == 3


def test_add_says_that_it_does_not_know(variants: CacheVariants, key: str, lose: Lose) -> None:
    lose(key)
    with pytest.raises(ConnectionLost, match="node beta"):
        variants.made_with({"ON_UNAVAILABLE": "raise"}).add(key, "first")
    assert variants["default"].get(key) == "first"


@pytest.mark.parametrize("many", [False, True])
def test_what_may_be_done_twice_is_not_seen(variants: CacheVariants, key: str, lose: Lose, many: bool) -> None:
    cache = variants["default"]
    lose(key)
    assert not cache.set_many({key: 1}) if many else cache.set(key, 1) is None
    lose(key)
    assert cache.get_many([key]) == {key: 1} if many else cache.get(key) == 1
    lose(key)
    assert cache.touch(key, 60)
    lose(key)
    cache.delete(key)
    assert cache.get(key) is None


def test_lock_is_had_though_the_answer_was_lost(variants: CacheVariants, key: str, lose: Lose) -> None:
    cache = variants["default"]
    lock, other = cache.lock(key, timeout=60, blocking_timeout=0.2), cache.lock(key, timeout=60, blocking_timeout=0)
    lose(f"lock:{key}")
    assert lock.acquire()
    assert not other.acquire()
    lose(f"lock:{key}")
    assert lock.extend(60)
    assert lock.release()
    assert other.acquire()
    assert other.release()


def test_missing_value_is_computed_once_though_the_answer_about_its_lease_was_lost(
    variants: CacheVariants, key: str, lose: Lose
) -> None:
    computed = []

    def compute() -> str:
        computed.append(1)
        return "value"

    lose("lease")
    assert variants["default"].get_or_set(key, compute, 60) == "value"
    assert variants["default"].get(key) == "value"
    assert len(computed) == 1
