"""`@cluster_ratelimit` on views of both kinds: the same parameters, the same answers."""

import json
import re
import time
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from django.utils.asyncio import async_unsafe
from django.utils.decorators import method_decorator
from django.utils.functional import SimpleLazyObject
from django.views import View

from django_clusterstate import runtime
from django_clusterstate.decorators import ALL, UNSAFE, cluster_ratelimit
from django_clusterstate.ratelimit import ALGORITHMS, Limit, reset
from django_clusterstate.wire import messages as wire
from tests.counting import watch_requests
from tests.timing import is_left
from tests.views import ViewVariant, by, from_ip, get, statuses

OK, DENIED = HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS


def key_of_header(group: str, request: HttpRequest) -> str:
    return request.headers["X-Key"]


def rate_of_header(group: str, request: HttpRequest) -> Any:
    return request.headers.get("X-Rate")


def cost_of_parameter(group: str, request: HttpRequest) -> int:
    return int(request.GET["n"])


async def coroutine_key(group: str, request: HttpRequest) -> str:
    return "key"


# -- the view ---------------------------------------------------------------------------------------------------


def test_a_view_is_called_until_its_limit_is_reached(variant: ViewVariant) -> None:
    respond = mock.Mock(return_value=HttpResponse("answer"))
    ask = variant.limited(respond, rate="2/d")
    assert [ask().status_code for _ in range(4)] == [OK, OK, DENIED, DENIED]
    assert respond.call_count == 2


def test_view_keeps_its_name_docstring_and_kind(offline: ViewVariant) -> None:
    view = offline.view()
    view.marked = True
    limited = cluster_ratelimit(rate="1/s")(view)
    assert (limited.__name__, limited.__doc__, limited.__module__) == (view.__name__, "Says it.", view.__module__)
    assert limited.__wrapped__ is view
    assert limited.marked
    assert iscoroutinefunction(limited) == (offline.runner is not None)


def test_arguments_of_the_url_reach_the_view(variant: ViewVariant) -> None:
    respond = mock.Mock(return_value=HttpResponse())
    if variant.runner is None:
        cluster_ratelimit(rate="9/s", group=uuid4().hex)(lambda *args, **kwargs: respond(*args[1:], **kwargs))(
            get(), 1, name="x"
        )
    else:

        @cluster_ratelimit(rate="9/s", group=uuid4().hex)
        async def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            return respond(*args, **kwargs)  # type: ignore[no-any-return]

        variant.runner.run(view(get(), 1, name="x"))
    respond.assert_called_once_with(1, name="x")


@pytest.mark.parametrize("error", [Http404("gone"), ConnectionError("mine"), ValueError("mine")])
def test_exception_of_the_view_passes_unchanged_and_it_is_called_once(variant: ViewVariant, error: Exception) -> None:
    respond = mock.Mock(side_effect=error)
    ask = variant.limited(respond, rate="5/d")
    with pytest.raises(type(error)) as raised:
        ask()
    assert raised.value is error
    assert raised.value.__context__ is None
    assert respond.call_count == 1


@pytest.mark.parametrize("answer", [None, {"a": 1}, "text"])
def test_value_that_is_not_yet_a_response_passes_unchanged(variant: ViewVariant, answer: object) -> None:
    assert variant.limited(lambda request: answer, rate="5/d")() == answer


def test_a_streaming_response_gets_the_headers(variant: ViewVariant) -> None:
    response = variant.limited(lambda request: StreamingHttpResponse([b"a"]), rate="5/d")()
    assert response["RateLimit"]


