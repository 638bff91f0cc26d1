"""django-ninja's throttles, on the cluster, for synchronous and asynchronous operations."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from ninja import NinjaAPI
from ninja.throttling import BaseThrottle

from django_clusterstate import cluster as cluster_state
from django_clusterstate.contrib.ninja import AnonRateThrottle, AuthRateThrottle, ClusterRateThrottle, UserRateThrottle
from django_clusterstate.decorators import cluster_ratelimit
from django_clusterstate.ratelimit import Limit, peek, routing_key
from tests.timing import is_left

pytestmark = pytest.mark.usefixtures("cluster")

OK, DENIED = 200, 429
Ask = Callable[..., HttpResponse]


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that no other test counts in."""
    name = uuid4().hex
    monkeypatch.setattr("django_clusterstate.contrib.ninja.GROUP", name)
    return name


def request_of(user: User | None = None, **meta: Any) -> HttpRequest:
    request = RequestFactory().get("/", **meta)
    request.user = user or AnonymousUser()
    return request


def view_of(api: NinjaAPI, name: str) -> Any:
    patterns: list[Any] = api.urls[0]
    return next(pattern.callback for pattern in patterns if pattern.name == name)


@pytest.fixture(params=["sync", "async"])
def operation(request: pytest.FixtureRequest) -> Callable[..., Ask]:
    """Makes an operation of an API, and returns what asks it."""

    def seen(request: HttpRequest) -> str:
        return "seen"

    async def seen_too(request: HttpRequest) -> str:
        return "seen"

    def make(*throttles: BaseThrottle, around: Callable[[Any], Any] = lambda view: view, **options: Any) -> Ask:
        api = NinjaAPI(urls_namespace=uuid4().hex)
        api.get("/", throttle=list(throttles), **options)(seen if request.param == "sync" else seen_too)
        view = around(view_of(api, "seen"))
        if request.param == "sync":
            return lambda **asked: view(request_of(**asked))
        return lambda **asked: asyncio.run(view(request_of(**asked)))

    seen_too.__name__ = "seen"
    return make


def statuses(ask: Ask, *asked: dict[str, Any]) -> list[int]:
    return [ask(**one).status_code for one in asked]


def test_rate_allows_its_number_of_requests_and_others_get_the_wait(operation: Callable[..., Ask]) -> None:
    ask = operation(AnonRateThrottle("2/day"))
    assert statuses(ask, {}, {}, {}) == [OK, OK, DENIED]
    denied = ask()
    assert 0 < int(denied["Retry-After"]) <= 2 * 86400
    assert b"Too many requests" in denied.content
    assert ask(REMOTE_ADDR="10.9.9.9").status_code == OK


def test_anonymous_throttle_ignores_authenticated_requests(operation: Callable[..., Ask]) -> None:
    ask = operation(AnonRateThrottle("1/day"), auth=lambda request: "someone")
    assert statuses(ask, {}, {}, {}) == [OK, OK, OK]


def test_each_authentication_counts_on_its_own(operation: Callable[..., Ask]) -> None:
    ask = operation(AuthRateThrottle("1/day"), auth=lambda request: request.headers.get("X-Token"))
    one, two = {"HTTP_X_TOKEN": "one"}, {"HTTP_X_TOKEN": "two"}
    assert statuses(ask, one, two, one, {}) == [OK, OK, DENIED, 401]
    ask = operation(AuthRateThrottle("1/day"))
    assert statuses(ask, {}, {}) == [OK, DENIED]


def test_users_count_by_themselves_and_others_by_address(operation: Callable[..., Ask]) -> None:
    ask = operation(UserRateThrottle("1/day"))
    one, two = {"user": User(pk=1)}, {"user": User(pk=2)}
    assert statuses(ask, one, two, one, {}, {}) == [OK, OK, DENIED, OK, DENIED]


def test_several_throttles_all_count_and_the_longest_wait_is_returned(operation: Callable[..., Ask]) -> None:
    ask = operation(AnonRateThrottle("1/h", algorithm="fixed_window"), UserRateThrottle("1/d", "fixed_window"))
    assert statuses(ask, {}, {}) == [OK, DENIED]
    assert 3600 < int(ask()["Retry-After"]) <= 86400


