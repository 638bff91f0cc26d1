"""Limits beside Django's page caches: the RateLimit headers of one request never reach another client."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.cache import patch_vary_headers
from django.views.decorators.cache import cache_page
from rest_framework.decorators import api_view, throttle_classes
from rest_framework.response import Response

from django_clusterstate.contrib.drf import AnonRateThrottle
from django_clusterstate.decorators import cluster_ratelimit

UPDATE = "django.middleware.cache.UpdateCacheMiddleware"
FETCH = "django.middleware.cache.FetchFromCacheMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"
LIMITS = "django_clusterstate.middleware.ClusterRatelimitMiddleware"
OURS = ("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

made = itertools.count(1)


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"page {next(made)}", headers={"X-Own": "kept"})


async def apage(request: HttpRequest) -> HttpResponse:
    return page(request)


def varied(request: HttpRequest) -> HttpResponse:
    response = page(request)
    patch_vary_headers(response, ["X-Kind"])
    return response


def rendered(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, engines["django"].from_string("page {{ number }}"), {"number": next(made)})


class Throttle(AnonRateThrottle):
    rate = "5/d"


def numbered(request: Any) -> Response:
    return Response({"page": next(made)})


api: Any = api_view(["GET"])(throttle_classes([Throttle])(numbered))


def slow_down(request: HttpRequest, denial: object) -> HttpResponse:
    """A LIMITS_VIEW whose response a cache would keep."""
    return HttpResponse("slow down", headers={"Cache-Control": "public, max-age=60"})


def limited(view: Any, group: str) -> Any:
    return cluster_ratelimit(group, key="ip", rate="5/d")(view)


urlpatterns = [
    path("page/", page),
    path("apage/", apage),
    path("varied/", varied),
    path("rendered/", rendered),
    path("api/", api),
    path("cached-outside/", cache_page(60)(limited(page, "outside"))),
    path("acached-outside/", cache_page(60)(limited(apage, "aoutside"))),
    path("rendered-outside/", cache_page(60)(limited(rendered, "rendered"))),
    path("cached-inside/", limited(cache_page(60)(page), "inside")),
    path("acached-inside/", limited(cache_page(60)(apage), "ainside")),
    path("cached-api/", cache_page(60)(api)),
]

Ask = Callable[..., HttpResponse]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, nowhere: None) -> Iterator[Ask]:
    """Asks the site as one of several clients, under WSGI or ASGI."""
    runner = asyncio.Runner() if request.param == "async" else None

    def ask(path: str, address: str = "10.0.0.1", **headers: str) -> Any:
        headers["x-forwarded-for"] = address
        if runner is None:
            return Client().get(path, headers=headers)
        return runner.run(AsyncClient().get(path, headers=headers))

    with override_settings(
        ROOT_URLCONF=__name__,
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": __name__}},
        MIDDLEWARE=[UPDATE, LIMITS, FETCH],
    ):
        yield ask
        caches["default"].clear()
    if runner is not None:
        runner.close()


def limits(**options: Any) -> Any:
    limit = {"key": "ip", "rate": "5/d", "group": f"site {next(made)}"}
    known = {"LIMITS": [limit], "LIMITS_HEADERS": "both", "TRUSTED_PROXIES": ["127.0.0.1"]}
    return override_settings(CLUSTERSTATE={**known, **options})


def remaining(response: HttpResponse) -> int | None:
    """By both kinds of headers, which agree."""
    if not response.has_header("RateLimit"):
        assert not any(response.has_header(name) for name in OURS)
        return None
    left = int(response["RateLimit"].split(";")[1].removeprefix("r="))
    assert response["X-RateLimit-Remaining"] == str(left)
    return left


def stored() -> list[Any]:
    """The responses in the page cache."""
    cache = caches["default"]
    keys = [key.partition(":")[2].partition(":")[2] for key in cache._cache]  # type: ignore[attr-defined]
    return [cache.get(key) for key in keys if ".cache_page." in key]


VISITS = ["10.0.0.1"] * 4 + ["10.0.0.2"]


@pytest.mark.parametrize("page", ["/page/", "/apage/", "/varied/", "/rendered/"])
def test_cached_page_has_the_headers_of_each_client(ask: Ask, page: str) -> None:
    with limits():
        responses = [ask(page, address) for address in VISITS]
        assert [remaining(response) for response in responses] == [4, 3, 2, 1, 4]
        assert len({response.content for response in responses}) == 1
        (kept,) = stored()
        assert not any(kept.has_header(name) for name in OURS)


@pytest.mark.parametrize("order", list(itertools.permutations([UPDATE, LIMITS, FETCH])))
def test_no_order_of_decorators_shows_the_limit_of_another_client(ask: Ask, order: tuple[str, ...]) -> None:
    if order.index(UPDATE) > order.index(FETCH):
        return  # Django's own don't cache then
    with limits(), override_settings(MIDDLEWARE=order):
        told = [remaining(ask("/page/", address)) for address in VISITS]
        counts = order.index(LIMITS) < order.index(FETCH)
        assert told == ([4, 3, 2, 1, 4] if counts else [4, None, None, None, None])


@pytest.mark.parametrize("page", ["/cached-outside/", "/acached-outside/", "/rendered-outside/", "/cached-api/"])
def test_page_cached_outside_its_limit_has_headers_only_when_counted(ask: Ask, page: str) -> None:
    with limits(LIMITS=[]), override_settings(MIDDLEWARE=[]):
        responses = [ask(page, address) for address in VISITS]
        assert [remaining(response) for response in responses[1:]] == [None] * 4
        assert remaining(responses[0]) == (None if "api" in page else 4)
        assert len({response.content for response in responses}) == 1


@pytest.mark.parametrize("page", ["/cached-inside/", "/acached-inside/"])
def test_a_page_that_is_cached_below_its_limit_is_counted_each_time(ask: Ask, page: str) -> None:
    with limits(LIMITS=[]), override_settings(MIDDLEWARE=[]):
        responses = [ask(page, address) for address in VISITS]
        assert [remaining(response) for response in responses] == [4, 3, 2, 1, 4]
        assert len({response.content for response in responses}) == 1


def test_throttles_of_a_cached_page(ask: Ask) -> None:
    """They are asked when the view runs, and not when the page comes from the cache."""
    with limits(LIMITS=[]):
        assert [remaining(ask("/api/", address)) for address in VISITS] == [4, None, None, None, None]


def test_varying_page_is_cached_for_each_with_headers_of_the_same_limit(ask: Ask) -> None:
    with limits():
        kinds = ["a", "b", "a", "b"]
        responses = [ask("/varied/", **{"x-kind": kind}) for kind in kinds]
        assert [remaining(response) for response in responses] == [4, 3, 2, 1]
        assert len({response.content for response in responses}) == 2
        assert responses[0]["Vary"] == "X-Kind"


@pytest.mark.parametrize("order", [(UPDATE, LIMITS, CONDITIONAL, FETCH), (LIMITS, UPDATE, CONDITIONAL, FETCH)])
def test_a_page_that_is_not_modified_has_the_headers_of_this_request(ask: Ask, order: tuple[str, ...]) -> None:
    with limits(), override_settings(MIDDLEWARE=order):
        first = ask("/page/")
        again = ask("/page/", **{"if-none-match": first["ETag"]})
        other = ask("/page/", "10.0.0.2", **{"if-none-match": first["ETag"]})
        assert [response.status_code for response in (first, again, other)] == [200, 304, 304]
        assert [remaining(response) for response in (first, again, other)] == [4, 3, 4]


def test_not_modified_made_outside_the_limit_has_no_headers(ask: Ask) -> None:
    with limits(), override_settings(MIDDLEWARE=[CONDITIONAL, UPDATE, LIMITS, FETCH]):
        first = ask("/page/")
        assert remaining(ask("/page/", **{"if-none-match": first["ETag"]})) is None


@pytest.mark.parametrize(("view", "status"), [("", 429), (f"{__name__}.slow_down", 200)])
def test_a_refusal_is_never_stored(ask: Ask, view: str, status: int) -> None:
    limit = {"key": "ip", "rate": "1/d", "group": f"refused {next(made)}"}
    with limits(LIMITS=[limit], LIMITS_VIEW=view), override_settings(MIDDLEWARE=[UPDATE, FETCH, LIMITS]):
        ask("/page/?1")
        refused = ask("/page/?2")
        assert refused.status_code == status
        assert "no-store" in refused["Cache-Control"]
        assert b"page" in ask("/page/?2", "10.0.0.2").content


def test_a_sites_own_headers_stay_with_the_page(ask: Ask) -> None:
    with limits():
        assert [ask("/page/")["X-Own"] for _ in range(2)] == ["kept"] * 2