def test_a_decision_is_one_request(variant: ViewVariant, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = variant.limited(rate=["10/s", "20/m", "1000/d"])
    requests = watch_requests(monkeypatch)
    for _ in range(3):
        ask()
    assert [type(request) for request in requests] == [wire.Hit] * 3


def test_request_without_a_limit_sends_no_request(variant: ViewVariant, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = watch_requests(monkeypatch)
    for options in ({}, {"rate": None}, {"rate": lambda group, request: None}, {"rate": "1/s", "method": "POST"}):
        response = variant.limited(**options)()
        assert response.content == b"limited=False"
        assert not response.has_header("RateLimit")
    assert requests == []


# -- group ------------------------------------------------------------------------------------------------------


def _named(view: Any, name: str) -> Any:
    view.__qualname__ = name
    return view


def test_by_default_each_view_counts_by_itself(variant: ViewVariant) -> None:
    name = uuid4().hex
    one, two = (cluster_ratelimit(rate="1/d")(_named(variant.view(), f"{name}{n}")) for n in range(2))
    assert [variant.call(one).status_code, variant.call(one).status_code, variant.call(two).status_code] == [
        OK,
        DENIED,
        OK,
    ]


def test_views_of_one_group_count_together(variant: ViewVariant) -> None:
    limit = cluster_ratelimit(uuid4().hex, rate="1/d")
    one, two = limit(variant.view()), limit(variant.view())
    assert [variant.call(one).status_code, variant.call(two).status_code] == [OK, DENIED]


def test_class_based_views_count_by_class(variant: ViewVariant) -> None:
    def make(name: str) -> Any:
        if variant.runner is None:

            class Sync(View):
                def get(self, request: HttpRequest) -> HttpResponse:
                    return HttpResponse()

            return _named(Sync, name)

        class Async(View):
            async def get(self, request: HttpRequest) -> HttpResponse:
                return HttpResponse()

        return _named(Async, name)

    limit = cluster_ratelimit(rate="1/d")
    name = uuid4().hex
    views = [limit(make(f"{name}as_view{n}").as_view()) for n in range(2)]
    views += [method_decorator(limit, name="dispatch")(make(f"{name}dispatch{n}")).as_view() for n in range(2)]
    views += [method_decorator(limit, name="get")(make(f"{name}get{n}")).as_view() for n in range(2)]
    for view in views:
        assert iscoroutinefunction(view) == (variant.runner is not None)
        assert [variant.call(view).status_code for _ in range(3)] == [OK, DENIED, DENIED]


def test_a_view_without_a_name_needs_a_group() -> None:
    class Feed:
        def __call__(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse()

    with pytest.raises(ImproperlyConfigured, match="give cluster_ratelimit a group"):
        cluster_ratelimit(rate="1/s")(Feed())
    cluster_ratelimit(group="feed", rate="1/s")(Feed())


# -- key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("2001:DB8::1", "2001:db8::1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_clients_count_by_ipv4_address_or_ipv6_network(
    variant: ViewVariant, first: str, second: str, together: bool
) -> None:
    ask = variant.limited(key="ip", rate="1/d")
    assert statuses(ask, from_ip(first), from_ip(second)) == [OK, DENIED if together else OK]


@override_settings(CLUSTERSTATE={"TRUSTED_PROXIES": ["127.0.0.1", "10.0.0.0/8"]})
def test_clients_behind_trusted_proxies_count_by_their_own_address(variant: ViewVariant) -> None:
    ask = variant.limited(key="ip", rate="1/d")
    through = [get(REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=said) for said in ("1.2.3.4", "9.9.9.9, 1.2.3.4")]
    forged = get(REMOTE_ADDR="5.6.7.8", HTTP_X_FORWARDED_FOR="1.2.3.4")
    other = get(REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR="1.2.3.4, 8.8.8.8, 10.1.1.1")
    assert statuses(ask, *through, forged, other) == [OK, DENIED, OK, OK]


@pytest.mark.parametrize("proxies", [1, ["127.0.0.1"]])
def test_invalid_entry_of_a_proxy_counts_as_that_proxy(variant: ViewVariant, proxies: Any) -> None:
    ask = variant.limited(key="ip", rate="1/d")
    with override_settings(CLUSTERSTATE={"TRUSTED_PROXIES": proxies}):
        junk = [get(HTTP_X_FORWARDED_FOR=said) for said in ("unknown", "1.2.3.4, _hidden", "5.6.7.8, unknown")]
        assert statuses(ask, *junk, get(HTTP_X_FORWARDED_FOR="1.2.3.4")) == [OK, DENIED, DENIED, OK]


@pytest.mark.parametrize("address", ["", "junk", "1.2.3", "10.0.0.1, 10.0.0.2", "01.2.3.4"])
@pytest.mark.parametrize("key", ["ip", "user_or_ip"])
def test_error_names_an_invalid_address(variant: ViewVariant, key: str, address: str) -> None:
    respond = mock.Mock()
    ask = variant.limited(respond, key=key, rate="1/d")
    with pytest.raises(ImproperlyConfigured, match=r"address is .*TRUSTED_PROXIES"):
        ask(from_ip(address))
    respond.assert_not_called()


def test_key_user_counts_by_user(variant: ViewVariant) -> None:
    ask = variant.limited(key="user", rate="1/d")
    one, two = SimpleNamespace(pk=1, is_authenticated=True), SimpleNamespace(pk=2, is_authenticated=True)
    assert statuses(ask, by(one), by(two), by(one), by(AnonymousUser()), by(AnonymousUser())) == [
        OK, OK, DENIED, OK, DENIED,
    ]  # fmt: skip
    assert ask(get()).status_code == DENIED  # without a user at all, as anonymous


def test_key_user_or_ip_counts_by_user_if_there_is_one(variant: ViewVariant) -> None:
    ask = variant.limited(key="user_or_ip", rate="1/d")
    user = SimpleNamespace(pk=1, is_authenticated=True)
    assert statuses(ask, by(user), by(AnonymousUser()), get(), by(user), from_ip("10.9.9.9")) == [
        OK, OK, DENIED, DENIED, OK,
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["user", "user_or_ip"])
def test_a_user_that_is_yet_to_be_read_from_the_database_is_read(variant: ViewVariant, key: str) -> None:
    @async_unsafe
    def load() -> User:
        return User(pk=77)

    ask = variant.limited(key=key, rate="1/d")
    assert statuses(ask, by(SimpleLazyObject(load)), by(SimpleLazyObject(load)), by(User(pk=78))) == [OK, DENIED, OK]


@pytest.mark.parametrize(
    ("key", "one", "two"),
    [
        ("get:q", lambda: get(query_params={"q": "1"}), lambda: get(query_params={"q": "2"})),
        ("get:q", lambda: get(query_params={"q": "1"}), lambda: get(query_params={"p": "1"})),
        ("post:q", lambda: RequestFactory().post("/", {"q": "1"}), lambda: RequestFactory().post("/", {"q": "2"})),
        ("post:q", lambda: RequestFactory().post("/", {"q": "1"}), lambda: get(query_params={"q": "1"})),
        ("header:x-key", lambda: get(headers={"X-Key": "1"}), lambda: get(headers={"X-Key": "2"})),
        ("header:X-Key", lambda: get(headers={"x-key": "1"}), get),
        (key_of_header, lambda: get(headers={"X-Key": "1"}), lambda: get(headers={"X-Key": "2"})),
        ("tests.ratelimit.test_decorators.key_of_header", lambda: get(headers={"X-Key": "1"}),
         lambda: get(headers={"X-Key": "2"})),
        (lambda group, request: len(request.GET), get, lambda: get(query_params={"q": "1"})),
    ],
)  # fmt: skip
def test_requests_count_by_their_key(variant: ViewVariant, key: Any, one: Any, two: Any) -> None:
    ask = variant.limited(key=key, rate="1/d")
    assert statuses(ask, one(), two(), one(), two()) == [OK, OK, DENIED, DENIED]


def test_a_callable_key_gets_the_group_and_the_request(variant: ViewVariant) -> None:
    key, request = mock.Mock(return_value="key"), get()
    variant.limited(group="the group", key=key, rate="1000/s")(request)
    key.assert_called_once_with("the group", request)


# -- rate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", ["2/d", "2/2h", "2/D", ["2/d"], ["2/d", "100/d"], ("5/d", "2/h"), "2/86400", "2/day", (2, 86400)]
)
def test_a_rate_is_text_or_several(variant: ViewVariant, rate: Any) -> None:
    ask = variant.limited(rate=rate)
    assert [ask().status_code for _ in range(3)] == [OK, OK, DENIED]


@pytest.mark.parametrize("rate", [rate_of_header, "tests.ratelimit.test_decorators.rate_of_header"])
def test_a_rate_may_come_with_the_request(variant: ViewVariant, rate: Any) -> None:
    ask = variant.limited(rate=rate)
    one, none, blocked = get(headers={"X-Rate": "1/d"}), get(), get(headers={"X-Rate": "0/s"})
    assert statuses(ask, one, one, none, none, blocked) == [OK, DENIED, OK, OK, DENIED]
    assert variant.limited(rate=lambda group, request: ["1/d", "5/d"])()["RateLimit-Policy"].count("q=") == 2
    assert statuses(variant.limited(rate=lambda group, request: (2, 600)), get(), get(), get()) == [OK, OK, DENIED]
    with pytest.raises(ImproperlyConfigured, match="'junk' is not a rate"):
        ask(get(headers={"X-Rate": "junk"}))


def test_a_rate_of_zero_blocks_all(variant: ViewVariant) -> None:
    response = variant.limited(rate="0/s")()
    assert response.status_code == DENIED
    assert response["Retry-After"] == "1"


# -- method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "counted"),
    [
        (ALL, {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}),
        (UNSAFE, {"POST", "PUT", "PATCH", "DELETE"}),
        ("POST", {"POST"}),
        ("post", {"POST"}),
        (["GET", "HEAD"], {"GET", "HEAD"}),
        (["get", "Delete"], {"GET", "DELETE"}),
        ({"put"}, {"PUT"}),
    ],
)
def test_only_requests_of_the_method_count(
    offline: ViewVariant, cluster: object, method: Any, counted: set[str]
) -> None:
    ask = offline.limited(rate="0/s", method=method)
    denied = {
        name
        for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        if ask(RequestFactory().generic(name, "/")).status_code == DENIED
    }
    assert denied == counted


