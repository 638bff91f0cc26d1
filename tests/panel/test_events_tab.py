"""The tab "Events" of the admin page."""

import re
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.test import AsyncClient, Client, override_settings
from django.urls import reverse
from django.utils import translation

from django_clusterstate import events, runtime
from django_clusterstate.client import aio as requester
from django_clusterstate.core.event_counts import EventTotals
from django_clusterstate.core.top_keys import KeyCount
from django_clusterstate.events import Counts, Details, RecentEvent
from django_clusterstate.exceptions import Unavailable
from django_clusterstate.panel import events_tab as panel
from django_clusterstate.wire import messages as wire
from testproject.processes import LocalCluster, wait_until
from tests.conftest import NODES, using
from tests.panel.pages import Page, staff
from tests.timing import check_seconds

PAGE = "/admin/django_clusterstate/cluster/events/"
NASTY = "\"'><script>alert(1)</script>&"

pytestmark = pytest.mark.django_db


@pytest.fixture
def name() -> str:
    """The name of an event that no other test tracks."""
    return f"event {uuid.uuid4()}"


def totals(name: str, hour: int = 1) -> EventTotals:
    return EventTotals(name, 0, hour, hour, 90.0)


def report_names(monkeypatch: pytest.MonkeyPatch, *known: EventTotals) -> None:
    """Makes the nodes report these events only."""

    async def anames(**how: Any) -> list[EventTotals]:
        return list(known)

    monkeypatch.setattr(events, "anames", anames)


def report_details(monkeypatch: pytest.MonkeyPatch, *, top: list[KeyCount[str]], recent: list[RecentEvent]) -> None:
    """Makes the nodes report these keys and samples of every event."""
    total = max(1, sum(times for _, times, _ in top))

    async def adetails(name: str, **how: Any) -> Details:
        return Details(Counts(total, [total] + [0] * 59, [total] + [0] * 47), top, recent)

    monkeypatch.setattr(events, "adetails", adetails)


def links(page: Page) -> list[str]:
    """The links to events."""
    return [str(attrs["href"]) for attrs in page.all("a") if str(attrs.get("href")).startswith("?name=")]


