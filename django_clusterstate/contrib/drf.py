"""Throttles for Django REST framework, on limits that hold across the cluster.

They take the place of those of the same names in `rest_framework.throttling`, with the same rates, scopes and settings.
"""

from typing import Any

from rest_framework import throttling
from rest_framework.settings import api_settings

from .. import runtime
from ..ratelimit import Decision, Limit
from ..ratelimit.keys import client_of
from ..ratelimit.refunds import LimitCheck
from ..ratelimit.throttles import block, limit_of, throttle, wait_of, warn_of_unused

GROUP = "rest_framework"


class ClusterRateThrottle(throttling.SimpleRateThrottle):
    """The base of the others, and of your own: give it a `scope`, and `get_cache_key(request, view)`.

    `algorithm` and `on_unavailable` are those of a `Limit`; a class with others raises `ImproperlyConfigured`. After a
    request `decision` has the `Decision`, or None if it wasn't limited. All that subclasses of the framework's own
    override is called as there: `get_rate()`, `parse_rate()`, `get_cache_key()`, `get_ident()`, `throttle_success()`,
    `throttle_failure()`, `wait()`. There is no `history`, unless an `allow_request()` of your own keeps one.
    """

    # As the framework's own: at most the limit in any period, and all of it again a period after a burst.
    algorithm = "sliding_window"
    on_unavailable: str | None = None
    decision: Decision | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Limit.parse("1/s", cls.algorithm, cls.on_unavailable)
        warn_of_unused(cls, ClusterRateThrottle)

    def allow_request(self, request: Any, view: Any) -> bool:
        """Counts the request, and answers with what `throttle_success()` or `throttle_failure()` returns."""
        self.decision = None
        self.key = None if self.rate is None else self.get_cache_key(request, view)
        if self.key is None:
            return True
        self.now = self.timer()  # as there, for overridden methods; nothing is counted by it
        limit = limit_of(self.num_requests, self.duration, self.algorithm, self.on_unavailable)
        self._asked = request
        self.decision = throttle(request, LimitCheck(limit, GROUP, str(self.key), 1))
        return self.throttle_success() if self.decision.allowed else self.throttle_failure()

    def throttle_success(self) -> bool:
        """Called for a request that is counted; returns whether it may pass."""
        if "history" in vars(self):  # an allow_request() that counts by itself, as the framework's own
            return bool(super().throttle_success())
        return True

    def wait(self) -> float | None:
        """Seconds until the next request may pass. The framework asks where it blocks one: what that has counted at
        throttles is given back here, and by limits around once the response comes."""
        if "history" in vars(self):
            wait: float | None = super().wait()
            return wait
        if self.decision is None:
            return None
        if not self.decision.allowed:
            block(self._asked)
        return wait_of(self.decision)

    def get_ident(self, request: Any) -> str:
        """The client: by TRUSTED_PROXIES, or as the framework says where its NUM_PROXIES is set. Unlike there, a header
        that anybody can send counts for nothing where neither is. Raises `ImproperlyConfigured` where there is no
        address."""
        if api_settings.NUM_PROXIES is not None and not runtime.get_settings().trusted_proxies:
            return str(super().get_ident(request))
        return client_of(request.META)


class AnonRateThrottle(throttling.AnonRateThrottle, ClusterRateThrottle):
    """Anonymous clients by address; scope `anon`."""


class UserRateThrottle(throttling.UserRateThrottle, ClusterRateThrottle):
    """Users, and anonymous clients by address; scope `user`."""


class ScopedRateThrottle(throttling.ScopedRateThrottle, ClusterRateThrottle):
    """By the `throttle_scope` of a view, for users and addresses."""
