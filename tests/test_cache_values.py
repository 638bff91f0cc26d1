"""How values are kept: serializers, compressors, what is too big, and what can't be read."""

import datetime
import json
import logging
import pickle
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_clusterstate import conf
from django_clusterstate.cache import MAX_VALUE_BYTES, ClusterCache
from django_clusterstate.cache.values import MAX_DECOMPRESSED, ZlibCompressor, ZstdCompressor
from django_clusterstate.wire import messages as wire
from testproject.processes import LocalCluster, wait_until
from tests.conftest import using
from tests.derived import DERIVED
from tests.faces import BACKEND, MIB, Face, Faces
from tests.layers import SETTINGS

DATA = {"a": [1, 2.5, None, True, "é"], "b": {"c": ""}}
TEXT = "spam and eggs, " * 1000
COMPRESSORS = ["zlib", "zstd", "tests.test_cache_values.Rot"]


class Rot:
    """Shortens nothing but what it is given twice."""

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
def test_a_serializer_by_its_short_name_gives_values_back(faces: Faces, name: str) -> None:
    cache = faces.made_with({"SERIALIZER": name})
    values: list[Any] = [DATA, [], "text", "", 1.5, None, True, False, 7]
    for value in values:
        cache.set("key", value)
        found = cache.get("key", "default")
        assert found == value
        assert type(found) is type(value)
    assert cache.set_many({"many": DATA}) == []
    assert cache.get_many(["many"]) == {"many": DATA}


def test_pickle_is_the_serializer_where_none_is_named(faces: Faces, requests: list[wire.Message]) -> None:
    faces.made_with({}).set("key", DATA)
    assert stored(requests) == pickle.dumps(DATA, pickle.HIGHEST_PROTOCOL)


def test_json_is_what_any_other_program_can_read(faces: Faces, requests: list[wire.Message]) -> None:
    cache = faces.made_with({"SERIALIZER": "json"})
    cache.set("key", {"when": datetime.date(2030, 1, 2), "é": [1]})
    data = stored(requests)
    assert isinstance(data, bytes)
    assert json.loads(data) == cache.get("key") == {"when": "2030-01-02", "é": [1]}


def test_msgpack_keeps_bytes_and_points_in_time(faces: Faces) -> None:
    cache = faces.made_with({"SERIALIZER": "msgpack"})
    value = {"raw": b"\0\xff", "when": datetime.datetime(2030, 1, 2, 3, 4, tzinfo=datetime.UTC), 5: "five"}
    cache.set("key", value)
    assert cache.get("key") == value


@pytest.mark.parametrize("name", DERIVED)
def test_msgpack_keeps_text_and_numbers_of_derived_classes_without_their_class(faces: Faces, name: str) -> None:
    cache = faces.made_with({"SERIALIZER": "msgpack"})
    value, plain = DERIVED[name]
    cache.set("key", value)
    assert cache.get("key") == plain
    assert type(cache.get("key")) is type(plain)
    cache.set("key", {"nested": [value, (value,)], value: {value: value}})
    assert cache.get("key") == {"nested": [plain, [plain]], plain: {plain: plain}}
    assert cache.set_many({"many": [value]}) == []
    assert cache.get_many(["many"]) == {"many": [plain]}


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_a_value_that_a_serializer_doesnt_know_raises_type_error(faces: Faces, name: str) -> None:
    with pytest.raises(TypeError):
        faces.made_with({"SERIALIZER": name}).set("key", object())


@pytest.mark.parametrize("options", [{"SERIALIZER": "json"}, {"COMPRESSOR": "zlib", "COMPRESS_ABOVE": 0}], ids=str)
def test_integers_stay_integers_under_every_serializer_and_compressor(faces: Faces, options: dict[str, Any]) -> None:
    cache = faces.made_with(options)
    cache.set("count", 41)
    assert cache.incr("count") == 42
    assert cache.get("count") == 42


# -- compressors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("serializer", ["pickle", "json", "msgpack"])
def test_a_compressed_value_comes_back(faces: Faces, compressor: str, serializer: str) -> None:
    cache = faces.made_with({"COMPRESSOR": compressor, "SERIALIZER": serializer})
    for value in (TEXT, [TEXT, 1, None], "short", None, ""):
        cache.set("key", value)
        assert cache.get("key", "default") == value
        assert cache.get_many(["key"]) == {"key": value}


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_large_value_takes_less_and_a_small_one_a_byte_more(
    faces: Faces, requests: list[wire.Message], compressor: str
) -> None:
    cache = faces.made_with({"COMPRESSOR": compressor})
    cache.set("large", TEXT)
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) < len(TEXT) / 20
    requests.clear()
    cache.set("small", "x")
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) == len(pickle.dumps("x", pickle.HIGHEST_PROTOCOL)) + 1


def test_what_is_worth_compressing_may_be_said(faces: Faces, requests: list[wire.Message]) -> None:
    faces.made_with({"COMPRESSOR": "zlib", "COMPRESS_ABOVE": 10**6}).set("key", TEXT)
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) > len(TEXT)


