"""Settings from a dict and an environment, and their errors."""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import environ
import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_clusterstate import runtime
from django_clusterstate.cache import ClusterCache
from django_clusterstate.clientip import Proxies
from django_clusterstate.settings import ENTRIES, MAX_SOCKET_PATH, Settings, default_socket_path, read_settings
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from testproject.processes import ROOT, LocalCluster

SECRET = "not-to-be-seen-by-anybody-" + "s" * 32


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    runtime.forget()
    yield
    runtime.forget()


def read(options: dict[str, Any] | None = None, /, **environment: str) -> Settings:
    return read_settings(options or {}, {f"CLUSTERSTATE_{entry}": text for entry, text in environment.items()})


# (entry, value in the dict, text in the environment, what is read from each, of which attribute)
CASES: list[tuple[str, Any, str, str, Any, Any]] = [
    ("NODE_NAME", "web-1", "web-2", "node_name", "web-1", "web-2"),
    ("CLUSTER", "shop", "shop.2_b", "cluster", "shop", "shop.2_b"),
    ("BIND", "10.0.0.1:1", "[::1]:2", "bind", TcpAddress("10.0.0.1", 1), TcpAddress("::1", 2)),
    ("ADVERTISE", "web-1:1", "web-2:2", "advertise", TcpAddress("web-1", 1), TcpAddress("web-2", 2)),
    ("SOCKET", "/run/a.sock", "localhost:4371", "socket", UnixAddress("/run/a.sock"), TcpAddress("localhost", 4371)),
    ("SECRET", "a" * 40, "b" * 40, "secrets", ("a" * 40,), ("b" * 40,)),
    ("DISCOVERY", "dns://web:1", "10.0.0.1:1,10.0.0.2:1", "discovery", "dns://web:1", "10.0.0.1:1,10.0.0.2:1"),
    ("CHANNEL_LAYER", "default", "redis", "channel_layer", "default", "redis"),
    ("DEADLINE", 0.5, "0.25", "deadline", 0.5, 0.25),
    ("DEADLINE", 1, "2", "deadline", 1, 2.0),
    ("ON_UNAVAILABLE", "allow", "deny", "on_unavailable", "allow", "deny"),
    ("TRUSTED_PROXIES", 2, "3", "trusted_proxies", Proxies(2), Proxies(3)),
    ("TRUSTED_PROXIES", ["unix"], "::1,unix", "trusted_proxies", Proxies(unix=True), Proxies.parse(["::1", "unix"])),
    ("IPV4_MASK", 24, "16", "ipv4_mask", 24, 16),
    ("IPV6_MASK", 56, "48", "ipv6_mask", 56, 48),
    (
        "LIMITS",
        [{"rate": "1/s"}],
        '[{"path": "/a/", "rate": ["1/s", "2/m"]}]',
        "limits",
        ({"rate": "1/s"},),
        ({"path": "/a/", "rate": ["1/s", "2/m"]},),
    ),
    ("LIMITS_ENABLED", False, "True", "limits_enabled", False, True),
    ("BUSY_POLL", False, "True", "busy_poll", False, True),
    ("LIMITS_HEADERS", "x", "off", "limits_headers", "x", "off"),
    (
        "LIMITS_VIEW",
        "shop.views.slow_down",
        "shop.views.wait",
        "limits_view",
        "shop.views.slow_down",
        "shop.views.wait",
    ),
    ("CACHE_MAX_BYTES", 1000, "2000", "cache_max_bytes", 1000, 2000),
    ("LIMITS_MAX_BYTES", 1000, "2000", "limits_max_bytes", 1000, 2000),
    ("LIMITS_STORAGE", "redis://a:1", "memcached://b:2", "limits_storage", "redis://a:1", "memcached://b:2"),
    ("METRICS_TOKEN", "one", "two", "metrics_token", "one", "two"),
    ("WEIGHT", 2, "0.5", "weight", 2, 0.5),
    ("BACKUPS", 0, "0", "backups", 0, 0),
    ("DRAIN", 30, "2.5", "drain", 30, 2.5),
]
TIMINGS: list[tuple[str, float, str, str]] = [
    ("HEARTBEAT_INTERVAL", 0.25, "0.7", "heartbeat"),
    ("SUSPECT_AFTER", 2.0, "2.5", "suspect_after"),
    ("DOWN_AFTER", 4.0, "5", "down_after"),
]