def _sent(*methods: str) -> list[HttpRequest]:
    return [RequestFactory().generic(method, "/") for method in methods]


def test_limits_of_one_view_with_different_methods_count_apart(variant: ViewVariant) -> None:
    limited = cluster_ratelimit(rate="2/d", method="GET")(_named(variant.view(), uuid4().hex))
    view = cluster_ratelimit(rate="2/d", method="POST")(limited)
    sent = _sent("GET", "POST", "GET", "POST", "GET", "POST")
    assert statuses(lambda request: variant.call(view, request), *sent) == [OK, OK, OK, OK, DENIED, DENIED]


def test_a_limit_on_all_methods_and_one_on_some_count_a_request_once_each(variant: ViewVariant) -> None:
    limited = cluster_ratelimit(rate="2/d", method=UNSAFE)(_named(variant.view(), uuid4().hex))
    view = cluster_ratelimit(rate="2/d", method=ALL)(limited)
    assert statuses(lambda request: variant.call(view, request), *_sent("POST", "PUT", "POST")) == [OK, OK, DENIED]


@pytest.mark.parametrize(
    ("one", "other"),
    [("post", ["POST"]), (UNSAFE, ["put", "post", "patch", "delete"]), ({"PUT", "POST"}, ("POST", "PUT"))],
)
def test_same_methods_written_differently_count_together(variant: ViewVariant, one: Any, other: Any) -> None:
    group = uuid4().hex
    views = [cluster_ratelimit(group, rate="1/d", method=method)(variant.view()) for method in (one, other)]
    assert [variant.call(view, *_sent("POST")).status_code for view in views] == [OK, DENIED]


