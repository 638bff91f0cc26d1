"""The contract of a Django cache: each test runs twice, with `ClusterCache`'s blocking and its asynchronous methods.

The blocking methods also pass Django's own suite, in `tests/django_suite`. This one covers the same ground for the
asynchronous methods, none of which may leave the event loop's thread, and adds the promises of this backend alone.
"""

import asyncio
import json
import logging
import math
import pickle
import re
import signal
import socket
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import pytest
from django.core.cache import CacheKeyWarning, InvalidCacheKey, caches
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy

from django_clusterstate import cluster as cluster_state
from django_clusterstate import runtime
from django_clusterstate.cache import MAX_VALUE_BYTES, ClusterCache
from django_clusterstate.cache.requester import KEYS_AT_ONCE
from django_clusterstate.exceptions import Unavailable
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.aio import AsyncConnection
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.framing import HEADER, frame
from testproject.processes import ROOT, LocalCluster, wait_until
from tests.cache_variants import MIB, CacheVariant, CacheVariants, JsonSerializer, custom_key, wait_until_gone
from tests.conftest import using
from tests.timing import check_seconds, is_left, takes


class TextSerializer(JsonSerializer):
    def dumps(self, value: Any) -> Any:
        return json.dumps(value)


class Unpicklable:
    def __getstate__(self) -> Any:
        raise pickle.PickleError


# -- one key ----------------------------------------------------------------------------------------------------


def test_a_value_that_was_set_is_read(cache: CacheVariant) -> None:
    assert cache.set("key", "value") is None
    assert cache.get("key") == "value"


def test_a_value_that_was_set_is_read_at_every_node(cluster: LocalCluster, cache: CacheVariant) -> None:
    for number in range(20):
        cache.set(f"key{number}", number)
    assert {cluster_state.owner(caches["default"].routing_key(f"key{n}")) for n in range(20)} == set(cluster.names)  # type: ignore[attr-defined]
    assert [cache.get(f"key{number}") for number in range(20)] == list(range(20))


def test_get_of_an_absent_key_returns_none_or_the_default(cache: CacheVariant) -> None:
    assert cache.get("absent") is None
    assert cache.get("absent", "bang!") == "bang!"
    assert cache.get("absent", default="bang!") == "bang!"


def test_a_cached_none_is_returned_instead_of_the_default(cache: CacheVariant) -> None:
    cache.set("none", None)
    assert cache.get("none", default="default") is None


def test_set_replaces_a_value_of_another_type(cache: CacheVariant) -> None:
    for value in (1, "text", None, 2, [3]):
        cache.set("key", value)
        assert cache.get("key", "default") == value


def test_add_stores_only_where_there_is_nothing(cache: CacheVariant) -> None:
    assert cache.add("key", "value") is True
    assert cache.add("key", "newvalue") is False
    assert cache.get("key") == "value"


def test_add_leaves_a_cached_none_alone(cache: CacheVariant) -> None:
    cache.set("none", None)
    assert cache.add("none", 1) is False


def test_delete_says_whether_there_was_something(cache: CacheVariant) -> None:
    cache.set_many({"key1": "spam", "key2": "eggs"})
    assert cache.delete("key1") is True
    assert cache.get("key1") is None
    assert cache.get("key2") == "eggs"
    assert cache.delete("key1") is False


def test_has_key_sees_values_that_are_falsy_or_never_expire(cache: CacheVariant) -> None:
    cache.set("here", "value")
    cache.set("no_expiry", "here", None)
    cache.set("none", None)
    cache.set("zero", 0)
    assert [cache.has_key(key) for key in ("here", "no_expiry", "none", "zero", "absent")] == [True] * 4 + [False]


@pytest.mark.usefixtures("variants")
def test_in_is_has_key() -> None:
    caches["default"].set("none", None)
    assert "none" in caches["default"]
    assert "absent" not in caches["default"]


def test_close_leaves_the_cache_usable(cache: CacheVariant) -> None:
    cache.set("key", 1)
    assert cache.close() is None
    assert cache.get("key") == 1


# -- counting ---------------------------------------------------------------------------------------------------


def test_incr_adds_and_returns_the_sum(cache: CacheVariant) -> None:
    cache.set("answer", 41)
    assert cache.incr("answer") == 42
    assert cache.get("answer") == 42
    assert cache.incr("answer", 10) == 52
    assert cache.incr("answer", delta=-10) == 42
    assert cache.incr("answer", 0) == 42


def test_decr_subtracts_and_returns_the_difference(cache: CacheVariant) -> None:
    cache.set("answer", 43)
    assert cache.decr("answer") == 42
    assert cache.decr("answer", 10) == 32
    assert cache.decr("answer", -10) == 42
    assert cache.decr("answer", 50) == -8
    assert cache.get("answer") == -8


@pytest.mark.parametrize("name", ["incr", "decr"])
def test_counting_an_absent_key_raises_value_error_that_names_it(cache: CacheVariant, name: str) -> None:
    with pytest.raises(ValueError, match="'absent' not found"):
        cache.call(name, "absent")
    with pytest.raises(ValueError, match="'absent' not found"):
        cache.call(name, "absent", -1)
    assert cache.has_key("absent") is False


@pytest.mark.parametrize("name", ["incr", "decr"])
@pytest.mark.parametrize("value", [None, "1", 1.5, True, 2**63])
def test_incr_of_a_value_that_isnt_a_64_bit_integer_raises_type_error(
    cache: CacheVariant, name: str, value: object
) -> None:
    cache.set("key", value)
    with pytest.raises(TypeError, match="'key'"):
        cache.call(name, "key")
    assert cache.get("key") == value


def test_counting_beyond_64_bits_raises_and_leaves_the_value(cache: CacheVariant) -> None:
    cache.set("most", 2**63 - 1)
    with pytest.raises(TypeError, match="64 bits"):
        cache.incr("most")
    assert cache.get("most") == 2**63 - 1
    cache.set("least", -(2**63))
    with pytest.raises(TypeError, match="64 bits"):
        cache.decr("least")


@pytest.mark.parametrize("delta", [1.5, "1", None, 2**63])
def test_a_delta_that_isnt_a_64_bit_integer_is_refused_before_it_is_sent(
    cache: CacheVariant, requests: list[wire.Message], delta: object
) -> None:
    cache.set("key", 1)
    requests.clear()
    with pytest.raises(TypeError):
        cache.incr("key", delta)
    assert requests == []


def test_incr_keeps_the_ttl(cache: CacheVariant) -> None:
    start = time.monotonic()
    cache.set("short", 1, 100)
    cache.set("for_ever", 1, None)
    assert cache.incr("short") == 2
    assert cache.incr("for_ever") == 2
    assert cache.decr("for_ever") == 1
    assert is_left(cache.ttl("short"), 100, start)
    assert cache.ttl("for_ever") is None


