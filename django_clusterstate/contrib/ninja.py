"""Throttles for django-ninja, on limits that hold across the cluster.

They replace the classes of the same names in `ninja.throttling`, with the same rates, scopes and settings.
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
from ..ratelimit.throttles import block, seconds_to_wait, throttle, throttle_limit, warn_of_unused_attributes

GROUP = "ninja"


class ClusterRateThrottle(throttling.SimpleRateThrottle):
    """The base class of this module's throttles and of your own, which define `scope` and `get_cache_key(request)`.

    `rate` is as in `ninja.throttling`, by default that of the scope in NINJA_DEFAULT_THROTTLE_RATES; `algorithm` and
    `on_unavailable` are those of a `Limit`. Raises `ImproperlyConfigured`, or the framework's `ValueError` for a rate.
    The methods that subclasses override in the framework are called in the same way: `get_rate()`, `parse_rate()`,
    `get_cache_key()`, `get_ident()`, `throttle_success()`, `throttle_failure()`, `wait()`. There is no `history`,
    unless your `allow_request()` keeps one.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        warn_of_unused_attributes(cls, ClusterRateThrottle)

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
            self.limit  # noqa: B018 - raises for a wrong one

    @property
    def limit(self) -> Limit:
        return throttle_limit(
            cast(int, self.num_requests), cast(int, self.duration), self.algorithm, self.on_unavailable
        )

    @property
    def decision(self) -> Decision | None:
        """The decision on the last request of this thread or task; None if the request wasn't limited."""
        return self._decision.get()

    @property
    def key(self) -> str | None:
        """The key of the last request of this thread or task."""
        return self._key.get()

    @key.setter
    def key(self, key: str | None) -> None:
        self._key.set(key)

    def allow_request(self, request: HttpRequest) -> bool:
        """Counts the request. Returns the result of `throttle_success()` or `throttle_failure()`."""
        self.key = None if self.rate is None else self.get_cache_key(request)
        decision = None if self.key is None else throttle(request, LimitCheck(self.limit, GROUP, str(self.key), 1))
        self._decision.set(decision)
        self._denied.set(None if decision is None or decision.allowed else request)
        if decision is None:
            return True
        return self.throttle_success() if decision.allowed else self.throttle_failure()

    def throttle_success(self) -> bool:
        """Called for a request that was allowed. Returns whether it may pass."""
        if "history" in vars(self):  # a subclass's allow_request() counts itself, as the framework's does
            return super().throttle_success()
        return True

    def wait(self) -> float | None:
        """Seconds until the next request may pass. The framework calls it if it blocks a request: here the hits that
        throttles have counted of that request are refunded; limits around the view refund theirs at the response."""
        if "history" in vars(self):
            return super().wait()
        denied = self._denied.get()
        if denied is not None:
            block(denied)
            self._denied.set(None)
        decision = self.decision
        return None if decision is None else seconds_to_wait(decision)

    def get_ident(self, request: HttpRequest) -> str | None:
        """The client's address, by TRUSTED_PROXIES, or by the framework if its NUM_PROXIES is set. If neither is set,
        X-Forwarded-For is ignored, unlike in the framework, since any client can send it. Raises `ImproperlyConfigured`
        if there is no address."""
        if settings.NUM_PROXIES is not None and not runtime.get_settings().trusted_proxies:
            return super().get_ident(request)
        return client_of(request.META)


class AnonRateThrottle(throttling.AnonRateThrottle, ClusterRateThrottle):
    """Limits anonymous clients by address; scope `anon`."""


class AuthRateThrottle(throttling.AuthRateThrottle, ClusterRateThrottle):
    """Limits authenticated requests by `request.auth`, and others by address; scope `auth`."""


class UserRateThrottle(throttling.UserRateThrottle, ClusterRateThrottle):
    """Limits users, and anonymous clients by address; scope `user`."""
