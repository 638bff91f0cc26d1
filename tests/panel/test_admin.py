"""The admin page "Cluster"."""

import json
import re
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.contrib.staticfiles import finders
from django.core.cache import caches
from django.core.management import call_command
from django.test import AsyncClient, Client, override_settings
from django.urls import reverse
from django.utils import translation

from django_clusterstate import cluster as functions
from django_clusterstate import ratelimit
from django_clusterstate.cache import ClusterCache
from django_clusterstate.cluster import ClusterStatus
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.panel import overview
from django_clusterstate.panel.key_lookup import KeyQuery, KeyState
from django_clusterstate.panel.node_reports import Reports
from testproject.processes import wait_until
from tests.conftest import NODES
from tests.panel.pages import Page, staff
from tests.panel.reports import member, node, reports_of

PAGE = "/admin/django_clusterstate/cluster/"
CACHE = "django_clusterstate.cache.ClusterCache"

pytestmark = pytest.mark.django_db


def shown(client: Client, monkeypatch: pytest.MonkeyPatch, status: ClusterStatus) -> Page:
    async def gather() -> Reports:
        return reports_of(status)

    monkeypatch.setattr(overview, "gather", gather)
    return Page(client.get(PAGE))


@pytest.mark.usefixtures("cluster")
class TestRealCluster:
    def test_all_nodes_and_their_agreement_are_shown(self, client: Client) -> None:
        # A page doesn't wait long for the nodes, and this process may not have reached one yet.
        wait_until(lambda: len(client.get(PAGE).context["rows"]) == len(NODES), 60, "all nodes answer")
        response = client.get(PAGE)
        page = Page(response)
        assert [row.name for row in response.context["rows"]] == list(NODES)
        assert all(row.status is not None and row.state == MemberState.ALIVE for row in response.context["rows"])
        assert [row.heard_ago is None for row in response.context["rows"]] == [True, False, False]
        assert all(name in page.text for name in NODES)
        assert "The node of this host is alpha ." in page.text
        assert "All 3 nodes have the same view." in page.text
        assert f"have the same view. {functions.status().nodes['alpha'].epoch:016x} " in page.text

    def test_page_works_under_asgi(self) -> None:
        user = User.objects.create_superuser("root")

        async def view() -> Any:
            browser = AsyncClient()
            await browser.aforce_login(user)
            return await browser.get(PAGE, {"kind": "plain", "key": "k"})

        page = Page(async_to_sync(view)())
        assert "All 3 nodes have the same view." in page.text
        assert "next in this order" in page.text

    @pytest.mark.parametrize("key", ["user:1", "user:2", "clé", "a&b=c/d?e"])
    def test_owner_of_a_key_is_that_of_the_cluster_functions(self, client: Client, key: str) -> None:
        cache = caches["default"]
        assert isinstance(cache, ClusterCache)
        for kind, group, expected in [
            ("cache:default", "", functions.ranking(cache.routing_key(key))),
            ("limit", "login", functions.ranking(ratelimit.routing_key("login", key))),
            ("limit", "", functions.ranking(ratelimit.routing_key("", key))),
            ("plain", "", functions.ranking(key)),
        ]:
            response = client.get(PAGE, {"kind": kind, "group": group, "key": key})
            assert response.context["found"].ranking == expected
            text = re.sub(r"\s+", " ", Page(response).text)
            assert f"{expected[0]} owns {key} ." in text
            assert " ".join([f"{expected[0]} (owner)", *expected[1:]]) in text

    @override_settings(
        CACHES={
            "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
            "one": {"BACKEND": CACHE},
            "two": {"BACKEND": CACHE, "LOCATION": "other", "KEY_PREFIX": "p"},
        }
    )
    def test_form_offers_the_caches_of_the_cluster(self, client: Client) -> None:
        options = [option["value"] for option in Page(client.get(PAGE)).all("option")]
        assert options == ["cache:one", "cache:two", "limit", "plain", "one", "two"]  # to look up, and to empty
        two = caches["two"]
        assert isinstance(two, ClusterCache)
        assert any(
            functions.ranking(two.routing_key(key))
            == client.get(PAGE, {"kind": "cache:two", "key": key}).context["found"].ranking
            != client.get(PAGE, {"kind": "cache:one", "key": key}).context["found"].ranking
            for key in map(str, range(20))
        )

    @pytest.mark.parametrize(
        "query", [{"kind": "cache:none", "key": "k"}, {"kind": "plain", "key": "\0"}, {"key": "k"}]
    )
    def test_form_says_what_is_wrong(self, client: Client, query: dict[str, str]) -> None:
        response = client.get(PAGE, query)
        assert response.context["found"] is None
        assert [attrs for attrs in Page(response).all("ul") if attrs.get("class") == "errorlist"]

    def test_key_is_escaped(self, client: Client) -> None:
        key = "\"'><script>alert(1)</script>"
        content = client.get(PAGE, {"kind": "plain", "group": key, "key": key}).content.decode()
        assert "<script>alert" not in content
        assert content.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3  # two fields and the answer

    def test_every_field_has_a_label_and_every_table_a_caption(self, client: Client) -> None:
        page = Page(client.get(PAGE))
        labels = {attrs["for"] for attrs in page.all("label") if "for" in attrs}
        fields = [attrs for tag in ("input", "select") for attrs in page.all(tag) if attrs.get("id", "") != ""]
        assert {attrs["id"] for attrs in fields if str(attrs.get("id")).startswith("id_")} <= labels
        assert {"id_kind", "id_group", "id_key"} <= labels
        region = next(attrs for _, attrs in page.tags if attrs.get("role") == "region")
        assert region["aria-labelledby"] == "clusterstate-members-caption"
        assert [attrs for attrs in page.all("caption") if attrs.get("id") == "clusterstate-members-caption"]
        assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th") if "id" not in attrs)

    def test_stylesheet_is_a_static_file(self, client: Client) -> None:
        links = [str(attrs["href"]) for attrs in Page(client.get(PAGE)).all("link")]
        assert any(link.endswith("django_clusterstate/admin.css") for link in links)
        assert finders.find("django_clusterstate/admin.css")

    def test_page_reads_from_right_to_left(self, client: Client) -> None:
        with translation.override("ar"):
            page = Page(client.get(PAGE))
        assert page.all("html")[0]["dir"] == "rtl"
        assert "alpha" in page.text


