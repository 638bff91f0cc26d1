"""Django REST framework's throttles, on the cluster."""

from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.views import APIView

from django_clusterstate import cluster as cluster_state
from django_clusterstate.contrib.drf import AnonRateThrottle, ClusterRateThrottle, ScopedRateThrottle, UserRateThrottle
from django_clusterstate.ratelimit import routing_key

pytestmark = pytest.mark.usefixtures("cluster")

OK, DENIED = 200, 429


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that no other test counts in."""
    name = uuid4().hex
    monkeypatch.setattr("django_clusterstate.contrib.drf.GROUP", name)
    return name


def view_of(throttle: type, **attributes: Any) -> Any:
    class View(APIView):
        throttle_classes = [throttle]  # noqa: RUF012 - as the framework has it

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


def test_as_many_pass_as_the_rate_says_and_the_others_learn_when_to_come_back() -> None:
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


def test_a_throttle_of_a_projects_own_says_its_key_and_algorithm() -> None:
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
        ({"algorithm": "leaky"}, "'leaky' is no algorithm"),
        ({"on_unavailable": "Deny"}, "on_unavailable is one of local, allow, deny"),
    ],
)
def test_a_wrong_throttle_is_refused_when_its_class_is_made(base: type, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        type("Wrong", (base,), {"rate": "1/s", **options})


@pytest.mark.parametrize("options", [{"algorithm": "leaky"}, {"on_unavailable": "Deny"}, {"rate": "-1/s"}])
def test_what_a_class_is_given_later_lets_nothing_pass_if_it_is_wrong(options: dict[str, Any]) -> None:
    throttle = type("Late", (AnonRateThrottle,), {"rate": "1/s"})
    for name, value in options.items():
        setattr(throttle, name, value)
    with pytest.raises(ImproperlyConfigured):
        ask(view_of(throttle))


def test_a_header_that_anybody_can_send_makes_nobody_another_client() -> None:
    view = view_of(TwoADay)
    assert statuses(view, *({"HTTP_X_FORWARDED_FOR": f"1.2.3.{n}"} for n in range(3))) == [OK, OK, DENIED]


@override_settings(CLUSTERSTATE={"TRUSTED_PROXIES": ["127.0.0.1"]})
def test_clients_behind_a_trusted_proxy_count_by_their_own_address() -> None:
    view = view_of(TwoADay)
    one, other = ({"HTTP_X_FORWARDED_FOR": address} for address in ("9.9.9.9, 1.2.3.4", "1.2.3.5"))
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
    assert throttle.decision.owner == cluster_state.owner(routing_key(group, "throttle_anon_127.0.0.1"))
    assert throttle.decision.remaining == 1
