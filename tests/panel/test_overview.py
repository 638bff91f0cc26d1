"""The sections of the panel's first page, with real nodes."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import caches
from django.test import Client, override_settings
from msgspec.structs import replace

from django_clusterstate import cluster as functions
from django_clusterstate import ratelimit, runtime
from django_clusterstate.client.aio import AsyncClient
from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.core.membership.timeline import EventKind, MemberEvent
from django_clusterstate.panel import overview
from django_clusterstate.panel.node_reports import Reports, gather
from django_clusterstate.wire.status import CopiesStatus
from testproject.processes import LocalCluster, wait_until
from tests.conftest import NODES, using
from tests.panel.pages import Page
from tests.panel.reports import member, node, report, reports_of
from tests.panel.test_admin import PAGE
from tests.timing import check_seconds

pytestmark = pytest.mark.django_db
SECONDS = 60.0


@pytest.fixture
def own_cluster(folder: Path) -> Iterator[LocalCluster]:
    """Three nodes that may be harmed; this process is on the host of the first."""
    with LocalCluster(folder, NODES) as cluster:
        cluster.start()
        cluster.wait_for()
        with using(cluster, NODES[0]):
            yield cluster


def live(client: Client) -> Page:
    return Page(client.get(PAGE, {"live": ""}))


@pytest.mark.usefixtures("cluster")
class TestReports:
    @pytest.mark.timing
    def test_every_node_reports_and_its_round_trip_is_measured(self) -> None:
        start = time.monotonic()
        reports = async_to_sync(gather)()
        took = time.monotonic() - start
        assert list(reports.status.nodes) == sorted(reports.replies) == sorted(reports.round_trips) == list(NODES)
        assert reports.status.asked == NODES[0]
        assert reports.status.agree
        assert all(0 < seconds < took for seconds in reports.round_trips.values())
        check_seconds(max(reports.round_trips.values()), below=0.4)

    def test_node_that_gives_a_report_but_its_view_too_late_answers(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def too_late(_: AsyncClient) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(AsyncClient, "_refresh", too_late)
        runtime.forget()
        text = live(client).text
        assert f"The node of this host is {NODES[0]} ." in text
        assert "does not answer" not in text

    def test_denied_limits_are_shown_with_a_link_to_them(self, client: Client) -> None:
        group, limit = uuid4().hex, ratelimit.Limit.parse("1/h")
        for _ in range(2000):
            ratelimit.hit(limit, group, "ip:10.0.0.7 & co", fresh=True)
        page = live(client)
        links = [str(attrs["href"]) for attrs in page.all("a")]
        assert f"?kind=limit&group={group}&key=ip%3A10.0.0.7+%26+co#clusterstate-key" in links
        assert re.search(
            rf"Most denied limits, .*{group} ip:10.0.0.7 & co 1,999 .*Busiest limits, .*{group}", page.text
        )

    def test_curves_have_an_accessible_name(self, client: Client) -> None:
        pictures = [attrs for attrs in live(client).all("svg") if attrs.get("role") == "img"]
        names = ["Requests", "Denials", "Cache hits", "Cache misses", "Failed exchanges", "Fallbacks"]
        assert [str(attrs["aria-label"]).partition(":")[0] for attrs in pictures] == names
        assert all(re.search(r": [\d.,]+ now, [\d.,]+ at most", str(attrs["aria-label"])) for attrs in pictures)

    def test_shares_heartbeats_and_joins_are_shown(self, client: Client) -> None:
        page = live(client)
        for name in NODES:
            assert re.search(rf"{name} 33\.3 % [\d.]+ % [\d,]+ entr", page.text)
            assert re.search(rf"{name} joined ({'|'.join(NODES)})", page.text)
        heartbeats = rf"{NODES[0]} - \d\.\d s \d\.\d s {NODES[1]} \d\.\d s - \d\.\d s"
        wait_until(lambda: bool(re.search(heartbeats, live(client).text)), 60, "no node is late")

    @override_settings(USE_THOUSAND_SEPARATOR=True, LANGUAGE_CODE="de")
    def test_coordinates_of_charts_are_not_localized(self, client: Client) -> None:
        caches["default"].set(uuid4().hex, "x")
        for attrs in live(client).all("rect"):
            assert re.fullmatch(r"[\d.]+", str(attrs["width"]))


class TestTrouble:
    @pytest.mark.parametrize("stopped", [("alpha",), ("beta", "gamma")], ids=["this host's", "two others"])
    @pytest.mark.timing(alone=True)
    def test_nodes_that_are_stopped_cost_half_a_second_at_most(
        self, client: Client, own_cluster: LocalCluster, stopped: tuple[str, ...]
    ) -> None:
        os.environ["CLUSTERSTATE_DEADLINE"] = "5"  # `using` puts it back
        runtime.forget()
        wait_until(lambda: "All 3 nodes" in live(client).text, SECONDS, "this process is connected to all nodes")
        for name in stopped:
            own_cluster.processes[name].signal(signal.SIGSTOP)
        try:
            start = time.monotonic()
            page = live(client)
            took = time.monotonic() - start
        finally:
            for name in stopped:
                own_cluster.processes[name].signal(signal.SIGCONT)
        for name in NODES:
            assert (f"node {name} at" in page.text) is (name in stopped)
        check_seconds(took, below=1.0)  # half a second, and as much for a slow machine

    def test_changes_of_a_killed_node_are_reported_by_the_others(
        self, client: Client, own_cluster: LocalCluster
    ) -> None:
        own_cluster.kill("beta")
        wait_until(lambda: "beta is down alpha, gamma" in _sorted_reporters(live(client).text), SECONDS, "beta is down")
        own_cluster.start("beta")
        own_cluster.wait_for()
        assert re.search(r"beta alive .*restarted", live(client).text)

    def test_versions_that_differ_are_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = {"one": node("one", version="1"), "two": node("two", version="2")}
        page = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("one", nodes)))
        assert "The nodes run different versions: 1, 2." in page.text

    def test_member_that_does_not_reach_a_node_is_marked(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        nodes = {"one": node("one", members=(member("two", MemberState.SUSPECT, 2.0),)), "two": node("two")}
        page = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("one", nodes)))
        assert "one - 2.0 s late two unknown -" in page.text

    def test_of_many_members_only_late_and_lost_heartbeats_are_listed(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [f"n{number:02}" for number in range(30)]
        heard = {name: tuple(member(other) for other in names if other != name) for name in names}
        nodes = {name: node(name, members=heard[name]) for name in names}
        page = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("n00", nodes)))
        assert "All nodes receive each other's heartbeats." in page.text
        nodes["n01"] = node("n01", members=(member("n00", MemberState.SUSPECT, 2.5), *heard["n01"][1:-1]))
        page = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("n00", nodes)))
        assert "n01 received the last heartbeat of n00 2.5 s ago." in page.text
        assert "n01 does not know n29." in page.text
        assert "more are late or lost" not in page.text
        for name in names:
            nodes[name] = node(
                name, members=tuple(member(other, MemberState.DOWN, 9.0) for other in names if other != name)
            )
        page = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("n00", nodes)))
        assert page.text.count(" 9.0 s ago.") == 50
        assert "820 more are late or lost." in page.text

    def test_time_beyond_the_calendar_is_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        one = node("one", members=(member("two", MemberState.DOWN, 8e10),), uptime=8e10)
        told = {"one": report(one, timeline=[MemberEvent(8e10, EventKind.JOINED, "one", bytes(16))])}
        page = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("one", {"one": one}), told))
        assert "more than 100 years" in page.text

    def test_limit_without_a_key_has_a_link_with_a_name(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        one, key = node("one"), ratelimit.routing_key("login", "")
        reports = reports_of(functions.ClusterStatus("one", {"one": one}), {"one": report(one, denied=[(key, 3, 0)])})
        page = _shown(client, monkeypatch, reports)
        assert "login without a key 3" in page.text

    def test_problems_that_nodes_report_are_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        one = replace(node("one"), problems=("two have the name <i>",))
        page = _shown(
            client, monkeypatch, reports_of(functions.ClusterStatus("one", {"one": one}), {"one": report(one)})
        )
        assert "two have the name <i>" in page.text
        assert not page.all("i")

    def test_what_is_missing_of_copies_is_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        copies = {
            "one": CopiesStatus(True),
            "two": CopiesStatus(missing=1234),
            "three": CopiesStatus(unfilled=5, lag=1200, lag_seconds=1.25),
        }
        nodes = {name: replace(node(name), copies=copies[name]) for name in copies}
        nodes["four"] = replace(node("four", state=MemberState.LEAVING), copies=CopiesStatus())
        nodes["two"].stats.cache_entries = 102
        nodes["two"].stats.cache_copies_evicted = 1
        text = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("one", nodes))).text
        assert "Not all keys have been sent to their backups yet." in text
        assert "one node of this host alive synced one.example:4370" in text
        assert "two alive 1,234 slots missing two.example:4370" in text
        assert "three alive 5 slots without a backup 1,200 changes not copied for 1.3 s three.example:4370" in text
        assert "four leaving four.example:4370" in text
        assert "102 cache, 3 limits 100 of them copies 1 copy evicted" in text

    def test_nodes_with_different_values_of_backups_are_named(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes = {name: replace(node(name), copies=CopiesStatus(True, backups=int(name > "a"))) for name in "abc"}
        text = _shown(client, monkeypatch, reports_of(functions.ClusterStatus("a", nodes))).text
        assert "the nodes have different values of BACKUPS: 0 on a, 1 on b and c; give all the same" in text
        assert "Not all keys have been sent to their backups yet." not in text

    def test_names_and_keys_are_escaped(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        name, key = "<b>'\"", ratelimit.routing_key("<i>", "<script>alert(1)</script>")
        one = node(name)
        reports = reports_of(functions.ClusterStatus(name, {name: one}), {name: report(one, denied=[(key, 1, 0)])})
        page = _shown(client, monkeypatch, reports)
        assert "<script>alert(1)</script>" in page.text
        assert not [tag for tag, _ in page.tags if tag in ("script", "i")]


def _shown(client: Client, monkeypatch: pytest.MonkeyPatch, reports: Reports) -> Page:
    async def gather() -> Reports:
        return reports

    monkeypatch.setattr(overview, "gather", gather)
    return live(client)


def _sorted_reporters(text: str) -> str:
    return text.replace("gamma, alpha", "alpha, gamma")