def test_incr_counts_each_of_many_concurrent_calls_once(cache: CacheVariant) -> None:
    cache.set("count", 0)
    sums = cache.at_once("incr", [("count", 3)] * 200)
    assert sorted(sums) == list(range(3, 603, 3))
    assert cache.get("count") == 600


def test_add_lets_exactly_one_of_many_concurrent_calls_win(cache: CacheVariant) -> None:
    for attempt in range(10):
        won = cache.at_once("add", [(f"key{attempt}", number) for number in range(16)])
        assert won.count(True) == 1
        assert cache.get(f"key{attempt}") == won.index(True)


# -- many keys --------------------------------------------------------------------------------------------------


def test_get_many_returns_the_values_found(cache: CacheVariant) -> None:
    cache.set_many({"a": "a", "b": "b", "c": "c", "d": "d"})
    assert cache.get_many(["a", "c", "d"]) == {"a": "a", "c": "c", "d": "d"}
    assert cache.get_many(["a", "b", "e"]) == {"a": "a", "b": "b"}
    assert cache.get_many(iter(["a", "b", "e"])) == {"a": "a", "b": "b"}
    assert cache.get_many({"a": 1}.keys()) == {"a": "a"}
    cache.set_many({"x": None, "y": 1})
    assert cache.get_many(["x", "y"]) == {"x": None, "y": 1}


def test_get_many_leaves_out_expired_keys(cache: CacheVariant) -> None:
    cache.set("lasts", 1)
    cache.set("expires", 1, 0.05)
    wait_until_gone(cache, "expires")
    assert cache.get_many(["lasts", "expires"]) == {"lasts": 1}


def test_get_many_returns_the_keys_that_its_caller_passed(cache: CacheVariant) -> None:
    cache.set_many({1: "one", 2: "two"})
    assert cache.get_many([1, 2]) == {1: "one", 2: "two"}


def test_set_many_returns_no_key_when_all_are_stored(cache: CacheVariant) -> None:
    assert cache.set_many({"key1": "spam", "key2": "eggs"}) == []
    assert cache.get("key1") == "spam"
    assert cache.get("key2") == "eggs"


def test_set_many_takes_a_timeout(cache: CacheVariant) -> None:
    cache.set_many({"key1": "spam", "key2": "eggs"}, 0.1)
    cache.set_many({"key3": "ham"}, timeout=100.5)
    wait_until_gone(cache, "key1", "key2")
    assert cache.get("key3") == "ham"


def test_delete_many_deletes_those_and_no_others(cache: CacheVariant) -> None:
    cache.set_many({"key1": "spam", "key2": "eggs", "key3": "ham"})
    assert cache.delete_many(["key1", "key2", "absent"]) is None
    assert cache.get_many(["key1", "key2", "key3"]) == {"key3": "ham"}
    cache.delete_many(key for key in ["key3"])
    assert cache.has_key("key3") is False


def test_many_operations_without_keys_send_no_request(cache: CacheVariant, requests: list[wire.Message]) -> None:
    cache.get("any")
    requests.clear()
    assert cache.set_many({}) == []
    assert cache.get_many([]) == {}
    assert cache.get_many(iter([])) == {}
    assert cache.delete_many([]) is None
    assert requests == []


@pytest.mark.parametrize("name", ["set_many", "get_many", "delete_many"])
def test_many_keys_take_one_request_for_each_owner(
    cluster: LocalCluster, cache: CacheVariant, requests: list[wire.Message], name: str
) -> None:
    # A node that is held up for 2 ms answers for the first 16 keys only, and the rest take another request.
    data = {f"key{number}": f"value{number}" for number in range(24)}
    if name == "set_many":
        assert cache.set_many(data) == []
    else:
        cache.set_many(data)
        requests.clear()
        result = cache.call(name, data)
        assert result == (data if name == "get_many" else None)
    assert len(requests) == len(cluster.names)


def test_many_keys_that_are_too_much_for_one_request_are_stored_and_read_all_the_same(cache: CacheVariant) -> None:
    data = {f"key{number}": bytes([number]) * 200_000 for number in range(40)}  # 8 MB, by three owners
    assert cache.set_many(data) == []
    assert cache.get_many(data) == data
    cache.delete_many(data)
    assert cache.get_many(data) == {}


def test_large_values_may_be_read_and_written_many_at_once(cache: CacheVariant) -> None:
    value = b"x" * MIB
    cache.at_once("set", [(f"key{number}", value) for number in range(24)])
    assert cache.at_once("get", [(f"key{number}",) for number in range(24)]) == [value] * 24


@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
def test_a_multitude_of_long_keys_is_split_into_several_requests(cache: CacheVariant) -> None:
    data = {f"{number:0950}": number for number in range(5000)}  # keys of 5 MB
    assert cache.set_many(data) == []
    assert cache.get_many(data) == data
    cache.delete_many(data)
    assert cache.get_many(data) == {}


# -- timeouts ---------------------------------------------------------------------------------------------------


def test_a_value_expires(cache: CacheVariant) -> None:
    cache.set("expire1", "very quickly", 0.1)
    cache.set("expire2", "very quickly", timeout=0.1)
    cache.add("expire3", "very quickly", 0.1)
    wait_until_gone(cache, "expire1", "expire2", "expire3")
    assert cache.add("expire2", "newvalue") is True
    assert cache.get("expire2") == "newvalue"
    assert cache.has_key("expire3") is False


def test_the_default_timeout_is_the_settings(variants: CacheVariants) -> None:
    variants["short"].set("short", 1)
    variants["for_ever"].set("for_ever", 1)
    variants["short"].add("added", 1)
    variants["short"].set_many({"many": 1})
    variants["default"].set("touched", 1, None)
    assert variants["short"].touch("touched") is True
    wait_until_gone(variants["default"], "short", "added", "many", "touched")
    assert variants["default"].get("for_ever") == 1


def test_touch_replaces_the_timeout(cache: CacheVariant) -> None:
    cache.set_many({"longer": 1, "for_ever": 1, "default": 1}, 50)
    cache.set("shorter", 1, 100)
    start = time.monotonic()
    assert cache.touch("longer", timeout=100) is True
    assert cache.touch("for_ever", timeout=None) is True
    assert cache.touch("default") is True
    assert cache.touch("shorter", 0.1) is True
    assert cache.touch("absent") is False
    assert is_left(cache.ttl("longer"), 100, start)
    assert cache.ttl("for_ever") is None
    assert is_left(cache.ttl("default"), 300, start)
    wait_until_gone(cache, "shorter")


