"""Throttles for django-ninja, on limits that hold across the cluster.

They take the place of those of the same names in `ninja.throttling`, with the same rates, scopes and settings.
"""

from contextvars import ContextVar
from typing import Any, cast

from django.http import HttpRequest
from ninja import throttling
from ninja.conf import settings

from .. import runtime
from ..ratelimit import Decision, Limit
from ..ratelimit.keys import client_of
from ..ratelimit.refunds import LimitCheck
from ..ratelimit.throttles import block, limit_of, throttle, wait_of, warn_of_unused

GROUP = "ninja"


class ClusterRateThrottle(throttling.SimpleRateThrottle):
    """The base of the others, and of your own: give it a `scope`, and `get_cache_key(request)`.

    `rate` is as in `ninja.throttling`, by default that of the scope in NINJA_DEFAULT_THROTTLE_RATES; `algorithm` and
    `on_unavailable` are those of a `Limit`. Raises `ImproperlyConfigured`, or the framework's `ValueError` for a rate.
    All that subclasses of the framework's own override is called as there: `get_rate()`, `parse_rate()`,
    `get_cache_key()`, `get_ident()`, `throttle_success()`, `throttle_failure()`, `wait()`. There is no `history`,
    unless an `allow_request()` of your own keeps one.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        warn_of_unused(cls, ClusterRateThrottle)

    def __init__(
        self, rate: str | None = None, algorithm: str = "sliding_window", on_unavailable: str | None = None
    ) -> None:
        # One throttle serves all requests, in several threads and tasks.
        self._decision: ContextVar[Decision | None] = ContextVar("decision", default=None)
        self._denied: ContextVar[HttpRequest | None] = ContextVar("denied", default=None)
        self._key: ContextVar[str | None] = ContextVar("key", default=None)
        super().__init__(rate)
        self.algorithm, self.on_unavailable = algorithm, on_unavailable
        Limit.parse("1/s", algorithm, on_unavailable)
        if self.rate is not None:
            self.limit  # noqa: B018 - so that a wrong one is refused here

    @property
    def limit(self) -> Limit:
        return limit_of(cast(int, self.num_requests), cast(int, self.duration), self.algorithm, self.on_unavailable)

    @property
    def decision(self) -> Decision | None:
        """That on the last request of this thread or task; None if it wasn't limited."""
        return self._decision.get()

    @property
    def key(self) -> str | None:
        """That of the last request of this thread or task."""
        return self._key.get()

    @key.setter
    def key(self, key: str | None) -> None:
        self._key.set(key)

    def allow_request(self, request: HttpRequest) -> bool:
        """Counts the request, and answers with what `throttle_success()` or `throttle_failure()` returns."""
        self.key = None if self.rate is None else self.get_cache_key(request)
        decision = None if self.key is None else throttle(request, LimitCheck(self.limit, GROUP, str(self.key), 1))
        self._decision.set(decision)
        self._denied.set(None if decision is None or decision.allowed else request)
        if decision is None:
            return True
        return self.throttle_success() if decision.allowed else self.throttle_failure()

    def throttle_success(self) -> bool:
        """Called for a request that is counted; returns whether it may pass."""
        if "history" in vars(self):  # an allow_request() that counts by itself, as the framework's own
            return super().throttle_success()
        return True

    def wait(self) -> float | None:
        """Seconds until the next request may pass. The framework asks where it blocks one: what that has counted at
        throttles is given back here, and by limits around once the response comes."""
        if "history" in vars(self):
            return super().wait()
        denied = self._denied.get()
        if denied is not None:
            block(denied)
            self._denied.set(None)
        decision = self.decision
        return None if decision is None else wait_of(decision)

    def get_ident(self, request: HttpRequest) -> str | None:
        """The client: by TRUSTED_PROXIES, or as the framework says where its NUM_PROXIES is set. Unlike there, a header
        that anybody can send counts for nothing where neither is. Raises `ImproperlyConfigured` where there is no
        address."""
        if settings.NUM_PROXIES is not None and not runtime.get_settings().trusted_proxies:
            return super().get_ident(request)
        return client_of(request.META)


class AnonRateThrottle(throttling.AnonRateThrottle, ClusterRateThrottle):
    """Anonymous clients by address; scope `anon`."""


class AuthRateThrottle(throttling.AuthRateThrottle, ClusterRateThrottle):
    """By what authenticated the request (`request.auth`), and others by address; scope `auth`."""


class UserRateThrottle(throttling.UserRateThrottle, ClusterRateThrottle):
    """Users, and anonymous clients by address; scope `user`."""
