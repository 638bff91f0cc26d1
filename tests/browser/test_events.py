"""The tab "Events" in a browser."""

import re
import uuid
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from django_clusterstate import events
from testproject.panel import NODES, PAGE, Panel
from tests.browser.conftest import HASTE, SERVERS, Visit, assert_accessible, assert_fits, focused
from tests.conftest import using

pytestmark = pytest.mark.browser

NARROW = {"width": 360, "height": 640}
LONG = "k" * 200


@pytest.fixture
def name(panel: Panel) -> Iterator[str]:
    """An event of a few keys; this process is on the host of the site."""
    name = f"event {uuid.uuid4()}"
    with using(panel.nodes, NODES[0]):
        for number in range(30):
            events.track(name, number % 7, reason="timeout", rows=number)
        events.track(name, LONG, reason="<script>alert(1)</script>")
        assert events.flush(10)
        yield name


@pytest.mark.parametrize("server", SERVERS)
def test_counts_grow_and_opened_details_stay_open(visit: Visit, server: str, name: str) -> None:
    visited = visit(f"{PAGE}events/?name={name}", server=server)
    page = visited.page
    chart = page.get_by_role("img", name=re.compile(r"By minute, for an hour: 31 in all"))
    expect(chart).to_be_visible()
    page.locator("#clusterstate-minutes summary").click()  # the numbers
    events.track(name, "new", times=1000)
    expect(page.locator("#clusterstate-minutes figcaption")).to_contain_text("1,031 in all")
    expect(page.locator('tr[data-key="new"]')).to_contain_text("1,000")
    assert page.locator("#clusterstate-minutes details").get_attribute("open") is not None
    expect(page.locator("#clusterstate-minutes details td").first).to_have_text("1,031")
    assert page.evaluate("document.activeElement.localName") == "summary"


def test_filter_keeps_what_is_being_typed(visit: Visit, name: str) -> None:
    visited = visit(f"{PAGE}events/", before=HASTE)
    field = visited.page.get_by_label("Name contains")
    field.click()
    visited.page.keyboard.type(name[:20])
    visited.await_refresh(2)
    expect(field).to_have_value(name[:20])
    assert focused(visited.page) == "id_q"
    visited.page.keyboard.press("Enter")
    expect(visited.page.locator("tr[data-key]")).to_have_count(1)
    visited.await_refresh(2)
    expect(visited.page.locator("tr[data-key]")).to_have_count(1)
    visited.page.get_by_role("link", name=name).click()
    expect(visited.page.locator("h1").nth(0)).to_be_visible()
    expect(visited.page.locator("#clusterstate-event")).to_contain_text("31")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en", "ar"])
def test_pages_are_accessible(visit: Visit, name: str, scheme: str, locale: str) -> None:
    for path in (f"{PAGE}events/", f"{PAGE}events/?name={name}", f"{PAGE}events/?name=unknown", f"{PAGE}events/?q=zz"):
        visited = visit(path, bypass_csp=True, color_scheme=scheme, locale=locale)
        for summary in visited.page.locator("#clusterstate-live summary").all():
            summary.click()
        assert_accessible(visited.page)


@pytest.mark.parametrize("locale", ["en", "ar"])
def test_pages_fit_a_narrow_screen(visit: Visit, name: str, locale: str) -> None:
    for path in (f"{PAGE}events/", f"{PAGE}events/?name={name}", f"{PAGE}events/?name={'u' * 90}"):
        assert_fits(visit(path, viewport=NARROW, locale=locale).page)