@pytest.mark.parametrize("timeout", [60 * 60 * 24 * 30 + 1, 10**10, 1e300, 100.2, None])
def test_a_long_timeout_is_kept(cache: CacheVariant, timeout: float | None) -> None:
    cache.set("key1", "eggs", timeout)
    assert cache.add("key2", "ham", timeout) is True
    assert cache.add("key1", "new eggs", timeout) is False
    assert cache.set_many({"key3": "sausage", "key4": "lobster bisque"}, timeout) == []
    cache.set("key5", "belgian fries", timeout=60)
    assert cache.touch("key5", timeout=timeout) is True
    wanted = {"key1": "eggs", "key2": "ham", "key3": "sausage", "key4": "lobster bisque", "key5": "belgian fries"}
    assert cache.get_many(wanted) == wanted


@pytest.mark.parametrize("timeout", [0, -1, 0.0, -100.5])
def test_a_timeout_of_zero_or_less_stores_nothing(cache: CacheVariant, timeout: float) -> None:
    cache.set("key1", "older")
    cache.set("key1", "eggs", timeout)
    assert cache.get("key1") is None
    assert cache.add("key2", "ham", timeout) is True
    assert cache.get("key2") is None
    assert cache.set_many({"key3": "sausage", "key4": "lobster bisque"}, timeout) == []
    assert cache.get_many(["key3", "key4"]) == {}
    cache.set("key5", "belgian fries", timeout=60)
    assert cache.touch("key5", timeout=timeout) is True
    assert cache.get("key5") is None


# -- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["a string", "", "Iñtërnâtiônàlizætiøn \0 \U0001f40d", b"", b"\0\xff", zlib.compress(b"value"), 42, 0, -1, 1.5,
     [1, 2, 3], (1, 2), {"A": 1, "B": [2]}, {1, 2}, None, custom_key, JsonSerializer, 2**63 - 1, -(2**63)],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)  # fmt: skip
def test_a_value_comes_back_equal_and_of_its_type(cache: CacheVariant, value: object) -> None:
    cache.set("set", value)
    cache.add("add", value)
    cache.set_many({"many": value})
    for key in ("set", "add", "many"):
        found = cache.get(key, "default")
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", [True, False])
def test_a_bool_stays_a_bool(cache: CacheVariant, value: bool) -> None:
    cache.set("key", value)
    assert cache.get("key") is value


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**100])
def test_an_integer_of_any_size_is_kept(cache: CacheVariant, value: int) -> None:
    cache.set("key", value)
    assert cache.get("key") == value


@pytest.mark.parametrize("name", ["set", "add"])
def test_a_value_that_cant_be_pickled_raises(cache: CacheVariant, name: str) -> None:
    with pytest.raises(pickle.PickleError):
        cache.call(name, "key", Unpicklable())
    with pytest.raises(pickle.PickleError):
        cache.set_many({"key": Unpicklable()})


def test_a_value_of_a_mebibyte_is_kept(cache: CacheVariant) -> None:
    value = "x" * MIB
    assert cache.set_many({"many1": value, "many2": value, "many3": value}) == []
    cache.set("set", value)
    assert cache.add("add", value) is True
    assert [cache.get(key) == value for key in ("set", "add", "many1", "many2", "many3")] == [True] * 5
    assert set(cache.get_many(["set", "add", "many1", "many2", "many3"]).values()) == {value}


def test_a_request_is_for_a_few_hundred_keys_however_many_are_asked_for(
    cache: CacheVariant, requests: list[wire.Message]
) -> None:
    data = {f"key{number}": number for number in range(30_000)}
    assert cache.set_many(data) == []
    assert cache.get_many(data) == data
    cache.delete_many(data)
    assert cache.get_many(data) == {}
    counts = [
        len(request.items) if isinstance(request, wire.Set) else len(request.keys)
        for request in requests
        if isinstance(request, wire.Set | wire.Get | wire.Delete)
    ]
    assert sum(counts) >= 4 * 30_000
    assert max(counts) <= KEYS_AT_ONCE


