"""The lookup of a key in the admin, and its actions."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.core.cache import caches
from django.core.management import call_command
from django.test import Client, RequestFactory, override_settings
from django.urls import reverse
from django.utils.text import capfirst

from django_clusterstate import cluster as functions
from django_clusterstate import ratelimit, runtime
from django_clusterstate.cache import ClusterCache
from django_clusterstate.core.top_keys import KeyCount
from django_clusterstate.decorators import UNSAFE, get_usage
from django_clusterstate.exceptions import Unavailable
from django_clusterstate.panel.actions import ACTIONS
from django_clusterstate.panel.key_lookup import ALGORITHM_LABELS
from django_clusterstate.panel.node_reports import PAGE_TIMEOUT
from django_clusterstate.panel.traffic import top
from django_clusterstate.ratelimit import ALGORITHMS, Limit, hits
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.framing import frame
from testproject.processes import ROOT, LocalCluster, wait_until
from tests.conftest import using
from tests.panel.pages import Page, staff
from tests.panel.test_admin import CACHE, PAGE
from tests.timing import check_seconds, is_left

ACT = f"{PAGE}act/"
QUOTES = "\"'><script>alert(1)</script>"

pytestmark = pytest.mark.django_db


@pytest.fixture
def key() -> str:
    """A key, and name of a group, that no other test uses."""
    return uuid4().hex


@pytest.fixture
def client() -> Client:
    """A browser with the session of a user who has all permissions of the page."""
    return browser(*ACTIONS)


def browser(*permissions: str, view: bool = True, enforce_csrf_checks: bool = False) -> Client:
    client = Client(enforce_csrf_checks=enforce_csrf_checks)
    client.force_login(staff(uuid4().hex, *permissions, *(["view_cluster"] if view else [])))
    return client


def look_up(client: Client, kind: str, key: str, **fields: str) -> tuple[Any, Page]:
    """The lookup's result, and its page."""
    response = client.get(PAGE, {"kind": kind, "key": key, **fields})
    return response.context["found"], Page(response)


def act(client: Client, action: str, **fields: str) -> tuple[str, str]:
    """Takes an action. Returns the level and text of its message."""
    response = client.post(address(**fields), {"action": action, **fields})
    assert response.status_code == 302
    assert response["Location"] == address(**fields).replace(ACT, PAGE)
    (message,) = get_messages(response.wsgi_request)
    page = Page(client.get(response["Location"]))
    assert capfirst(message.message) in page.text
    return message.level_tag, str(message.message)


def address(**fields: str) -> str:
    """The address of the actions on a key."""
    key = {name: value for name, value in fields.items() if name in ("kind", "group", "key", "version")}
    return reverse("admin:django_clusterstate_cluster_act", query=key)


def log() -> list[tuple[str, str, int, str]]:
    """The entries of the admin's log."""
    entries = LogEntry.objects.order_by("pk")
    return [(entry.user.username, entry.object_repr, entry.action_flag, entry.change_message) for entry in entries]


def name_of(client: Client) -> str:
    return str(client.get(PAGE).context["user"].username)


def actions_on(page: Page) -> set[str]:
    """The actions that the page has forms for."""
    return {str(attrs["value"]) for attrs in page.all("input") if attrs.get("name") == "action"}


def until_counted_in_place(limit: Limit, key: str) -> None:
    """Hits a limit until the next node counts in the place of its owner, to which it has forwarded the first hit."""
    wait_until(lambda: ratelimit.hit(limit, key, key).owner == "one", 60, "the next node counts")


def flat(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text.replace("\xa0", " "))


def tenants_key(key: str, prefix: str, version: int) -> str:
    """As those of multi-tenant projects, it asks the connection of its thread."""
    return f"{Permission.objects.count()}:{key}"