class TestLive:
    """The responses to panel.js. tests/browser/ runs the script itself."""

    @staticmethod
    def sections(page: Page) -> dict[str | None, dict[str, str | None]]:
        return {attrs.get("id"): attrs for _, attrs in page.tags if "data-live" in attrs}

    @pytest.mark.usefixtures("cluster")
    def test_response_is_only_the_live_sections_of_the_page(self, client: Client) -> None:
        whole = Page(client.get(PAGE, {"kind": "plain", "key": "k"}))
        live = Page(client.get(PAGE, {"kind": "plain", "key": "k", "live": ""}))
        assert list(self.sections(live)) == list(self.sections(whole))
        names = ["agreement", "members", "rates", "top", "ownership", "heartbeats", "timeline"]
        assert list(self.sections(live)) == [f"clusterstate-{name}" for name in names]
        assert [attrs["data-key"] for attrs in live.all("tr") if "data-key" in attrs][: len(NODES)] == list(NODES)
        assert not [tag for tag, _ in live.tags if tag in ("html", "body", "script", "link", "nav", "form")]

    @pytest.mark.usefixtures("cluster")
    def test_key_is_not_looked_up_again(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[KeyQuery] = []

        async def look_up(query: KeyQuery) -> KeyState:
            asked.append(query)
            return KeyState([])

        monkeypatch.setattr(overview, "alook_up", look_up)
        client.get(PAGE, {"kind": "plain", "key": "k", "live": ""})
        assert asked == []
        client.get(PAGE, {"kind": "plain", "key": "k"})
        assert len(asked) == 1

    @pytest.mark.usefixtures("cluster")
    def test_messages_wait_for_the_next_page(self, client: Client) -> None:
        client.post(reverse("admin:auth_user_add"), {"username": "new", "usable_password": "false"})
        client.get(PAGE, {"live": ""})
        assert [message.level_tag for message in get_messages(client.get(PAGE).wsgi_request)] == ["success"]

    def test_announcement_changes_only_with_the_state_of_the_cluster(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = node("one"), node("two")
        for nodes, silent, said in [
            ({"one": one, "two": two}, {}, "2 nodes answer. The views agree."),
            ({"one": one}, {}, "1 node answers. The views agree."),
            ({"one": one}, {"two": "too late"}, "1 node answers. Others do not."),
            ({"one": one, "two": node("two", 2)}, {}, "2 nodes answer. The views differ."),
            ({}, {"/a.sock": "gone"}, "No node answers."),
        ]:
            page = shown(client, monkeypatch, ClusterStatus(next(iter(nodes), ""), nodes, silent))
            assert [attrs["data-announce"] for _, attrs in page.tags if "data-announce" in attrs] == [said]

    def test_script_is_a_static_file_and_its_button_is_hidden_without_it(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = shown(client, monkeypatch, ClusterStatus("one", {"one": node("one")}))
        (script,) = [
            attrs for attrs in page.all("script") if str(attrs["src"]).endswith("django_clusterstate/panel.js")
        ]
        assert "defer" in script
        assert finders.find("django_clusterstate/panel.js")
        (button,) = [attrs for attrs in page.all("button") if attrs.get("id") == "clusterstate-pause"]
        assert "hidden" in button

    def test_tab_of_this_page_is_marked(self, client: Client, no_node: str) -> None:
        current = [attrs["href"] for attrs in Page(client.get(PAGE)).all("a") if attrs.get("aria-current") == "page"]
        assert PAGE in current

    @pytest.mark.parametrize("name", ["anonymous", "clerk"])
    def test_needs_the_same_permission(self, name: str) -> None:
        browser = Client()
        if name == "clerk":
            browser.force_login(staff(name, "view_user"))
        assert browser.get(PAGE, {"live": ""}).status_code == (403 if name == "clerk" else 302)


class TestPermissions:
    def test_anonymous_is_sent_to_the_login(self) -> None:
        response = Client().get(PAGE)
        assert response.status_code == 302
        assert response["Location"] == f"{reverse('admin:login')}?next={PAGE}"

    def test_staff_without_the_permission_is_refused(self) -> None:
        browser = Client()
        browser.force_login(staff("clerk", "view_user"))
        assert browser.get(PAGE).status_code == 403
        assert PAGE not in browser.get(reverse("admin:index")).content.decode()

    @pytest.mark.usefixtures("cluster")
    def test_staff_with_the_permission_finds_the_page_in_the_index(self) -> None:
        browser = Client()
        browser.force_login(staff("operator", "view_cluster"))
        index = Page(browser.get(reverse("admin:index")))
        assert PAGE in [attrs.get("href") for attrs in index.all("a")]
        assert f"{PAGE}add/" not in [attrs.get("href") for attrs in index.all("a")]
        assert "All 3 nodes have the same view." in Page(browser.get(PAGE)).text

    def test_user_who_is_not_staff_is_sent_to_the_login(self) -> None:
        user = User.objects.create_user("visitor")
        user.user_permissions.set(Permission.objects.filter(codename="view_cluster"))
        browser = Client()
        browser.force_login(user)
        assert browser.get(PAGE).status_code == 302

    @pytest.mark.parametrize("path", ["add/", "1/", "1/change/", "1/delete/", "1/history/"])
    def test_nothing_can_be_added_changed_or_deleted(self, client: Client, path: str) -> None:
        assert client.get(PAGE + path).status_code == 404

    @pytest.mark.parametrize("options", [{}, {"use_base_manager": True}], ids=["dumpdata", "dumpdata --all"])
    def test_data_of_the_site_can_be_dumped(self, options: dict[str, bool]) -> None:
        staff("clerk")
        out = StringIO()
        call_command("dumpdata", stdout=out, **options)
        models = {entry["model"] for entry in json.loads(out.getvalue())}
        assert "auth.user" in models
        assert "django_clusterstate.cluster" not in models

    def test_link_is_where_the_admin_looks_for_it(self) -> None:
        assert reverse("admin:django_clusterstate_cluster_changelist") == PAGE


class TestTrouble:
    def test_without_a_node_it_says_how_to_start_one(self, client: Client, no_node: str) -> None:
        response = client.get(PAGE, {"kind": "plain", "key": "k"})
        page = Page(response)
        assert "No node answers." in page.text
        assert "manage.py clusternode" in page.text
        assert no_node in page.text
        assert response.context["found"].ranking == []

    @override_settings(CLUSTERSTATE={"DEADLINE": -1})
    def test_wrong_settings_are_a_message(self, client: Client) -> None:
        assert "CLUSTERSTATE['DEADLINE'] must be" in Page(client.get(PAGE)).text

    @pytest.mark.usefixtures("cluster")
    @override_settings(CACHES={"default": {"BACKEND": CACHE, "OPTIONS": {"ON_UNAVAILABLE": "guess"}}})
    def test_wrong_options_of_a_cache_are_a_message(self, client: Client) -> None:
        assert "ON_UNAVAILABLE must be" in Page(client.get(PAGE)).text

    def test_views_that_differ_are_shown_with_their_nodes(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes = {"one": node("one", 1), "three": node("three", 1), "two": node("two", 2)}
        page = shown(client, monkeypatch, ClusterStatus("one", nodes))
        assert "The views differ." in page.text
        assert "0000000000000001 : one, three" in page.text
        assert "0000000000000002 : two" in page.text
        assert "have the same view" not in page.text

    def test_silent_node_is_shown_with_its_state_and_the_reason(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes = {"one": node("one", members=(member("two", MemberState.SUSPECT, 2.0),))}
        page = shown(client, monkeypatch, ClusterStatus("one", nodes, {"two": "node two at a: too late"}))
        assert "1 node does not answer." in page.text
        assert "node two at a: too late" in page.text
        assert "suspect does not answer two.example:4370 - 2.0 s ago" in page.text

    def test_other_nodes_are_shown_when_the_node_of_this_host_is_gone(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = shown(client, monkeypatch, ClusterStatus("", {"two": node("two")}, {"/a.sock": "the local node: gone"}))
        assert "This host's node does not answer." in page.text
        assert "manage.py clusternode" in page.text
        assert "This page shows the cluster as two sees it." in page.text

    def test_values_too_big_for_the_cache_are_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        told = node("one")
        told.stats.tally.too_big = 3
        page = shown(client, monkeypatch, ClusterStatus("one", {"one": told}))
        assert "3 values too big for the cache" in page.text

    def test_evicted_limits_are_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        full = node("one")
        full.stats.limit_evictions = 7
        page = shown(client, monkeypatch, ClusterStatus("one", {"one": full}))
        assert "7 live limits evicted: raise LIMITS_MAX_BYTES" in page.text