@pytest.fixture
def taking_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes handle three keys of each request and leave out the rest, as they do when a request takes too long."""

    def shortened(request: bytes) -> bytes:
        decoded = wire.decode_request(request[HEADER:])
        if isinstance(decoded, wire.Set):
            return frame(wire.encode(wire.Set(decoded.items[:3], decoded.ttl)))
        if isinstance(decoded, wire.Get | wire.Delete):
            return frame(wire.encode(type(decoded)(decoded.keys[:3])))
        return request

    for connection, name in ((BlockingConnection, "call"), (BlockingConnection, "send"), (AsyncConnection, "request")):
        send = getattr(connection, name)
        monkeypatch.setattr(connection, name, lambda self, request, send=send: send(self, shortened(request)))


@pytest.mark.usefixtures("taking_turns")
def test_an_owner_that_does_a_part_of_the_keys_is_asked_for_the_rest(cache: CacheVariant) -> None:
    data = {f"key{number}": number for number in range(50)}
    assert cache.set_many(data) == []
    assert cache.get_many(data) == data
    cache.delete_many([f"key{number}" for number in range(20)])
    assert cache.get_many(data) == {key: number for key, number in data.items() if number >= 20}
    assert cache.delete_pattern("key*") == 30
    assert cache.get_many(data) == {}


@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
def test_the_largest_value_is_kept_under_the_longest_key(variants: CacheVariants) -> None:
    overhead = len(pickle.dumps(b"x" * MIB, pickle.HIGHEST_PROTOCOL)) - MIB
    value = b"x" * (MAX_VALUE_BYTES - overhead)
    cache = variants["bare_key"]
    longest = "k" * (wire.MAX_KEY_BYTES - len("cache-tests") - 1)
    for key in (longest, longest + "k", "k"):
        cache.set(key, value)
        assert cache.get(key) == value
        assert cache.get_many([key]) == {key: value}
        cache.delete(key)
        assert cache.get_or_set(key, lambda: value) == value
        assert cache.get(key) == value
        cache.delete(key)


@pytest.mark.parametrize("name", ["set", "add", "set_many"])
def test_a_value_that_is_too_large_raises_an_error_that_says_so(
    variants: CacheVariants, requests: list[wire.Message], name: str
) -> None:
    cache = variants.made_with({"VALUE_TOO_BIG": "raise"})
    value = b"x" * (MAX_VALUE_BYTES + 1)
    args: tuple[Any, ...] = ({"small": 1, "big": value},) if name == "set_many" else ("big", value)
    with pytest.raises(ValueError, match=rf"the value of 'big' takes 1,\d\d\d,\d\d\d bytes, .* {MAX_VALUE_BYTES:,}"):
        cache.call(name, *args)
    sent = [key for request in requests if isinstance(request, wire.Set) for key, _ in request.items]
    assert sent == ([b"cache-tests\0:1:small"] if name == "set_many" else [])


def test_another_serializer_may_be_named(variants: CacheVariants) -> None:
    cache = variants["json"]
    for value in ({"a": [1, None, True]}, "text", True, None, 1, 2**70):
        cache.set("key", value)
        assert cache.get("key", "default") == value
        assert type(cache.get("key")) is type(value)
    assert cache.set_many({"tuple": (1, 2)}) == []
    assert cache.get_many(["tuple"]) == {"tuple": [1, 2]}
    with pytest.raises(TypeError, match="JSON"):
        cache.set("key", object())


# -- keys, versions, prefixes -----------------------------------------------------------------------------------


def test_unicode_keys_are_kept_apart(cache: CacheVariant) -> None:
    stuff = {"ascii": 1, "Iñtërnâtiônàlizætiøn": "ø", "\U0001f40d": "snake", "\u00e9": "one", "e\u0301": "two"}
    assert cache.set_many(stuff) == []
    assert cache.get_many(stuff) == stuff
    for key, value in stuff.items():
        assert cache.get(key) == value
        assert cache.delete(key) is True
        assert cache.add(key, value) is True


@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
@pytest.mark.parametrize("length", [251, 1000, 1024, 1025, 5000, 100_000])
def test_long_keys_are_kept_apart(cache: CacheVariant, length: int) -> None:
    key, other = "k" * length + "a", "k" * length + "b"
    cache.set_many({key: 1, other: 2})
    assert cache.get(key) == 1
    assert cache.incr(other) == 3
    assert cache.get_many([key, other]) == {key: 1, other: 3}
    assert cache.add(key, 3) is False
    assert cache.touch(key) is True
    assert cache.has_key(other) is True
    cache.delete_many([other])
    assert cache.delete(other) is False
    assert cache.delete(key) is True


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("add", (1,)), ("get", ()), ("set", (1,)), ("incr", ()), ("decr", ()), ("touch", ()), ("delete", ()),
        ("has_key", ()), ("get_or_set", (1,)), ("incr_version", ()), ("decr_version", ()),
        ("get_many", None), ("delete_many", None), ("set_many", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["key with spaces and 清", "control\x01", "l" * 251])
def test_a_key_that_memcached_would_refuse_is_warned_of(
    cache: CacheVariant, name: str, args: tuple[Any, ...] | None, key: str
) -> None:
    if args is not None:
        given: tuple[Any, ...] = (key, *args)
    else:
        given = ({key: 1, "b": 2},) if name == "set_many" else ([key, "b"],)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache.set(key, 1)
    with pytest.warns(CacheKeyWarning, match="Cache key"):
        cache.call(name, *given)


def test_a_prefix_keeps_keys_apart(variants: CacheVariants) -> None:
    variants["default"].set("key", "value")
    assert variants["prefix"].has_key("key") is False
    variants["prefix"].set("key", "value2")
    assert variants["default"].get("key") == "value"
    assert variants["prefix"].get("key") == "value2"


def test_a_key_function_keeps_keys_apart(variants: CacheVariants) -> None:
    variants["default"].set("answer1", 42)
    assert variants["custom_key"].get("answer1") is None
    variants["custom_key"].set_many({"answer2": 42})
    assert variants["default"].get("answer2") is None
    assert variants["custom_key_path"].get_many(["answer2"]) == {"answer2": 42}


def test_a_version_is_a_key_of_its_own_in_get_and_set(variants: CacheVariants) -> None:
    one, two = variants["default"], variants["v2"]
    one.set("a", 1)
    two.set("b", 2)
    one.set("c", 3, version=2)
    two.set("d", 4, version=1)
    for cache, default in ((one, 1), (two, 2)):
        for key, value, stored in (("a", 1, 1), ("b", 2, 2), ("c", 3, 2), ("d", 4, 1)):
            for version in (1, 2, 3):
                assert cache.get(key, version=version) == (value if version == stored else None)
            assert cache.get(key, "default") == (value if default == stored else "default")


def test_a_version_is_a_key_of_its_own_in_add(variants: CacheVariants) -> None:
    one, two = variants["default"], variants["v2"]
    assert one.add("a", 42, version=2) is True
    assert one.get("a", version=1) is None
    assert one.add("a", 37, version=2) is False
    assert two.add("a", 37) is False
    assert two.add("a", 37, version=1) is True
    assert one.get("a") == 37
    assert two.get("a") == 42


@pytest.mark.parametrize(
    ("name", "args", "after"),
    [("delete", (), None), ("incr", (), 38), ("decr", (), 36), ("touch", (0,), None), ("delete_many", (), None)],
)
def test_each_version_of_a_key_is_changed_by_itself(
    variants: CacheVariants, name: str, args: tuple[Any, ...], after: object
) -> None:
    for alias, version, changed in (("default", {}, 1), ("default", {"version": 2}, 2), ("v2", {}, 2),
                                    ("v2", {"version": 1}, 1)):  # fmt: skip
        cache = variants[alias]
        cache.set("key", 37, version=1)
        cache.set("key", 37, version=2)
        cache.call(name, ["key"] if name == "delete_many" else "key", *args, **version)
        assert cache.get("key", version=changed) == after
        assert cache.get("key", version=3 - changed) == 37


def test_a_version_is_a_key_of_its_own_in_has_key(variants: CacheVariants) -> None:
    variants["default"].set("key", 1)
    assert variants["default"].has_key("key") is True
    assert variants["default"].has_key("key", version=1) is True
    assert variants["default"].has_key("key", version=2) is False
    assert variants["v2"].has_key("key") is False
    assert variants["v2"].has_key("key", version=1) is True


def test_a_version_is_a_key_of_its_own_in_many(variants: CacheVariants) -> None:
    one, two = variants["default"], variants["v2"]
    one.set_many({"a": 1, "b": 2})
    two.set_many({"c": 3, "d": 4})
    one.set_many({"e": 5}, version=2)
    two.set_many({"f": 6}, version=1)
    first, second, keys = {"a": 1, "b": 2, "f": 6}, {"c": 3, "d": 4, "e": 5}, list("abcdef")
    assert one.get_many(keys) == two.get_many(keys, version=1) == first
    assert two.get_many(keys) == one.get_many(keys, version=2) == second
    one.delete_many(keys, version=2)
    assert one.get_many(keys) == first
    assert two.get_many(keys) == {}


def test_incr_version_moves_a_value_to_the_next_version(variants: CacheVariants) -> None:
    one, two = variants["default"], variants["v2"]
    one.set("answer", 42, version=2)
    assert one.incr_version("answer", version=2) == 3
    assert [one.get("answer", version=version) for version in (None, 1, 2, 3)] == [None, None, None, 42]
    two.set("answer2", 42)
    assert two.incr_version("answer2", 2) == 4
    assert [two.get("answer2", version=version) for version in (None, 3, 4)] == [None, None, 42]
    one.set("none", None)
    assert one.incr_version("none") == 2
    assert one.get("none", "default", version=2) is None
    with pytest.raises(ValueError, match="not found"):
        one.incr_version("absent")


def test_decr_version_moves_a_value_to_the_version_before(variants: CacheVariants) -> None:
    one, two = variants["default"], variants["v2"]
    one.set("answer", 42, version=2)
    assert one.decr_version("answer", version=2) == 1
    assert [one.get("answer", version=version) for version in (None, 1, 2)] == [42, 42, None]
    two.set("answer2", 42)
    assert two.decr_version("answer2") == 1
    assert [two.get("answer2", version=version) for version in (None, 1, 2)] == [None, 42, None]
    with pytest.raises(ValueError, match="not found"):
        one.decr_version("absent", version=2)


@pytest.fixture
def two_nodes(folder: Path) -> Iterator[LocalCluster]:
    """A cluster of this test alone, in which a silent node keeps its keys."""
    env = {"CLUSTERSTATE_DOWN_AFTER": "600", "CLUSTERSTATE_DEADLINE": "3"}
    with LocalCluster(folder, ["one", "two"], env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, "one"):
            yield cluster


@pytest.mark.parametrize("name", ["incr_version", "decr_version"])
def test_a_value_whose_new_version_cannot_be_stored_stays_in_the_old_one(
    two_nodes: LocalCluster, unconnected: CacheVariants, name: str
) -> None:
    cache, moved = unconnected["default"], {"incr_version": 6, "decr_version": 4}[name]
    cache.get("any")  # from now on the owners are known
    keys = [key for key in map("key{}".format, range(100)) if (owner(key, 5), owner(key, moved)) == ("one", "two")]
    cache.set(keys[0], "value", version=5)
    two_nodes.processes["two"].signal(signal.SIGSTOP)
    with pytest.raises(ValueError, match=f"'{keys[0]}' could not be stored in version {moved}"):
        cache.call(name, keys[0], version=5)
    with pytest.raises(Unavailable):
        unconnected["raise"].call(name, keys[0], version=5)
    assert cache.get(keys[0], version=5) == "value"


def owner(key: str, version: int) -> str | None:
    return cluster_state.owner(caches["default"].routing_key(key, version))  # type: ignore[attr-defined]


# -- get_or_set -------------------------------------------------------------------------------------------------


def test_get_or_set_stores_the_default_and_returns_the_stored_value(cache: CacheVariant) -> None:
    assert cache.get_or_set("key", 42) == 42
    assert cache.get("key") == 42
    assert cache.get_or_set("key", 43) == 42
    assert cache.get_or_set("none", None) is None
    assert cache.get("none", "default") is None
    assert cache.get_or_set("none", 1) is None


def test_get_or_set_calls_a_default_only_when_it_is_needed(cache: CacheVariant) -> None:
    default = mock.Mock(return_value="value")
    assert cache.get_or_set("key", default) == "value"
    assert cache.get_or_set("key", default) == "value"
    assert default.call_count == 1
    assert cache.get_or_set("none", lambda: None) is None
    assert cache.get("none", "default") is None


def test_get_or_set_takes_a_version_and_a_timeout(cache: CacheVariant) -> None:
    assert cache.get_or_set("brian", 1979, version=2) == 1979
    assert cache.get("brian", version=1) is None
    assert cache.get_or_set("brian", 42, version=1) == 42
    assert cache.get_or_set("brian", 1, version=2) == 1979
    assert cache.get_or_set("short", 1, 0.1) == 1
    wait_until_gone(cache, "short")
    with pytest.raises(TypeError, match="default"):
        cache.get_or_set("brian")


def test_get_or_set_returns_the_value_that_another_caller_stored_first(cache: CacheVariant) -> None:
    def slow_default() -> str:
        # Another process, while this one makes its value.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: caches["default"].set("key", "theirs")).result()
        return "ours"

    assert cache.get_or_set("key", slow_default) == "theirs"


# -- aliases and clear ------------------------------------------------------------------------------------------


def test_locations_dont_see_each_other_and_equal_ones_do(variants: CacheVariants) -> None:
    variants["default"].set("key", 1)
    assert variants["other"].get("key") is None
    assert variants["twin"].get("key") == 1
    variants["other"].set("key", 2)
    assert variants["default"].get("key") == 1


def test_clear_empties_one_location_on_all_nodes(cluster: LocalCluster, variants: CacheVariants) -> None:
    data = {f"key{number}": number for number in range(100)}
    for alias in ("default", "other", "prefix", "v2"):
        variants[alias].set_many(data)
    assert variants["default"].clear() is None
    assert [variants[alias].get_many(data) for alias in ("default", "prefix", "v2")] == [{}, {}, {}]
    assert variants["other"].get_many(data) == data
    variants["default"].set("key1", "new")
    assert variants["default"].get("key1") == "new"


# -- remaining timeouts -----------------------------------------------------------------------------------------


def test_ttl_is_the_remaining_timeout(variants: CacheVariants) -> None:
    cache = variants["default"]
    start = time.monotonic()
    cache.set("key", 1, 100)
    assert is_left(cache.ttl("key"), 100, start)
    cache.set("for_ever", 1, None)
    assert cache.ttl("for_ever") is None
    assert cache.ttl("absent") == 0
    cache.set("key", 1, 50, version=2)
    assert is_left(cache.ttl("key", version=2), 50, start)
    assert is_left(variants["v2"].ttl("key"), 50, start)


def test_expire_is_touch_and_persist_ends_the_timeout(cache: CacheVariant) -> None:
    cache.set("key", 1, 100)
    start = time.monotonic()
    assert cache.expire("key", 50) is True
    assert is_left(cache.ttl("key"), 50, start)
    assert cache.persist("key") is True
    assert cache.ttl("key") is None
    assert cache.expire("key", timeout=0) is True
    assert [cache.expire("key", 50), cache.persist("key"), cache.ttl("key")] == [False, False, 0]
    cache.set("key", 1, 100, version=2)
    assert cache.expire("key", 50, version=2) is cache.persist("key", version=2) is True
    assert cache.ttl("key", version=2) is None


@pytest.mark.parametrize(("name", "args"), [("ttl", ()), ("persist", ()), ("expire", (5,))])
def test_ttl_persist_and_expire_take_one_round_trip(
    cache: CacheVariant, requests: list[wire.Message], name: str, args: tuple[Any, ...]
) -> None:
    cache.set("key", 1)
    requests.clear()
    cache.call(name, "key", *args)
    assert len(requests) == 1


@pytest.mark.parametrize("name", ["incr_version", "decr_version"])
def test_the_remaining_timeout_moves_with_a_value_to_another_version(cache: CacheVariant, name: str) -> None:
    cache.set("key", "value", 10_000, version=5)
    cache.set("for_ever", 7, None, version=5)
    moved = cache.call(name, "key", version=5)
    assert cache.call(name, "for_ever", version=5) == moved
    assert 9_990 < cache.ttl("key", version=moved) <= 10_000
    assert cache.ttl("for_ever", version=moved) is None
    assert [cache.get(key, version=moved) for key in ("key", "for_ever")] == ["value", 7]


# -- keys -------------------------------------------------------------------------------------------------------


class Formatted(str):
    """A string whose format isn't its text."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return "formatted"