@pytest.mark.usefixtures("cluster")
class TestCacheKey:
    @pytest.mark.parametrize(("value", "size"), [(7, "8 bytes"), (-(2**62), "8 bytes"), ("x" * 5000, "4.9 KB")])
    def test_present_key_is_shown_with_ttl_and_size(self, client: Client, key: str, value: Any, size: str) -> None:
        start = time.monotonic()
        caches["default"].set(key, value, 50)
        found, page = look_up(client, "cache:default", key)
        assert found.entry.found
        assert is_left(found.entry.ttl, 50, start)
        assert found.entry.value is None
        shown = re.search(r"The key exists and expires in (\d+\.\d) s\.", flat(page))
        assert shown is not None
        assert float(shown[1]) == pytest.approx(found.entry.ttl, abs=0.1)
        assert f"Its value takes {size}." in flat(page)

    def test_key_that_never_expires_says_so(self, client: Client, key: str) -> None:
        caches["default"].set(key, "value", None)
        found, page = look_up(client, "cache:default", key)
        assert (found.entry.found, found.entry.ttl) == (True, None)
        assert "The key exists and never expires." in flat(page)

    def test_absent_key_is_shown_with_its_owner(self, client: Client, key: str) -> None:
        found, page = look_up(client, "cache:default", key)
        assert not found.entry.found
        assert "The cache has no such key." in flat(page)
        assert f"{found.owner} owns {key} ." in flat(page)

    def test_look_up_does_not_change_the_key(self, client: Client, key: str) -> None:
        caches["default"].set(key, "value", 50)
        look_up(client, "cache:default", key)
        assert caches["default"].get(key) == "value"

    @override_settings(CACHES={"default": {"BACKEND": CACHE}, "two": {"BACKEND": CACHE, "LOCATION": "o", "VERSION": 3}})
    def test_version_is_the_caches_own_unless_it_is_given(self, client: Client, key: str) -> None:
        caches["two"].set(key, "value")
        caches["two"].set(key, "another", version=5)
        for version, present in [("", True), ("3", True), ("5", True), ("1", False)]:
            assert look_up(client, "cache:two", key, version=version)[0].entry.found is present
        assert not look_up(client, "cache:default", key)[0].entry.found
        assert act(client, "delete_cache_key", kind="cache:two", key=key, version="5")[0] == "success"
        assert (caches["two"].get(key), caches["two"].get(key, version=5)) == ("value", None)
        assert log()[0][1] == f"cache:two / {key} / version 5"

    @override_settings(CACHES={"default": {"BACKEND": CACHE, "KEY_FUNCTION": tenants_key}})
    def test_key_may_depend_on_the_database_connection_of_the_request(self, client: Client, key: str) -> None:
        caches["default"].set(key, "value")
        assert look_up(client, "cache:default", key)[0].entry.found
        assert act(client, "delete_cache_key", kind="cache:default", key=key)[0] == "success"
        assert caches["default"].get(key) is None

    @pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")
    def test_key_that_is_hashed_is_found_and_deleted(self, client: Client, key: str) -> None:
        long = f"{key} {'ø' * 600}"
        caches["default"].set(long, "value")
        assert look_up(client, "cache:default", long)[0].entry.found
        assert act(client, "delete_cache_key", kind="cache:default", key=long)[0] == "success"
        assert caches["default"].get(long) is None
        assert log()[0][1] == f"cache:default / {long}"[:200]

    def test_key_is_deleted_and_the_log_says_so(self, client: Client, key: str) -> None:
        caches["default"].set(key, "value")
        assert act(client, "delete_cache_key", kind="cache:default", key=key) == ("success", "The key was deleted.")
        assert caches["default"].get(key) is None
        assert log() == [(name_of(client), f"cache:default / {key}", DELETION, "Deleted the key.")]
        assert f"cache:default / {key}" in Page(client.get(reverse("admin:index"))).text

    def test_absent_key_is_not_deleted_and_not_logged(self, client: Client, key: str) -> None:
        told = act(client, "delete_cache_key", kind="cache:default", key=key)
        assert told == ("warning", "The cache has no such key.")
        assert log() == []

    @override_settings(CACHES={"default": {"BACKEND": CACHE, "OPTIONS": {"NEAR_TTL": 100}}})
    def test_deleted_key_is_gone_from_this_processs_near_cache(self, client: Client, key: str) -> None:
        caches["default"].set(key, "value")
        assert caches["default"].get(key) == "value"
        act(client, "delete_cache_key", kind="cache:default", key=key)
        assert caches["default"].get(key) is None


