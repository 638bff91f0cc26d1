"""Encoded values: serializers, compressors, values that are too big, and values that can't be read."""

import asyncio
import ctypes
import datetime
import gc
import json
import logging
import pickle
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from django_clusterstate import runtime
from django_clusterstate.cache import MAX_VALUE_BYTES, ClusterCache, log
from django_clusterstate.cache.codec import MAX_DECOMPRESSED, PickleSerializer, ZlibCompressor, ZstdCompressor
from django_clusterstate.cache.single_flight import MISSING
from django_clusterstate.wire import messages as wire
from testproject.processes import LocalCluster, wait_until
from tests.cache_variants import BACKEND, MIB, CacheVariant, CacheVariants
from tests.conftest import using
from tests.derived import DERIVED
from tests.layers import SETTINGS
from tests.timelimits import HANDLERS, SoftTimeLimit, handling, raises

DATA = {"a": [1, 2.5, None, True, "é"], "b": {"c": ""}}
TEXT = "spam and eggs, " * 1000
COMPRESSORS = ["zlib", "zstd", "tests.cache.test_codec.Rot"]


class Rot:
    """A compressor of a user."""

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data)[::-1]

    def decompress(self, data: bytes) -> bytes:
        return zlib.decompress(data[::-1])


class Textual(Rot):
    def compress(self, data: bytes) -> Any:
        return "text"


def stored(requests: list[wire.Message]) -> wire.Value:
    """The only value that was sent."""
    (request,) = (request for request in requests if isinstance(request, wire.Set))
    return request.items[0][1]


# -- serializers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pickle", "json", "msgpack"])
def test_a_serializer_by_its_short_name_gives_values_back(variants: CacheVariants, name: str) -> None:
    cache = variants.made_with({"SERIALIZER": name})
    values: list[Any] = [DATA, [], "text", "", 1.5, None, True, False, 7]
    for value in values:
        cache.set("key", value)
        found = cache.get("key", "default")
        assert found == value
        assert type(found) is type(value)
    assert cache.set_many({"many": DATA}) == []
    assert cache.get_many(["many"]) == {"many": DATA}


def test_pickle_is_the_serializer_where_none_is_named(variants: CacheVariants, requests: list[wire.Message]) -> None:
    variants.made_with({}).set("key", DATA)
    assert stored(requests) == pickle.dumps(DATA, pickle.HIGHEST_PROTOCOL)


def test_json_values_are_readable_by_other_programs(variants: CacheVariants, requests: list[wire.Message]) -> None:
    cache = variants.made_with({"SERIALIZER": "json"})
    cache.set("key", {"when": datetime.date(2030, 1, 2), "é": [1]})
    data = stored(requests)
    assert isinstance(data, bytes)
    assert json.loads(data) == cache.get("key") == {"when": "2030-01-02", "é": [1]}


def test_msgpack_keeps_bytes_and_points_in_time(variants: CacheVariants) -> None:
    cache = variants.made_with({"SERIALIZER": "msgpack"})
    value = {"raw": b"\0\xff", "when": datetime.datetime(2030, 1, 2, 3, 4, tzinfo=datetime.UTC), 5: "five"}
    cache.set("key", value)
    assert cache.get("key") == value


@pytest.mark.parametrize("name", DERIVED)
def test_msgpack_keeps_text_and_numbers_of_derived_classes_without_their_class(
    variants: CacheVariants, name: str
) -> None:
    cache = variants.made_with({"SERIALIZER": "msgpack"})
    value, plain = DERIVED[name]
    cache.set("key", value)
    assert cache.get("key") == plain
    assert type(cache.get("key")) is type(plain)
    cache.set("key", {"nested": [value, (value,)], value: {value: value}})
    assert cache.get("key") == {"nested": [plain, [plain]], plain: {plain: plain}}
    assert cache.set_many({"many": [value]}) == []
    assert cache.get_many(["many"]) == {"many": [plain]}


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_a_value_that_a_serializer_doesnt_know_raises_type_error(variants: CacheVariants, name: str) -> None:
    with pytest.raises(TypeError):
        variants.made_with({"SERIALIZER": name}).set("key", object())