class TenantCache(ClusterCache):
    tenant = "a"

    def make_key(self, key: Any, version: int | None = None) -> str:
        return f"{self.tenant}:{super().make_key(key, version)}"


class PickyCache(ClusterCache):
    def validate_key(self, key: str) -> None:
        raise InvalidCacheKey(key)


@pytest.mark.parametrize("version", [None, 0, 5])
@pytest.mark.parametrize("params", [{}, {"KEY_PREFIX": "p", "VERSION": 3}, {"VERSION": 0}])
@pytest.mark.parametrize("key", ["key", 7, None, b"b", ("a",), Formatted("text"), gettext_lazy("lazy"), 1.5, ""])
def test_routing_key_is_djangos_key_in_the_namespace(key: Any, params: dict[str, Any], version: int | None) -> None:
    cache = ClusterCache("name", params)
    assert cache.routing_key(key, version) == b"name\0" + cache.make_and_validate_key(key, version).encode()


def test_keys_of_a_subclass_are_its_own() -> None:
    cache = TenantCache("name", {})
    keys = []
    for cache.tenant in ("a", "b"):
        keys.append(cache.routing_key("key"))
    assert keys == [b"name\0a::1:key", b"name\0b::1:key"]
    with pytest.raises(InvalidCacheKey):
        PickyCache("name", {}).routing_key("key")