@pytest.mark.parametrize(("method", "suffix"), [(ALL, ""), ("post", " POST"), (UNSAFE, " DELETE,PATCH,POST,PUT")])
def test_a_limit_is_reset_by_its_group_with_the_methods(variant: ViewVariant, method: Any, suffix: str) -> None:
    group = uuid4().hex
    view = cluster_ratelimit(group, rate="1/d", method=method)(variant.view())
    assert [variant.call(view, *_sent("POST")).status_code for _ in range(2)] == [OK, DENIED]
    assert reset(Limit.parse("1/d"), f"{group}{suffix}", "ip:127.0.0.1")
    assert variant.call(view, *_sent("POST")).status_code == OK


# -- block, cost, algorithm -------------------------------------------------------------------------------------


def test_without_block_the_view_decides(variant: ViewVariant) -> None:
    seen = []

    def respond(request: Any) -> HttpResponse:
        seen.append((request.limited, request.ratelimit.allowed, request.ratelimit.remaining))
        return HttpResponse()

    ask = variant.limited(respond, rate="2/d", block=False)
    responses = [ask() for _ in range(3)]
    assert seen == [(False, True, 1), (False, True, 0), (True, False, 0)]
    assert [response.status_code for response in responses] == [OK] * 3
    assert not responses[2].has_header("Retry-After")
    assert responses[2]["RateLimit"].startswith('"2/86400s";r=0;t=')