def test_what_doesnt_get_smaller_stays_as_it_is(faces: Faces, requests: list[wire.Message]) -> None:
    noise = bytes(range(256)) * 8
    packed = zlib.compress(noise * 20) + bytes(range(256)) * 4
    cache = faces.made_with({"COMPRESSOR": "zlib", "COMPRESS_ABOVE": 0})
    cache.set("key", packed[:64])
    data = stored(requests)
    assert isinstance(data, bytes)
    assert len(data) == len(pickle.dumps(packed[:64], pickle.HIGHEST_PROTOCOL)) + 1
    assert cache.get("key") == packed[:64]


def test_without_a_compressor_nothing_is_added(faces: Faces, requests: list[wire.Message]) -> None:
    faces["default"].set("key", TEXT)
    assert stored(requests) == pickle.dumps(TEXT, pickle.HIGHEST_PROTOCOL)


def test_a_value_that_is_small_enough_once_compressed_is_stored(faces: Faces) -> None:
    cache = faces.made_with({"COMPRESSOR": "zlib"})
    value = "x" * (5 * MIB)
    cache.set("key", value)
    assert cache.get("key") == value


def test_a_compressor_may_be_introduced_while_values_are_there(faces: Faces) -> None:
    faces["default"].set_many({"text": TEXT, "none": None})
    for compressor in COMPRESSORS:
        assert faces.made_with({"COMPRESSOR": compressor}).get_many(["text", "none"]) == {"text": TEXT, "none": None}


def test_a_compressor_that_returns_text_is_refused(faces: Faces) -> None:
    with pytest.raises(TypeError, match=r"Textual\.compress must return bytes, not str"):
        faces.made_with({"COMPRESSOR": "tests.test_cache_values.Textual"}).set("key", TEXT)


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


# -- what can't be read -----------------------------------------------------------------------------------------


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
    faces: Faces, written: dict[str, Any], read: dict[str, Any]
) -> None:
    faces.made_with(written).set_many({"key": TEXT, "another": TEXT})
    cache = faces.made_with(read)
    assert cache.get("key", "default") == "default"
    cache.set("number", 1)
    assert cache.get_many(["key", "another", "number"]) == {"number": 1}
    cache.set("key", "new")
    assert cache.get("key") == "new"


def test_values_that_cant_be_read_make_one_line_in_the_log(faces: Faces, caplog: pytest.LogCaptureFixture) -> None:
    faces.made_with({"SERIALIZER": "json"}).set_many({"key": TEXT, "another": TEXT})
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        for _ in range(3):
            faces["default"].get("key")
            faces["default"].get_many(["key", "another"])
    (line,) = (record for record in caplog.records if record.name == "django_clusterstate.cache")
    assert line.levelname == "WARNING"
    assert "'cache-tests'" in line.getMessage()
    assert "can't be read" in line.getMessage()


# -- what is too big --------------------------------------------------------------------------------------------

BIG = b"x" * (MAX_VALUE_BYTES + 1)


@pytest.fixture
def ignoring(faces: Faces) -> Face:
    return faces.made_with({"VALUE_TOO_BIG": "ignore"})


def test_a_value_that_is_too_big_and_ignored_leaves_no_older_one(ignoring: Face) -> None:
    ignoring.set("key", "older")
    assert ignoring.set("key", BIG) is None
    assert ignoring.get("key") is None


def test_add_of_a_value_that_is_too_big_and_ignored_says_no_and_leaves_what_is_there(ignoring: Face) -> None:
    assert ignoring.add("key", BIG) is False
    assert ignoring.has_key("key") is False
    ignoring.set("key", "older")
    assert ignoring.add("key", BIG) is False
    assert ignoring.get("key") == "older"


def test_set_many_returns_what_is_too_big_and_stores_the_rest(ignoring: Face) -> None:
    ignoring.set_many({f"key{number}": "older" for number in range(20)})
    data = {f"key{number}": BIG if number % 2 else number for number in range(20)}
    assert ignoring.set_many(data) == [key for key, value in data.items() if value is BIG]
    assert ignoring.get_many(data) == {key: value for key, value in data.items() if value is not BIG}


def test_get_or_set_of_a_value_that_is_too_big_and_ignored_returns_it(ignoring: Face) -> None:
    assert ignoring.get_or_set("key", BIG) == BIG
    assert ignoring.get_or_set("key", lambda: BIG) == BIG
    assert ignoring.has_key("key") is False