@pytest.mark.parametrize("options", [{"SERIALIZER": "json"}, {"COMPRESSOR": "zlib", "COMPRESS_ABOVE": 0}], ids=str)
def test_integers_stay_integers_under_every_serializer_and_compressor(
    variants: CacheVariants, options: dict[str, Any]
) -> None:
    cache = variants.made_with(options)
    cache.set("count", 41)
    assert cache.incr("count") == 42
    assert cache.get("count") == 42


# -- compressors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("serializer", ["pickle", "json", "msgpack"])
def test_a_compressed_value_comes_back(variants: CacheVariants, compressor: str, serializer: str) -> None:
    cache = variants.made_with({"COMPRESSOR": compressor, "SERIALIZER": serializer})
    for value in (TEXT, [TEXT, 1, None], "short", None, ""):
        cache.set("key", value)
        assert cache.get("key", "default") == value
        assert cache.get_many(["key"]) == {"key": value}


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_large_value_takes_less_and_a_small_one_a_byte_more(
    variants: CacheVariants, requests: list[wire.Message], compressor: str
) -> None:
    cache = variants.made_with({"COMPRESSOR": compressor})
    cache.set("large", TEXT)
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) < len(TEXT) / 20
    requests.clear()
    cache.set("small", "x")
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) == len(pickle.dumps("x", pickle.HIGHEST_PROTOCOL)) + 1


def test_compress_above_sets_the_size_from_which_values_are_compressed(
    variants: CacheVariants, requests: list[wire.Message]
) -> None:
    variants.made_with({"COMPRESSOR": "zlib", "COMPRESS_ABOVE": 10**6}).set("key", TEXT)
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) > len(TEXT)


def test_a_value_that_compression_doesnt_shorten_is_stored_uncompressed(
    variants: CacheVariants, requests: list[wire.Message]
) -> None:
    noise = bytes(range(256)) * 8
    packed = zlib.compress(noise * 20) + bytes(range(256)) * 4
    cache = variants.made_with({"COMPRESSOR": "zlib", "COMPRESS_ABOVE": 0})
    cache.set("key", packed[:64])
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) == len(pickle.dumps(packed[:64], pickle.HIGHEST_PROTOCOL)) + 1
    assert cache.get("key") == packed[:64]


def test_without_a_compressor_nothing_is_added(variants: CacheVariants, requests: list[wire.Message]) -> None:
    variants["default"].set("key", TEXT)
    assert stored(requests) == pickle.dumps(TEXT, pickle.HIGHEST_PROTOCOL)


def test_a_value_that_is_small_enough_once_compressed_is_stored(variants: CacheVariants) -> None:
    cache = variants.made_with({"COMPRESSOR": "zlib"})
    value = "x" * (5 * MIB)
    cache.set("key", value)
    assert cache.get("key") == value


def test_a_compressor_may_be_introduced_while_values_are_there(variants: CacheVariants) -> None:
    variants["default"].set_many({"text": TEXT, "none": None})
    for compressor in COMPRESSORS:
        assert variants.made_with({"COMPRESSOR": compressor}).get_many(["text", "none"]) == {"text": TEXT, "none": None}


def test_a_compressor_that_returns_text_is_refused(variants: CacheVariants) -> None:
    with pytest.raises(TypeError, match=r"Textual\.compress must return bytes, not str"):
        variants.made_with({"COMPRESSOR": "tests.cache.test_codec.Textual"}).set("key", TEXT)


@pytest.mark.parametrize("make", [ZlibCompressor, ZstdCompressor])
def test_a_value_that_unpacks_to_more_than_the_bound_is_refused(make: type[ZlibCompressor | ZstdCompressor]) -> None:
    compressor = make()
    assert len(compressor.decompress(compressor.compress(bytes(MAX_DECOMPRESSED)))) == MAX_DECOMPRESSED
    bomb = compressor.compress(bytes(MAX_DECOMPRESSED + 1))
    assert len(bomb) < MIB
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        compressor.decompress(bomb)