def left(group: str, scope: str, rate: str) -> int:
    return peek(Limit.parse(rate, "sliding_window"), group, f"throttle_{scope}_127.0.0.1").remaining


@pytest.mark.parametrize("order", [1, -1], ids=["the one that blocks first", "last"])
def test_throttles_beside_one_that_blocks_arent_consumed(operation: Callable[..., Ask], group: str, order: int) -> None:
    ask = operation(*[AnonRateThrottle("1/m"), UserRateThrottle("20/d"), AuthRateThrottle("10/d")][::order])
    assert statuses(ask, *[{}] * 5) == [OK] + [DENIED] * 4
    assert (left(group, "anon", "1/m"), left(group, "user", "20/d"), left(group, "auth", "10/d")) == (0, 19, 9)


def test_throttles_beside_one_that_blocks_arent_consumed_without_a_node(
    operation: Callable[..., Ask], nowhere: None, group: str
) -> None:
    ask = operation(UserRateThrottle("10/d"), AnonRateThrottle("1/m"), AuthRateThrottle("9/d", on_unavailable="allow"))
    assert statuses(ask, *[{}] * 5) == [OK] + [DENIED] * 4
    assert left(group, "user", "10/d") == 9


def test_a_throttle_that_overrules_a_denial_keeps_no_other_from_counting(
    operation: Callable[..., Ask], group: str
) -> None:
    class Lenient(AnonRateThrottle):
        def allow_request(self, request: HttpRequest) -> bool:
            super().allow_request(request)
            return True

    ask = operation(UserRateThrottle("9/d"), Lenient("1/d"), AuthRateThrottle("3/d"))
    assert statuses(ask, *[{}] * 5) == [OK] * 3 + [DENIED] * 2
    assert left(group, "user", "9/d") == 6


def test_a_limit_around_is_let_off_by_a_throttle(operation: Callable[..., Ask], group: str) -> None:
    ask = operation(AnonRateThrottle("1/m"), around=cluster_ratelimit(f"{group}-outer", rate="9/d"))
    assert statuses(ask, {}, {}, {}) == [OK, DENIED, DENIED]
    assert peek(Limit.parse("9/d"), f"{group}-outer", "ip:127.0.0.1").remaining == 8


def test_forwarded_header_is_ignored_without_trusted_proxies(operation: Callable[..., Ask]) -> None:
    ask = operation(AnonRateThrottle("2/day"))
    assert statuses(ask, *({"HTTP_X_FORWARDED_FOR": f"1.2.3.{n}"} for n in range(3))) == [OK, OK, DENIED]


@pytest.mark.parametrize("trust", [{"CLUSTERSTATE": {"TRUSTED_PROXIES": ["127.0.0.1"]}}, {"NINJA_NUM_PROXIES": 1}])
def test_clients_behind_a_trusted_proxy_count_by_their_own_address(
    operation: Callable[..., Ask], trust: dict[str, Any]
) -> None:
    one, other = ({"HTTP_X_FORWARDED_FOR": address} for address in ("9.9.9.9, 1.2.3.4", "1.2.3.5"))
    with override_settings(**trust):
        assert statuses(operation(AnonRateThrottle("2/day")), one, one, one, other) == [OK, OK, DENIED, OK]


def test_clients_without_an_address_are_not_taken_for_one(operation: Callable[..., Ask]) -> None:
    ask = operation(AnonRateThrottle("2/day"))
    with pytest.raises(ImproperlyConfigured, match=r"address is unusable.*TRUSTED_PROXIES"):
        ask(REMOTE_ADDR="")
    with override_settings(CLUSTERSTATE={"TRUSTED_PROXIES": ["unix"]}):
        one, other = ({"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": address} for address in ("1.2.3.4", "1.2.3.5"))
        assert statuses(ask, one, one, one, other) == [OK, OK, DENIED, OK]


def test_throttle_of_the_project_defines_its_key(operation: Callable[..., Ask]) -> None:
    class ByTenant(ClusterRateThrottle):
        scope = "tenant"

        def get_cache_key(self, request: HttpRequest) -> str | None:
            return request.headers.get("X-Tenant")

    ask = operation(ByTenant("1/hour", algorithm="token_bucket"))
    a, b = {"HTTP_X_TENANT": "a"}, {"HTTP_X_TENANT": "b"}
    assert statuses(ask, a, a, b, {}, {}) == [OK, DENIED, OK, OK, OK]