def test_a_request_may_cost_more(variant: ViewVariant) -> None:
    ask = variant.limited(rate="5/d", cost=2)
    assert [ask()["RateLimit"][:14] for _ in range(2)] == ['"5/86400s";r=3', '"5/86400s";r=1']
    assert ask().status_code == DENIED


@pytest.mark.parametrize("cost", [cost_of_parameter, f"{__name__}.cost_of_parameter"])
def test_cost_may_be_a_callable(variant: ViewVariant, cost: Any) -> None:
    ask = variant.limited(rate="5/d", cost=cost)
    asked = [get(query_params={"n": n}) for n in ("5", "1", "0")]
    assert statuses(ask, *asked) == [OK, DENIED, OK]


@pytest.mark.parametrize("cost", [-1, 0.5, None, "1"])
def test_a_callable_that_returns_no_cost_raises(variant: ViewVariant, cost: Any) -> None:
    respond = mock.Mock()
    with pytest.raises(ValueError, match="the cost of a hit must be an integer"):
        variant.limited(respond, rate="5/d", cost=lambda group, request: cost)()
    respond.assert_not_called()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_limits(variant: ViewVariant, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = watch_requests(monkeypatch)
    ask = variant.limited(rate="2/d", algorithm=algorithm)
    assert [ask().status_code for _ in range(3)] == [OK, OK, DENIED]
    assert {rule.algorithm for r in requests if isinstance(r, wire.Hit) for rule in r.rules} == {ALGORITHMS[algorithm]}


# -- headers ----------------------------------------------------------------------------------------------------

# RFC 9651: a string, and parameters with integer values of 15 digits at most.
MEMBER = r'"[ -!#-\[\]-~]*"(;[a-z]+=\d{1,15})+'


@pytest.mark.parametrize(
    ("rate", "policy"),
    [
        ("10/m", '"10/60s";q=10;w=60'),
        ("5/30d", '"5/2592000s";q=5;w=2592000'),
        ("999999999999999/d", '"999999999999999/86400s";q=999999999999999;w=86400'),
        (["10/s", "100/h"], '"10/1s";q=10;w=1, "100/3600s";q=100;w=3600'),
        ("0/s", '"0/1s";q=0;w=1'),
    ],
)
def test_responses_have_the_policy_and_the_remaining_hits(variant: ViewVariant, rate: Any, policy: str) -> None:
    response = variant.limited(rate=rate)()
    assert response["RateLimit-Policy"] == policy
    for member in (*response["RateLimit-Policy"].split(", "), response["RateLimit"]):
        assert re.fullmatch(MEMBER, member)
    name, _, rest = response["RateLimit"].partition(";")
    assert name in policy
    assert re.fullmatch(r"r=\d+;t=\d+", rest)


def test_remaining_is_that_of_the_strictest_rate(variant: ViewVariant) -> None:
    ask = variant.limited(rate=["2/h", "2/d"])
    start = time.monotonic()
    ask()
    ask()
    denied = ask()
    found = re.fullmatch(r'"2/86400s";r=0;t=(\d+)', denied["RateLimit"])
    assert found is not None
    assert is_left(int(found[1]), 86400, start)
    assert is_left(int(denied["Retry-After"]), 86400, start)


def test_denied_request_gets_retry_after(variant: ViewVariant) -> None:
    ask = variant.limited(rate="1/m")
    start = time.monotonic()
    assert not ask().has_header("Retry-After")
    denied = ask()
    assert is_left(int(denied["Retry-After"]), 60, start)
    assert denied.content.decode() == f"Too many requests. Try again in {denied['Retry-After']} s.\n"
    assert denied["Content-Type"].startswith("text/plain")
    assert re.fullmatch(r'"1/60s";r=0;t=\d+', denied["RateLimit"])


DJANGO_TEMPLATES = "django.template.backends.django.DjangoTemplates"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PAGE = {"429.html": "<h1>{{ text }}</h1> {{ decision.limit }} in {{ decision.period }} s"}


@pytest.mark.parametrize(
    ("accepted", "kind"),
    [("", "text/plain"), ("*/*", "text/plain"), ("image/png", "text/plain"), (BROWSER, "text/html"),
     ("application/json, */*;q=0.1", "application/json")],
)  # fmt: skip
def test_a_blocked_client_is_answered_in_the_form_that_it_prefers(
    variant: ViewVariant, accepted: str, kind: str
) -> None:
    pages = {"BACKEND": DJANGO_TEMPLATES, "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", PAGE)]}}
    with override_settings(TEMPLATES=[pages]):
        denied = variant.limited(key="ip", rate="0/m")(get(**{"HTTP_ACCEPT": accepted} if accepted else {}))
    assert denied.status_code == DENIED
    assert denied["Content-Type"].partition(";")[0] == kind
    text = "Too many requests. Try again in 60 s."
    if kind == "application/json":
        assert json.loads(denied.content) == {"detail": text, "retry_after": 60}
    else:
        page = f"<h1>{text}</h1> 0 in 60.0 s"
        assert denied.content.decode() == (page if kind == "text/html" else f"{text}\n")