@pytest.mark.parametrize(("entry", "given", "text", "attribute", "from_dict", "from_environment"), CASES)
def test_an_entry_comes_from_the_dict_or_the_environment_which_wins(
    entry: str, given: Any, text: str, attribute: str, from_dict: Any, from_environment: Any
) -> None:
    assert getattr(read({entry: given}), attribute) == from_dict
    assert getattr(read(**{entry: text}), attribute) == from_environment
    assert getattr(read({entry: given}, **{entry: text}), attribute) == from_environment
    assert getattr(read({entry: given}, **{entry: ""}), attribute) == from_dict


@pytest.mark.parametrize(("entry", "given", "text", "attribute"), TIMINGS)
def test_a_timing_comes_from_the_dict_or_the_environment_which_wins(
    entry: str, given: float, text: str, attribute: str
) -> None:
    assert getattr(read({entry: given}).timings, attribute) == given
    assert getattr(read({entry: given}, **{entry: text}).timings, attribute) == float(text)


def test_older_secrets_come_from_the_dict_or_the_environment() -> None:
    assert read({"SECRET": "new", "SECRET_FALLBACKS": ["old", "older"]}).secrets == ("new", "old", "older")
    assert read({"SECRET": "new"}, SECRET_FALLBACKS="old,older").secrets == ("new", "old", "older")


def test_every_entry_is_tested() -> None:
    assert {entry for entry, *_ in CASES} | {entry for entry, *_ in TIMINGS} | {"SECRET_FALLBACKS"} == set(ENTRIES)


def test_all_entries_have_defaults() -> None:
    settings = read()
    assert settings.bind == TcpAddress("127.0.0.1", 4370)
    assert settings.advertise is None  # the node finds it
    assert settings.node_name
    assert (settings.cluster, settings.discovery, settings.channel_layer) == ("default", "database", None)
    assert (settings.deadline, settings.on_unavailable, settings.weight) == (0.1, "local", 1.0)
    assert read({"ADVERTISE": None, "CHANNEL_LAYER": None, "SOCKET": None, "NODE_NAME": None}) == settings


def test_a_path_may_be_a_path(tmp_path: Path) -> None:
    assert read({"SOCKET": tmp_path / "a.sock"}).socket == UnixAddress(str(tmp_path / "a.sock"))