def test_rates_are_the_frameworks_and_those_of_its_settings() -> None:
    limits = [AnonRateThrottle(rate).limit.rules[0] for rate in ("5/s", "5/10m", "5/day", "5/30")]
    assert [(rule.limit, rule.period) for rule in limits] == [(5, 1.0), (5, 600.0), (5, 86400.0), (5, 30.0)]
    by_scope = [throttle().limit.rules[0].limit for throttle in (AnonRateThrottle, AuthRateThrottle, UserRateThrottle)]
    assert by_scope == [1000, 10000, 10000]


def test_a_rate_of_none_limits_nothing(operation: Callable[..., Ask]) -> None:
    unlimited = type("Unlimited", (AnonRateThrottle,), {"THROTTLE_RATES": {"anon": None}})
    assert statuses(operation(unlimited()), *[{}] * 5) == [OK] * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "leaky"}, "unknown algorithm 'leaky'"),
        ({"on_unavailable": "explode"}, "unknown on_unavailable 'explode'; choose one of local, allow, deny"),
        ({"rate": "-1/s"}, "is not a rate"),
    ],
)
def test_a_wrong_throttle_is_refused_when_it_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        AnonRateThrottle(**{"rate": "1/s", **options})


def test_a_throttle_answers_each_request_by_its_own_decision() -> None:
    throttle = AnonRateThrottle("2/day")
    one, other = request_of(REMOTE_ADDR="10.0.0.1"), request_of(REMOTE_ADDR="10.0.0.2")
    assert throttle.allow_request(one)
    assert throttle.allow_request(one)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        assert not first.submit(throttle.allow_request, one).result()
        assert second.submit(throttle.allow_request, other).result()
        assert first.submit(throttle.wait).result() == pytest.approx(86400, abs=60)
        assert second.submit(throttle.wait).result() == pytest.approx(43200, abs=60)


def test_the_decision_names_the_owner(group: str) -> None:
    throttle = AnonRateThrottle("2/day")
    assert throttle.wait() is None
    assert throttle.allow_request(request_of())
    decision = throttle.decision
    assert decision is not None
    assert decision.owner == cluster_state.owner(routing_key(group, "throttle_anon_127.0.0.1"))
    assert decision.remaining == 1


@pytest.fixture(params=["sync", "async"])
def decorated(request: pytest.FixtureRequest, group: str) -> Callable[..., Ask]:
    """Makes an operation that returns what the test wants and has the decorator, and returns what asks it."""

    def make(returned: Any, auth: Any = None, **options: Any) -> Ask:
        def double(request: HttpRequest, number: int) -> Any:
            return returned(number)

        async def adouble(request: HttpRequest, number: int) -> Any:
            return returned(number)

        adouble.__name__ = "double"
        api = NinjaAPI(urls_namespace=group)
        operation = double if request.param == "sync" else adouble
        api.get("/{number}", auth=auth)(cluster_ratelimit(group=group, **options)(operation))
        view = view_of(api, "double")
        if request.param == "sync":
            return lambda number, **asked: view(request_of(**asked), number=number)
        return lambda number, **asked: asyncio.run(view(request_of(**asked), number=number))

    return make


def test_operations_may_have_the_decorator_instead(decorated: Callable[..., Ask]) -> None:
    ask = decorated(lambda number: 2 * number, key="user_or_ip", rate="1/d")
    first, second = ask("4"), ask("4")
    assert (first.status_code, first.content) == (OK, b"8")
    assert second.status_code == DENIED
    assert int(second["Retry-After"]) > 0
    assert second["RateLimit"].startswith('"1/86400s";r=0')
    assert ask("4", user=User(pk=1)).status_code == OK


def test_only_responses_can_have_headers(decorated: Callable[..., Ask]) -> None:
    ask = decorated(lambda number: HttpResponse() if number else number, rate="9/d")
    assert [ask(number).has_header("RateLimit") for number in ("0", "1")] == [False, True]