# -- patterns ---------------------------------------------------------------------------------------------------


def test_iter_keys_gives_the_keys_of_all_nodes_that_match_each_once(cluster: LocalCluster, cache: CacheVariant) -> None:
    data = {f"user:{number}": number for number in range(2000)}
    cache.set_many(data, 60)
    cache.set_many({"group:1": 1, "User:1": 1})
    assert sorted(cache.iter_keys("user:*")) == sorted(data)
    assert sorted(cache.iter_keys("*")) == sorted([*data, "group:1", "User:1"])
    assert cache.iter_keys("group:1") == ["group:1"]
    assert cache.iter_keys("none*") == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("a?", ["a1", "a["]), ("a[0-9]", ["a1"]), ("a[!0-9]", ["a["]), ("a[[]", ["a["]), ("*b", ["ab b", "é*b"]),
     ("é[*]b", ["é*b"]), ("a[", ["a["]), ("", []), ("a", []), ("A?", [])],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
def test_patterns_are_those_of_fnmatch(cache: CacheVariant, pattern: str, found: list[str]) -> None:
    cache.set_many(dict.fromkeys(["a1", "a[", "ab b", "é*b"], 1))
    assert sorted(cache.iter_keys(pattern)) == found


def test_iter_keys_knows_namespaces_prefixes_and_versions(variants: CacheVariants) -> None:
    for alias in ("default", "other", "prefix", "v2", "custom_key"):
        variants[alias].set(f"key-{alias}", 1)
    variants["default"].set("key-three", 1, version=3)
    for alias in ("default", "other", "prefix", "v2", "custom_key"):
        assert variants[alias].iter_keys("key-*") == [f"key-{alias}"]
    assert variants["default"].iter_keys("*", version=3) == ["key-three"]
    assert variants["default"].iter_keys("*", version=2) == ["key-v2"]
    assert variants["bare_key"].iter_keys("CUSTOM-*") == ["CUSTOM--1-key-custom_key"]


def test_iter_keys_leaves_out_deleted_and_expired_keys(cache: CacheVariant) -> None:
    cache.set_many({"gone": 1, "stays": 1})
    cache.set("expires", 1, 0.05)
    cache.delete("gone")
    wait_until_gone(cache, "expires")
    assert cache.iter_keys("*") == ["stays"]
    cache.clear()
    assert cache.iter_keys("*") == []


@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
def test_keys_too_long_to_be_stored_as_they_are_are_not_found(cache: CacheVariant) -> None:
    cache.set_many({"k" * 500: 1, "k" * 2000: 1})
    assert cache.iter_keys("k*") == ["k" * 500]
    assert cache.iter_keys("k" * 2000 + "*") == []


@pytest.mark.parametrize("name", ["iter_keys", "delete_pattern"])
def test_a_key_function_that_hides_the_key_is_refused(variants: CacheVariants, name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="Patterns need a KEY_FUNCTION that only prepends to the key"):
        variants["hashed_key"].call(name, "*")


def test_iter_keys_sends_a_request_only_when_its_caller_needs_more_keys(
    unconnected: CacheVariants, cluster: LocalCluster, requests: list[wire.Message]
) -> None:
    cache: Any = caches["default"]
    cache.set_many({f"key{number}": 1 for number in range(3000)}, 60)
    requests.clear()

    async def first() -> str:
        return await anext(aiter(cache.aiter_keys("key*")))

    key = next(iter(cache.iter_keys("key*"))) if unconnected.runner is None else unconnected.runner.run(first())
    assert key.startswith("key")
    assert len([request for request in requests if isinstance(request, wire.Scan)]) == 1
    cache.clear()


def test_a_key_whose_timeout_is_renewed_during_iteration_is_yielded_once(
    unconnected: CacheVariants, cluster: LocalCluster
) -> None:
    cache: Any = caches["default"]
    data = {f"key{number}": 1 for number in range(2000)}
    cache.set_many(data, 60)

    def renew(found: list[str]) -> None:
        if len(found) % 400 == 1:
            cache.set_many(data, 600 + len(found))

    async def iterate() -> list[str]:
        found: list[str] = []
        async for key in cache.aiter_keys("key*"):
            found.append(key)
            renew(found)
        return found

    found: list[str] = []
    if unconnected.runner is not None:
        found = unconnected.runner.run(iterate())
    else:
        for key in cache.iter_keys("key*"):
            found.append(key)
            renew(found)
    assert sorted(found) == sorted(data)
    cache.clear()


@pytest.mark.usefixtures("cluster")
def test_iter_keys_and_delete_pattern_ignore_copies(cache: CacheVariant) -> None:
    cache.set_many({"key": 1, "kez": 2})
    assert sorted(cache.iter_keys("k*")) == ["key", "kez"]
    assert cache.delete_pattern("k*") == 2
    assert cache.iter_keys("k*") == []


def test_delete_pattern_deletes_matching_keys_and_returns_their_number(
    cluster: LocalCluster, variants: CacheVariants
) -> None:
    cache = variants["default"]
    data = {f"user:{number}": number for number in range(1500)}
    cache.set_many(data, 60)
    cache.set_many({"group:1": 1})
    cache.set("user:1", 1, version=2)
    variants["other"].set("user:1", 1)
    assert cache.delete_pattern("user:*") == 1500
    assert cache.get_many(data) == {}
    assert cache.delete_pattern("user:*") == 0
    assert [cache.get("group:1"), cache.get("user:1", version=2), variants["other"].get("user:1")] == [1, 1, 1]
    assert cache.delete_pattern("*", version=2) == 1


