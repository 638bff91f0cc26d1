"""Django REST framework's throttles, on the cluster."""

import json
import time
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpResponse, JsonResponse
from django.test import override_settings
from django.utils.decorators import method_decorator
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import action, api_view
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from django_clusterstate import cluster as cluster_state
from django_clusterstate.contrib.drf import AnonRateThrottle, ClusterRateThrottle, ScopedRateThrottle, UserRateThrottle
from django_clusterstate.decorators import cluster_ratelimit
from django_clusterstate.ratelimit import Limit, peek, routing_key
from tests.timing import is_left

pytestmark = pytest.mark.usefixtures("cluster")

OK, DENIED = 200, 429


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that no other test counts in."""
    name = uuid4().hex
    monkeypatch.setattr("django_clusterstate.contrib.drf.GROUP", name)
    return name


def view_of(*throttles: type, **attributes: Any) -> Any:
    class View(APIView):
        throttle_classes = throttles

        def get(self, request: Any) -> Response:
            return Response("seen")

    for name, value in attributes.items():
        setattr(View, name, value)
    return View.as_view()


def ask(view: Any, user: User | None = None, **meta: str) -> Any:
    request = APIRequestFactory().get("/", **meta)
    if user is not None:
        force_authenticate(request, user)
    return view(request)


def statuses(view: Any, *asked: dict[str, Any]) -> list[int]:
    return [ask(view, **one).status_code for one in asked]


class TwoADay(AnonRateThrottle):
    rate = "2/day"


def test_rate_allows_its_number_of_requests_and_others_get_the_wait() -> None:
    view = view_of(TwoADay)
    assert statuses(view, {}, {}, {}) == [OK, OK, DENIED]
    denied = ask(view)
    assert 0 < int(denied["Retry-After"]) <= 2 * 86400
    assert "Request was throttled" in str(denied.data["detail"])
    assert ask(view, REMOTE_ADDR="10.9.9.9").status_code == OK


def test_anonymous_throttles_leave_users_alone() -> None:
    view = view_of(TwoADay)
    assert statuses(view, *[{"user": User(pk=1)}] * 5) == [OK] * 5


def test_users_count_by_themselves_and_others_by_address() -> None:
    view = view_of(type("OneADay", (UserRateThrottle,), {"rate": "1/day"}))
    one, two = {"user": User(pk=1)}, {"user": User(pk=2)}
    assert statuses(view, one, two, one, {}, {}) == [OK, OK, DENIED, OK, DENIED]


def test_scopes_of_views_have_rates_of_their_own() -> None:
    throttle = type("Scoped", (ScopedRateThrottle,), {"THROTTLE_RATES": {"uploads": "1/day", "mails": "2/day"}})
    uploads, mails, others = (view_of(throttle, throttle_scope=scope) for scope in ("uploads", "mails", None))
    assert statuses(uploads, {}, {}) == [OK, DENIED]
    assert statuses(mails, {}, {}, {}) == [OK, OK, DENIED]
    assert statuses(others, {}, {}, {}) == [OK, OK, OK]


def test_throttle_of_the_project_defines_its_key_and_algorithm() -> None:
    class ByTenant(ClusterRateThrottle):
        scope = "tenant"
        rate = "1/hour"
        algorithm = "token_bucket"

        def get_cache_key(self, request: Any, view: Any) -> str | None:
            return request.META.get("HTTP_X_TENANT")  # type: ignore[no-any-return]

    view = view_of(ByTenant)
    a, b = {"HTTP_X_TENANT": "a"}, {"HTTP_X_TENANT": "b"}
    assert statuses(view, a, a, b, {}, {}) == [OK, DENIED, OK, OK, OK]


def test_a_rate_of_none_limits_nothing() -> None:
    view = view_of(type("Unlimited", (AnonRateThrottle,), {"THROTTLE_RATES": {"anon": None}}))
    assert statuses(view, *[{}] * 5) == [OK] * 5


@pytest.mark.parametrize("base", [AnonRateThrottle, ScopedRateThrottle])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "leaky"}, "unknown algorithm 'leaky'"),
        ({"on_unavailable": "Deny"}, "unknown on_unavailable 'Deny'; choose one of local, allow, deny"),
    ],
)
def test_a_wrong_throttle_is_refused_when_its_class_is_made(base: type, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        type("Wrong", (base,), {"rate": "1/s", **options})


@pytest.mark.parametrize("options", [{"algorithm": "leaky"}, {"on_unavailable": "Deny"}, {"rate": "-1/s"}])
def test_wrong_attribute_set_on_a_class_later_allows_nothing(options: dict[str, Any]) -> None:
    throttle = type("Late", (AnonRateThrottle,), {"rate": "1/s"})
    for name, value in options.items():
        setattr(throttle, name, value)
    with pytest.raises(ImproperlyConfigured):
        ask(view_of(throttle))


def test_forwarded_header_is_ignored_without_trusted_proxies() -> None:
    view = view_of(TwoADay)
    assert statuses(view, *({"HTTP_X_FORWARDED_FOR": f"1.2.3.{n}"} for n in range(3))) == [OK, OK, DENIED]


@override_settings(CLUSTERSTATE={"TRUSTED_PROXIES": ["127.0.0.1"]})
def test_clients_behind_a_trusted_proxy_count_by_their_own_address() -> None:
    view = view_of(TwoADay)
    one, other = ({"HTTP_X_FORWARDED_FOR": address} for address in ("9.9.9.9, 1.2.3.4", "1.2.3.5"))
    assert statuses(view, one, one, one, other) == [OK, OK, DENIED, OK]


def test_clients_without_an_address_are_not_taken_for_one() -> None:
    view = view_of(TwoADay)
    with pytest.raises(ImproperlyConfigured, match=r"address is unusable.*TRUSTED_PROXIES"):
        ask(view, REMOTE_ADDR="")
    with override_settings(CLUSTERSTATE={"TRUSTED_PROXIES": ["unix"]}):
        one, other = ({"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": address} for address in ("1.2.3.4", "1.2.3.5"))
        assert statuses(view, one, one, one, other) == [OK, OK, DENIED, OK]


@override_settings(REST_FRAMEWORK={"NUM_PROXIES": 1})
def test_the_frameworks_own_count_of_proxies_is_heeded() -> None:
    view = view_of(TwoADay)
    one, other = ({"HTTP_X_FORWARDED_FOR": address} for address in ("9.9.9.9, 1.2.3.4", "1.2.3.5"))
    assert statuses(view, one, one, one, other) == [OK, OK, DENIED, OK]


def test_the_decision_stays_with_the_throttle_and_names_the_owner(group: str) -> None:
    throttle = TwoADay()
    request = APIView().initialize_request(APIRequestFactory().get("/"))
    assert throttle.allow_request(request, None)
    assert throttle.decision is not None
    assert throttle.decision.owner == cluster_state.owner(routing_key(group, "throttle_anon_127.0.0.1"))
    assert throttle.decision.remaining == 1


# -- several throttles ------------------------------------------------------------------------------------------


def throttle_of(scope: str, rate: str, base: type = AnonRateThrottle, **options: Any) -> type:
    return type(scope, (base,), {"scope": scope, "rate": rate, **options})


def left(group: str, scope: str, rate: str) -> int:
    return peek(Limit.parse(rate, "sliding_window"), group, f"throttle_{scope}_127.0.0.1").remaining


@pytest.mark.parametrize("order", [1, -1], ids=["the one that blocks first", "last"])
def test_throttles_beside_one_that_blocks_arent_consumed(group: str, order: int) -> None:
    throttles = [throttle_of("burst", "1/m"), throttle_of("middle", "20/d"), throttle_of("sustained", "10/d")]
    view = view_of(*throttles[::order])
    assert statuses(view, *[{}] * 5) == [OK] + [DENIED] * 4
    assert (left(group, "burst", "1/m"), left(group, "middle", "20/d"), left(group, "sustained", "10/d")) == (0, 19, 9)


@pytest.mark.parametrize("order", [1, -1], ids=["the one that blocks first", "last"])
@pytest.mark.parametrize(
    ("policy", "passed", "kept"), [("local", 1, [0, 9]), ("allow", 1, [0, 10]), ("deny", 0, [1, 10])]
)
def test_throttles_beside_one_that_blocks_arent_consumed_without_a_node(
    nowhere: None, group: str, order: int, policy: str, passed: int, kept: list[int]
) -> None:
    throttles = [throttle_of("burst", "1/m"), throttle_of("sustained", "10/d", on_unavailable=policy)]
    view = view_of(*throttles[::order])
    assert statuses(view, *[{}] * 5) == [OK] * passed + [DENIED] * (5 - passed)
    assert [left(group, "burst", "1/m"), left(group, "sustained", "10/d")] == kept


def test_longest_wait_of_several_throttles_is_returned() -> None:
    view = view_of(throttle_of("hourly", "1/h"), throttle_of("daily", "1/d"))
    assert statuses(view, {}, {}) == [OK, DENIED]
    assert 2 * 3600 < int(ask(view)["Retry-After"]) <= 2 * 86400


def test_a_throttle_and_the_limits_around_and_in_it_let_each_other_off(group: str) -> None:
    limits = {"outer": "20/d", "inner": "2/d"}

    class View(APIView):
        throttle_classes = (throttle_of("burst", "3/d"),)

        @method_decorator(cluster_ratelimit(f"{group}-inner", rate="2/d"))
        def get(self, request: Any) -> Response:
            return Response("seen")

    view = cluster_ratelimit(f"{group}-outer", rate="20/d")(View.as_view())
    assert statuses(view, *[{}] * 5) == [OK, OK] + [DENIED] * 3
    rests = [peek(Limit.parse(rate), f"{group}-{name}", "ip:127.0.0.1").remaining for name, rate in limits.items()]
    assert (rests, left(group, "burst", "3/d")) == ([18, 0], 1)
    assert statuses(view_of(throttle_of("burst", "3/d")), {}, {}) == [OK, DENIED]
    assert statuses(view, {}) == [DENIED]
    assert peek(Limit.parse("20/d"), f"{group}-outer", "ip:127.0.0.1").remaining == 18


def test_a_throttle_that_overrules_a_denial_keeps_no_other_from_counting(group: str) -> None:
    class Lenient(AnonRateThrottle):
        scope, rate = "lenient", "1/d"

        def allow_request(self, request: Any, view: Any) -> bool:
            super().allow_request(request, view)
            return True

    view = view_of(throttle_of("first", "9/d"), Lenient, throttle_of("last", "3/d"))
    assert statuses(view, *[{}] * 5) == [OK] * 3 + [DENIED] * 2
    assert left(group, "first", "9/d") == 6


def test_wait_without_a_denial_refunds_nothing(group: str) -> None:
    class Curious(AnonRateThrottle):
        scope, rate = "curious", "5/d"

        def allow_request(self, request: Any, view: Any) -> bool:
            return super().allow_request(request, view) and bool(self.wait())

    assert statuses(view_of(Curious), {}, {}) == [OK, OK]
    assert left(group, "curious", "5/d") == 3


def test_a_view_that_calls_others_doesnt_let_them_off() -> None:
    blocked, counted = view_of(throttle_of("blocked", "0/d")), view_of(throttle_of("counted", "2/d"))

    def batch() -> list[int]:
        request = APIRequestFactory().get("/")
        return [view(request).status_code for view in (blocked, counted)]

    assert [batch() for _ in range(3)] == [[DENIED, OK], [DENIED, OK], [DENIED, DENIED]]


def test_view_that_has_ended_keeps_the_hits_of_its_throttles_if_a_later_one_is_blocked(group: str) -> None:
    counted, blocked = view_of(throttle_of("counted", "9/d")), view_of(throttle_of("blocked", "0/d"))
    request = APIRequestFactory().get("/")
    assert [view(request).status_code for view in (counted, blocked)] == [OK, DENIED]
    assert left(group, "counted", "9/d") == 8


def test_a_handlers_own_limit_lets_its_throttles_off(group: str) -> None:
    class View(APIView):
        throttle_classes = (throttle_of("burst", "9/d"),)

        @method_decorator(cluster_ratelimit(f"{group}-first", rate="9/d"))
        @method_decorator(cluster_ratelimit(f"{group}-second", rate="1/d"))
        def get(self, request: Any) -> Response:
            return Response("seen")

    assert statuses(View.as_view(), *[{}] * 3) == [OK] + [DENIED] * 2
    assert left(group, "burst", "9/d") == 8
    assert peek(Limit.parse("9/d"), f"{group}-first", "ip:127.0.0.1").remaining == 8


def test_handler_that_calls_a_limited_function_keeps_the_hits_of_its_throttles(group: str) -> None:
    calls: list[Any] = [
        cluster_ratelimit(f"{group}-{rate[0]}", rate=rate)(lambda request: HttpResponse()) for rate in ("9/d", "0/d")
    ]

    class View(APIView):
        throttle_classes = (throttle_of("burst", "9/d"),)

        def get(self, request: Any) -> Response:
            return Response([call(request).status_code for call in calls])

    assert ask(View.as_view()).data == [OK, DENIED]
    assert left(group, "burst", "9/d") == 8
    assert peek(Limit.parse("9/d"), f"{group}-9", "ip:127.0.0.1").remaining == 8


def test_a_limit_around_counts_a_view_that_answers_for_itself(group: str) -> None:
    blocked = view_of(throttle_of("blocked", "0/d"))

    @cluster_ratelimit(f"{group}-outer", rate="9/d")
    def batch(request: Any) -> Any:
        return JsonResponse([blocked(request).status_code], safe=False)

    assert json.loads(ask(batch).content) == [DENIED]
    assert peek(Limit.parse("9/d"), f"{group}-outer", "ip:127.0.0.1").remaining == 8


# -- the decorator ----------------------------------------------------------------------------------------------


class ByHeader(BaseAuthentication):
    def authenticate(self, request: Any) -> tuple[User, None] | None:
        pk = request.headers.get("X-User")
        return None if pk is None else (User(pk=int(pk)), None)


def by_user(pk: int) -> dict[str, str]:
    return {"HTTP_X_USER": str(pk)}


def function_view(limited: Any) -> Any:
    @api_view(["GET", "POST"])  # type: ignore[untyped-decorator]
    @limited  # type: ignore[untyped-decorator]
    def view(request: Any) -> Response:
        return Response("seen")

    return view


def function_view_around(limited: Any) -> Any:
    return limited(api_view(["GET"])(lambda request: Response("seen")))


def handler(limited: Any) -> Any:
    class View(APIView):
        authentication_classes = (ByHeader,)

        @method_decorator(limited)
        def get(self, request: Any) -> Response:
            return Response("seen")

        post = get

    return View.as_view()


def view_class(limited: Any) -> Any:
    class View(APIView):
        authentication_classes = (ByHeader,)

        def get(self, request: Any) -> Response:
            return Response("seen")

    return limited(View).as_view()


def viewset_action(limited: Any) -> Any:
    class Things(ViewSet):
        authentication_classes = (ByHeader,)

        @action(detail=False)  # type: ignore[untyped-decorator]
        @method_decorator(limited)
        def recent(self, request: Any) -> Response:
            return Response("seen")

    return Things.as_view({"get": "recent"})


KINDS = [function_view, function_view_around, handler, view_class, viewset_action]


@pytest.mark.parametrize("made", KINDS)
def test_the_decorator_limits_views_of_each_kind(made: Any, group: str) -> None:
    view = made(cluster_ratelimit(group, key="ip", rate="2/d"))
    responses = [ask(view, HTTP_ACCEPT="application/json") for _ in range(3)]
    assert [response.status_code for response in responses] == [OK, OK, DENIED]
    assert [response["RateLimit"][:15] for response in responses] == [f'"2/86400s";r={n};' for n in (1, 0, 0)]
    assert int(responses[2]["Retry-After"]) > 0
    assert json.loads(responses[2].content)["detail"].startswith("Too many requests")
    assert ask(view, REMOTE_ADDR="10.9.9.9").status_code == OK


@pytest.mark.parametrize("made", [handler, viewset_action])
def test_handlers_know_the_user_whom_the_framework_has_authenticated(made: Any, group: str) -> None:
    view = made(cluster_ratelimit(group, key="user", rate="1/d"))
    assert statuses(view, by_user(1), by_user(2), by_user(1)) == [OK, OK, DENIED]


def test_decorated_class_is_limited_before_the_framework_authenticates(group: str) -> None:
    view = view_class(cluster_ratelimit(group, key="user", rate="1/d"))
    assert statuses(view, by_user(1), by_user(2)) == [OK, DENIED]


def name_of(group: str, request: Any) -> Any:
    return request.data.get("name")


@pytest.mark.parametrize(
    ("key", "body", "last"),
    [("post:name", "multipart", OK), ("post:name", "json", DENIED), (name_of, "multipart", OK), (name_of, "json", OK)],
)
@pytest.mark.parametrize("made", [function_view, handler])
def test_only_forms_have_parameters_and_bodies_of_all_kinds_have_data(
    made: Any, group: str, key: Any, body: str, last: int
) -> None:
    view = made(cluster_ratelimit(group, key=key, rate="1/d"))
    asked = [APIRequestFactory().post("/", {"name": name}, format=body) for name in ("one", "other")]
    assert [view(request).status_code for request in asked] == [OK, last]


def test_only_some_responses_of_a_handler_count(group: str) -> None:
    limited = cluster_ratelimit(group, rate="1/d", deduct_when=lambda request, response: response.status_code == OK)
    view = handler(limited)
    assert statuses(view, {}, {}) == [OK, DENIED]


# -- what subclasses of the framework's own throttles override ---------------------------------------------------


def test_overridden_outcomes_are_called_as_by_the_framework() -> None:
    calls: list[tuple[Any, ...]] = []

    class Told(AnonRateThrottle):
        scope, rate = "told", "2/d"

        def throttle_success(self) -> bool:
            calls.append(("success", self.key, self.num_requests, self.duration))
            return super().throttle_success()

        def throttle_failure(self) -> bool:
            calls.append(("failure", self.key, self.num_requests, self.duration))
            return bool(super().throttle_failure())

    assert statuses(view_of(Told), {}, {}, {}) == [OK, OK, DENIED]
    assert [name for name, *_ in calls] == ["success", "success", "failure"]
    assert {tuple(told) for _, *told in calls} == {("throttle_told_127.0.0.1", 2, 86400)}


def test_overridden_outcome_method_decides() -> None:
    class Lenient(AnonRateThrottle):
        scope, rate = "lenient", "1/d"

        def throttle_failure(self) -> bool:
            return True

    class Strict(AnonRateThrottle):
        scope, rate = "strict", "5/d"

        def throttle_success(self) -> bool:
            return False

    class Alarmed(AnonRateThrottle):
        scope, rate = "alarmed", "1/d"

        def throttle_failure(self) -> bool:
            raise PermissionDenied

    assert statuses(view_of(Lenient), {}, {}, {}) == [OK] * 3
    assert statuses(view_of(Strict), {}) == [DENIED]
    assert int(ask(view_of(Strict))["Retry-After"]) > 0
    assert statuses(view_of(Alarmed), {}, {}) == [OK, 403]


def test_overridden_rates_keys_and_waits_are_heeded() -> None:
    class Own(AnonRateThrottle):
        scope = "own"

        def get_rate(self) -> str:
            return "2 in 90"

        def parse_rate(self, rate: str) -> tuple[int, float]:
            number, seconds = rate.split(" in ")
            return int(number), float(seconds)

        def get_ident(self, request: Any) -> str:
            return str(request.headers["X-Tenant"])

        def wait(self) -> float:
            return 2 * (super().wait() or 0)

    view = view_of(Own)
    a, b = {"HTTP_X_TENANT": "a"}, {"HTTP_X_TENANT": "b"}
    start = time.monotonic()
    assert statuses(view, a, a, a, b) == [OK, OK, DENIED, OK]
    assert is_left(int(ask(view, HTTP_X_TENANT="a")["Retry-After"]) / 2, 90, start)


def test_a_rate_that_is_chosen_for_each_request_is_heeded() -> None:
    class Tiered(UserRateThrottle):
        scope, rate = "tiered", "1/d"

        def allow_request(self, request: Any, view: Any) -> bool:
            if "X-Paid" in request.headers:
                self.num_requests, self.duration = self.parse_rate("3/h")
            return bool(super().allow_request(request, view))

        def get_cache_key(self, request: Any, view: Any) -> int:
            return 7

    view = view_of(Tiered)
    assert statuses(view, {}, {}, *[{"HTTP_X_PAID": "yes"}] * 4) == [OK, DENIED, OK, OK, OK, DENIED]


def test_a_throttle_that_counts_by_itself_goes_on_to() -> None:
    """As some do that have copied the framework's own `allow_request()`."""
    history: list[float] = []

    class Copied(AnonRateThrottle):
        scope, rate = "copied", "2/d"

        def allow_request(self, request: Any, view: Any) -> bool:
            self.key, self.now, self.history = "copied", self.timer(), history
            self.cache = Kept()
            return self.throttle_success() if len(history) < self.num_requests else self.throttle_failure()

    class Kept:
        def set(self, key: str, value: list[float], timeout: float) -> None:
            assert (key, timeout) == ("copied", 86400)

    view = view_of(Copied)
    assert statuses(view, {}, {}, {}) == [OK, OK, DENIED]
    assert len(history) == 2
    assert int(ask(view)["Retry-After"]) == pytest.approx(86400, abs=60)


@pytest.mark.parametrize(("name", "value"), [("cache", object()), ("timer", lambda self: 0)])
def test_attribute_without_effect_warns_when_the_class_is_made(name: str, value: object) -> None:
    with pytest.warns(UserWarning, match=rf"Own\.{name} has no effect: hits are counted by"):
        own = type("Own", (AnonRateThrottle,), {name: value})
    type("BelowIt", (own,), {})  # said once
    with pytest.warns(UserWarning, match=rf"Mixed\.{name} has no effect"):
        type("Mixed", (type("Mixin", (), {name: value}), AnonRateThrottle), {})