@pytest.mark.usefixtures("cluster")
class TestLimit:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_count_and_waiting_time_are_those_of_the_limit(self, client: Client, key: str, algorithm: str) -> None:
        limit = Limit.parse("3/h", algorithm)
        for expected in (1, 2, 3):
            ratelimit.hit(limit, key, "ip:10.0.0.7")
            found, page = look_up(client, "limit", "ip:10.0.0.7", group=key)
            (count,) = found.counts
            assert (count.node, count.rule, count.used) == (found.owner, limit.rules[0], expected)
            assert count.decision.allowed is (expected < 3)
            label = str(ALGORITHM_LABELS[ALGORITHMS[algorithm]])
            assert f"3/h {label} {found.owner} {expected} {'allowed' if expected < 3 else 'denied for'}" in flat(page)
        decision = ratelimit.peek(limit, key, "ip:10.0.0.7")
        assert count.decision.retry_after == pytest.approx(decision.retry_after, abs=5)
        assert count.decision.retry_after > 0

    def test_every_rate_of_every_limit_of_the_key_is_shown(self, client: Client, key: str) -> None:
        ratelimit.hit(Limit.parse(["5/s", "50/30m"]), key, "k", 2)
        ratelimit.hit(Limit.parse("9/d", "token_bucket"), key, "k")
        found, page = look_up(client, "limit", "k", group=key)
        assert {count.rate: count.used for count in found.counts if count.rate != "5/s"} == {"50/30m": 2, "9/d": 1}
        assert "50/30m fixed window" in flat(page)
        assert "9/d token bucket" in flat(page)
        assert "Other processes of the site remember a denial for one second at most." in flat(page)

    def test_limit_on_some_methods_is_found_and_reset_by_its_group_with_them(self, client: Client, key: str) -> None:
        get_usage(RequestFactory().post("/"), key, key="ip", rate="3/h", method=UNSAFE, increment=True)
        (shown,) = top([KeyCount(ratelimit.routing_key(f"{key} DELETE,PATCH,POST,PUT", "ip:127.0.0.1"), 1, 0)])
        assert (shown.group, shown.key) == (f"{key} DELETE,PATCH,POST,PUT", "ip:127.0.0.1")
        named = {name: value for name, (value,) in parse_qs(shown.query).items()}
        found, _ = look_up(client, **named)
        assert [(count.rate, count.used) for count in found.counts] == [("3/h", 1)]
        assert act(client, "reset_limit", **named)[0] == "success"
        assert look_up(client, **named)[0].counts == []

    def test_key_without_counts_says_so(self, client: Client, key: str) -> None:
        found, page = look_up(client, "limit", "k", group=key)
        assert found.counts == []
        assert "Nothing is counted for this key." in flat(page)
        assert f"{functions.owner(ratelimit.routing_key(key, 'k'))} owns k ." in flat(page)
        told = act(client, "reset_limit", kind="limit", group=key, key="k")
        assert told == ("warning", "Nothing was counted for this key.")
        assert log() == []

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_reset_lets_hits_pass_again_and_the_log_says_so(self, client: Client, key: str, algorithm: str) -> None:
        limits = [Limit.parse(["2/h", "3/d"], algorithm), Limit.parse("2/30m", algorithm)]
        for limit in limits:
            assert ratelimit.hit(limit, key, "k", 2).allowed
            now = time.monotonic()
            assert not ratelimit.hit(limit, key, "k").allowed
            assert hits._denials().get(ratelimit.routing_key(key, "k"), limit, 1, now)
        told = act(client, "reset_limit", kind="limit", group=key, key="k")
        assert told == ("success", "The limit was reset.")
        assert look_up(client, "limit", "k", group=key)[0].counts == []
        for limit in limits:
            assert ratelimit.hit(limit, key, "k", 2).allowed
        owner = functions.owner(ratelimit.routing_key(key, "k"))
        ((who, what, flag, said),) = log()
        assert (who, what, flag) == (name_of(client), f"limit / {key} / k", CHANGE)
        assert sorted(said.removeprefix("Reset: ").removesuffix(".").split(", ")) == sorted(
            f"2 of {rate} at {owner}" for rate in ("2/h", "3/d", "2/30m")
        )
        assert f"limit / {key} / k" in Page(client.get(reverse("admin:index"))).text

    def test_reset_of_more_rules_than_one_request_holds(self, client: Client, key: str) -> None:
        for number in range(1, 35):
            ratelimit.hit(Limit.parse(f"{number}/d"), key, "k")
        assert len(look_up(client, "limit", "k", group=key)[0].counts) == 34
        assert act(client, "reset_limit", kind="limit", group=key, key="k")[0] == "success"
        assert look_up(client, "limit", "k", group=key)[0].counts == []

    def test_key_that_is_hashed_is_found_and_reset(self, client: Client, key: str) -> None:
        long = "ø" * 600
        ratelimit.hit(Limit.parse("3/h"), key, long)
        assert [count.used for count in look_up(client, "limit", long, group=key)[0].counts] == [1]
        assert act(client, "reset_limit", kind="limit", group=key, key=long)[0] == "success"
        assert look_up(client, "limit", long, group=key)[0].counts == []

    def test_hit_that_another_node_got_is_counted_by_the_owner(self, client: Client, key: str) -> None:
        limit, whole = Limit.parse("3/h"), ratelimit.routing_key(key, "k")
        requesting = runtime.get_client()
        owner, *others = requesting.table().ranking(whole)
        for node in others:
            requesting.call_node(node, frame(wire.encode(wire.Hit(whole, list(limit.rules), 1))))
        found, _ = look_up(client, "limit", "k", group=key)
        assert [(count.node, count.used) for count in found.counts] == [(owner.name, 2)]
        assert act(client, "reset_limit", kind="limit", group=key, key="k")[0] == "success"
        assert look_up(client, "limit", "k", group=key)[0].counts == []
        assert log()[0][3] == f"Reset: 2 of 3/h at {owner.name}."

    def test_limit_without_a_key_is_found_and_reset(self, client: Client, key: str) -> None:
        ratelimit.hit(Limit.parse("3/h"), key, "")
        found, page = look_up(client, "limit", "", group=key)
        assert [count.used for count in found.counts] == [1]
        assert f"{found.owner} owns the empty key." in flat(page)
        assert act(client, "reset_limit", kind="limit", group=key, key="")[0] == "success"
        assert look_up(client, "limit", "", group=key)[0].counts == []
        assert log()[0][1] == f"limit / {key} / "

    def test_limits_of_a_storage_are_not_requested_from_the_nodes(
        self, client: Client, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ratelimit.hit(Limit.parse("3/h"), key, "k")
        monkeypatch.setenv("CLUSTERSTATE_LIMITS_STORAGE", "redis://127.0.0.1:1/0")
        runtime.forget()
        found, page = look_up(client, "limit", "k", group=key)
        assert found.counts == []
        assert "LIMITS_STORAGE is set, so limits are counted in redis and not in the nodes." in flat(page)
        assert "owns k" not in flat(page)
        assert "reset_limit" not in actions_on(page)
        level, message = act(client, "reset_limit", kind="limit", group=key, key="k")
        assert (level, message) == ("error", "Limits are counted in redis and not in the nodes.")
        assert log() == []
        assert look_up(client, "cache:default", key)[0].entry is not None


@pytest.mark.usefixtures("cluster")
class TestPlainKey:
    def test_only_owner_and_ranking_are_shown(self, client: Client, key: str) -> None:
        found, page = look_up(client, "plain", key)
        assert found.ranking == functions.ranking(key)
        assert (found.entry, found.counts, found.silent) == (None, [], {})
        assert actions_on(page) == {"clear_cache"}

    @pytest.mark.parametrize(
        ("action", "kind"),
        [
            ("reset_limit", "plain"),
            ("reset_limit", "cache:default"),
            ("delete_cache_key", "plain"),
            ("delete_cache_key", "limit"),
        ],
    )
    def test_action_for_another_kind_of_key_is_refused(self, client: Client, action: str, kind: str) -> None:
        assert act(client, action, kind=kind, key="k") == (
            "error",
            "This action is not available for a key of this kind.",
        )
        assert log() == []

    @override_settings(CACHES={"default": {"BACKEND": CACHE}, "limit": {"BACKEND": CACHE}, "plain": {"BACKEND": CACHE}})
    def test_cache_may_be_named_as_another_kind(self, client: Client, key: str) -> None:
        assert look_up(client, "plain", key)[0].entry is None
        assert look_up(client, "limit", key)[0].entry is None
        assert not look_up(client, "cache:plain", key)[0].entry.found


@pytest.mark.usefixtures("cluster")
class TestClear:
    @pytest.fixture(autouse=True)
    def two_caches(self, settings: Any) -> None:
        mine = {"BACKEND": CACHE, "LOCATION": "mine", "OPTIONS": {"NEAR_TTL": 60}}
        settings.CACHES = {"default": {"BACKEND": CACHE}, "mine": mine}

    def test_only_the_chosen_cache_is_emptied(self, client: Client, key: str) -> None:
        for alias, number in itertools.product(("default", "mine"), range(20)):
            caches[alias].set(f"{key}{number}", "value")
            assert caches[alias].get(f"{key}{number}") == "value"
        told = act(client, "clear_cache", alias="mine", confirmed="on")
        assert told == ("success", "The cache “mine” was emptied.")
        names = [f"{key}{number}" for number in range(20)]
        assert (len(caches["default"].get_many(names)), caches["mine"].get_many(names)) == (20, {})
        assert log() == [(name_of(client), "cache:mine", DELETION, "Emptied the cache.")]
        assert "cache:mine" in Page(client.get(reverse("admin:index"))).text

    @pytest.mark.parametrize("fields", [{}, {"confirmed": ""}, {"confirmed": "false"}])
    def test_cache_is_not_emptied_without_the_confirmation(
        self, client: Client, key: str, fields: dict[str, str]
    ) -> None:
        caches["mine"].set(key, "value")
        told = act(client, "clear_cache", alias="mine", **fields)
        assert told == ("error", "Nothing was emptied: you did not confirm it.")
        assert caches["mine"].get(key) == "value"
        assert log() == []

    def test_confirmation_is_required_in_the_browser_too_and_has_a_label(self, client: Client) -> None:
        page = Page(client.get(PAGE))
        (box,) = [attrs for attrs in page.all("input") if attrs.get("name") == "confirmed"]
        assert (box["type"], "required" in box, "checked" in box) == ("checkbox", True, False)
        assert box["id"] in [attrs.get("for") for attrs in page.all("label")]
        assert "Yes, empty it" in flat(page)

    def test_alias_that_is_not_of_the_cluster_is_refused(self, client: Client) -> None:
        assert act(client, "clear_cache", alias="other", confirmed="on")[0] == "error"
        assert log() == []

    @override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}})
    def test_project_without_caches_of_the_cluster_has_no_form_to_empty_one(self, client: Client) -> None:
        assert actions_on(Page(client.get(PAGE))) == set()