@pytest.mark.parametrize("make", [ZlibCompressor, ZstdCompressor])
def test_a_value_that_is_cut_short_is_refused(make: type[ZlibCompressor | ZstdCompressor]) -> None:
    compressor = make()
    with pytest.raises(ValueError, match="cut short"):
        compressor.decompress(compressor.compress(TEXT.encode())[:-5])


def test_zstd_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'django-clusterstate\[zstd\]'"):
        ClusterCache("", {"OPTIONS": {"COMPRESSOR": "zstd"}})


# -- unreadable values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"SERIALIZER": "json"}, {"SERIALIZER": "pickle"}),
        ({"SERIALIZER": "pickle"}, {"SERIALIZER": "json"}),
        ({"SERIALIZER": "pickle"}, {"SERIALIZER": "msgpack"}),
        ({"COMPRESSOR": "zlib"}, {}),
        ({"COMPRESSOR": "zlib"}, {"COMPRESSOR": "zstd"}),
        ({"COMPRESSOR": "zstd"}, {"COMPRESSOR": "zlib"}),
    ],
    ids=str,
)
def test_a_value_written_with_other_options_is_a_miss_until_it_is_written_again(
    variants: CacheVariants, written: dict[str, Any], read: dict[str, Any]
) -> None:
    variants.made_with(written).set_many({"key": TEXT, "another": TEXT})
    cache = variants.made_with(read)
    assert cache.get("key", "default") == "default"
    cache.set("number", 1)
    assert cache.get_many(["key", "another", "number"]) == {"number": 1}
    cache.set("key", "new")
    assert cache.get("key") == "new"


def test_values_that_cant_be_read_make_one_line_in_the_log(
    variants: CacheVariants, caplog: pytest.LogCaptureFixture
) -> None:
    variants.made_with({"SERIALIZER": "json"}).set_many({"key": TEXT, "another": TEXT})
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        for _ in range(3):
            variants["default"].get("key")
            variants["default"].get_many(["key", "another"])
    (line,) = (record for record in caplog.records if record.name == "django_clusterstate.cache")
    assert line.levelname == "WARNING"
    assert "'cache-tests'" in line.getMessage()
    assert "cannot be read" in line.getMessage()


# -- interrupted deserializing ----------------------------------------------------------------------------------


class Slow:
    """Runs Python code when it is unpickled."""

    def __init__(self, number: int) -> None:
        self.state = [str(number)] * 3

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = [item.upper() for item in state["state"]]


class OddError(Exception):
    """Raised when an `Odd` is unpickled."""


class Odd:
    def __reduce__(self) -> Any:
        return fail, ()


def fail() -> None:
    raise OddError


READ_WITH = [{}, {"SERIALIZER": "json"}, {"SERIALIZER": "msgpack"}, {"COMPRESSOR": "zlib"}, {"COMPRESSOR": "zstd"}]
LIMITS = [0.001 + attempt / 25_000 for attempt in range(30)]  # seconds


@pytest.fixture(params=READ_WITH, ids=str)
def near(request: pytest.FixtureRequest, cluster: LocalCluster, settings: Any) -> Iterator[ClusterCache]:
    """A cache with a near value that takes long to deserialize."""
    options = {**request.param, "NEAR_TTL": 600, "COMPRESS_ABOVE": 0}
    settings.CACHES = {"default": {"BACKEND": BACKEND, "LOCATION": "cache-tests", "OPTIONS": options}}
    cache = caches["default"]
    assert isinstance(cache, ClusterCache)
    cache.set("key", ["text"] * 3000 if "SERIALIZER" in options else [Slow(number) for number in range(300)])
    cache.get("key")
    gc.collect()
    gc.disable()  # what is raised in a destructor that it calls is ignored by Python
    yield cache
    gc.enable()
    cache.clear()


@pytest.mark.parametrize("handler", ["function", "method", "lambda"])
def test_a_time_limit_that_ends_while_a_value_is_read_is_raised(near: ClusterCache, handler: str) -> None:
    def limited(seconds: float) -> bool:
        """Whether the limit was raised: reads the value again and again until it ends."""
        until = time.monotonic() + 5
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            while time.monotonic() < until:
                assert near.get("key", MISSING) is not MISSING
        except SoftTimeLimit:
            return True
        return False

    with handling(HANDLERS[handler]):
        assert [limited(seconds) for seconds in LIMITS] == [True] * len(LIMITS)


