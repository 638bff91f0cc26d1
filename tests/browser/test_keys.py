"""The lookup of a key and its actions in a browser."""

from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.core.cache import caches
from playwright.sync_api import expect

from django_clusterstate import ratelimit
from django_clusterstate.ratelimit import Limit
from testproject.panel import NODES, PAGE, Panel
from tests.browser.conftest import HASTE, SERVERS, Visit, assert_accessible, assert_fits
from tests.conftest import using

pytestmark = pytest.mark.browser

NARROW = {"width": 360, "height": 640}


@pytest.fixture
def limited(panel: Panel) -> tuple[str, str]:
    """A group and a key in it that is denied; the key has two lines."""
    group, key = uuid4().hex, "get:q:two\nlines"
    with using(panel.nodes, NODES[0]):
        ratelimit.hit(Limit.parse(["1/h", "30/d"], "token_bucket"), group, key)
    return group, key


@pytest.fixture
def cached(panel: Panel) -> str:
    key = uuid4().hex
    with using(panel.nodes, NODES[0]):
        caches["default"].set(key, "value")
    return key


def address(**query: str) -> str:
    return f"{PAGE}?{urlencode(query)}"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("script", [True, False], ids=["with-script", "without-script"])
def test_limit_is_reset(visit: Visit, limited: tuple[str, str], server: str, script: bool) -> None:
    group, key = limited
    page = visit(address(kind="limit", group=group, key=key), server=server, java_script_enabled=script).page
    counts = page.get_by_role("table", name="Counts of this key")
    expect(counts.get_by_role("row")).to_have_count(3)
    expect(counts.get_by_role("row").filter(has_text="1/h")).to_contain_text("denied for")
    expect(counts.get_by_role("row").filter(has_text="30/d")).to_contain_text("allowed")
    page.get_by_role("button", name="Reset the limit").click()
    expect(page.locator(".messagelist")).to_have_text("The limit was reset.")
    expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("Nothing is counted for this key.")
    page.goto(page.url.partition("django_clusterstate")[0])
    expect(page.locator("#recent-actions-module")).to_contain_text(f"limit / {group} / get:q:two lines")


@pytest.mark.parametrize("server", SERVERS)
def test_cache_key_is_deleted(visit: Visit, cached: str, server: str) -> None:
    visited = visit(address(kind="cache:default", key=cached), server=server, before=HASTE)
    page = visited.page
    expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("The key exists")
    visited.await_refresh()
    page.get_by_role("button", name="Delete the key").click()
    expect(page.locator(".messagelist")).to_have_text("The key was deleted.")
    expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("The cache has no such key.")
    visited.await_refresh()
    expect(page.locator(".messagelist")).to_have_text("The key was deleted.")


def test_cache_is_emptied_once_it_is_confirmed(visit: Visit, cached: str) -> None:
    page = visit(address(kind="cache:default", key=cached)).page
    page.get_by_role("button", name="Empty the cache").click()  # the browser asks for the confirmation
    expect(page.get_by_label("Yes, empty it")).to_be_focused()
    page.reload()
    expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("The key exists")
    page.get_by_label("Yes, empty it").check()
    page.get_by_role("button", name="Empty the cache").click()
    expect(page.locator(".messagelist")).to_have_text("The cache “default” was emptied.")
    expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("The cache has no such key.")


@pytest.mark.parametrize(
    "options",
    [{}, {"color_scheme": "dark"}, {"viewport": NARROW}, {"viewport": NARROW, "locale": "ar"}],
    ids=["light", "dark", "narrow", "narrow-right-to-left"],
)
def test_look_up_is_accessible_and_fits(
    visit: Visit, limited: tuple[str, str], cached: str, options: dict[str, Any]
) -> None:
    group, key = limited
    for query in ({"kind": "limit", "group": group, "key": key}, {"kind": "cache:default", "key": cached}):
        page = visit(address(**query), bypass_csp=True, **options).page
        assert_fits(page)
        assert_accessible(page)