def test_browser_gets_text_if_there_is_no_template(variant: ViewVariant) -> None:
    denied = variant.limited(key="ip", rate="0/m")(get(HTTP_ACCEPT=BROWSER))
    assert denied["Content-Type"] == "text/plain"


def test_headers_that_the_view_has_set_stay(variant: ViewVariant) -> None:
    ask = variant.limited(lambda request: HttpResponse(headers={"RateLimit": '"mine";r=1;t=1'}), rate="1/m")
    assert ask()["RateLimit"] == '"mine";r=1;t=1'


# -- several decorators -----------------------------------------------------------------------------------------


def test_stacked_limits_all_hold_and_the_one_that_blocks_speaks(variant: ViewVariant) -> None:
    group = uuid4().hex
    inner = cluster_ratelimit(group, key="get:q", rate="1/d")(variant.view())
    view = cluster_ratelimit(group, key="ip", rate="3/h")(inner)
    asked = [get(query_params={"q": q}) for q in "11234"]
    responses = [variant.call(view, request) for request in asked]
    assert [response.status_code for response in responses] == [OK, DENIED, OK, OK, DENIED]
    assert responses[1]["RateLimit"].startswith('"1/86400s"')
    assert responses[4]["RateLimit"].startswith('"3/3600s"')
    assert all(request.limited == (n in (1, 4)) for n, request in enumerate(asked))  # type: ignore[attr-defined]


def test_limited_stays_true_when_an_inner_limit_isnt_reached(variant: ViewVariant) -> None:
    inner = cluster_ratelimit(uuid4().hex, rate="9/d", block=False)(variant.view())
    view = cluster_ratelimit(uuid4().hex, rate="0/s", block=False)(inner)
    assert variant.call(view).content == b"limited=True"


# -- when the owner doesn't answer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"), [("local", [OK, OK, DENIED]), ("allow", [OK] * 3), ("deny", [DENIED] * 3)]
)
@pytest.mark.parametrize("by_setting", [True, False])
def test_without_a_node_the_policy_answers(
    offline: ViewVariant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    expected: list[int],
    by_setting: bool,
) -> None:
    # The view is decorated before the settings are what they will be, as with `override_settings` in tests.
    ask = offline.limited(rate="2/d") if by_setting else offline.limited(rate="2/d", on_unavailable=policy)
    monkeypatch.setenv("CLUSTERSTATE_SOCKET", str(tmp_path / "nowhere.sock"))
    if by_setting:
        monkeypatch.setenv("CLUSTERSTATE_ON_UNAVAILABLE", policy)
    runtime.forget()
    responses = [ask() for _ in range(3)]
    assert [response.status_code for response in responses] == expected
    assert all(response["RateLimit"].startswith('"2/86400s";r=') for response in responses)
    assert all(response["Retry-After"].isdigit() for response in responses if response.status_code == DENIED)
    monkeypatch.undo()
    runtime.forget()


