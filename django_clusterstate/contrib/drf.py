"""Throttles for Django REST framework, on limits that hold across the cluster.

They replace the classes of the same names in `rest_framework.throttling`, with the same rates, scopes and settings.
"""

from typing import Any

from rest_framework import throttling
from rest_framework.settings import api_settings

from .. import runtime
from ..ratelimit import Decision, Limit
from ..ratelimit.keys import client_of
from ..ratelimit.refunds import LimitCheck
from ..ratelimit.throttles import block, seconds_to_wait, throttle, throttle_limit, warn_of_unused_attributes

GROUP = "rest_framework"


class ClusterRateThrottle(throttling.SimpleRateThrottle):
    """The base class of this module's throttles and of your own, which define `scope` and
    `get_cache_key(request, view)`.

    `algorithm` and `on_unavailable` are those of a `Limit`; a class with other values raises `ImproperlyConfigured`.
    After a request `decision` is the `Decision`, or None if the request wasn't limited. The methods that subclasses
    override in the framework are called in the same way: `get_rate()`, `parse_rate()`, `get_cache_key()`,
    `get_ident()`, `throttle_success()`, `throttle_failure()`, `wait()`. There is no `history`, unless your own
    `allow_request()` keeps one.
    """

    # As in the framework: at most the limit in any period, and all of it again one period after a burst.
    algorithm = "sliding_window"
    on_unavailable: str | None = None
    decision: Decision | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Limit.parse("1/s", cls.algorithm, cls.on_unavailable)
        warn_of_unused_attributes(cls, ClusterRateThrottle)

    def allow_request(self, request: Any, view: Any) -> bool:
        """Counts the request. Returns the result of `throttle_success()` or `throttle_failure()`."""
        self.decision = None
        self.key = None if self.rate is None else self.get_cache_key(request, view)
        if self.key is None:
            return True
        self.now = self.timer()  # for overridden methods of subclasses; nothing is counted by it
        limit = throttle_limit(self.num_requests, self.duration, self.algorithm, self.on_unavailable)
        self._request = request
        self.decision = throttle(request, LimitCheck(limit, GROUP, str(self.key), 1))
        return self.throttle_success() if self.decision.allowed else self.throttle_failure()

    def throttle_success(self) -> bool:
        """Called for a request that was allowed. Returns whether it may pass."""
        if "history" in vars(self):  # a subclass's allow_request() counts itself, as the framework's does
            return bool(super().throttle_success())
        return True

    def wait(self) -> float | None:
        """Seconds until the next request may pass. The framework calls it if it blocks a request: here the hits that
        throttles have counted of that request are refunded; limits around the view refund theirs at the response."""
        if "history" in vars(self):
            wait: float | None = super().wait()
            return wait
        if self.decision is None:
            return None
        if not self.decision.allowed:
            block(self._request)
        return seconds_to_wait(self.decision)

    def get_ident(self, request: Any) -> str:
        """The client's address, by TRUSTED_PROXIES, or by the framework if its NUM_PROXIES is set. If neither is set,
        X-Forwarded-For is ignored, unlike in the framework, since any client can send it. Raises `ImproperlyConfigured`
        if there is no address."""
        if api_settings.NUM_PROXIES is not None and not runtime.get_settings().trusted_proxies:
            return str(super().get_ident(request))
        return client_of(request.META)


class AnonRateThrottle(throttling.AnonRateThrottle, ClusterRateThrottle):
    """Limits anonymous clients by address; scope `anon`."""


class UserRateThrottle(throttling.UserRateThrottle, ClusterRateThrottle):
    """Limits users, and anonymous clients by address; scope `user`."""


class ScopedRateThrottle(throttling.ScopedRateThrottle, ClusterRateThrottle):
    """Limits users and addresses by the `throttle_scope` of a view."""
