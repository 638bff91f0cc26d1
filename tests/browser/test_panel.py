"""The admin's panel in a browser."""

import itertools
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from testproject.panel import NODES, PAGE, Panel
from testproject.processes import wait_until
from tests.browser.conftest import HASTE, SERVERS, Visit, Visited, assert_accessible, assert_fits, focused, is_refresh

pytestmark = pytest.mark.browser

VICTIM = NODES[-1]
KEY = f"{PAGE}?kind=plain&key=k"
NARROW = {"width": 360, "height": 640}
SMALL = {"width": 1200, "height": 800}  # the admin's navigation takes 300 pixels of it
MINUTE = 60_000

# What a member's row shows when there is much to say: the cell's place, the part of it (none: its own text), and that.
LENGTHY = [
    (0, "bdi", "ip-10-0-12-34.eu-central-1.compute.internal"),
    (1, "span", "suspect"),
    (2, "bdi", "[fd00:1234:5678:9abc:1234:5678:9abc:1234]:43700"),
    (3, "", "23 h 59 min"),
    (4, "", "4.5 s ago"),
    (5, "", "1,234.5/s"),
    (5, "small", "1,234,567,890 in all"),
    (6, "small", "123 live limits evicted: raise LIMITS_MAX_BYTES"),
]
LENGTHEN = """(texts) => {
    const cells = document.querySelector("#clusterstate-members tr[data-key]").cells;
    for (const [place, part, text] of texts) {
        (part ? cells[place].querySelector(part) : cells[place].firstChild).textContent = text;
    }
}"""


def row(page: Page, name: str) -> str:
    return page.locator(f'tr[data-key="{name}"]').inner_text()


def beside(page: Page) -> int:
    """How many pixels of the members' table must be scrolled to."""
    pixels: int = page.evaluate("""() => {
        const table = document.querySelector("#clusterstate-members-table");
        return table.scrollWidth - table.clientWidth;
    }""")
    return pixels


def press_until(page: Page, key: str, id_: str) -> None:
    for _ in range(60):
        page.keyboard.press(key)
        if focused(page) == id_:
            return
    raise AssertionError(f"{key} never led to {id_}")


@pytest.mark.parametrize("server", SERVERS)
class TestBothServers:
    def test_page_loads_without_messages_in_the_console_and_refreshes_itself(self, visit: Visit, server: str) -> None:
        visited = visit(server=server, before=HASTE)
        expect(visited.page.locator("#clusterstate-agreement")).to_contain_text("All 3 nodes have the same view.")
        visited.page.evaluate("window.notReloaded = true")
        visited.await_refresh(2)
        expect(visited.page.locator("#clusterstate-announcement")).to_have_text("")  # nothing has changed
        assert visited.page.evaluate("window.notReloaded")
        assert visited.page.locator("#clusterstate-members tr[data-key]").count() == 3

    def test_node_that_is_killed_and_comes_back_is_seen_without_a_reload(
        self, visit: Visit, panel: Panel, server: str
    ) -> None:
        visited = visit(server=server)
        page = visited.page
        state = page.locator(f'tr[data-key="{VICTIM}"] .clusterstate-state')
        announcement = page.locator("#clusterstate-announcement")
        page.evaluate("window.notReloaded = true")
        expect(state).to_have_text("alive")
        expect(announcement).to_have_text("")
        panel.nodes.kill(VICTIM)
        try:
            expect(state).to_have_text("down")
            expect(announcement).to_have_text("2 nodes answer. The views agree.")
        finally:
            panel.nodes.start(VICTIM)
        expect(state).to_have_text("alive")
        expect(announcement).to_have_text("3 nodes answer. The views agree.")
        assert page.evaluate("window.notReloaded")
        panel.nodes.wait_for()


def test_policy_is_in_force_here(visit: Visit) -> None:
    visited = visit()
    visited.page.evaluate("""document.body.insertAdjacentHTML("beforeend", '<p style="color: red">')""")
    assert any("Content Security Policy" in problem for problem in visited.problems)
    visited.problems.clear()