def test_response_decides_whether_the_hit_counts(decorated: Callable[..., Ask]) -> None:
    ask = decorated(lambda number: number, rate="1/d", deduct_when=lambda request, returned: returned == 1)
    assert [ask(number).status_code for number in "00100"] == [OK, OK, OK, DENIED, DENIED]


def test_the_decorator_knows_whom_the_framework_has_let_in(decorated: Callable[..., Ask]) -> None:
    def auth(request: HttpRequest) -> str | None:
        return request.headers.get("X-Token")

    ask = decorated(lambda number: number, auth, key=lambda group, request: request.auth, rate="1/d")
    asked = [ask("1", HTTP_X_TOKEN=token).status_code for token in ("one", "other", "one")]
    assert asked == [OK, OK, DENIED]


# -- what subclasses of the framework's own throttles override ---------------------------------------------------


def test_overridden_outcomes_are_called_as_by_the_framework(operation: Callable[..., Ask]) -> None:
    calls: list[tuple[str, str | None]] = []

    class Told(AnonRateThrottle):
        scope = "told"

        def throttle_success(self) -> bool:
            calls.append(("success", self.key))
            return super().throttle_success()

        def throttle_failure(self) -> bool:
            calls.append(("failure", self.key))
            return super().throttle_failure()

    assert statuses(operation(Told("2/day")), {}, {}, {}) == [OK, OK, DENIED]
    assert calls == [(name, "throttle_told_127.0.0.1") for name in ("success", "success", "failure")]


def test_overridden_outcome_method_decides(operation: Callable[..., Ask]) -> None:
    class Lenient(AnonRateThrottle):
        scope = "lenient"

        def throttle_failure(self) -> bool:
            return True

    class Strict(AnonRateThrottle):
        scope = "strict"

        def throttle_success(self) -> bool:
            return False

    assert statuses(operation(Lenient("1/day")), {}, {}, {}) == [OK] * 3
    assert statuses(operation(Strict("5/day")), {}) == [DENIED]


def test_overridden_rates_keys_and_waits_are_heeded(operation: Callable[..., Ask]) -> None:
    class Own(AnonRateThrottle):
        def get_rate(self) -> str:
            return "2 in 90"

        def parse_rate(self, rate: str | None) -> tuple[int | None, int | None]:
            number, seconds = (rate or "").split(" in ")
            return int(number), int(seconds)

        def get_ident(self, request: HttpRequest) -> str:
            return request.headers["X-Tenant"]

        def wait(self) -> float:
            return 2 * (super().wait() or 0)

    ask = operation(Own())
    a, b = {"HTTP_X_TENANT": "a"}, {"HTTP_X_TENANT": "b"}
    start = time.monotonic()
    assert statuses(ask, a, a, a, b) == [OK, OK, DENIED, OK]
    assert is_left(int(ask(**a)["Retry-After"]) / 2, 90, start)


def test_a_rate_that_is_changed_later_is_heeded(operation: Callable[..., Ask]) -> None:
    throttle = AnonRateThrottle("1/day")
    ask = operation(throttle)
    assert statuses(ask, {}, {}) == [OK, DENIED]
    throttle.num_requests, throttle.duration = throttle.parse_rate("2/hour")
    assert statuses(ask, {}, {}, {}) == [OK, OK, DENIED]


def test_throttle_with_its_own_history_waits_by_it() -> None:
    throttle = AnonRateThrottle("5/min")
    throttle.history = []
    assert throttle.wait() == 10
    throttle.history, throttle.now = [0.0] * 10, 0.0
    assert throttle.wait() is None


@pytest.mark.parametrize(("name", "value"), [("cache", object()), ("timer", lambda self: 0)])
def test_attribute_without_effect_warns_when_the_class_is_made(name: str, value: object) -> None:
    with pytest.warns(UserWarning, match=rf"Own\.{name} has no effect: hits are counted by"):
        own = type("Own", (AnonRateThrottle,), {name: value})
    type("BelowIt", (own,), {})  # said once
    with pytest.warns(UserWarning, match=rf"Mixed\.{name} has no effect"):
        type("Mixed", (type("Mixin", (), {name: value}), AnonRateThrottle), {})