@pytest.mark.parametrize("secret", ["$HOME", "$" * 40, "a$b$c", r"\$escaped", r"\\$", "$CLUSTERSTATE_CLUSTER"])
def test_a_dollar_sign_in_the_environment_is_a_dollar_sign(secret: str) -> None:
    assert read(SECRET=secret, CLUSTER="shop").secrets == (secret,)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("NODE_NAME", "n" * 101, "must be 1 to 100 characters"),
        ("NODE_NAME", "a\nb", "must be 1 to 100 characters"),
        ("NODE_NAME", 5, "must be text"),
        ("CLUSTER", "a b", "must be 1 to 60 letters, digits, dots, - and _, not 'a b'"),
        ("CLUSTER", "", "must be 1 to 60"),
        ("CLUSTER", "c" * 61, "must be 1 to 60"),
        ("BIND", "127.0.0.1", "write HOST:PORT, for example 10.0.0.5:4370"),
        ("BIND", "127.0.0.1:70000", "write HOST:PORT"),
        ("BIND", 4370, "must be text"),
        ("ADVERTISE", "web", "write HOST:PORT"),
        ("SOCKET", "clusterstate", "write HOST:PORT"),
        ("SOCKET", "/" + "s" * 107, "is too long for the path of a socket, which has 107 bytes at most"),
        ("SOCKET", "\0clusterstate/node", "abstract socket names are not supported"),
        ("SECRET", 5, "must be text or bytes"),
        ("SECRET_FALLBACKS", "old", "must be a list of text or bytes"),
        ("SECRET_FALLBACKS", b"old", "must be a list of text or bytes"),
        ("SECRET_FALLBACKS", [1], "must be a list of text or bytes"),
        ("CHANNEL_LAYER", ["default"], "must be text"),
        ("DISCOVERY", ["10.0.0.1:1"], "must be text"),
        ("DEADLINE", 0, "must be a number of seconds above 0, not 0"),
        ("DEADLINE", "0.1", "must be a number, not '0.1'"),
        ("DEADLINE", float("inf"), "must be a number"),
        ("DEADLINE", float("nan"), "must be a number"),
        ("DEADLINE", True, "must be a number"),
        ("ON_UNAVAILABLE", "explode", "must be 'local', 'allow' or 'deny', not 'explode'"),
        ("IPV4_MASK", 33, "must be a number of bits from 0 to 32, not 33"),
        ("IPV6_MASK", -1, "must be a number of bits from 0 to 128, not -1"),
        ("LIMITS", {"rate": "1/s"}, "must be a list of dicts"),
        ("LIMITS", ["1/s"], "must be a list of dicts"),
        ("LIMITS_ENABLED", 1, "must be true or false"),
        ("LIMITS_HEADERS", "none", "must be 'draft', 'x', 'both' or 'off', not 'none'"),
        ("CACHE_MAX_BYTES", 0, "must be a number of bytes above 0, not 0"),
        ("CACHE_MAX_BYTES", "256M", "must be a whole number"),
        ("CACHE_MAX_BYTES", 1.5, "must be a whole number"),
        ("LIMITS_MAX_BYTES", -1, "must be a number of bytes above 0, not -1"),
        ("WEIGHT", 0, "must be a number above 0, up to 1000"),
        ("BACKUPS", 2, "must be 0 or 1"),
        ("DRAIN", 0, "must be a number of seconds above 0"),
        ("WEIGHT", 1001, "up to 1000"),
        ("HEARTBEAT_INTERVAL", 0, "HEARTBEAT_INTERVAL, SUSPECT_AFTER and DOWN_AFTER contradict each other"),
        ("SUSPECT_AFTER", 0.6, "must be at least two heartbeats"),
        ("DOWN_AFTER", 1.0, "must be more than suspect after"),
        ("DOWN_AFTER", "3", "must be a number"),
    ],
)
def test_error_names_the_entry_and_its_valid_values(entry: str, value: Any, words: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        read({entry: value})
    assert entry in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.parametrize("entry", ["DEADLINE", "WEIGHT", "CACHE_MAX_BYTES", "DOWN_AFTER", "LIMITS", "LIMITS_ENABLED"])
@pytest.mark.parametrize("text", ["soon", "0,5", "100ms", "nan", "1e400"])
def test_an_error_names_the_variable_of_the_environment(entry: str, text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"^CLUSTERSTATE_{entry} must be .*, not "):
        read(**{entry: text})


def test_error_of_an_unknown_entry_lists_the_entries() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"no entry 'NODENAME'.*: ADVERTISE, BACKUPS, BIND, .*WEIGHT\."):
        read({"NODENAME": "web-1"})


# -- secrets ----------------------------------------------------------------------------------------------------


def test_settings_do_not_show_the_secret() -> None:
    settings = read({"SECRET": SECRET, "SECRET_FALLBACKS": [SECRET + "2"]})
    for shown in (repr(settings), str(settings), f"{settings}", settings.secret_problem):
        assert SECRET not in shown
    assert settings.secrets == (SECRET, SECRET + "2")


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"SECRET": SECRET, "BIND": "junk"}, {}),
        ({"SECRET": SECRET.encode(), "BIND": "junk"}, {}),
        ({"SECRET": {SECRET.encode()}}, {}),
        ({"SECRET": [SECRET]}, {}),
        ({"SECRET": "new", "SECRET_FALLBACKS": SECRET}, {}),
        ({"SECRET": "new", "SECRET_FALLBACKS": [SECRET, 1]}, {}),
        ({"SECRET": SECRET, "UNKNOWN": 1}, {}),
        ({}, {"SECRET": SECRET, "DEADLINE": "soon"}),
        ({}, {"SECRET": "$" + SECRET, "DEADLINE": "-1"}),
    ],
)
def test_no_secret_is_in_an_error(options: dict[str, Any], environment: dict[str, str]) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        read(options, **environment)
    error: BaseException | None = raised.value
    while error is not None:
        assert SECRET not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__