def test_values_that_are_too_big_make_one_line_in_the_log(ignoring: Face, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        for _ in range(3):
            ignoring.set("first", BIG)
            ignoring.set_many({"second": BIG})
    (line,) = (record for record in caplog.records if record.name == "django_clusterstate.cache")
    assert line.levelname == "WARNING"
    assert "'first'" in line.getMessage()


# -- what its owner has no room for -----------------------------------------------------------------------------

ROOM = {"default": {"CLUSTERSTATE_CACHE_MAX_BYTES": "100000"}, "small": {}}  # by LOCATION: what leaves too little
NO_ROOM = b"x" * 200_000  # bytes
MANY = {"small1": 1, "large": NO_ROOM, "small2": 2}


@pytest.fixture(scope="module", params=ROOM)
def narrow(request: pytest.FixtureRequest) -> Iterator[str]:
    """The LOCATION of a cache in which `NO_ROOM` has no room, at a node that this process uses."""
    small = {"BACKEND": BACKEND, "LOCATION": "small", "OPTIONS": {"MAX_BYTES": 100_000}}
    caches = {} if ROOM[request.param] else {"small": small}
    env = {"DJANGO_SETTINGS_MODULE": SETTINGS, "TEST_CACHES": json.dumps(caches)}
    env |= ROOM[request.param]
    with tempfile.TemporaryDirectory(prefix="cs-") as folder, LocalCluster(Path(folder), ["one"], env=env) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, "one"):
            yield request.param


@pytest.fixture(params=["raise", "ignore"])
def policy(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def full(narrow: str, unconnected: Faces, policy: str) -> Iterator[Face]:
    cache = unconnected.made_with({"VALUE_TOO_BIG": policy}, LOCATION=narrow)
    yield cache
    cache.clear()


@pytest.mark.parametrize("name", ["set", "get_or_set"])
def test_a_value_its_owner_has_no_room_for_is_refused_or_ignored_as_one_that_is_too_big(
    full: Face, policy: str, name: str
) -> None:
    if policy == "ignore":
        assert full.call(name, "key", NO_ROOM) == (None if name == "set" else NO_ROOM)
    else:
        with pytest.raises(ValueError, match=r"value of 'key' takes more than its owner has room for \(MAX_BYTES, or"):
            full.call(name, "key", NO_ROOM)
    assert full.has_key("key") is False


def test_a_value_its_owner_has_no_room_for_leaves_no_older_one(full: Face, policy: str) -> None:
    full.set("key", "older")
    with nullcontext() if policy == "ignore" else pytest.raises(ValueError, match="has room for"):
        full.set("key", NO_ROOM)
    assert full.get("key") is None


@pytest.mark.usefixtures("policy")
def test_set_many_returns_what_its_owner_has_no_room_for_and_stores_the_rest(full: Face) -> None:
    assert full.set_many(MANY) == ["large"]
    assert full.get_many(MANY) == {"small1": 1, "small2": 2}


def test_each_value_that_is_too_big_is_counted_and_told_to_this_hosts_node(full: Face, policy: str) -> None:
    def told() -> float:
        full.get("any")  # a process tells when it asks for the view, once a second
        return float(full.stats()["one"]["too_big"])

    conf.forget()  # what other tests have counted
    before = told()
    full.set_many(MANY)
    for name in ("set", "get_or_set"):
        for value in (NO_ROOM, BIG):
            with nullcontext() if policy == "ignore" else pytest.raises(ValueError, match="the value of 'key' takes"):
                full.call(name, "key", value)
    with nullcontext() if policy == "ignore" else pytest.raises(ValueError, match="the value of 'key' takes"):
        full.add("key", BIG)
    wait_until(lambda: told() == before + 6, 10, "the node is told")


def test_values_without_room_make_one_line_in_the_log(
    full: Face, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    conf.forget()  # each process says it once
    with caplog.at_level(logging.DEBUG, "django_clusterstate.cache"):
        for _ in range(3):
            full.set_many(MANY)
    (line,) = (record for record in caplog.records if record.name == "django_clusterstate.cache")
    assert line.levelname == "WARNING"
    assert "'large' takes more than its owner has room for" in line.getMessage()


# -- options ----------------------------------------------------------------------------------------------------


class MadeOfOptions:
    """As the serializers of django-redis are."""

    def __init__(self, options: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"COMPRESS_ABOVE": -1}, "COMPRESS_ABOVE must be a number of bytes, not -1"),
        ({"COMPRESS_ABOVE": "1k"}, "COMPRESS_ABOVE must be a number of bytes, not '1k'"),
        ({"COMPRESS_ABOVE": True}, "COMPRESS_ABOVE must be a number of bytes, not True"),
        ({"VALUE_TOO_BIG": "explode"}, "VALUE_TOO_BIG must be 'raise' or 'ignore', not 'explode'"),
        ({"SERIALIZER": "yaml"}, "SERIALIZER must be one of json, msgpack, pickle, or the dotted path of a class"),
        ({"COMPRESSOR": "lz77"}, "COMPRESSOR must be one of zlib, zstd, or the dotted path of a class"),
        (
            {"SERIALIZER": f"{__name__}.MadeOfOptions"},
            f"SERIALIZER '{__name__}.MadeOfOptions' can't be made without arguments: ",
        ),
        ({"COMPRESSOR": 9}, "COMPRESSOR 9 can't be made without arguments: "),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_with_what_it_may_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        ClusterCache("", {"OPTIONS": options})
    assert words in str(raised.value)