@pytest.mark.usefixtures("cluster")
class TestPermissions:
    @pytest.mark.parametrize("view", [True, False])
    @pytest.mark.parametrize(
        "permissions", [some for count in range(4) for some in itertools.combinations(ACTIONS, count)]
    )
    def test_only_permitted_actions_are_offered_and_taken(
        self, key: str, permissions: tuple[str, ...], view: bool
    ) -> None:
        client, limit = browser(*permissions, view=view), Limit.parse("1/d")
        ratelimit.hit(limit, key, "k")
        caches["default"].set(key, "value")
        if view:
            offered = [
                actions_on(look_up(client, "limit", "k", group=key)[1]),
                actions_on(look_up(client, "cache:default", key)[1]),
            ]
            assert [offer - {"clear_cache"} for offer in offered] == [
                {"reset_limit"} & set(permissions),
                {"delete_cache_key"} & set(permissions),
            ]
            assert all(("clear_cache" in offer) is ("clear_cache" in permissions) for offer in offered)
        attempts: dict[str, dict[str, str]] = {
            "reset_limit": {"kind": "limit", "group": key, "key": "k"},
            "delete_cache_key": {"kind": "cache:default", "key": key},
            "clear_cache": {"alias": "default", "confirmed": "on"},
        }
        for action, fields in attempts.items():
            done = view and action in permissions
            assert client.post(address(**fields), {"action": action, **fields}).status_code == (302 if done else 403)
        assert len(log()) == (len(permissions) if view else 0)
        assert ratelimit.peek(limit, key, "k").allowed is (view and "reset_limit" in permissions)
        gone = view and bool({"delete_cache_key", "clear_cache"} & set(permissions))
        assert caches["default"].get(key) == (None if gone else "value")

    @pytest.mark.parametrize("action", ["", "view_cluster", "look_up", "__class__"])
    def test_unknown_action_is_refused(self, client: Client, action: str) -> None:
        assert client.post(address(kind="plain", key="k"), {"action": action}).status_code == 403
        assert client.post(ACT).status_code == 403

    @pytest.mark.parametrize("method", ["get", "head", "put", "delete"])
    def test_only_a_post_acts(self, client: Client, key: str, method: str) -> None:
        caches["default"].set(key, "value")
        where = address(kind="cache:default", key=key) + "&action=delete_cache_key"
        response = getattr(client, method)(where)
        assert (response.status_code, response["Location"]) == (302, where.replace(ACT, PAGE))
        assert caches["default"].get(key) == "value"

    def test_login_after_an_action_leads_back_to_the_look_up(self, client: Client, key: str) -> None:
        where = address(kind="cache:default", key=key)
        response = Client().post(where, {"action": "delete_cache_key"})
        (after_login,) = parse_qs(urlsplit(response["Location"]).query)["next"]
        response = client.get(after_login)
        assert (response.status_code, response["Location"]) == (302, where.replace(ACT, PAGE))

    def test_anonymous_is_sent_to_the_login(self, key: str) -> None:
        caches["default"].set(key, "value")
        response = Client().post(address(kind="cache:default", key=key), {"action": "delete_cache_key"})
        assert response.status_code == 302
        assert response["Location"].startswith(reverse("admin:login"))
        assert caches["default"].get(key) == "value"

    def test_post_without_the_pages_token_is_refused(self, key: str) -> None:
        client = browser(*ACTIONS, enforce_csrf_checks=True)
        caches["default"].set(key, "value")
        where, fields = address(kind="cache:default", key=key), {"action": "delete_cache_key"}
        assert client.post(where, fields).status_code == 403
        assert caches["default"].get(key) == "value"
        assert log() == []
        _, page = look_up(client, "cache:default", key)
        forms = [attrs for attrs in page.all("form") if attrs.get("action") == where]
        tokens = [attrs["value"] for attrs in page.all("input") if attrs.get("name") == "csrfmiddlewaretoken"]
        assert len(tokens) >= len(forms) == 2  # the page's head has one to log out
        assert client.post(where, {**fields, "csrfmiddlewaretoken": str(tokens[-1])}).status_code == 302
        assert caches["default"].get(key) is None

    @pytest.mark.parametrize("odd", [QUOTES, " &key=a%20+ ", "two\nlines", "two\r\nlines", "clé"])
    def test_form_on_the_page_is_for_the_key_that_was_looked_up(self, client: Client, key: str, odd: str) -> None:
        ratelimit.hit(Limit.parse("3/h"), odd, key + odd)
        found, page = look_up(client, "limit", key + odd, group=odd)
        assert len(found.counts) == 1
        (where,) = {str(attrs["action"]) for attrs in page.all("form") if str(attrs.get("action")).startswith(ACT)}
        assert client.post(where, {"action": "reset_limit"}).status_code == 302
        assert look_up(client, "limit", key + odd, group=odd)[0].counts == []
        assert [entry[1] for entry in log()] == [f"limit / {odd} / {key}{odd}"]
        assert "<script>alert" not in client.get(reverse("admin:index")).content.decode()

    def test_permissions_are_made_by_migrations_that_are_complete(self) -> None:
        names = set(Permission.objects.filter(content_type__model="cluster").values_list("codename", flat=True))
        assert names == {"view_cluster", *ACTIONS}
        call_command("makemigrations", "--check", "--dry-run", verbosity=0)


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalCluster]:
    """Two nodes, of which one is stopped now and then, and isn't given up."""
    env = {"CLUSTERSTATE_DOWN_AFTER": "600", "CLUSTERSTATE_DEADLINE": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as folder,
        LocalCluster(Path(folder), ["one", "two"], env=env) as both,
    ):
        both.start()
        both.wait_for()
        yield both