@override_settings(SECRET_KEY="k" * 50, SECRET_KEY_FALLBACKS=["older"])
def test_djangos_secret_key_is_used_if_there_is_no_secret() -> None:
    assert read().secrets == ("k" * 50, "older")
    assert read({"SECRET": "s" * 40}).secrets == ("s" * 40,)


@override_settings(SECRET_KEY=b"\xff" * 50, SECRET_KEY_FALLBACKS=[b"older" * 10, "oldest" * 10])
def test_djangos_secret_key_may_be_bytes() -> None:
    settings = read()
    assert settings.secrets == (b"\xff" * 50, b"older" * 10, "oldest" * 10)
    assert len(set(settings.link_keys + settings.channel_keys)) == 6
    assert not settings.secret_problem


@override_settings(SECRET_KEY=5)
def test_a_secret_key_that_is_neither_text_nor_bytes_is_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match="must be text or bytes"):
        read()


def test_a_secret_as_text_and_as_bytes_is_the_same() -> None:
    assert read({"SECRET": SECRET.encode()}).link_keys == read({"SECRET": SECRET}).link_keys
    both = read({"SECRET": SECRET, "SECRET_FALLBACKS": [b"old", "old"]})
    assert both.channel_keys[1] == both.channel_keys[2]
    assert "startproject" in read({"SECRET": b"django-insecure-" + b"x" * 50}).secret_problem
    assert "5 characters" in read({"SECRET": b"short"}).secret_problem


def test_weak_fallback_is_as_weak_as_a_weak_secret() -> None:
    """Whoever guesses it is admitted as with the first."""
    strong, insecure = "x" * 50, "django-insecure-" + "x" * 50
    assert not read({"SECRET": strong, "SECRET_FALLBACKS": ["y" * 50]}).secret_problem
    for weak, why in (("short", "5 characters"), (insecure, "startproject")):
        problem = read({"SECRET": strong, "SECRET_FALLBACKS": ["y" * 50, weak]}).secret_problem
        assert "fallback" in problem
        assert why in problem


@override_settings(SECRET_KEY="")
def test_no_secret_at_all_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ImproperlyConfigured, match="SECRET_KEY"):
        read()


@pytest.mark.parametrize(
    ("secret", "problem"),
    [("django-insecure-" + "x" * 50, "startproject"), ("short", "5 characters, fewer than 32"), ("x" * 32, "")],
)
def test_a_weak_secret_says_why(secret: str, problem: str) -> None:
    found = read({"SECRET": secret}).secret_problem
    assert problem in found
    assert bool(problem) == bool(found)


def test_keys_differ_by_purpose_secret_and_cluster() -> None:
    base, cluster = read({"SECRET": SECRET}), read({"SECRET": SECRET, "CLUSTER": "shop"})
    other = read({"SECRET": SECRET + "2", "SECRET_FALLBACKS": [SECRET]})
    keys = [*base.link_keys, *base.channel_keys, *cluster.link_keys, *cluster.channel_keys, other.link_keys[0]]
    assert len(set(keys)) == len(keys)
    assert other.link_keys[1:] == base.link_keys


# -- addresses --------------------------------------------------------------------------------------------------


def test_the_default_socket_is_the_same_for_all_processes_of_a_node_and_another_for_others() -> None:
    assert read({"NODE_NAME": "web-1"}).socket == UnixAddress(str(default_socket_path("default", "web-1")))
    assert default_socket_path("shop", "web-1") == default_socket_path("shop", "web-1")
    paths = {default_socket_path(*names) for names in (("a", "b"), ("a", "c"), ("b", "b"))}
    assert len(paths) == 3
    assert str(os.geteuid()) in str(paths.pop().parent)


def test_the_default_socket_is_short_enough_for_the_kernel() -> None:
    path = default_socket_path("c" * 60, "n" * 100)
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "XDG_RUNTIME_DIR"])
def test_the_default_socket_is_the_same_for_a_daemon_and_a_login_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    daemons = read().socket
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert read().socket == daemons


def test_settings_are_read_where_no_directory_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", unusable)
    assert read({"SOCKET": "/run/cluster/node.sock"}).socket == UnixAddress("/run/cluster/node.sock")
    assert isinstance(read().socket, UnixAddress)