def test_a_time_limit_that_ends_while_a_coroutine_reads_a_value_is_raised(near: ClusterCache) -> None:
    async def limited(seconds: float) -> bool:
        until = time.monotonic() + 5
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            while time.monotonic() < until:  # near, so the loop gets no turn
                assert await near.aget("key", MISSING) is not MISSING
        except SoftTimeLimit:
            return True
        return False

    async def all_limited() -> list[bool]:
        return [await limited(seconds) for seconds in LIMITS]

    with handling(raises):
        assert asyncio.run(all_limited()) == [True] * len(LIMITS)


def test_any_error_of_deserializing_is_a_miss(variants: CacheVariants) -> None:
    cache = variants["default"]
    cache.set("key", Odd())
    assert cache.get("key", "default") == "default"
    assert cache.get_many(["key"]) == {}


def test_an_exception_that_another_thread_puts_into_the_reading_is_raised(variants: CacheVariants) -> None:
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
    thread, error = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(SoftTimeLimit)

    class Loads(PickleSerializer):
        loads = staticmethod(partial(interrupt, thread, error))  # C code, so the traceback ends where ours called it

    cache = variants.made_with({"SERIALIZER": Loads})
    cache.set("key", "value")
    with pytest.raises(SoftTimeLimit):
        cache.get("key")


# -- values that are too big--------------------------------------------------------------------------------------

BIG = b"x" * (MAX_VALUE_BYTES + 1)