# -- wrong arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": "10"}, "'10' is not a rate; a rate is hits/period"),
        ({"rate": "ten"}, "'ten' is not a rate"),
        ({"rate": "10/fortnight"}, "'10/fortnight' is not a rate"),
        ({"rate": ""}, "'' is not a rate"),
        ({"rate": []}, "a limit needs from 1 to 16 rates"),
        ({"rate": 10}, "10 is not a rate"),
        ({"rate": coroutine_key}, "a callable rate must be an ordinary function"),
        ({"key": "IP"}, "unknown key 'IP'; use 'ip', 'user', 'user_or_ip', 'get:NAME'"),
        ({"key": "get:"}, "unknown key 'get:'"),
        ({"key": "cookie:x"}, "unknown key 'cookie:x'"),
        ({"key": ""}, "unknown key ''"),
        ({"key": None}, "unknown key None"),
        ({"key": coroutine_key}, "a callable key must be an ordinary function"),
        ({"algorithm": "leaky"}, "unknown algorithm 'leaky'; choose one of fixed_window"),
        ({"on_unavailable": "explode"}, "unknown on_unavailable 'explode'; choose one of local, allow, deny"),
        ({"cost": -1}, "cost must be an integer from 0 to"),
        ({"cost": 1.5}, "cost must be an integer from 0 to"),
        ({"cost": "1"}, "or a callable, not '1'"),
        ({"cost": True}, "not True"),
        ({"cost": coroutine_key}, "a callable cost must be an ordinary function"),
        ({"method": "ALL"}, "unknown method 'ALL'; use 'GET' or another"),
        ({"method": ["GET", "UNSAFE"]}, "ALL or UNSAFE of"),
        ({"method": []}, "unknown method []; use 'GET' or another"),
        ({"method": ""}, "unknown method ''; use 'GET' or another"),
        ({"method": [1]}, "unknown method [1]; use 'GET' or another"),
    ],
)
@pytest.mark.parametrize("rate", ["1/s", None, rate_of_header])
def test_a_wrong_argument_is_refused_when_the_view_is_decorated(options: Any, words: str, rate: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        cluster_ratelimit(**{"rate": rate, **options})
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"key": "no.such.key"}, "no"), ({"key": "tests.ratelimit.test_decorators.nothing"}, "nothing")],
)
def test_a_dotted_path_that_leads_nowhere_is_named(variant: ViewVariant, options: Any, words: str) -> None:
    with pytest.raises(ImportError, match=words):
        variant.limited(rate="1/s", **options)()


def test_a_dotted_path_to_a_coroutine_function_is_refused(variant: ViewVariant) -> None:
    with pytest.raises(ImproperlyConfigured, match="a callable key must be an ordinary function"):
        variant.limited(rate="1/s", key="tests.ratelimit.test_decorators.coroutine_key")()


def test_decorating_needs_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def unready() -> None:
        raise ImproperlyConfigured

    monkeypatch.setattr(runtime, "get_settings", unready)
    cluster_ratelimit(rate="10/m")(lambda request: HttpResponse())


# -- as Django calls it -----------------------------------------------------------------------------------------


@cluster_ratelimit(rate="2/d", key="get:k")
def by_url(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(str(number))


@cluster_ratelimit(rate="2/d", key="get:k")
async def async_by_url(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(str(number))


@cluster_ratelimit(rate="2/d", key="user")
async def async_by_user(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


urlpatterns = [
    path("sync/<int:number>/", by_url),
    path("async/<int:number>/", async_by_url),
    path("user/", async_by_user),
]


@pytest.mark.usefixtures("cluster")
@pytest.mark.urls(__name__)
@pytest.mark.parametrize("client", [Client(), AsyncClient()], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_django_calls_views_of_either_kind_under_either_server(client: Client | AsyncClient, kind: str) -> None:
    url, key = f"/{kind}/7/", uuid4().hex

    def ask() -> HttpResponseBase:
        method: Any = async_to_sync(client.get) if isinstance(client, AsyncClient) else client.get
        response: HttpResponseBase = method(url, {"k": key})
        return response

    responses = [ask() for _ in range(3)]
    assert [response.status_code for response in responses] == [OK, OK, DENIED]
    assert responses[0]["RateLimit"].startswith('"2/86400s";r=1;t=')
    assert responses[2].has_header("Retry-After")


@pytest.mark.usefixtures("cluster")
@pytest.mark.django_db
@pytest.mark.urls(__name__)
def test_an_asynchronous_view_may_be_limited_by_the_user_of_the_session() -> None:
    user = User.objects.create(pk=uuid4().int % 2**31, username=uuid4().hex)
    client = AsyncClient()
    client.force_login(user)
    responses = [async_to_sync(client.get)("/user/") for _ in range(3)]
    assert [response.status_code for response in responses] == [OK, OK, DENIED]
    assert responses[0].content.decode() == user.username
