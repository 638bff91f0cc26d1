"""What a limit does with a request beyond counting it, by the decorator and for whole sites by the middleware."""

import asyncio
import json
import pickle
import time
from collections.abc import Iterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from django.views import View

from django_clusterstate import runtime
from django_clusterstate.decorators import (
    ALL,
    UNSAFE,
    aget_usage,
    ais_ratelimited,
    cluster_ratelimit,
    get_usage,
    is_ratelimited,
)
from django_clusterstate.middleware import read_limits
from django_clusterstate.ratelimit import ALGORITHMS, Limit, Ratelimited, hit, peek
from django_clusterstate.ratelimit.keys import client_of
from testproject.processes import LocalCluster
from tests.counting import watch_requests
from tests.timing import is_left
from tests.views import ViewVariant, from_ip, get, statuses

OK, FORBIDDEN, DENIED, BUSY = HTTPStatus.OK, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS, 503


class settings:  # noqa: N801 - reads as a word
    """CLUSTERSTATE has these entries."""

    def __init__(self, **entries: Any) -> None:
        self._override = override_settings(CLUSTERSTATE=entries)

    def __enter__(self) -> None:
        self._override.enable()

    def __exit__(self, *exc_info: object) -> None:
        self._override.disable()


def cost_of(group: str, request: HttpRequest) -> int:
    return int(request.GET.get("cost", "2"))


def is_staff(group: str, request: HttpRequest) -> bool:
    return "X-Staff" in request.headers


def is_plain(group: str, request: HttpRequest) -> bool:
    return request.path == "/api/"


def failed(request: HttpRequest, response: HttpResponseBase) -> bool:
    return response.status_code >= 400


# -- which requests count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exempt", [is_staff, f"{__name__}.is_staff"])
def test_exempt_requests_neither_count_nor_are_limited(variant: ViewVariant, exempt: Any) -> None:
    ask = variant.limited(rate="1/d", exempt=exempt)
    staff = [get(HTTP_X_STAFF="yes") for _ in range(3)]
    assert statuses(ask, *staff, get(), get(), staff[0]) == [OK, OK, OK, OK, DENIED, OK]
    assert not ask(staff[0]).has_header("RateLimit")