class TestRefresh:
    def test_is_one_request_about_every_two_seconds(self, visit: Visit) -> None:
        visited = visit(KEY)
        visited.await_refresh(3)
        assert len(visited.requests) == len(visited.refreshes) == 3
        assert all(request.url.endswith("?kind=plain&key=k&live=") for request in visited.requests)
        starts = [request.timing["startTime"] / 1000 for request in visited.requests]
        assert all(1.9 < after - before < 3 for before, after in itertools.pairwise(starts))

    def test_keeps_focus_scroll_position_and_selection(self, visit: Visit) -> None:
        visited = visit(viewport=NARROW, before=HASTE)
        page = visited.page
        page.evaluate("""() => {
            window.region = document.querySelector("#clusterstate-members .clusterstate-scroll");
            region.focus();
            region.scrollLeft = 50;
            getSelection().selectAllChildren(document.querySelector("tr[data-key] bdi"));
        }""")
        address = page.evaluate("getSelection().toString()")
        assert address
        before = row(page, NODES[1])
        visited.await_refresh(2)
        assert row(page, NODES[1]) != before  # heartbeats, at least
        assert page.evaluate("document.activeElement === region && region.isConnected")
        assert page.evaluate("region.scrollLeft") == 50
        assert page.evaluate("getSelection().toString()") == address

    def test_changes_rows_by_their_name_and_keeps_details_open(self, visit: Visit) -> None:
        page = visit(before=HASTE).page
        names = "bc"

        def answer(route: Route) -> None:
            rows = "".join(f'<tr data-key="{name}"><td>{name} of {names}</td></tr>' for name in names)
            table = f"<details data-key='more'><summary>{names}</summary><table>{rows}</table></details>"
            route.fulfill(body=f'<section id="one" data-live>{table}</section>')

        page.route(is_refresh, answer)
        page.get_by_text("bc", exact=True).click()
        page.evaluate("window.b = document.querySelector('[data-key=b]')")
        for names in ("abc", "ab", "bda", "b"):
            expect(page.locator("#one td")).to_have_text([f"{name} of {names}" for name in names])
            assert page.evaluate("document.querySelector('details').open && b.isConnected")
            assert page.evaluate("b.textContent") == f"b of {names}"
        assert page.locator("[data-live]").count() == 1

    def test_row_that_stays_is_the_same_element(self, visit: Visit) -> None:
        visited = visit(before=HASTE)
        visited.page.evaluate("window.row = document.querySelector('tr[data-key]')")
        visited.await_refresh(2)
        assert visited.page.evaluate("row.isConnected")

    def test_waits_for_a_response_before_the_next_request(self, visit: Visit) -> None:
        visited = visit(KEY, clock=True)
        held: list[Route] = []
        page = visited.page
        page.route(is_refresh, lambda route: held.append(route))  # noqa: PLW0108 - not a built-in method
        with page.expect_request(lambda request: is_refresh(request.url)):
            page.clock.run_for(2_000)
        page.clock.run_for(5_000)  # just before it is given up
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Resume").click()
        page.clock.run_for(100)
        assert len(visited.requests) == 1
        with page.expect_event("requestfinished", lambda request: is_refresh(request.url)):
            held[0].continue_()
        with page.expect_request(lambda request: is_refresh(request.url)):
            page.clock.run_for(2_000)

    def test_response_after_pause_is_not_shown(self, visit: Visit) -> None:
        page = visit(clock=True).page
        held: list[Route] = []
        page.route(is_refresh, lambda route: held.append(route))  # noqa: PLW0108 - not a built-in method
        with page.expect_request(lambda request: is_refresh(request.url)):
            page.clock.run_for(2_000)
        page.get_by_role("button", name="Pause").click()
        with page.expect_event("requestfinished", lambda request: is_refresh(request.url)):
            held[0].fulfill(body='<p id="late" data-live>late</p>')
        page.clock.run_for(100)
        with page.expect_request(lambda request: is_refresh(request.url)):  # so the one before is done with
            page.get_by_role("button", name="Resume").click()
        expect(page.locator("#late")).to_have_count(0)

    def test_stops_on_pause_and_goes_on_at_once_on_resume(self, visit: Visit) -> None:
        visited = visit(clock=True)
        page = visited.page
        page.get_by_role("button", name="Pause").click()
        self.assert_no_request_for_a_minute(visited)
        with page.expect_request(lambda request: is_refresh(request.url), timeout=1000):
            page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()

    def test_makes_no_request_while_the_tab_is_hidden(self, visit: Visit) -> None:
        visited = visit(clock=True)
        turn = """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        visited.page.evaluate(turn, True)
        self.assert_no_request_for_a_minute(visited)
        with visited.page.expect_request(lambda request: is_refresh(request.url), timeout=1000):
            visited.page.evaluate(turn, False)

    @staticmethod
    def assert_no_request_for_a_minute(visited: Visited) -> None:
        visited.requests.clear()
        visited.page.clock.run_for(MINUTE)
        assert visited.requests == []


class TestTrouble:
    def test_note_is_shown_while_the_site_does_not_answer(self, visit: Visit, panel: Panel) -> None:
        visited = visit(before=HASTE)
        note = visited.page.get_by_role("status").filter(has_text="The site does not answer.")
        panel.stop(SERVERS[0])
        try:
            expect(note).to_contain_text(re.compile(r"out of date since \d+:\d\d:\d\d"))
        finally:
            panel.start(SERVERS[0])
        expect(note).to_have_count(0)
        assert visited.problems
        assert all("net::ERR_" in problem for problem in visited.problems)
        visited.problems.clear()

    def test_attempts_come_at_growing_intervals_and_the_note_is_written_once(self, visit: Visit) -> None:
        visited = visit(
            before="""
            window.pauses = [];
            const real = setTimeout;
            window.setTimeout = (call, ms) => pauses.push(ms / 1000) && real(call, ms / 100);
            """
        )
        visited.page.route(is_refresh, lambda route: route.fulfill(status=500, body="<p data-live>no</p>"))
        visited.page.wait_for_selector("#clusterstate-trouble p")
        visited.page.evaluate("window.note = document.querySelector('#clusterstate-trouble p')")
        # Before these there may have been refreshes that went well.
        wait_until(lambda: visited.page.evaluate("pauses.slice(pauses.indexOf(4)).length >= 5"), 60, "five attempts")
        pauses = visited.page.evaluate("pauses")
        assert pauses[pauses.index(4) :][:5] == [4, 8, 16, 30, 30]
        assert visited.page.evaluate("note.isConnected")
        visited.page.unroute(is_refresh)
        visited.page.wait_for_selector("#clusterstate-trouble p", state="detached")
        wait_until(lambda: visited.page.evaluate("pauses.at(-1) === 2"), 60, "the usual interval")
        assert all("500" in problem for problem in visited.problems)
        visited.problems.clear()

    def test_response_that_is_not_a_page_of_the_panel_is_not_shown(self, visit: Visit) -> None:
        visited = visit(before=HASTE)
        visited.page.route(is_refresh, lambda route: route.fulfill(body="<h1>Back soon</h1>"))
        expect(visited.page.get_by_role("status")).to_contain_text("The site does not answer.")
        assert visited.page.locator("#clusterstate-members tr[data-key]").count() == 3

    def test_request_without_a_response_times_out(self, visit: Visit) -> None:
        page = visit(clock=True).page
        page.route(is_refresh, lambda route: None)
        with page.expect_request(lambda request: is_refresh(request.url)):
            page.clock.run_for(2_000)
        page.clock.run_for(10_000)
        expect(page.get_by_role("status")).to_contain_text("The site does not answer.")

    def test_note_is_shown_when_the_permission_is_gone(self, visit: Visit) -> None:
        visited = visit(before=HASTE)
        visited.page.route(is_refresh, lambda route: route.fulfill(status=403, body="<p data-live>no</p>"))
        expect(visited.page.get_by_role("status").first).to_contain_text("may no longer see this")
        assert all("403" in problem for problem in visited.problems)
        visited.problems.clear()

    def test_note_is_shown_after_a_logout_and_leads_to_the_login(self, visit: Visit) -> None:
        visited = visit(KEY, before=HASTE)
        visited.page.context.clear_cookies()
        expect(visited.page.get_by_role("status").first).to_contain_text("You are logged out")
        visited.page.get_by_role("link", name="Reload it").click()
        expect(visited.page.locator("#id_username")).to_be_visible()
        assert "%3Fkind%3Dplain%26key%3Dk" in visited.page.url


class TestReaders:
    """With the keyboard, without JavaScript, in the dark, on a small screen, from right to left."""

    def test_key_is_looked_up_with_the_keyboard_alone(self, visit: Visit) -> None:
        visited = visit(before=HASTE)
        page = visited.page
        press_until(page, "Tab", "id_kind")
        page.keyboard.type("Rate")
        press_until(page, "Tab", "id_group")
        page.keyboard.type("login")
        press_until(page, "Tab", "id_key")
        page.keyboard.type("ip:10.0.0.7")
        page.keyboard.press("Enter")
        expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("owns ip:10.0.0.7")
        assert "kind=limit&group=login" in page.url
        visited.await_refresh()
        expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("owns ip:10.0.0.7")

    def test_pause_comes_before_the_live_part_in_the_tab_order(self, visit: Visit) -> None:
        page = visit().page
        press_until(page, "Tab", "clusterstate-pause")
        page.keyboard.press("Space")
        expect(page.locator("#clusterstate-pause")).to_have_text("Resume")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#clusterstate-live') !== null")

    def test_page_is_complete_without_javascript(self, visit: Visit) -> None:
        page = visit(java_script_enabled=False).page
        expect(page.locator("#clusterstate-members tr[data-key]")).to_have_count(3)
        expect(page.locator("#clusterstate-pause")).to_be_hidden()
        page.fill("#id_key", "k")
        page.select_option("#id_kind", "plain")
        page.get_by_role("button", name="Look up").click()
        expect(page.locator("#clusterstate-key [role=status]")).to_contain_text("owns k")

    @pytest.mark.parametrize(
        "options",
        [{}, {"color_scheme": "dark"}, {"viewport": NARROW}, {"viewport": NARROW, "locale": "ar"}],
        ids=["light", "dark", "narrow", "narrow-right-to-left"],
    )
    def test_page_is_accessible_and_fits(self, visit: Visit, options: dict[str, Any]) -> None:
        page = visit(KEY, bypass_csp=True, **options).page
        assert page.locator("html").get_attribute("dir") == ("rtl" if "locale" in options else "ltr")
        assert_fits(page)
        assert_accessible(page)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_members_fit_beside_the_navigation(self, visit: Visit, scheme: str) -> None:
        page = visit(viewport=SMALL, color_scheme=scheme).page
        expect(page.locator("#nav-sidebar")).to_be_visible()
        assert beside(page) == 0

    def test_members_with_long_names_and_large_numbers_fit_too(self, visit: Visit) -> None:
        page = visit(viewport=SMALL).page
        page.get_by_role("button", name="Pause").click()
        page.evaluate(LENGTHEN, LENGTHY)
        assert beside(page) == 0

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_trouble_is_accessible(self, visit: Visit, scheme: str) -> None:
        visited = visit(bypass_csp=True, before=HASTE, color_scheme=scheme)
        visited.page.context.clear_cookies()
        visited.page.wait_for_selector("#clusterstate-trouble p")
        assert_accessible(visited.page)
