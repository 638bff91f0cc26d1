"""Throttles for django-ninja, on limits that hold across the cluster.

They take the place of those of the same names in `ninja.throttling`, with the same rates, scopes and settings.
"""

from contextvars import ContextVar

from django.http import HttpRequest
from ninja import throttling
from ninja.conf import settings

from .. import conf
from ..ratelimit import Decision, Limit
from ..ratelimit.counted import Question
from ..ratelimit.keys import client_of
from ..ratelimit.throttling import block, throttle

GROUP = "ninja"


class ClusterRateThrottle(throttling.SimpleRateThrottle):
    """The base of the others, and of your own: give it a `scope`, and `get_cache_key(request)`.

    `rate` is as in `ninja.throttling`, by default that of the scope in NINJA_DEFAULT_THROTTLE_RATES; `algorithm` and
    `on_unavailable` are those of a `Limit`. Raises `ImproperlyConfigured`, or the framework's `ValueError` for a rate.
    """

    def __init__(
        self, rate: str | None = None, algorithm: str = "sliding_window", on_unavailable: str | None = None
    ) -> None:
        super().__init__(rate)
        number = "0/1" if self.rate is None else f"{self.num_requests}/{self.duration}"
        self.limit = Limit.parse(f"{number}s", algorithm, on_unavailable)
        # One throttle serves all requests, in several threads and tasks.
        self._decision: ContextVar[Decision | None] = ContextVar("decision", default=None)
        self._denied: ContextVar[HttpRequest | None] = ContextVar("denied", default=None)

    @property
    def decision(self) -> Decision | None:
        """That on the last request of this thread or task; None if it wasn't limited."""
        return self._decision.get()

    def allow_request(self, request: HttpRequest) -> bool:
        """Counts the request. True if it may pass."""
        key = None if self.rate is None else self.get_cache_key(request)
        decision = None if key is None else throttle(request, Question(self.limit, GROUP, key, 1))
        allowed = decision is None or decision.allowed
        self._decision.set(decision)
        self._denied.set(None if allowed else request)
        return allowed

    def wait(self) -> float | None:
        """Seconds until the next request may pass. The framework asks where it blocks one: what that has counted at
        throttles is given back here, and by limits around once the response comes."""
        denied = self._denied.get()
        if denied is not None:
            block(denied)
            self._denied.set(None)
        decision = self.decision
        return None if decision is None else decision.retry_after

    def get_ident(self, request: HttpRequest) -> str | None:
        """The client: by TRUSTED_PROXIES, or as the framework says where its NUM_PROXIES is set. Unlike there, a header
        that anybody can send counts for nothing where neither is. Raises `ImproperlyConfigured` where there is no
        address."""
        if settings.NUM_PROXIES is not None and not conf.get_settings().trusted_proxies:
            return super().get_ident(request)
        return client_of(request.META)


class AnonRateThrottle(throttling.AnonRateThrottle, ClusterRateThrottle):
    """Anonymous clients by address; scope `anon`."""


class AuthRateThrottle(throttling.AuthRateThrottle, ClusterRateThrottle):
    """By what authenticated the request (`request.auth`), and others by address; scope `auth`."""


class UserRateThrottle(throttling.UserRateThrottle, ClusterRateThrottle):
    """Users, and anonymous clients by address; scope `user`."""