def test_limits_can_be_switched_off(variant: ViewVariant, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = variant.limited(rate="0/s")
    requests = watch_requests(monkeypatch)
    with settings(LIMITS_ENABLED=False):
        assert ask().content == b"limited=False"
    assert not requests
    assert ask().status_code == DENIED


@pytest.mark.parametrize(
    ("masks", "one", "other", "together"),
    [
        ({}, "10.0.0.1", "10.0.0.2", False),
        ({"IPV4_MASK": 24}, "10.0.0.1", "10.0.0.2", True),
        ({"IPV4_MASK": 24}, "10.0.0.1", "10.0.1.1", False),
        ({"IPV4_MASK": 0}, "10.0.0.1", "1.2.3.4", True),
        ({"IPV6_MASK": 128}, "2001:db8::1", "2001:db8::2", False),
        ({"IPV6_MASK": 48}, "2001:db8:0:1::1", "2001:db8:0:2::1", True),
    ],
)
def test_clients_count_by_network_of_the_given_size(
    variant: ViewVariant, masks: dict[str, int], one: str, other: str, together: bool
) -> None:
    ask = variant.limited(rate="1/d")
    with settings(**masks):
        assert statuses(ask, from_ip(one), from_ip(other)) == [OK, DENIED if together else OK]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("deduct_when", [failed, f"{__name__}.failed"])
def test_only_some_responses_count(variant: ViewVariant, algorithm: str, deduct_when: Any) -> None:
    def respond(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status=int(request.GET["status"]))

    ask = variant.limited(respond, rate="2/d", algorithm=algorithm, deduct_when=deduct_when)
    asked = [get(query_params={"status": status}) for status in ["200", "200", "200", "401", "200", "403", "200"]]
    assert statuses(ask, *asked) == [200, 200, 200, 401, 200, 403, DENIED]


def test_hit_that_may_be_deducted_counts_while_the_view_runs(variant: ViewVariant) -> None:
    """So that no more logins are tried at once than are left."""
    seen = []
    group = uuid4().hex

    def respond(request: HttpRequest) -> HttpResponse:
        seen.append(hit(Limit.parse("2/d"), group, "ip:127.0.0.1", 0).remaining)
        return HttpResponse()

    ask = variant.limited(respond, group=group, rate="2/d", deduct_when=failed)
    assert statuses(ask, get(), get(), get()) == [OK] * 3
    assert seen == [1, 1, 1]


def test_a_hit_counts_when_the_view_raises(variant: ViewVariant) -> None:
    def respond(request: HttpRequest) -> HttpResponse:
        raise PermissionDenied

    ask = variant.limited(respond, rate="1/d", deduct_when=failed)
    with pytest.raises(PermissionDenied):
        ask()
    assert ask().status_code == DENIED


def test_a_client_is_its_address_and_without_one_clients_are_not_taken_for_one() -> None:
    with settings(TRUSTED_PROXIES=["10.0.0.1"]):
        assert client_of({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "2001:db8::1"}) == "2001:db8::/64"
        for meta in ({"REMOTE_ADDR": ""}, {"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": "1.2.3.4"}, {}):
            with pytest.raises(ImproperlyConfigured, match=r"address is unusable.*TRUSTED_PROXIES"):
                client_of(meta)


# -- several limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_limits_around_one_that_blocks_get_their_hits_back(variant: ViewVariant, algorithm: str) -> None:
    view = variant.view()
    outer, middle, inner = uuid4().hex, uuid4().hex, uuid4().hex
    for group, rate in ((inner, "1/d"), (middle, "3/d"), (outer, "5/d")):
        view = cluster_ratelimit(group, rate=rate, algorithm=algorithm)(view)
    assert [variant.call(view).status_code for _ in range(4)] == [OK, DENIED, DENIED, DENIED]
    left = [
        hit(Limit.parse(rate, algorithm), group, "ip:127.0.0.1", 0).remaining
        for group, rate in ((outer, "5/d"), (middle, "3/d"), (inner, "1/d"))
    ]
    assert left == [4, 2, 0]


def test_inner_limit_that_does_not_block_refunds_nothing(variant: ViewVariant) -> None:
    outer = uuid4().hex
    view = cluster_ratelimit(uuid4().hex, rate="0/s", block=False)(variant.view())
    view = cluster_ratelimit(outer, rate="5/d")(view)
    assert variant.call(view).content == b"limited=True"
    assert hit(Limit.parse("5/d"), outer, "ip:127.0.0.1", 0).remaining == 4


def test_hit_is_refunded_once(variant: ViewVariant) -> None:
    outer = uuid4().hex
    view = cluster_ratelimit(uuid4().hex, rate="0/s")(variant.view())
    view = cluster_ratelimit(outer, rate="5/d", deduct_when=lambda request, response: False)(view)
    hit(Limit.parse("5/d"), outer, "ip:127.0.0.1", 3)
    assert variant.call(view).status_code == DENIED
    assert hit(Limit.parse("5/d"), outer, "ip:127.0.0.1", 0).remaining == 2


# -- views that call others -------------------------------------------------------------------------------------


def calling(variant: ViewVariant, views: list[Any], answer: Any) -> Any:
    """A view that calls others with its own request, one after the other, and answers by their responses."""
    if variant.runner is None:
        return lambda request: answer([view(request) for view in views])

    async def view(request: HttpRequest) -> Any:
        return answer([await view(request) for view in views])

    return view


def batched(responses: list[HttpResponse]) -> HttpResponse:
    return HttpResponse(",".join(str(response.status_code) for response in responses))


def left(group: str) -> int:
    return peek(Limit.parse("9/d"), group, "ip:127.0.0.1").remaining


def of(group: str, view: Any, **options: Any) -> Any:
    return cluster_ratelimit(group, rate="9/d", **options)(view)


def blocked(variant: ViewVariant) -> Any:
    return cluster_ratelimit(uuid4().hex, rate="0/s")(variant.view())


def test_a_call_that_has_ended_keeps_its_hit_when_a_later_one_is_blocked(variant: ViewVariant) -> None:
    one, other = uuid4().hex, uuid4().hex
    stacked = of(one, of(other, variant.view()))
    view = calling(variant, [stacked, blocked(variant)], batched)
    assert [variant.call(view).content for _ in range(2)] == [b"200,429"] * 2
    assert [left(one), left(other)] == [7, 7]


@pytest.mark.parametrize("order", [1, -1], ids=["the blocked one last", "first"])
def test_a_view_that_answers_for_itself_keeps_its_hit_whatever_it_calls_is_blocked(
    variant: ViewVariant, order: int
) -> None:
    outer, inner = uuid4().hex, uuid4().hex
    called = [of(inner, variant.view()), blocked(variant)][::order]
    view = of(outer, calling(variant, called, batched))
    assert [variant.call(view).status_code for _ in range(2)] == [OK, OK]
    assert [left(outer), left(inner)] == [7, 7]


def test_a_view_that_answers_with_a_refusal_gets_its_own_hit_back_and_no_other(variant: ViewVariant) -> None:
    outer, inner = uuid4().hex, uuid4().hex
    view = of(outer, calling(variant, [of(inner, variant.view()), blocked(variant)], lambda responses: responses[-1]))
    assert variant.call(view).status_code == DENIED
    assert [left(outer), left(inner)] == [9, 8]


def test_a_view_that_refuses_by_itself_keeps_its_hit(variant: ViewVariant) -> None:
    group = uuid4().hex
    view = of(group, calling(variant, [blocked(variant)], lambda responses: HttpResponse(status=DENIED)))
    assert variant.call(view).status_code == DENIED
    assert left(group) == 8


def test_a_view_that_raises_after_a_refusal_keeps_its_hit(variant: ViewVariant) -> None:
    def fail(responses: list[HttpResponse]) -> HttpResponse:
        raise PermissionDenied

    group = uuid4().hex
    with pytest.raises(PermissionDenied):
        variant.call(of(group, calling(variant, [blocked(variant)], fail)))
    assert left(group) == 8


def test_each_call_counts_by_its_own_response(variant: ViewVariant) -> None:
    outer, inner, dry = uuid4().hex, uuid4().hex, uuid4().hex
    called = [of(inner, variant.view(), deduct_when=failed), of(dry, variant.view(), dry_run=True), blocked(variant)]
    view = of(outer, calling(variant, called, batched), deduct_when=lambda request, response: response.content)
    assert variant.call(view).content == b"200,200,429"
    assert [left(outer), left(inner), left(dry)] == [8, 9, 8]


def test_a_call_keeps_its_hit_when_one_beside_it_is_blocked_meanwhile(cluster: object) -> None:
    group = uuid4().hex

    async def main(denied: Any) -> list[Any]:
        begun, refused = asyncio.Event(), asyncio.Event()

        async def slow(request: HttpRequest) -> HttpResponse:
            begun.set()
            await refused.wait()
            return HttpResponse()

        async def quick(request: HttpRequest) -> Any:
            await begun.wait()
            try:
                return await denied(request)
            finally:
                refused.set()

        request = get()
        return list(await asyncio.gather(of(group, slow)(request), quick(request)))

    with asyncio.Runner() as runner:
        responses = runner.run(main(blocked(ViewVariant(runner))))
    assert [response.status_code for response in responses] == [OK, DENIED]
    assert left(group) == 8


def test_deduct_when_is_not_called_for_a_refusal(variant: ViewVariant) -> None:
    asked = []
    options: dict[str, Any] = {"deduct_when": lambda request, response: asked.append(response)}
    view = of(uuid4().hex, cluster_ratelimit(uuid4().hex, rate="0/s", **options)(variant.view()), **options)
    assert variant.call(view).status_code == DENIED
    assert not asked


def test_limits_around_one_whose_refusal_is_raised_get_their_hits_back(variant: ViewVariant) -> None:
    outer, inner = uuid4().hex, uuid4().hex
    view = of(outer, of(inner, blocked(variant)))
    with settings(LIMITS_VIEW=f"{__name__}.forbid"), pytest.raises(PermissionDenied):
        variant.call(view)
    assert [left(outer), left(inner)] == [9, 9]


# -- dry runs ---------------------------------------------------------------------------------------------------


def test_dry_run_counts_without_denying(variant: ViewVariant, cluster: LocalCluster) -> None:
    def told() -> tuple[int, int]:
        stats = [cluster.status(name) for name in ("alpha", "beta", "gamma")]
        assert all(stats)
        return sum(one.stats.denied for one in stats if one), sum(one.stats.dry_denied for one in stats if one)

    before = told()
    ask = variant.limited(rate="2/d", dry_run=True)
    responses = [ask() for _ in range(5)]
    assert {(response.status_code, response.content) for response in responses} == {(OK, b"limited=False")}
    assert not any(response.has_header(name) for response in responses for name in ("RateLimit", "Retry-After"))
    assert [now - then for now, then in zip(told(), before, strict=True)] == [3, 3]


def test_a_dry_run_around_a_limit_that_blocks(variant: ViewVariant) -> None:
    group = uuid4().hex
    view = cluster_ratelimit(group, rate="1/d", dry_run=True)(
        cluster_ratelimit(uuid4().hex, rate="0/s")(variant.view())
    )
    assert [variant.call(view).status_code for _ in range(2)] == [DENIED, DENIED]
    assert hit(Limit.parse("1/d"), group, "ip:127.0.0.1").allowed


# -- answers ----------------------------------------------------------------------------------------------------


def slow_down(request: HttpRequest, denial: Ratelimited) -> HttpResponse:
    limit = denial.decision.limit if denial.decision is not None else "?"
    return HttpResponse(f"{denial}|{limit}", status=BUSY)


async def aslow_down(request: HttpRequest, denial: Ratelimited) -> HttpResponse:
    await asyncio.sleep(0)
    return slow_down(request, denial)


def forbid(request: HttpRequest, denial: Ratelimited) -> HttpResponse:
    raise denial


@pytest.mark.parametrize("view", ["slow_down", "aslow_down"])
def test_a_view_of_the_project_answers(variant: ViewVariant, view: str) -> None:
    ask = variant.limited(rate="1/m")
    with settings(LIMITS_VIEW=f"{__name__}.{view}"):
        start = time.monotonic()
        responses = [ask(), ask()]
    assert [response.status_code for response in responses] == [OK, BUSY]
    seconds = int(responses[1]["Retry-After"])
    assert is_left(seconds, 60, start)
    assert responses[1].content.decode() == f"Too many requests. Try again in {seconds} s.|1"
    assert responses[1]["RateLimit"].startswith('"1/60s";r=0')


def test_a_view_of_the_project_may_leave_it_to_django(variant: ViewVariant) -> None:
    ask = variant.limited(rate="0/s")
    with settings(LIMITS_VIEW=f"{__name__}.forbid"), pytest.raises(PermissionDenied):
        ask()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("draft", {"RateLimit", "RateLimit-Policy"}),
        ("x", {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}),
        ("both", {"RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}),
        ("off", set()),
    ],
)
def test_headers_are_those_that_the_setting_names(variant: ViewVariant, wanted: str, expected: set[str]) -> None:
    ask = variant.limited(rate="1/d")
    with settings(LIMITS_HEADERS=wanted):
        responses = [ask(), ask()]
    for response in responses:
        assert {name for name in response.headers if "ratelimit" in name.lower()} == expected
    assert responses[1].has_header("Retry-After")


def test_x_headers_have_the_remaining_hits_and_the_time_of_reset(
    variant: ViewVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_clusterstate.ratelimit.responses.time", SimpleNamespace(time=lambda: 1000.5))
    ask = variant.limited(rate="2/m")
    with settings(LIMITS_HEADERS="x"):
        response = ask()
    assert [response[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")] == ["2", "1", "1061"]


# -- as django-ratelimit has it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [cluster_ratelimit, get_usage, aget_usage, is_ratelimited, ais_ratelimited],
    ids=lambda one: one.__name__,
)
def test_methods_are_attributes_of_the_functions_too(function: Any) -> None:
    assert (function.ALL, function.UNSAFE) == (ALL, UNSAFE)


def test_a_class_may_be_decorated(variant: ViewVariant) -> None:
    class Hello(View):
        get = staticmethod(variant.view())

    limited = cluster_ratelimit(uuid4().hex, rate="2/d")(Hello)
    assert limited is Hello
    view = Hello.as_view()
    assert [variant.call(view).status_code for _ in range(3)] == [OK, OK, DENIED]


def test_decorated_classes_without_a_group_count_by_themselves(variant: ViewVariant) -> None:
    def make(name: str) -> Any:
        made = type(name, (View,), {"get": staticmethod(variant.view())})
        return cluster_ratelimit(rate="1/d")(made)

    name = uuid4().hex
    one, other = make(f"{name}One"), make(f"{name}Other")
    subclass: Any = type(f"{name}Inherits", (one,), {})
    for made in (one, other, subclass):
        assert [variant.call(made.as_view()).status_code for _ in range(2)] == [OK, DENIED]
    assert not peek(Limit.parse("1/d"), f"{__name__}.{name}One.dispatch", "ip:127.0.0.1").allowed


def test_usage_is_returned_without_a_decorator(variant: ViewVariant) -> None:
    group, request = uuid4().hex, get()

    def usage(**options: Any) -> Any:
        if variant.runner is None:
            return get_usage(request, group, key="ip", rate="2/m", **options)
        return variant.runner.run(aget_usage(request, group, key="ip", rate="2/m", **options))

    def is_limited(**options: Any) -> Any:
        if variant.runner is None:
            return is_ratelimited(request, group, key="ip", rate="2/m", **options)
        return variant.runner.run(ais_ratelimited(request, group, key="ip", rate="2/m", **options))

    assert usage() == {"count": 0, "limit": 2, "should_limit": False, "time_left": 0}
    assert usage(increment=True) == {"count": 1, "limit": 2, "should_limit": False, "time_left": 60}
    assert not is_limited()
    assert not is_limited(increment=True)
    assert not request.limited  # type: ignore[attr-defined]
    assert is_limited(increment=True)
    assert request.limited  # type: ignore[attr-defined]
    assert usage()["should_limit"]
    assert usage(method="POST") is None
    assert not is_limited(method="POST")


def test_usage_is_that_of_the_methods(variant: ViewVariant) -> None:
    group, request = uuid4().hex, RequestFactory().post("/")

    def count(method: Any, *, increment: bool = False) -> int:
        asked = {"key": "ip", "rate": "2/m", "method": method, "increment": increment}
        if variant.runner is None:
            usage = get_usage(request, group, **asked)
        else:
            usage = variant.runner.run(aget_usage(request, group, **asked))
        assert usage is not None
        return usage["count"]

    assert count(ALL, increment=True) == 1
    assert [count(method, increment=True) for method in (UNSAFE, "post", "POST")] == [1, 1, 2]
    view = cluster_ratelimit(group, rate="2/m", method="POST")(variant.view())
    assert variant.call(view, request).status_code == DENIED
    assert [count(method) for method in (ALL, UNSAFE, "POST")] == [1, 1, 2]


def test_usage_needs_a_group_or_a_function() -> None:
    with pytest.raises(ImproperlyConfigured, match="group"):
        get_usage(get(), key="ip", rate="1/s")


# -- the middleware ---------------------------------------------------------------------------------------------


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"limited={getattr(request, 'limited', None)}")


async def aplain(request: HttpRequest) -> HttpResponse:
    return plain(request)


@cluster_ratelimit("inner", key="get:k", rate="1/d")
def limited(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@cluster_ratelimit("resolver", rate="0/s")
def resolver(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def resolving(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"resolved={resolver(request).status_code}")


def raising(request: HttpRequest) -> HttpResponse:
    decision = hit(Limit.parse("0/s"), "raising", "key")
    raise Ratelimited(decision)


def raising_bare(request: HttpRequest) -> HttpResponse:
    if request.GET.get("as") == "class":
        raise Ratelimited
    raise Ratelimited()


def raising_words(request: HttpRequest) -> HttpResponse:
    raise Ratelimited("One export at a time.")


urlpatterns = [
    path("api/", plain),
    path("api/async/", aplain),
    path("api/limited/", limited),
    path("api/denied/", resolver),
    path("api/resolving/", resolving),
    path("health/", plain),
    path("raising/", raising),
    path("raising/bare/", raising_bare),
    path("raising/words/", raising_words),
]


@pytest.fixture(params=["wsgi", "asgi"])
def ask(request: pytest.FixtureRequest, cluster: object) -> Iterator[Any]:
    """Asks a site whose middleware has the limits that the test gives it."""
    with override_settings(
        ROOT_URLCONF=__name__, MIDDLEWARE=["django_clusterstate.middleware.ClusterRatelimitMiddleware"]
    ):

        def ask(url: str, method: str = "get", **extra: Any) -> HttpResponseBase:
            if request.param == "wsgi":
                response: HttpResponseBase = getattr(Client(), method)(url, **extra)
            else:
                response = async_to_sync(getattr(AsyncClient(), method))(url, **extra)
            return response

        yield ask


def test_a_site_is_limited_by_path_and_method(ask: Any) -> None:
    group = uuid4().hex
    with settings(LIMITS=[{"path": "/api/", "method": "POST", "rate": "2/d", "group": group}]):
        assert [ask(url, "post").status_code for url in ("/api/", "/api/async/", "/api/")] == [OK, OK, DENIED]
        response = ask("/api/", "post", headers={"accept": "application/json"})
        assert response.status_code == DENIED
        assert json.loads(response.content)["detail"].startswith("Too many requests")
        assert response.has_header("Retry-After")
        assert [ask(*args).status_code for args in (("/health/", "post"), ("/api/", "get"))] == [OK, OK]


@pytest.mark.parametrize(
    ("options", "expected", "left"),
    [
        ({"cost": 2}, [OK, OK, DENIED], 1),
        ({"cost": f"{__name__}.cost_of"}, [OK, OK, DENIED], 1),
        ({"cost": 2, "algorithm": "sliding_window"}, [OK, OK, DENIED], 1),
        ({"cost": 2, "algorithm": "token_bucket"}, [OK, OK, DENIED], 1),
        ({"cost": 3, "exempt": f"{__name__}.is_plain"}, [OK, OK, OK], 5),
        ({"cost": 3, "dry_run": True}, [OK, OK, OK], 2),
        ({"cost": 3, "block": False}, [OK, OK, OK], 2),
        ({"cost": 3, "deduct_when": f"{__name__}.failed"}, [OK, OK, OK], 5),
        ({"cost": 3, "deduct_when": failed}, [OK, OK, OK], 5),
    ],
)
def test_a_limit_of_a_site_takes_the_decorators_arguments(
    ask: Any, options: dict[str, Any], expected: list[int], left: int
) -> None:
    group = uuid4().hex
    with settings(LIMITS=[{"rate": "5/d", "group": group, **options}]):
        responses = [ask("/api/") for _ in expected]
    assert [response.status_code for response in responses] == expected
    limit = Limit.parse("5/d", options.get("algorithm", "fixed_window"))
    assert peek(limit, group, "ip:127.0.0.1").remaining == left
    unseen = "exempt" in options or "dry_run" in options
    assert [response.has_header("RateLimit") for response in responses] == [not unseen] * 3
    if options.get("block") is False:
        assert [response.content for response in responses] == [b"limited=False"] + [b"limited=True"] * 2


@pytest.mark.parametrize(
    ("policy", "expected"), [("local", [OK, DENIED]), ("allow", [OK, OK]), ("deny", [DENIED, DENIED])]
)
def test_a_limit_of_a_site_has_a_policy(ask: Any, nowhere: None, policy: str, expected: list[int]) -> None:
    with settings(LIMITS=[{"rate": "1/d", "group": uuid4().hex, "on_unavailable": policy}]):
        assert [ask("/api/").status_code for _ in expected] == expected


@pytest.mark.parametrize("view", ["slow_down", "aslow_down"])
def test_a_view_of_the_project_answers_for_a_site(ask: Any, view: str) -> None:
    with settings(LIMITS=[{"path": "/api/", "rate": "0/m"}], LIMITS_VIEW=f"{__name__}.{view}"):
        responses = [ask(url) for url in ("/api/", "/api/async/", "/raising/")]
    assert [response.status_code for response in responses] == [BUSY] * 3
    assert [response["Retry-After"] for response in responses] == ["60", "60", "1"]


def test_limits_of_a_path_with_different_methods_count_apart(ask: Any) -> None:
    group = uuid4().hex
    entries = [{"path": "/api/", "rate": "2/d", "group": group, "method": method} for method in ("GET", "POST")]
    with settings(LIMITS=[*entries, {**entries[0], "method": ["post", "put"]}]):
        sent = ["get", "post", "get", "post", "get", "post"]
        assert [ask("/api/", method).status_code for method in sent] == [OK, OK, OK, OK, DENIED, DENIED]


def test_a_path_is_a_regular_expression_from_its_start(ask: Any) -> None:
    with settings(LIMITS=[{"path": "/(?!health/)", "rate": "0/s"}]):
        assert [ask(url).status_code for url in ("/api/", "/health/")] == [DENIED, OK]


def test_all_limits_of_a_path_hold_and_the_one_that_denies_lets_the_others_off(ask: Any) -> None:
    one, other = uuid4().hex, uuid4().hex
    with settings(
        LIMITS=[
            {"path": "/api/", "rate": "5/d", "group": one},
            {"rate": "2/d", "group": other},
        ]
    ):
        assert [ask("/api/").status_code for _ in range(4)] == [OK, OK, DENIED, DENIED]
        assert hit(Limit.parse("5/d"), one, "ip:127.0.0.1", 0).remaining == 3
        # A view's own limit takes part.
        assert ask("/api/limited/", query_params={"k": uuid4().hex}).status_code == DENIED


def test_a_limit_of_a_view_gives_the_sites_back(ask: Any) -> None:
    group, key = uuid4().hex, uuid4().hex
    with settings(LIMITS=[{"path": "/api/", "rate": "9/d", "group": group}]):
        urls = [f"/api/limited/?k={key}"] * 3
        assert [ask(url).status_code for url in urls] == [OK, DENIED, DENIED]
        assert hit(Limit.parse("9/d"), group, "ip:127.0.0.1", 0).remaining == 8


@pytest.mark.parametrize("view", ["", f"{__name__}.slow_down", f"{__name__}.forbid"])
def test_a_limit_of_a_view_gives_the_sites_back_however_it_is_answered(ask: Any, view: str) -> None:
    group = uuid4().hex
    with settings(LIMITS=[{"path": "/api/", "rate": "9/d", "group": group}], LIMITS_VIEW=view):
        assert ask("/api/denied/").status_code in (DENIED, BUSY, FORBIDDEN)
        assert left(group) == 9


def test_limit_of_the_site_counts_a_view_that_handles_a_refusal(ask: Any) -> None:
    """Otherwise no limit would apply to a client that has used up the limit of one resolver."""
    group = uuid4().hex
    with settings(LIMITS=[{"path": "/api/", "rate": "9/d", "group": group}]):
        assert ask("/api/resolving/").content == b"resolved=429"
        assert left(group) == 8


def test_ratelimited_raised_by_a_view_becomes_a_response(ask: Any) -> None:
    assert ask("/raising/").status_code == DENIED
    with override_settings(MIDDLEWARE=[]):
        assert ask("/raising/").status_code == FORBIDDEN
    with settings(LIMITS_VIEW=f"{__name__}.forbid"):
        assert ask("/raising/").status_code == FORBIDDEN


def test_ratelimited_with_a_decision_gets_retry_after(ask: Any) -> None:
    response = ask("/raising/")
    assert response["Retry-After"] == "1"
    assert not response.has_header("RateLimit")  # of which limit is unknown


@pytest.mark.parametrize("written", ["class", "instance"])
def test_ratelimited_without_a_decision_has_no_retry_after(ask: Any, written: str) -> None:
    url = f"/raising/bare/?as={written}"
    response = ask(url)
    assert (response.status_code, response.content) == (DENIED, b"Too many requests.\n")
    assert not [name for name in response.headers if "ratelimit" in name.lower() or name == "Retry-After"]
    assert json.loads(ask(url, headers={"accept": "application/json"}).content) == {"detail": "Too many requests."}
    with settings(LIMITS_VIEW=f"{__name__}.slow_down"):
        response = ask(url)
        assert (response.status_code, response.content) == (BUSY, b"Too many requests.|?")
        assert not response.has_header("Retry-After")
    with override_settings(MIDDLEWARE=[]):
        assert ask(url).status_code == FORBIDDEN


def test_template_of_the_project_gets_the_text(ask: Any) -> None:
    page = {"429.html": "<h1>{{ text }}</h1>{% if decision %}{{ decision.limit }}{% endif %}"}
    engine = "django.template.backends.django.DjangoTemplates"
    templates = {"BACKEND": engine, "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", page)]}}
    with override_settings(TEMPLATES=[templates]):
        response = ask("/raising/bare/", headers={"accept": "text/html"})
    assert (response.status_code, response.content) == (DENIED, b"<h1>Too many requests.</h1>")


def test_ratelimited_with_a_text_responds_with_it(ask: Any) -> None:
    response = ask("/raising/words/")
    assert (response.status_code, response.content) == (DENIED, b"One export at a time.\n")
    assert not response.has_header("Retry-After")
    told = ask("/raising/words/", headers={"accept": "application/json"})
    assert json.loads(told.content) == {"detail": "One export at a time."}


def test_a_denial_may_be_handed_to_another_process() -> None:
    decision = hit(Limit.parse("0/s"), "handed-over", "key")
    for denial in (Ratelimited(decision), Ratelimited("One export at a time."), Ratelimited()):
        copied = pickle.loads(pickle.dumps(denial))
        assert (str(copied), copied.decision, copied.seconds) == (str(denial), denial.decision, denial.seconds)


def test_site_without_limits_sends_no_request(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = watch_requests(monkeypatch)
    assert ask("/api/").content == b"limited=None"
    assert not requests


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "(", "rate": "1/s"}, r"LIMITS'\]\[1\].*unterminated"),
        ({"path": "/", "rate": "often"}, r"LIMITS'\]\[1\].*'often' is not a rate"),
        ({"paths": "/", "rate": "1/s"}, r"LIMITS'\]\[1\].*unexpected keyword argument 'paths'"),
        ({"rate": "1/s", "key": "nobody"}, r"unknown key 'nobody'"),
        ({"rate": "1/s", "exempt": 5}, "exempt must be a callable or its dotted path, not 5"),
        ({"rate": "1/s", "deduct_when": "never"}, "deduct_when must be a callable or its dotted path, not 'never'"),
    ],
)
def test_error_names_the_wrong_limit(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        read_limits([{"rate": "1/s"}, entry])


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    runtime.forget()


# -- clients that keep to a limit, and those that wait as they are told -------------------------------------------


@pytest.fixture
def clock(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """This process counts, by this clock."""
    made = SimpleNamespace(now=1000.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr("django_clusterstate.ratelimit.fallback.time", made)
    return made


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("rate", "distance"), [("1/s", 1.15), ("1/s", 1.0), ("5/m", 12.0), ("3/10s", 3.5)])
def test_a_client_that_keeps_to_the_rate_gets_each_of_its_requests_answered(
    offline: ViewVariant, clock: SimpleNamespace, algorithm: str, rate: str, distance: float
) -> None:
    ask = offline.limited(rate=rate, algorithm=algorithm)
    for _ in range(30):
        assert ask().status_code == OK
        clock.now += distance


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("limit", "period"), [(1, 86400), (5, 60), (3, 10)])
def test_a_client_that_waits_for_retry_after_gets_the_limit_in_each_period(
    offline: ViewVariant, clock: SimpleNamespace, algorithm: str, limit: int, period: int
) -> None:
    ask = offline.limited(rate=f"{limit}/{period}", algorithm=algorithm)
    began, passed = clock.now, 0
    while clock.now < began + 10 * period - 1:
        response = ask()
        if response.status_code == OK:
            passed += 1
            continue
        assert int(response["Retry-After"]) <= period
        clock.now += int(response["Retry-After"])
    assert passed >= 10 * limit
