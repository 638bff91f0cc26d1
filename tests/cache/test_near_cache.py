"""The near cache: values that this process has read recently, and reads again without a request."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from django_clusterstate import runtime
from django_clusterstate.cache import ClusterCache
from django_clusterstate.cache.near_cache import MAX_NEAR_VALUE, NearCache, NearReads, shared_near_cache
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import frame
from testproject.processes import wait_until
from tests.cache_variants import CacheVariant, CacheVariants
from tests.timing import check_seconds

KEY, OTHER = b"space\0key", b"space\0other"


# -- without nodes ----------------------------------------------------------------------------------------------


def test_a_near_value_is_found_until_it_is_too_old() -> None:
    near = NearCache()
    near.put(KEY, b"value", None, near.mark(KEY, now=10.0), max_entries=10)
    assert near.get(KEY, since=9.0, now=11.0) == b"value"
    assert near.get(OTHER, since=9.0, now=11.0) is None
    assert near.get(KEY, since=10.5, now=11.0) is None


def test_a_near_value_expires_with_its_entry() -> None:
    near = NearCache()
    near.put(KEY, b"value", 2.0, near.mark(KEY, now=10.0), max_entries=10)
    assert near.get(KEY, since=0.0, now=11.9) == b"value"
    assert near.get(KEY, since=0.0, now=12.0) is None


def test_a_read_that_a_write_overtook_is_not_kept() -> None:
    near = NearCache()
    forgets: list[Callable[[], None]] = [lambda: near.drop(KEY), near.clear]
    for forget in forgets:
        mark = near.mark(KEY, now=10.0)
        forget()
        near.put(KEY, b"older", None, mark, max_entries=10)
        assert near.get(KEY, since=0.0, now=11.0) is None


def test_the_least_recently_used_near_value_is_evicted_first() -> None:
    near = NearCache()
    keys = [b"space\0%d" % number for number in range(4)]
    for key in keys[:3]:
        near.put(key, b"value", None, near.mark(key, now=1.0), max_entries=3)
    near.get(keys[0], since=0.0, now=11.0)
    near.put(keys[3], b"value", None, near.mark(keys[3], now=1.0), max_entries=3)
    assert [near.get(key, since=0.0, now=11.0) is not None for key in keys] == [True, False, True, True]


def test_absent_and_large_values_arent_kept() -> None:
    near = NearCache()
    near.put(KEY, None, None, near.mark(KEY, now=1.0), max_entries=3)
    near.put(OTHER, bytes(MAX_NEAR_VALUE + 1), None, near.mark(OTHER, now=1.0), max_entries=3)
    assert len(near) == 0
    near.put(OTHER, bytes(MAX_NEAR_VALUE), None, near.mark(OTHER, now=1.0), max_entries=3)
    near.put(KEY, 2**63 - 1, None, near.mark(KEY, now=1.0), max_entries=3)
    assert len(near) == 2


@pytest.mark.parametrize("ttl", [0, 600])
def test_a_reply_without_values_is_a_miss(ttl: float) -> None:
    reads = NearReads(NearCache(), ttl, max_entries=3)
    failed = wire.FailedReply(0, wire.REPLY_TOO_LONG)
    value, mark = reads.find(KEY)
    assert value is None
    assert reads.take(KEY, failed, mark) is None
    assert reads.take_many([KEY], failed, {} if mark is None else {KEY: mark}) == []


# -- with nodes, blocking and async------------------------------------------------------------------------------


@pytest.fixture
def near(variants: CacheVariants) -> CacheVariant:
    return variants.made_with({"NEAR_TTL": 600})


def write_elsewhere(key: str, value: int, ttl: float | None = None) -> None:
    """Writes without a `ClusterCache`, as another process does."""
    cache = caches["default"]
    assert isinstance(cache, ClusterCache)
    wire_key = cache.routing_key(key)
    runtime.get_client().call(wire_key, frame(wire.encode(wire.Set([(wire_key, value)], ttl))))


def test_a_second_read_sends_no_request(near: CacheVariant, requests: list[wire.Message]) -> None:
    near.set("key", [1])
    assert near.get("key") == [1]
    requests.clear()
    assert near.get("key") == [1]
    assert near.get_many(["key"]) == {"key": [1]}
    assert near.has_key("key") is True
    assert near.get_or_set("key", 2) == [1]
    assert requests == []


def test_get_many_requests_only_keys_that_arent_near(near: CacheVariant, requests: list[wire.Message]) -> None:
    near.set_many({f"key{number}": number for number in range(10)})
    assert near.get_many(["key1", "key2"]) == {"key1": 1, "key2": 2}
    requests.clear()
    assert near.get_many([f"key{number}" for number in range(4)]) == {f"key{number}": number for number in range(4)}
    assert sorted(len(request.keys) for request in requests if isinstance(request, wire.GetWithTtl)) in ([2], [1, 1])
    requests.clear()
    assert [near.get(f"key{number}") for number in range(4)] == list(range(4))
    assert requests == []


def test_without_near_ttl_each_read_is_a_request(cache: CacheVariant, requests: list[wire.Message]) -> None:
    cache.set("key", 1)
    requests.clear()
    assert [cache.get("key"), cache.get("key")] == [1, 1]
    assert len(requests) == 2


def test_an_absent_key_is_requested_each_time(near: CacheVariant, requests: list[wire.Message]) -> None:
    assert near.get("absent") is None
    assert near.get("absent", "default") == "default"
    assert near.get_many(["absent"]) == {}
    assert len(requests) == 3
    write_elsewhere("absent", 1)
    assert near.get("absent") == 1


def test_callers_dont_share_objects(near: CacheVariant) -> None:
    near.set("key", {"list": [1]})
    first = near.get("key")
    first["list"].append(2)
    assert near.get("key") == near.get_many(["key"])["key"] == {"list": [1]}


@pytest.mark.parametrize("through", ["the same", "an alias without a near cache"])
@pytest.mark.parametrize(
    ("name", "args", "after"),
    [
        ("set", ("key", 7), 7),
        ("set_many", ({"key": 7},), 7),
        ("incr", ("key",), 2),
        ("decr", ("key",), 0),
        ("delete", ("key",), None),
        ("delete_many", (["key"],), None),
        ("touch", ("key", 0), None),
        ("clear", (), None),
        ("incr_version", ("key",), None),
        ("expire", ("key", 0), None),
        ("delete_pattern", ("k*",), None),
    ],
)
def test_a_process_reads_its_own_writes_at_once(
    variants: CacheVariants, near: CacheVariant, through: str, name: str, args: tuple[Any, ...], after: object
) -> None:
    near.set("key", 1)
    assert near.get("key") == 1
    (near if through == "the same" else variants["default"]).call(name, *args)
    assert near.get("key") == after


@pytest.mark.parametrize("name", ["get", "get_many", "has_key", "get_or_set"])
@pytest.mark.parametrize("timeout", ["set", "touch", "incr", "another process"])
@pytest.mark.timing
def test_a_near_value_isnt_returned_after_its_entry_expired(
    variants: CacheVariants, near: CacheVariant, name: str, timeout: str
) -> None:
    def write_and_read() -> object:
        near.set("key", 1, 600 if timeout == "touch" else 0.5)
        if timeout == "touch":
            assert near.get("key") == 1
            near.touch("key", 0.5)
        elif timeout == "incr":
            near.incr("key")
        elif timeout == "another process":
            write_elsewhere("key", 1, 0.5)
        return calls[name]()

    calls: dict[str, Callable[[], object]] = {
        "get": lambda: near.get("key"),
        "get_many": lambda: near.get_many(["key"]).get("key"),
        "has_key": lambda: near.has_key("key") or None,
        "get_or_set": lambda: near.get_or_set("key", None),
    }

    start, value = time.monotonic(), None
    with contextlib.suppress(ValueError):  # if it has ended before it is incremented
        value = write_and_read()
    took = time.monotonic() - start
    assert value is not None or took >= 0.5
    start = time.monotonic()
    wait_until(lambda: calls[name]() is None, 60, "the entry's end")
    check_seconds(time.monotonic() - start, below=2)


def test_a_write_of_another_process_is_seen_after_near_ttl(
    variants: CacheVariants, requests: list[wire.Message]
) -> None:
    near = variants.made_with({"NEAR_TTL": 0.3})
    near.set("key", 1)
    assert near.get("key") == 1
    write_elsewhere("key", 2)
    assert variants.made_with({"NEAR_TTL": 600}).get("key") == 1  # the same value, which is near for longer
    wait_until(lambda: near.get("key") == 2, 60, "the other's value")


def test_aliases_of_one_location_have_their_own_near_ttl(variants: CacheVariants, near: CacheVariant) -> None:
    near.set("key", 1)
    assert near.get("key") == 1
    write_elsewhere("key", 2)
    assert near.get("key") == 1
    assert variants.made_with({"NEAR_TTL": 1e-9}).get("key") == 2
    assert variants["default"].get("key") == 2


def test_near_entries_limits_the_number_of_near_values(variants: CacheVariants, requests: list[wire.Message]) -> None:
    near = variants.made_with({"NEAR_TTL": 600, "NEAR_ENTRIES": 10})
    data = {f"key{number}": number for number in range(100)}
    near.set_many(data)
    assert near.get_many(data) == data
    requests.clear()
    assert [near.get(f"key{number}") for number in range(100)] == list(range(100))
    assert len(requests) >= 90


@pytest.mark.usefixtures("nowhere")
def test_a_write_that_may_have_failed_drops_the_near_value(unconnected: CacheVariants) -> None:
    near = unconnected.made_with({"NEAR_TTL": 600})
    cache = caches[near.alias]
    assert isinstance(cache, ClusterCache)
    key = cache.routing_key("key")
    shared = shared_near_cache(cache.options.namespace)
    shared.put(key, 1, None, shared.mark(key, now=1e18), max_entries=10)
    assert near.get("key") == 1
    near.set("key", 2)
    assert near.get("key") is None


@pytest.mark.usefixtures("cluster")
def test_a_thread_reads_what_it_wrote_while_others_read_the_same() -> None:
    cache = ClusterCache("cache-tests", {"OPTIONS": {"NEAR_TTL": 600}})
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            cache.get("key")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for number in range(200):
            cache.set("key", number)
            assert cache.get("key") == number
    finally:
        over.set()
        for reader in readers:
            reader.join()
    cache.delete("key")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"NEAR_TTL": -1}, "NEAR_TTL must be a number of seconds"),
        ({"NEAR_TTL": "1"}, "NEAR_TTL must be a number of seconds"),
        ({"NEAR_TTL": float("inf")}, "NEAR_TTL must be a number of seconds"),
        ({"NEAR_ENTRIES": 0}, "NEAR_ENTRIES must be a number of entries above 0"),
        ({"NEAR_ENTRIES": 1.5}, "NEAR_ENTRIES must be a number of entries above 0"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        ClusterCache("", {"OPTIONS": options})