@pytest.fixture(params=["raise", "ignore"])
def policy(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def bounded(variants: CacheVariants, policy: str) -> CacheVariant:
    return variants.made_with({"VALUE_TOO_BIG": policy})


def refusal(policy: str) -> AbstractContextManager[Any]:
    """The context in which a value that is too big is stored."""
    return nullcontext() if policy == "ignore" else pytest.raises(ValueError, match="the value of '.*' takes")


@pytest.fixture
def ignoring(variants: CacheVariants) -> CacheVariant:
    return variants.made_with({"VALUE_TOO_BIG": "ignore"})


class Unpicklable:
    def __reduce__(self) -> Any:
        raise Refusal("not to be pickled")


class Refusal(Exception):
    """An error of a user's own code."""


def test_a_value_that_is_too_big_leaves_no_older_one(bounded: CacheVariant, policy: str) -> None:
    bounded.set("key", "older")
    with refusal(policy):
        assert bounded.set("key", BIG) is None
    assert bounded.get("key") is None


def test_a_value_that_is_too_big_among_many_leaves_no_older_one_and_the_others_are_stored(
    bounded: CacheVariant, policy: str
) -> None:
    bounded.set_many({f"key{number}": "older" for number in range(20)})
    with refusal(policy):
        bounded.set_many({f"key{number}": BIG if number % 2 else number for number in range(20)})
    assert bounded.get_many(f"key{number}" for number in range(20)) == {f"key{n}": n for n in range(0, 20, 2)}


def test_a_value_that_is_too_big_leaves_no_stale_one(bounded: CacheVariant, policy: str) -> None:
    bounded.set("key", "older")  # without a mark, so it is stale
    with refusal(policy):
        assert bounded.get_or_set("key", lambda: BIG, stale=60) == BIG
    assert bounded.get("key") is None


def test_a_value_that_is_too_big_leaves_no_older_one_near(variants: CacheVariants, policy: str) -> None:
    cache = variants.made_with({"VALUE_TOO_BIG": policy, "NEAR_TTL": 600})
    calls: list[tuple[Any, ...]] = [("set", "key", BIG), ("set_many", {"key": BIG})]
    for call in calls:
        cache.set("key", "older")
        assert cache.get("key") == "older"
        with refusal(policy):
            cache.call(*call)
        assert cache.get("key") is None


def test_a_value_that_cant_be_serialized_leaves_no_older_one(variants: CacheVariants) -> None:
    cache = variants.made_with({"NEAR_TTL": 600})
    calls: list[tuple[Any, ...]] = [("set", "key", Unpicklable()), ("set_many", {"key": Unpicklable()})]
    for call in calls:
        cache.set("key", "older")
        assert cache.get("key") == "older"
        with pytest.raises(Refusal):
            cache.call(*call)
        assert cache.get("key") is None
    cache.set("key", "older")
    with pytest.raises(Refusal):
        cache.get_or_set("key", Unpicklable, stale=60)
    assert cache.get("key") is None


def test_many_of_which_one_cant_be_serialized_leave_no_older_ones(cache: CacheVariant) -> None:
    cache.set_many({"a": "older", "b": "older", "c": "older"})
    with pytest.raises(Refusal):
        cache.set_many({"a": 1, "b": Unpicklable(), "c": 3})
    assert cache.get_many(["a", "b", "c"]) == {}


def test_add_of_a_value_that_cant_be_stored_raises_and_keeps_the_stored_one(bounded: CacheVariant) -> None:
    with refusal("raise"):
        bounded.add("key", BIG)
    assert bounded.has_key("key") is False
    bounded.set("key", "older")
    with refusal("raise"):
        bounded.add("key", BIG)
    with pytest.raises(Refusal):
        bounded.add("key", Unpicklable())
    assert bounded.get("key") == "older"


def test_a_value_that_is_too_big_is_ignored_where_nothing_else_is_said(variants: CacheVariants) -> None:
    cache = variants["default"]
    cache.set("key", "older")
    cache.set("key", BIG)
    assert cache.get("key") is None
    assert cache.set_many({"key": BIG}) == ["key"]


def test_set_many_returns_keys_of_values_that_are_too_big_and_stores_the_rest(ignoring: CacheVariant) -> None:
    ignoring.set_many({f"key{number}": "older" for number in range(20)})
    data = {f"key{number}": BIG if number % 2 else number for number in range(20)}
    assert ignoring.set_many(data) == [key for key, value in data.items() if value is BIG]
    assert ignoring.get_many(data) == {key: value for key, value in data.items() if value is not BIG}


def test_get_or_set_of_a_value_that_is_too_big_and_ignored_returns_it(ignoring: CacheVariant) -> None:
    assert ignoring.get_or_set("key", BIG) == BIG
    assert ignoring.get_or_set("key", lambda: BIG) == BIG
    assert ignoring.has_key("key") is False


def test_values_that_are_too_big_make_one_line_in_the_log(
    ignoring: CacheVariant, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        for _ in range(3):
            ignoring.set("first", BIG)
            ignoring.set_many({"second": BIG})
    (line,) = (record for record in caplog.records if record.name == "django_clusterstate.cache")
    assert line.levelname == "WARNING"
    assert "'first'" in line.getMessage()


def test_values_that_are_still_too_big_later_make_another_line_in_the_log(
    ignoring: CacheVariant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.forget()
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        ignoring.set("first", BIG)
        monkeypatch.setattr(log, "WARN_EVERY", 0.0)
        ignoring.set("second", BIG)
    lines = [record.getMessage() for record in caplog.records if record.name == "django_clusterstate.cache"]
    assert ["'first'" in lines[0], "'second'" in lines[1], len(lines)] == [True, True, 2]


# -- values that have no room -----------------------------------------------------------------------------------

ROOM = {"default": {"CLUSTERSTATE_CACHE_MAX_BYTES": "100000"}, "small": {}}  # by LOCATION: what leaves too little
NO_ROOM = b"x" * 200_000  # bytes
MANY = {"small1": 1, "large": NO_ROOM, "small2": 2}


@pytest.fixture(scope="module", params=ROOM)
def narrow(request: pytest.FixtureRequest) -> Iterator[str]:
    """The LOCATION of a cache in which `NO_ROOM` has no room, at a node that this process uses."""
    small = {"BACKEND": BACKEND, "LOCATION": "small", "OPTIONS": {"MAX_BYTES": 100_000}}
    caches = {} if ROOM[request.param] else {"small": small}
    env = {"DJANGO_SETTINGS_MODULE": SETTINGS, "TEST_CACHES": json.dumps(caches), "CLUSTERSTATE_DOWN_AFTER": "60"}
    env |= ROOM[request.param]
    with tempfile.TemporaryDirectory(prefix="cs-") as folder, LocalCluster(Path(folder), ["one"], env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, "one"):
            yield request.param


@pytest.fixture
def full(narrow: str, unconnected: CacheVariants, policy: str) -> Iterator[CacheVariant]:
    cache = unconnected.made_with({"VALUE_TOO_BIG": policy}, LOCATION=narrow)
    yield cache
    cache.clear()


@pytest.mark.parametrize("name", ["set", "get_or_set"])
def test_a_value_its_owner_has_no_room_for_is_refused_or_ignored_as_one_that_is_too_big(
    full: CacheVariant, policy: str, name: str
) -> None:
    if policy == "ignore":
        assert full.call(name, "key", NO_ROOM) == (None if name == "set" else NO_ROOM)
    else:
        with pytest.raises(ValueError, match=r"value of 'key' takes more than its owner has room for \(MAX_BYTES, or"):
            full.call(name, "key", NO_ROOM)
    assert full.has_key("key") is False


def test_a_value_its_owner_has_no_room_for_leaves_no_older_one(full: CacheVariant, policy: str) -> None:
    full.set("key", "older")
    with nullcontext() if policy == "ignore" else pytest.raises(ValueError, match="has room for"):
        full.set("key", NO_ROOM)
    assert full.get("key") is None


@pytest.mark.usefixtures("policy")
def test_set_many_returns_keys_of_values_without_room_and_stores_the_rest(full: CacheVariant) -> None:
    assert full.set_many(MANY) == ["large"]
    assert full.get_many(MANY) == {"small1": 1, "small2": 2}


def test_each_value_that_is_too_big_is_counted_and_reported_to_the_local_node(full: CacheVariant, policy: str) -> None:
    def told() -> float:
        full.get("any")  # a process tells when it asks for the view, once a second
        return float(full.stats()["one"]["too_big"])

    runtime.forget()  # what other tests have counted
    before = told()
    full.set_many(MANY)
    for name in ("set", "get_or_set"):
        for value in (NO_ROOM, BIG):
            with nullcontext() if policy == "ignore" else pytest.raises(ValueError, match="the value of 'key' takes"):
                full.call(name, "key", value)
    with pytest.raises(ValueError, match="the value of 'key' takes"):
        full.add("key", BIG)
    wait_until(lambda: told() == before + 6, 60, "the node is told")


def test_values_without_room_make_one_line_in_the_log(
    full: CacheVariant, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.forget()  # each process says it once
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        for _ in range(3):
            full.set_many(MANY)
    (line,) = (record for record in caplog.records if record.name == "django_clusterstate.cache")
    assert line.levelname == "WARNING"
    assert "'large' takes more than its owner has room for" in line.getMessage()


# -- options ----------------------------------------------------------------------------------------------------


class MadeOfOptions:
    """A serializer that is made with the options, as in django-redis."""

    def __init__(self, options: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"COMPRESS_ABOVE": -1}, "COMPRESS_ABOVE must be a number of bytes, not -1"),
        ({"COMPRESS_ABOVE": "1k"}, "COMPRESS_ABOVE must be a number of bytes, not '1k'"),
        ({"COMPRESS_ABOVE": True}, "COMPRESS_ABOVE must be a number of bytes, not True"),
        ({"VALUE_TOO_BIG": "explode"}, "VALUE_TOO_BIG must be 'ignore' or 'raise', not 'explode'"),
        ({"SERIALIZER": "yaml"}, "SERIALIZER must be one of json, msgpack, pickle, or the dotted path of a class"),
        ({"COMPRESSOR": "lz77"}, "COMPRESSOR must be one of zlib, zstd, or the dotted path of a class"),
        (
            {"SERIALIZER": f"{__name__}.MadeOfOptions"},
            f"SERIALIZER '{__name__}.MadeOfOptions' cannot be made without arguments: ",
        ),
        ({"COMPRESSOR": 9}, "COMPRESSOR 9 cannot be made without arguments: "),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_with_the_allowed_values(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        ClusterCache("", {"OPTIONS": options})
    assert words in str(raised.value)