@pytest.mark.usefixtures("cluster")
class TestNames:
    def test_tracked_events_are_listed_and_linked(self, client: Client, name: str) -> None:
        events.track(name, times=1234)
        assert events.flush(60)
        page = Page(client.get(PAGE, {"q": name}))
        assert re.search(rf"{name} 1,?234 1,?234 1,?234 \d\.\d s ago", page.text)
        [link] = links(page)
        assert link == f"?{urlencode({'name': name}).replace('+', '%20')}"
        assert "1234" in Page(client.get(PAGE + link)).text.replace(",", "")

    def test_busiest_of_the_last_hour_is_first(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        report_names(monkeypatch, totals("a", 5), totals("b", 7), EventTotals("c", 0, 5, 9, 1.0), totals("d", 0))
        assert links(Page(client.get(PAGE))) == ["?name=b", "?name=c", "?name=a", "?name=d"]

    def test_list_is_cut_at_200_names_and_says_how_many_are_missing(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report_names(monkeypatch, *(totals(f"e{number:04}", number) for number in range(1203)))
        page = Page(client.get(PAGE))
        assert len(links(page)) == panel.MAX_NAMES == 200
        assert links(page)[0] == "?name=e1202"
        assert "1,003 more are not shown." in page.text
        assert "more" not in Page(client.get(PAGE, {"q": "e00"})).text
        assert len(links(Page(client.get(PAGE, {"q": "e00"})))) == 100

    def test_filter_is_a_part_of_the_name_in_any_case(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        report_names(monkeypatch, totals("Export.failed"), totals("export.done"), totals("login"))
        page = Page(client.get(PAGE, {"q": " EXPORT. "}))
        assert links(page) == ["?name=Export.failed", "?name=export.done"]
        [field] = [attrs for attrs in page.all("input") if attrs.get("name") == "q"]
        assert field["value"] == " EXPORT. "
        assert field["id"] in [attrs.get("for") for attrs in page.all("label")]

    def test_filter_without_a_match_says_so(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        report_names(monkeypatch, totals("export"), totals("login"))
        page = Page(client.get(PAGE, {"q": NASTY}))
        assert links(page) == []
        assert f"None of the 2 names contains {NASTY} ." in page.text

    def test_page_without_events_shows_how_to_track_one(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        report_names(monkeypatch)
        page = Page(client.get(PAGE))
        assert "Nothing has been tracked yet." in page.text
        assert 'track("export.failed", key=' in page.text
        assert not [attrs for attrs in page.all("a") if "://" in str(attrs.get("href"))]

    def test_names_are_escaped_in_text_and_links(self, client: Client) -> None:
        events.track(NASTY)
        assert events.flush(60)
        response = client.get(PAGE, {"q": NASTY})
        [link] = links(Page(response))
        assert "<script>alert" not in response.content.decode()
        response = client.get(PAGE + link)
        assert response.context["name"] == NASTY
        assert response.context["total"] >= 1
        assert NASTY in Page(response).text
        assert "<script>alert" not in response.content.decode()


@pytest.mark.usefixtures("cluster")
class TestOneEvent:
    def test_counts_keys_and_samples_of_all_nodes_are_shown(self, client: Client, name: str) -> None:
        for number in range(45):  # no more samples than are shown: a node that is slower to answer has older ones
            events.track(name, number % 30, reason="timeout", rows=12_000 + number)
        events.track(name, "often", times=155)
        assert events.flush(60)
        response = client.get(PAGE, {"name": name})
        page = Page(response)
        assert {sample.node for sample in response.context["samples"]} == set(NODES)
        assert (
            "200 in the last minute, 200 in the last hour, 200 in the last two days, 200 since the first one."
            in page.text
        )
        assert "By minute, for an hour: 200 in all, 200 in the busiest minute" in page.text
        assert "By hour, for two days: 200 in all, 200 in the busiest hour" in page.text
        assert "often 155 77.5 %" in page.text
        assert "11 more keys are kept." in page.text
        assert "timeout" in page.text
        assert re.search(r"12_?0\d\d", page.text)
        assert page.all("title") == [{}]

    def test_charts_have_an_accessible_name_and_a_table(self, client: Client, name: str) -> None:
        events.track(name, times=5)
        assert events.flush(60)
        response = client.get(PAGE, {"name": name})
        page = Page(response)
        charts = [attrs for attrs in page.all("svg") if attrs.get("role") == "img"]
        captions = [attrs["id"] for attrs in page.all("figcaption")]
        assert [attrs["aria-labelledby"] for attrs in charts] == captions
        assert len(page.all("rect")) == 60 + 48 + 1
        assert all(set(attrs) <= {"x", "y", "width", "height"} for attrs in page.all("rect"))
        assert [sum(response.context[chart].counts) for chart in ("minutes", "hours")] == [5, 5]
        assert page.text.count("The numbers") == 2

    def test_charts_have_the_size_in_the_template(self, client: Client, name: str) -> None:
        events.track(name)
        assert events.flush(60)
        boxes = [attrs["viewbox"] for attrs in Page(client.get(PAGE, {"name": name})).all("svg") if "viewbox" in attrs]
        width, height = panel.CHART
        assert boxes == [f"0 0 {width} {height}"] * 2 + [f"0 0 {panel.SHARE} 10"]

    def test_coordinates_of_charts_are_not_localized(self, client: Client, name: str) -> None:
        for times in (1, 3, 7):
            events.track(name, times, times=times)
        assert events.flush(60)
        with translation.override("de"):
            response = client.get(PAGE, {"name": name}, headers={"accept-language": "de"})
        page = Page(response)
        numbers = [number for attrs in page.all("rect") for number in attrs.values()]
        assert "42.86" in numbers
        assert all(re.fullmatch(r"\d+(\.\d+)?", str(number)) for number in numbers)
        assert "63,6 %" in page.text

    def test_guaranteed_minimum_of_a_number_is_shown(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        report_details(monkeypatch, top=[KeyCount("a", 2000, 500), KeyCount("b", 3, 0)], recent=[])
        page = Page(client.get(PAGE, {"name": "e"}))
        assert "a 2,000 at least 1,500" in page.text
        assert page.text.count("at least") == 1

    def test_event_without_a_key_or_fields(self, client: Client, name: str) -> None:
        events.track(name)
        assert events.flush(60)
        page = Page(client.get(PAGE, {"name": name}))
        assert "without a key 1 100.0 %" in page.text
        assert "Other fields" not in page.text

    def test_keys_and_fields_are_escaped_and_wrapped(self, client: Client, name: str) -> None:
        fields: dict[str, Any] = {NASTY: NASTY}
        events.track(name, NASTY, **fields)
        events.track(name, "k" * 200)
        assert events.flush(60)
        response = client.get(PAGE, {"name": name})
        content = response.content.decode()
        assert "<script>alert" not in content
        assert content.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5  # each key also tells its row from others
        wrapped = [attrs.get("class") for tag in ("th", "td") for attrs in Page(response).all(tag)]
        assert wrapped.count("clusterstate-text") == 2 + 2 * 2

    def test_unknown_event_says_so(self, client: Client, name: str) -> None:
        for unknown in (name, "x" * 101, NASTY):
            page = Page(client.get(PAGE, {"name": f"{unknown}?"}))
            assert f"No event {unknown}? is known" in page.text
            assert "?" in [attrs.get("href") for attrs in page.all("a")]

    def test_page_reads_from_right_to_left(self, client: Client, name: str) -> None:
        events.track(name, "somebody")
        assert events.flush(60)
        with translation.override("ar"):
            page = Page(client.get(PAGE, {"name": name}))
        assert page.all("html")[0]["dir"] == "rtl"
        assert "somebody" in page.text

    def test_page_works_under_asgi(self, name: str) -> None:
        events.track(name, "somebody")
        assert events.flush(60)
        user = User.objects.create_superuser("root")

        async def view(**query: str) -> Any:
            browser = AsyncClient()
            await browser.aforce_login(user)
            return await browser.get(PAGE, query)

        assert "somebody" in Page(async_to_sync(view)(name=name)).text
        assert name in Page(async_to_sync(view)(q=name)).text


@pytest.mark.usefixtures("cluster")
class TestLive:
    def test_response_is_only_the_part_that_may_change(self, client: Client, name: str) -> None:
        events.track(name, "somebody")
        assert events.flush(60)
        for query in ({"name": name}, {"q": name}, {"name": "unknown"}):
            whole, part = (Page(client.get(PAGE, {**query, **more})) for more in ({}, {"live": ""}))
            assert part.all("html") == []
            assert part.all("h1") == []
            sections = [attrs["id"] for _, attrs in part.tags if "data-live" in attrs]
            assert sections
            assert sections == [attrs["id"] for _, attrs in whole.tags if "data-live" in attrs]

    def test_each_row_has_a_key(self, client: Client, name: str) -> None:
        events.track(name, "a")
        events.track(name, "b")
        assert events.flush(60)
        page = Page(client.get(PAGE, {"name": name, "live": ""}))
        rows = [attrs["data-key"] for attrs in page.all("tr") if "data-key" in attrs]
        assert {"a", "b"} <= set(rows)
        assert len(rows) == len(set(rows)) == 4

    def test_new_events_are_in_the_next_response(self, client: Client, name: str) -> None:
        events.track(name)

        def shown() -> bool:
            return client.get(PAGE, {"name": name, "live": ""}).context.get("total") == 1

        wait_until(shown, 60, "the event")


class TestPermissions:
    @pytest.mark.parametrize("query", ["", "?name=a", "?live"])
    def test_anonymous_is_sent_to_the_login(self, query: str) -> None:
        response = Client().get(PAGE + query)
        assert response.status_code == 302
        assert response["Location"].startswith(f"{reverse('admin:login')}?next={PAGE}")

    @pytest.mark.parametrize("query", ["", "?name=a", "?live"])
    def test_staff_without_the_permission_is_refused(self, query: str) -> None:
        browser = Client()
        browser.force_login(staff("clerk", "view_user"))
        assert browser.get(PAGE + query).status_code == 403

    @pytest.mark.usefixtures("cluster")
    def test_staff_with_the_permission_sees_it(self, name: str) -> None:
        events.track(name)
        assert events.flush(60)
        browser = Client()
        browser.force_login(staff("operator", "view_cluster"))
        assert name in Page(browser.get(PAGE, {"q": name})).text

    def test_link_has_a_name(self) -> None:
        assert reverse("admin:django_clusterstate_cluster_events") == PAGE

    @pytest.mark.usefixtures("nowhere")
    def test_tab_is_the_current_one(self, client: Client) -> None:
        overview = reverse("admin:django_clusterstate_cluster_changelist")
        for page in (PAGE, overview):
            links = [attrs for attrs in Page(client.get(page)).all("a") if attrs.get("aria-current") == "page"]
            assert (PAGE in [attrs["href"] for attrs in links]) is (page == PAGE)
        assert PAGE in [attrs.get("href") for attrs in Page(client.get(overview)).all("a")]


class TestTrouble:
    @pytest.mark.usefixtures("nowhere")
    @pytest.mark.parametrize("query", [{}, {"name": "a"}, {"live": ""}], ids=str)
    def test_without_a_node_it_says_how_to_start_one(self, client: Client, query: dict[str, str]) -> None:
        page = Page(client.get(PAGE, query))
        assert "No node answers." in page.text
        assert "manage.py clusternode" in page.text
        assert "nowhere.sock" in page.text

    @override_settings(CLUSTERSTATE={"DEADLINE": -1})
    @pytest.mark.parametrize("query", [{}, {"name": "a"}, {"live": ""}], ids=str)
    def test_wrong_settings_are_a_message(self, client: Client, query: dict[str, str]) -> None:
        assert "CLUSTERSTATE['DEADLINE'] must be" in Page(client.get(PAGE, query)).text

    @pytest.mark.usefixtures("cluster")
    def test_failure_of_all_nodes_is_a_message(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        async def refuse(*args: str, **how: Any) -> Any:
            raise Unavailable("no such request")

        monkeypatch.setattr(events, "anames", refuse)
        monkeypatch.setattr(events, "adetails", refuse)
        assert "no such request" in Page(client.get(PAGE)).text
        assert "no such request" in Page(client.get(PAGE, {"name": "a"})).text

    @pytest.mark.usefixtures("cluster")
    @pytest.mark.parametrize("query", [{}, {"name": "a"}], ids=str)
    def test_node_that_gives_no_events_is_named(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
    ) -> None:
        call_each = requester.AsyncClient.call_each

        async def without_beta(self: Any, requests: Any, until: float | None = None) -> list[Any]:
            replies = await call_each(self, requests, until)
            return [
                wire.FailedReply(1, "none") if target.name == "beta" else reply
                for (target, _), reply in zip(requests, replies, strict=True)
            ]

        monkeypatch.setattr(requester.AsyncClient, "call_each", without_beta)
        text = Page(client.get(PAGE, query)).text
        assert "1 node does not answer. Their counts are missing here." in text
        assert re.search(r"node beta at \S+ answered with Failed", text)

    @pytest.mark.parametrize("visits", [1, 2], ids=["without connections", "with connections"])
    @pytest.mark.timing(alone=True)
    def test_rest_is_shown_within_half_a_second_when_a_node_stands_still(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, visits: int
    ) -> None:
        user = User.objects.create_superuser("root")
        gather, took = panel.gather, []

        def timed(*query: str) -> dict[str, Any]:
            start = time.perf_counter()
            found = gather(*query)
            took.append(time.perf_counter() - start)
            return found

        # What comes after it takes as long as the machine is busy.
        monkeypatch.setattr(panel, "gather", timed)

        async def last_visit(stop: Callable[[], None]) -> Any:
            browser = AsyncClient()
            await browser.aforce_login(user)
            for _ in range(visits - 1):
                await browser.get(PAGE, {"name": name})  # its connections stay, as long as this loop runs
            stop()
            return await browser.get(PAGE, {"name": name})

        with LocalCluster(folder, NODES, env={"CLUSTERSTATE_DEADLINE": "5"}) as cluster:
            cluster.start()
            cluster.wait_for()
            with using(cluster, "alpha"):
                for key in range(60):
                    events.track(name, key)
                assert events.flush(10)
                shares = {node: cluster.status(node) for node in NODES}
                expected = sum(s.stats.events for node, s in shares.items() if s is not None and node != "beta")
                assert 0 < expected < 60
                runtime.forget()  # and so the connections by which they were sent
                response = async_to_sync(last_visit)(lambda: cluster.processes["beta"].signal(signal.SIGSTOP))
                assert response.context["total"] == expected
                text = Page(response).text
                assert "1 node does not answer. Their counts are missing here." in text
                assert "node beta" in text
                assert len(took) == visits
                check_seconds(took[-1], below=1.0)  # half a second, and as much for a slow machine


class TestGathering:
    def test_chart_goes_from_the_oldest_to_the_latest(self) -> None:
        chart = panel.chart([4, 0, 1])
        assert [bar.height for bar in chart.bars] == ["20", "0", "80"]
        assert (chart.counts, chart.total, chart.peak) == ([4, 0, 1], 5, 4)

    def test_keys_have_their_share_and_a_bar_by_the_most_frequent(self) -> None:
        assert panel.keys([KeyCount("a", 60, 20), KeyCount("b", 40, 0)]) == [
            panel.TopEventKey("a", 60, 40, 60.0, "100"),
            panel.TopEventKey("b", 40, 40, 40.0, "66.67"),
        ]
        assert panel.keys([]) == []

    @pytest.mark.usefixtures("cluster")
    def test_fields_of_most_samples_have_a_column_and_others_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        common: dict[str, Any] = {f"f{number}": number for number in range(8)}
        recent = [
            RecentEvent("a", {"rare": 1.5, "true": True}, 0.0, "alpha", 2),
            RecentEvent("b", common, 1.0, "alpha", 1),
            RecentEvent("c", {**common, "f0": ""}, 2.0, "beta", 1),
        ]
        report_details(monkeypatch, top=[], recent=recent)
        context = panel.gather("e", "")
        assert context["columns"] == list(common)
        assert context["others"]
        first, second, third = context["samples"]
        assert (first.values, first.others) == ([None] * 8, [("rare", "1.5"), ("true", "True")])
        assert (second.values, second.others) == (list("01234567"), [])
        assert third.values[0] == ""
        assert [sample.id for sample in context["samples"]] == ["alpha-2", "alpha-1", "beta-1"]