# -- locks ------------------------------------------------------------------------------------------------------


def test_a_lock_has_one_holder(cache: CacheVariant) -> None:
    first, second = (cache.lock("job", blocking_timeout=0) for _ in range(2))
    assert first.acquire() is True
    assert second.acquire() is False
    assert second.release() is False
    assert first.release() is True
    assert first.release() is False
    assert second.acquire() is True
    assert second.release() is True


def test_a_lock_that_has_ended_is_released_by_its_new_holder_only(cache: CacheVariant) -> None:
    late, next_one, third = (cache.lock("job", timeout, blocking_timeout=0) for timeout in (0.05, 60, 60))
    assert late.acquire() is True
    wait_until(next_one.acquire, 60, "the lock ended")
    assert late.release() is False
    assert third.acquire() is False
    assert next_one.release() is True


def test_a_lock_is_extended_by_its_holder_only(cache: CacheVariant) -> None:
    lock, other = (cache.lock("job", 30, blocking_timeout=0) for _ in range(2))
    assert lock.extend() is False
    assert lock.acquire() is True
    assert other.extend() is False
    start = time.monotonic()
    assert lock.extend(60) is True
    assert is_left(cache.ttl("lock:job"), 60, start)
    assert lock.extend(0.05) is True
    wait_until(other.acquire, 60, "the lock ended")
    assert lock.extend() is False
    with pytest.raises(ValueError, match="a lock's timeout must be seconds above 0"):
        other.extend(0)
    assert other.release() is True


def test_a_lock_is_held_in_a_with_block_and_released_after_it(cache: CacheVariant) -> None:
    other = cache.lock("job", blocking_timeout=0)
    held: list[bool] = []
    cache.lock("job").hold(lambda: held.append(caches["default"].has_key("lock:job")))
    assert held == [True]
    with pytest.raises(ZeroDivisionError):
        cache.lock("job").hold(lambda: 1 / 0)
    assert other.acquire() is True
    with pytest.raises(TimeoutError, match=r"the lock 'job' was not acquired within 0.1 s"):
        cache.lock("job", blocking_timeout=0.1).hold(lambda: pytest.fail("not ours"))
    assert other.release() is True


def test_a_job_that_cron_starts_on_every_host_is_done_once(cache: CacheVariant) -> None:
    """The example of docs/cache.md; a lock would let each host do the job in turn."""
    chapter = (ROOT / "docs" / "cache.md").read_text().partition("## Run a cron job on one host")[2]
    code = re.search(r"```python\n(.*?)```", chapter, re.DOTALL)
    assert code is not None
    outcomes: list[Exception | None] = [OSError("disk full"), None, None]
    done = []

    def make_report() -> None:
        if outcome := outcomes.pop(0):
            raise outcome
        done.append("report")

    day = mock.Mock(localdate=lambda: date(2030, 1, 2))  # and not midnight between two of the calls
    known: dict[str, Any] = {"cache": cache, "timezone": day, "socket": socket, "make_report": make_report}
    exec(code[1], known)
    with pytest.raises(OSError, match="disk full"):
        known["nightly_report"]()
    for _ in range(3):  # the hosts, one after the other
        known["nightly_report"]()
    assert done == ["report"]

    for _ in range(3):
        cache.lock("nightly-report", blocking_timeout=0).hold(lambda: done.append("in turn"))
    assert done == ["report", *["in turn"] * 3]


@pytest.mark.timing
def test_a_lock_waits_for_blocking_timeout_and_no_longer(cache: CacheVariant) -> None:
    held = cache.lock("job", timeout=60)
    assert held.acquire() is True
    with takes(below=0.3, at_least=0.1):
        assert cache.lock("job", blocking_timeout=0.1, sleep=10).acquire() is False
    assert held.release() is True
    with takes(below=5, at_least=0.3):
        assert cache.lock("job", timeout=0.3).acquire() is True
        assert cache.lock("job", sleep=0.01).acquire() is True


def test_a_lock_lets_one_at_a_time_of_many_through(unconnected: CacheVariants, cluster: LocalCluster) -> None:
    cache: Any = caches["default"]
    cache.set("count", 0)

    def add_one() -> None:
        own: Any = caches["default"]
        with own.lock("adding", sleep=0.002):
            own.set("count", own.get("count") + 1)

    async def aadd_one() -> None:
        async with cache.alock("adding", sleep=0.002):
            await cache.aset("count", await cache.aget("count") + 1)

    async def gather() -> None:
        await asyncio.gather(*(aadd_one() for _ in range(40)))

    if unconnected.runner is None:
        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(add_one) for _ in range(40)]:
                done.result()
    else:
        unconnected.runner.run(gather())
    assert cache.get("count") == 40
    cache.clear()


def test_a_lock_is_an_entry_of_its_own(variants: CacheVariants, requests: list[wire.Message]) -> None:
    cache = variants["default"]
    cache.set("job", "value")
    locks = [cache.lock("job"), cache.lock("job", version=2), variants["other"].lock("job")]
    requests.clear()
    start = time.monotonic()
    assert [lock.acquire() for lock in locks] == [True] * 3
    assert len(requests) == 3
    assert cache.get("job") == "value"
    assert len(cache.get("lock:job")) == 32
    assert is_left(cache.ttl("lock:job"), 30, start)
    assert [lock.release() for lock in locks] == [True] * 3
    assert cache.has_key("lock:job") is False


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": None}, {"timeout": -1}, {"sleep": 0}])
def test_a_lock_that_would_never_end_or_never_rest_is_refused(
    unconnected: CacheVariants, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"a lock's {next(iter(wrong))} must be seconds above 0"):
        unconnected["default"].lock("job", **wrong)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.timing
def test_without_a_node_no_lock_can_be_acquired(unconnected: CacheVariants) -> None:
    lock = unconnected["default"].lock("job")
    start = time.perf_counter()
    assert [lock.acquire(), lock.extend(), lock.release()] == [False, False, False]
    check_seconds(time.perf_counter() - start, below=0.05)
    for alias in ("default", "raise"):
        with pytest.raises(Unavailable):
            unconnected[alias].lock("job").hold(lambda: pytest.fail("not ours"))
    with pytest.raises(Unavailable):
        unconnected["raise"].lock("job").acquire()


# -- statistics -------------------------------------------------------------------------------------------------


def test_stats_have_the_counters_of_each_node(cluster: LocalCluster, cache: CacheVariant) -> None:
    before = cache.stats()
    assert list(before) == sorted(cluster.names)
    cache.set_many({f"key{number}": b"x" * 1000 for number in range(100)})
    cache.get_many([f"key{number}" for number in range(150)])
    after = cache.stats()

    def grown(figure: str) -> Any:
        return sum(after[name][figure] - before[name][figure] for name in cluster.names)

    assert (grown("hits"), grown("misses"), grown("evictions")) == (100, 50, 0)
    assert grown("uptime") > 0
    assert sum(node["entries"] for node in after.values()) >= 100
    for node in after.values():
        assert node["copies"] >= 0
        assert node["bytes"] > (node["entries"] + node["copies"]) * 320


