"""The throttle suite of Django REST framework, unmodified, with the throttles of this project in the place of its own.

The suite moves its throttles' `timer`, by which nothing is counted here. So this process counts, as it does without a
node, by a clock that reads what the timer of the throttle says that was asked last.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import TestCase
from rest_framework import throttling
from rest_framework.settings import api_settings

from django_clusterstate.contrib import drf
from tests.django_suite.fetch import DRF_TESTS

# What the suite expects of the framework's own throttles, and ours do otherwise.
OTHERWISE = {
    "ThrottlingTests.test_request_throttling_multiple_throttles": (
        "a request that one throttle blocks is not counted by the others, so one more of them passes"
    ),
    "ThrottlingTests.test_throttle_rate_change_negative": (
        "the same: the throttle of 6/min has counted none of the blocked requests, so that of 3/sec says 1 second"
    ),
    "ScopedRateThrottleTests.test_scoped_rate_throttle": (
        "of hits at 0, 1 and 2 s under 3/min one comes free at 60 s, and the others at 62 s together, not one at 61 s: "
        "the times of single hits are not kept"
    ),
    "AnonRateThrottleTests.test_get_cache_key_returns_correct_value": (
        "a request without an address raises ImproperlyConfigured: all such clients would be taken for one"
    ),
}


UNUSED_TIMER = pytest.mark.filterwarnings("ignore:.*[.]timer has no effect:UserWarning")


class Clock:
    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


class SimpleRateThrottle(drf.ClusterRateThrottle):
    def allow_request(self, request: Any, view: Any) -> bool:
        Clock.now = self.timer()
        return super().allow_request(request, view)


class AnonRateThrottle(drf.AnonRateThrottle, SimpleRateThrottle):
    pass


class UserRateThrottle(drf.UserRateThrottle, SimpleRateThrottle):
    pass


class ScopedRateThrottle(drf.ScopedRateThrottle, SimpleRateThrottle):
    pass


def here(case: Any) -> Any:
    return pytest.mark.usefixtures("counted_by_timer")(UNUSED_TIMER(case))


def suite() -> dict[str, Any]:
    """The test cases of the suite, each with the throttles replaced."""
    path = DRF_TESTS / "test_throttling.py"
    if not path.is_file():
        raise SystemExit("The tests of REST framework are missing: run `python -m tests.django_suite.fetch`.")
    spec = importlib.util.spec_from_file_location("drf_throttle_suite", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for throttle in (SimpleRateThrottle, AnonRateThrottle, UserRateThrottle, ScopedRateThrottle):
            patch.setattr(throttling, throttle.__name__, throttle)
        spec.loader.exec_module(module)
    cases = {name: case for name, case in vars(module).items() if isinstance(case, type) and issubclass(case, TestCase)}
    cases.pop("TestCase", None)
    for name, case in cases.items():
        for method in [method for method in dir(case) if f"{name}.{method}" in OTHERWISE]:
            reason = OTHERWISE[f"{name}.{method}"]
            setattr(case, method, pytest.mark.xfail(strict=True, reason=reason)(getattr(case, method)))
    return {name: here(case) for name, case in cases.items()}


globals().update(suite())


@pytest.fixture
def counted_by_timer(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("django_clusterstate.ratelimit.fallback.time", Clock)
    proxies = api_settings.NUM_PROXIES
    yield
    api_settings.NUM_PROXIES = proxies
