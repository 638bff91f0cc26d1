"""Each system check: when it speaks, and that it says what to do."""

from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.test import override_settings

from django_clusterstate.checks import MIDDLEWARE, check_settings

CACHE = "django_clusterstate.cache.ClusterCache"
IN_MEMORY = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
EMBEDDED = {"BACKEND": "django_clusterstate.layers.ClusterChannelLayer"}
REDIS = {"BACKEND": "channels_redis.core.RedisChannelLayer"}
PUBSUB = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"}
STRONG = "s" * 50


def checked(options: dict[str, Any], **settings: Any) -> list[CheckMessage]:
    with override_settings(CLUSTERSTATE={"SECRET": STRONG, **options}, **settings):
        return check_settings(None)


@pytest.mark.parametrize(
    ("id", "options", "words"),
    [
        ("E001", {"DEADLINE": -1}, "CLUSTERSTATE['DEADLINE'] must be seconds above 0"),
        ("E001", {"NODENAME": "web-1"}, "no entry 'NODENAME'"),
        ("E001", {"SUSPECT_AFTER": 0.1}, "don't go together"),
        ("E002", {"CHANNEL_LAYER": "absent"}, "'absent', which CHANNEL_LAYERS doesn't have"),
        ("E003", {"CHANNEL_LAYER": "memory"}, "'memory' lives within one process"),
        ("E005", {"LIMITS": [{"rate": "often"}]}, "CLUSTERSTATE['LIMITS'][0]: 'often' is not a rate"),
        ("E005", {"LIMITS_VIEW": "nowhere.view"}, "CLUSTERSTATE['LIMITS_VIEW']: No module named 'nowhere'"),
        ("W003", {"LIMITS": [{"rate": "1/s"}]}, "limits nothing without its middleware"),
        ("W001", {"BIND": "0.0.0.0:4370", "SECRET": "short"}, "too weak for 0.0.0.0:4370"),
        ("W001", {"BIND": "10.0.0.1:4370", "SECRET": "django-insecure-" + STRONG}, "startproject made"),
        ("W002", {"DEADLINE": 1.5}, "With a DEADLINE of 1.5 s"),
        ("W004", {"DISCOVERY": "127.0.0.1:1,10.0.0.2:4370"}, "BIND is 127.0.0.1:4370, which only this host reaches"),
        ("W004", {"DISCOVERY": "dns://nodes.internal:4370"}, "DISCOVERY names nodes.internal:4370"),
        ("W004", {"BIND": "0.0.0.0:1", "ADVERTISE": "[::1]:1", "DISCOVERY": "b:1"}, "ADVERTISE is [::1]:1, which only"),
    ],
)
def test_a_check_says_what_is_wrong_and_what_to_do(id: str, options: dict[str, Any], words: str) -> None:
    (message,) = checked(options, CHANNEL_LAYERS={"default": EMBEDDED, "memory": IN_MEMORY})
    assert message.id == f"clusterstate.{id}"
    assert message.is_serious() == id.startswith("E")
    assert words in message.msg
    assert message.hint
    assert STRONG not in f"{message.msg} {message.hint}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"BIND": "0.0.0.0:4370"},
        {"BIND": "0.0.0.0:4370", "DISCOVERY": "10.0.0.2:4370"},
        {"ADVERTISE": "10.0.0.1:4370", "DISCOVERY": "10.0.0.2:4370"},
        {"DISCOVERY": "127.0.0.1:4370,localhost:4371"},
        {"DISCOVERY": "dns://localhost:4370"},
        {"SECRET": "short"},
        {"SECRET": "short", "BIND": "[::1]:4370"},
        {"SECRET": "short", "BIND": "localhost:4370"},
        {"DEADLINE": 1},
        {"CHANNEL_LAYER": "default"},
        {"CHANNEL_LAYER": "redis"},
        {"CHANNEL_LAYER": "pubsub"},
        {"CHANNEL_LAYER": None},
    ],
)
def test_what_is_well_is_not_spoken_of(options: dict[str, Any]) -> None:
    layers = {"default": EMBEDDED, "redis": REDIS, "memory": IN_MEMORY, "pubsub": PUBSUB}
    assert checked(options, CHANNEL_LAYERS=layers) == []


def test_limits_with_their_middleware_are_fine() -> None:
    assert checked({"LIMITS": [{"rate": "1/s"}]}, MIDDLEWARE=[MIDDLEWARE]) == []


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((("a", 600), ("b", 500)), "are 1,100 together, more than the 1,000 of CLUSTERSTATE['CACHE_MAX_BYTES']"),
        ((("a", 600), ("a", 500)), "'c0' and 'c1' have one LOCATION, 'a', and so one MAX_BYTES: give both the same"),
        ((("a", 600), ("a", None)), "not 600 and None"),
        ((("a", "600"),), "MAX_BYTES must be a number of bytes above 0, not '600'"),
        ((("a", 600), ("b", 400), ("a", 600), ("c", None)), ""),
    ],
)
def test_caches_that_dont_fit_together_are_an_error(sizes: Any, words: str) -> None:
    aliases = {
        f"c{number}": {"BACKEND": CACHE, "LOCATION": location, "OPTIONS": {"MAX_BYTES": size}}
        for number, (location, size) in enumerate(sizes)
    }
    others = {"local": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}, "no": {"BACKEND": "no.such.Cache"}}
    found = checked({"CACHE_MAX_BYTES": 1000}, CACHES={**others, **aliases})
    assert [message.id for message in found] == (["clusterstate.E006"] if words else [])
    assert all(words in message.msg for message in found)


def test_several_problems_are_all_told() -> None:
    options = {"CHANNEL_LAYER": "absent", "DEADLINE": 5, "BIND": "0.0.0.0:1", "SECRET": "short"}
    ids = [message.id for message in checked(options)]
    assert ids == ["clusterstate.E002", "clusterstate.W001", "clusterstate.W002"]


def test_a_layer_in_memory_that_the_cluster_doesnt_use_is_fine() -> None:
    assert checked({}, CHANNEL_LAYERS={"default": IN_MEMORY}) == []


def test_the_checks_run_with_djangos() -> None:
    with override_settings(CLUSTERSTATE={"DEADLINE": -1}):
        assert [m.id for m in run_checks(tags=["clusterstate"])] == ["clusterstate.E001"]
        assert "clusterstate.E001" in [message.id for message in run_checks()]