def test_stats_leave_out_a_node_that_does_not_answer(
    cluster: LocalCluster, cache: CacheVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get("any")
    for client in (runtime.get_client(), runtime.get_async_client()):
        for target in client.routing.table.targets.values():
            if target.name == "gamma":
                monkeypatch.setattr(target, "failures", 3)
                monkeypatch.setattr(target, "retry_at", math.inf)
    for name in ("alpha", "beta", "gamma"):
        assert (name in cache.stats()) is (name != "gamma")


# -- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "options", "words"),
    [
        ("", {"SERIALISER": "x"}, "no option 'SERIALISER'; it has ['COMPRESSOR', 'COMPRESS_ABOVE', "),
        ("", {"ON_UNAVAILABLE": "explode"}, "must be 'miss' or 'raise', not 'explode'"),
        ("", {"MAX_BYTES": 0}, "MAX_BYTES must be a number of bytes above 0, not 0"),
        ("", {"MAX_BYTES": "64M"}, "MAX_BYTES must be a number of bytes above 0, not '64M'"),
        ("n" * 257, {}, "LOCATION must be a name of 1 to 256 bytes"),
        ("a\0b", {}, "LOCATION must be a name"),
        (["a", "b"], {}, "LOCATION must be a name, not ['a', 'b']"),
    ],
)
def test_a_wrong_option_is_refused_with_the_allowed_values(location: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        ClusterCache(location, {"OPTIONS": options})
    assert words in str(raised.value)


def test_options_of_djangos_local_backends_are_let_through() -> None:
    ClusterCache("", {"OPTIONS": {"MAX_ENTRIES": 10, "CULL_FREQUENCY": 2}})


def test_a_serializer_that_cant_be_imported_is_named() -> None:
    with pytest.raises(ImportError, match=r"no\.such\.Serializer|No module named 'no'"):
        ClusterCache("", {"OPTIONS": {"SERIALIZER": "no.such.Serializer"}})


@pytest.mark.usefixtures("cluster")
def test_a_serializer_that_returns_text_is_refused() -> None:
    cache = ClusterCache("cache-tests", {"OPTIONS": {"SERIALIZER": TextSerializer}})
    with pytest.raises(TypeError, match=r"TextSerializer\.dumps must return bytes, not str"):
        cache.set("key", "value")


def test_a_method_that_leaves_the_thread_would_be_noticed(unconnected: CacheVariants) -> None:
    if unconnected.runner is None:
        pytest.skip("the blocking API has no event loop")
    with pytest.raises(AssertionError, match="left the event loop's thread"):
        unconnected["djangos"].get("key")


def test_each_asynchronous_method_is_a_coroutine_function_and_none_is_inherited_that_would_leave_the_thread() -> None:
    hopping = {"aadd", "aget", "aset", "atouch", "adelete", "aclear"}
    racing = {"aincr", "aincr_version"}  # Django's own are a get and a set
    one_by_one = {"aget_many", "aset_many", "adelete_many"}
    assert hopping | racing | one_by_one <= set(vars(ClusterCache))


# -- without a node ---------------------------------------------------------------------------------------------

CALLS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("get", ("key",), None),
    ("get", ("key", "default"), "default"),
    ("set", ("key", 1), None),
    ("add", ("key", 1), False),
    ("touch", ("key",), False),
    ("delete", ("key",), False),
    ("has_key", ("key",), False),
    ("get_many", (["a", "b"],), {}),
    ("set_many", ({"a": 1, "b": 2},), ["a", "b"]),
    ("delete_many", (["a", "b"],), None),
    ("get_or_set", ("key", "default"), "default"),
    ("ttl", ("key",), 0),
    ("expire", ("key", 5), False),
    ("persist", ("key",), False),
    ("iter_keys", ("*",), []),
    ("delete_pattern", ("*",), 0),
    ("stats", (), {}),
    ("clear", (), None),
    ("close", (), None),
]
CALLS_THAT_NEED_A_VALUE = ["incr", "decr", "incr_version", "decr_version"]

QUICK = 0.05  # seconds: nothing is waited for


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("name", "args", "miss"), CALLS)
@pytest.mark.timing
def test_without_a_node_every_call_is_a_quick_miss(
    unconnected: CacheVariants, name: str, args: tuple[Any, ...], miss: object
) -> None:
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert unconnected["default"].call(name, *args) == miss
        took.append(time.perf_counter() - start)
    check_seconds(median(took), below=QUICK)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name", CALLS_THAT_NEED_A_VALUE)
@pytest.mark.timing
def test_without_a_node_there_is_nothing_to_count(unconnected: CacheVariants, name: str) -> None:
    took = []
    for _ in range(5):
        start = time.perf_counter()
        with pytest.raises(ValueError, match="not found"):
            unconnected["default"].call(name, "key")
        took.append(time.perf_counter() - start)
    check_seconds(median(took), below=QUICK)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("name", "args"),
    [call[:2] for call in CALLS if call[0] != "close"] + [(name, ("key",)) for name in CALLS_THAT_NEED_A_VALUE],
)
def test_without_a_node_every_call_raises_if_that_is_wanted(
    unconnected: CacheVariants, name: str, args: tuple[Any, ...]
) -> None:
    for _ in range(5):
        with pytest.raises(Unavailable) as raised:
            unconnected["raise"].call(name, *args)
        assert isinstance(raised.value, ConnectionError)


@pytest.mark.usefixtures("nowhere")
def test_many_of_nothing_needs_no_node(unconnected: CacheVariants) -> None:
    assert unconnected["raise"].get_many([]) == {}
    assert unconnected["raise"].set_many({}) == []


@pytest.mark.usefixtures("nowhere")
def test_an_outage_makes_one_line_in_the_log(unconnected: CacheVariants, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "django_clusterstate"):
        for _ in range(20):
            for name, args, _ in CALLS:
                unconnected["default"].call(name, *args)
    lines = [record for record in caplog.records if record.name.startswith("django_clusterstate")]
    assert [record.levelname for record in lines] == ["DEBUG", "DEBUG", "WARNING"]
    assert all("nowhere.sock" in record.getMessage() for record in lines)


@pytest.mark.usefixtures("nowhere")
def test_programming_errors_are_raised_without_a_node_as_well(unconnected: CacheVariants) -> None:
    with pytest.raises(pickle.PickleError):
        unconnected["default"].set("key", Unpicklable())
    with pytest.raises(TypeError):
        unconnected["default"].incr("key", 1.5)
