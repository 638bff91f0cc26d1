"""What clients are told of the throttles of frameworks, where the middleware is."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponseBase
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from ninja import NinjaAPI
from ninja.throttling import BaseThrottle
from rest_framework.response import Response
from rest_framework.views import APIView

from django_clusterstate.contrib import drf, ninja
from django_clusterstate.decorators import cluster_ratelimit

pytestmark = pytest.mark.usefixtures("cluster")

OK, DENIED = 200, 429
MIDDLEWARE = ["django_clusterstate.middleware.ClusterRatelimitMiddleware"]
DRAFT, X = {"RateLimit", "RateLimit-Policy"}, {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}


class Burst(drf.AnonRateThrottle):
    scope, rate = "burst", "2/m"


class Sustained(drf.AnonRateThrottle):
    scope, rate = "sustained", "9/d"


class Throttled(APIView):  # type: ignore[misc]
    throttle_classes = (Sustained, Burst)

    def get(self, request: Any) -> Response:
        return Response("seen")


api = NinjaAPI(urls_namespace=uuid4().hex)
throttles: list[BaseThrottle] = [ninja.AuthRateThrottle("9/d"), ninja.AnonRateThrottle("2/m")]


@api.get("/sync", throttle=throttles)
def seen(request: HttpRequest) -> str:
    return "seen"


@api.get("/async", throttle=throttles)
async def aseen(request: HttpRequest) -> str:
    return "seen"


@api.get("/limited", throttle=throttles)
@cluster_ratelimit(key="get:k", rate="0/h")
def limited(request: HttpRequest) -> str:
    return "never seen"


urlpatterns = [path("drf/", Throttled.as_view()), path("ninja/", api.urls)]


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that no other test counts in."""
    name = uuid4().hex
    monkeypatch.setattr(drf, "GROUP", name)
    monkeypatch.setattr(ninja, "GROUP", name)
    return name


@pytest.fixture(params=["wsgi", "asgi"])
def ask(request: pytest.FixtureRequest) -> Iterator[Any]:
    def ask(url: str) -> HttpResponseBase:
        response: HttpResponseBase
        response = Client().get(url) if request.param == "wsgi" else async_to_sync(AsyncClient().get)(url)
        return response

    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE):
        yield ask


@pytest.mark.parametrize("url", ["/drf/", "/ninja/sync", "/ninja/async"])
def test_headers_are_those_of_the_strictest_throttle(ask: Any, url: str) -> None:
    responses = [ask(url) for _ in range(3)]
    assert [response.status_code for response in responses] == [OK, OK, DENIED]
    assert {response["RateLimit-Policy"] for response in responses} == {'"2/60s";q=2;w=60'}
    assert [response["RateLimit"].rpartition(";")[0] for response in responses] == [f'"2/60s";r={n}' for n in (1, 0, 0)]
    assert int(responses[2]["Retry-After"]) > 0


@pytest.mark.parametrize("wanted", ["draft", "x", "both", "off"])
@pytest.mark.parametrize("url", ["/drf/", "/ninja/sync"])
def test_headers_are_those_that_the_setting_names(ask: Any, url: str, wanted: str) -> None:
    with override_settings(CLUSTERSTATE={"LIMITS_HEADERS": wanted}):
        response = ask(url)
    expected = {"draft": DRAFT, "x": X, "both": DRAFT | X, "off": set()}[wanted]
    assert {name for name in response.headers if "ratelimit" in name.lower()} == expected


def test_headers_of_a_throttle_are_kept_by_a_limit_of_the_site(ask: Any, group: str) -> None:
    with override_settings(CLUSTERSTATE={"LIMITS": [{"rate": "1/h", "group": group}]}):
        responses = [ask("/drf/") for _ in range(2)]
    assert [response["RateLimit-Policy"] for response in responses] == ['"2/60s";q=2;w=60', '"1/3600s";q=1;w=3600']


def test_headers_of_an_inner_decorator_are_kept(ask: Any) -> None:
    assert ask("/ninja/limited")["RateLimit"].startswith('"0/3600s"')


def test_without_the_middleware_a_denial_has_retry_after(ask: Any) -> None:
    with override_settings(MIDDLEWARE=[]):
        responses = [ask("/drf/") for _ in range(3)]
    assert [response.has_header("RateLimit") for response in responses] == [False] * 3
    assert [response.has_header("Retry-After") for response in responses] == [False, False, True]