@pytest.fixture
def stopped(pair: LocalCluster, key: str) -> Iterator[str]:
    """A key of which both the limit, in a group of the same name, and the cache entry are those of a stopped node."""
    with using(pair, "one"):
        cache = caches["default"]
        assert isinstance(cache, ClusterCache)

        def are_two() -> bool:
            with suppress(Unavailable):
                return len(functions.members()) == 2
            return False

        wait_until(are_two, 60, "two members")
        stopped = next(
            name
            for name in (f"{key}{number}" for number in range(1000))
            if functions.owner(cache.routing_key(name)) == functions.owner(ratelimit.routing_key(name, name)) == "two"
        )
        cache.set(stopped, "value")
        assert cache.get(stopped) == "value"
        pair.processes["two"].signal(signal.SIGSTOP)
        try:
            yield stopped
        finally:
            pair.processes["two"].signal(signal.SIGCONT)


class TestTrouble:
    def test_owner_of_a_cache_key_that_does_not_answer(self, client: Client, stopped: str) -> None:
        found, page = look_up(client, "cache:default", stopped)
        assert (found.entry, found.ranking, set(found.silent)) == (None, ["two", "one"], {"two"})
        assert "Incomplete: node two at" in flat(page)
        assert f"two owns {stopped} ." in flat(page)
        level, message = act(client, "delete_cache_key", kind="cache:default", key=stopped)
        assert (level, "node two at" in message) == ("error", True)
        assert log() == []

    def test_owner_that_does_not_answer_is_told_on_a_site_that_debug_toolbar_and_sentry_watch(
        self, stopped: str
    ) -> None:
        command = [sys.executable, "-m", "tests.panel.instrumented", stopped]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, check=True, timeout=60)
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["wrapped"] == ["delete", "get", "set"]
        assert (told["level"], "node two at" in told["message"]) == ("error", True)
        assert told["read"] == "Unavailable"

    def test_owner_of_a_limit_that_does_not_answer(self, client: Client, stopped: str) -> None:
        found, page = look_up(client, "limit", stopped, group=stopped)
        assert (found.counts, found.ranking, set(found.silent)) == ([], ["two", "one"], {"two"})
        assert "Incomplete: node two at" in flat(page)
        assert "Nothing is counted" not in flat(page)
        level, message = act(client, "reset_limit", kind="limit", group=stopped, key=stopped)
        assert (level, "node two at" in message) == ("error", True)
        assert log() == []

    def test_what_is_counted_in_its_place_is_shown_and_reset(self, client: Client, stopped: str) -> None:
        limit = Limit.parse("1/d", on_unavailable="local")
        until_counted_in_place(limit, stopped)
        assert not ratelimit.hit(limit, stopped, stopped).allowed
        found, page = look_up(client, "limit", stopped, group=stopped)
        assert [(count.node, count.used, bool(count.denied_for)) for count in found.counts] == [("one", 1, True)]
        assert "one in place of the owner 1 denied for" in flat(page)
        told = act(client, "reset_limit", kind="limit", group=stopped, key=stopped)
        assert told == ("warning", "The limit was reset, but not everywhere: no answer from two.")
        assert ratelimit.hit(limit, stopped, stopped).allowed
        assert [entry[1:] for entry in log()] == [(f"limit / {stopped} / {stopped}", CHANGE, "Reset: 1 of 1/d at one.")]

    def test_cache_that_is_not_emptied_everywhere_says_so(self, client: Client, stopped: str) -> None:
        level, message = act(client, "clear_cache", alias="default", confirmed="on")
        assert level == "warning"
        assert message.startswith("The cache “default” was emptied, but not everywhere: node two at")
        assert log()[0][3].startswith("Emptied the cache, but not everywhere: node two at")

    def test_cache_that_is_emptied_nowhere_says_so_and_the_log_nothing(
        self, client: Client, stopped: str, pair: LocalCluster
    ) -> None:
        pair.processes["one"].signal(signal.SIGSTOP)
        try:
            level, message = act(client, "clear_cache", alias="default", confirmed="on")
        finally:
            pair.processes["one"].signal(signal.SIGCONT)
        assert (level, "emptied" in message) == ("error", False)
        assert "node one at" in message
        assert "node two at" in message
        assert log() == []

    def test_node_that_falls_silent_before_it_forgets_its_count_is_named(
        self, client: Client, stopped: str, pair: LocalCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        until_counted_in_place(Limit.parse("1/d", on_unavailable="local"), stopped)
        reset = ratelimit.reset

        def stop_first(*args: Any) -> bool | None:
            pair.processes["one"].signal(signal.SIGSTOP)
            return reset(*args)

        monkeypatch.setattr(ratelimit, "reset", stop_first)
        try:
            told = act(client, "reset_limit", kind="limit", group=stopped, key=stopped)
        finally:
            pair.processes["one"].signal(signal.SIGCONT)
        assert told == ("error", "Nothing was reset: no answer from one, two.")
        assert log() == []

    @pytest.mark.timing(alone=True)
    def test_page_answers_within_twice_its_timeout_all_the_same(self, client: Client, stopped: str) -> None:
        wait_until(lambda: client.get(PAGE, {"live": ""}).context["status"].asked == "one", 60, "one answers")
        for kind in ("cache:default", "limit"):
            began = time.monotonic()
            found, _ = look_up(client, kind, stopped, group=stopped)
            check_seconds(time.monotonic() - began, below=2 * PAGE_TIMEOUT)
            assert set(found.silent) == {"two"}

    @pytest.mark.usefixtures("nowhere")
    @pytest.mark.parametrize(
        "fields",
        [
            {"action": "reset_limit", "kind": "limit", "key": "k"},
            {"action": "delete_cache_key", "kind": "cache:default", "key": "k"},
            {"action": "clear_cache", "alias": "default", "confirmed": "on"},
        ],
    )
    def test_without_a_node_a_message_says_that_nothing_was_done(self, client: Client, fields: dict[str, str]) -> None:
        level, message = act(client, **fields)
        assert (level, bool(message)) == ("error", True)
        assert log() == []

    @pytest.mark.usefixtures("cluster")
    @pytest.mark.parametrize(
        "fields",
        [
            {"action": "reset_limit"},
            {"action": "reset_limit", "kind": "limit", "key": "k\0"},
            {"action": "delete_cache_key", "kind": "cache:none", "key": "k"},
            {"action": "delete_cache_key", "kind": "cache:default", "key": "k", "version": "new"},
            {"action": "delete_cache_key", "kind": "cache:default", "key": "k\0"},
            {"action": "clear_cache", "confirmed": "on"},
        ],
    )
    def test_wrong_form_is_a_message(self, client: Client, fields: dict[str, str]) -> None:
        assert act(client, **fields)[0] == "error"
        assert log() == []

    @override_settings(CACHES={"default": {"BACKEND": CACHE, "OPTIONS": {"ON_UNAVAILABLE": "guess"}}})
    def test_wrong_settings_are_a_message(self, client: Client) -> None:
        for action in ACTIONS:
            level, message = act(client, action, kind="plain", key="k")
            assert level == "error"
            assert "ON_UNAVAILABLE must be" in message