def test_reading_the_settings_resolves_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(*args: object, **kwargs: object) -> None:
        raise AssertionError("a request would wait for this")

    for function in ("getaddrinfo", "gethostbyname", "gethostbyaddr", "getfqdn"):
        monkeypatch.setattr(f"socket.{function}", stall)
    for options in ({"BIND": "0.0.0.0:4370"}, {"BIND": "web-1:4370"}, {"ADVERTISE": "web-1:1", "SOCKET": "web-1:2"}):
        read(options)


# -- this process's -------------------------------------------------------------------------------------------


def test_overridden_settings_are_read_again() -> None:
    before, client, async_client = runtime.get_settings(), runtime.get_client(), runtime.get_async_client()
    with override_settings(CLUSTERSTATE={"CLUSTER": "shop"}):
        assert runtime.get_settings().cluster == "shop"
        assert runtime.get_client() is not client
        assert runtime.get_async_client() is not async_client
    assert runtime.get_settings() == before
    with override_settings(SECRET_KEY="k" * 50):
        assert runtime.get_settings().secrets[0] == "k" * 50
    assert runtime.get_settings() == before


def test_a_commands_options_win_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERSTATE_CLUSTER", "by-environment")
    monkeypatch.setenv("CLUSTERSTATE_WEIGHT", "1")
    assert runtime.get_settings().cluster == "by-environment"
    settings = runtime.use_options({"CLUSTER": "by-option", "WEIGHT": 2.5})
    assert (settings.cluster, settings.weight) == ("by-option", 2.5)
    assert runtime.get_settings() is settings


def test_changed_settings_hold_though_another_thread_uses_them_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cached:
        def cache_clear(self) -> None:
            runtime.get_settings()

    runtime.get_settings()
    monkeypatch.setattr(runtime, "_cached", [*runtime._cached, Cached()])
    with override_settings(CLUSTERSTATE={"CLUSTER": "shop"}):
        assert runtime.get_settings().cluster == "shop"


@pytest.mark.parametrize("get", [runtime.get_client, runtime.get_async_client])
def test_threads_that_ask_at_the_same_moment_get_the_same_client(get: Any) -> None:
    for _ in range(50):
        runtime.forget()
        with ThreadPoolExecutor(8) as threads:
            clients = list(threads.map(lambda _: get(), range(8)))
        assert len(set(map(id, clients))) == 1


def test_shared_object_is_created_once_and_dropped_with_the_settings() -> None:
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: runtime.shared("numbers", itertools.count), range(200)))
    assert all(one is found[0] for one in found)
    assert runtime.shared("others", itertools.count) is not found[0]
    runtime.forget()
    assert runtime.shared("numbers", itertools.count) is not found[0]


def test_cache_url_of_django_environ_is_a_cluster_cache_once_the_scheme_is_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(environ.Env.CACHE_SCHEMES, "clustercache", "django_clusterstate.cache.ClusterCache")
    monkeypatch.setenv("CACHE_URL", "clustercache://sessions?timeout=3600&on_unavailable=raise")
    config = environ.Env().cache_url()
    assert config["BACKEND"] == "django_clusterstate.cache.ClusterCache"
    assert config["LOCATION"] == "sessions"
    with override_settings(CACHES={"default": config}):
        cache = caches["default"]
        assert isinstance(cache, ClusterCache)
        assert cache.default_timeout == 3600
        assert cache.routing_key("key").startswith(b"sessions\0")


@pytest.mark.parametrize(
    "uses",
    [
        "cache.get_many(map(str, range(50)))",
        "asyncio.run(cache.aget('key'))",
        "events.track('name')",
        "cache.get('key'); events.track('name'); asyncio.run(cache.aget('key')); ratelimit.hit(limit, 'group', 'key')",
    ],
)
def test_process_that_ends_leaves_no_socket_open(cluster: LocalCluster, uses: str) -> None:
    code = f"""
import asyncio, django, logging
logging.getLogger("asyncio").setLevel("ERROR")  # in the development mode, it warns of steps that take 0.1 s
django.setup()
from django.core.cache import cache
from django_clusterstate import events, ratelimit
limit = ratelimit.Limit.parse("10/s")
{uses}
"""
    command = [sys.executable, "-X", "dev", "-c", code]
    ended = subprocess.run(
        command, check=False, env=cluster.env("alpha"), cwd=ROOT, text=True, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
