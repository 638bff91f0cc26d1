"""Throttles for Django REST framework, on limits that hold across the cluster.

They take the place of those of the same names in `rest_framework.throttling`, with the same rates, scopes and settings.
"""

from typing import Any

from rest_framework import throttling
from rest_framework.settings import api_settings

from .. import conf
from ..ratelimit import Limit
from ..ratelimit.counted import Question
from ..ratelimit.keys import client_of
from ..ratelimit.throttling import block, throttle

GROUP = "rest_framework"


class ClusterRateThrottle(throttling.SimpleRateThrottle):
    """The base of the others, and of your own: give it a `scope`, and `get_cache_key(request, view)`.

    `algorithm` and `on_unavailable` are those of a `Limit`; a class with others raises `ImproperlyConfigured`. After a
    request `decision` has the `Decision`.
    """

    algorithm = "sliding_window"  # as the framework counts, in a few bytes instead of a list of times
    on_unavailable: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Limit.parse("1/s", cls.algorithm, cls.on_unavailable)

    def allow_request(self, request: Any, view: Any) -> bool:
        """Counts the request. True if it may pass."""
        key = None if self.rate is None else self.get_cache_key(request, view)
        if key is None:
            return True
        limit = Limit.parse(f"{self.num_requests}/{self.duration}s", self.algorithm, self.on_unavailable)
        self._asked = request
        self.decision = throttle(request, Question(limit, GROUP, key, 1))
        return self.decision.allowed

    def wait(self) -> float:
        """Seconds until the next request may pass. The framework asks where it blocks one: what that has counted at
        throttles is given back here, and by limits around once the response comes."""
        if not self.decision.allowed:
            block(self._asked)
        return self.decision.retry_after

    def get_ident(self, request: Any) -> str:
        """The client: by TRUSTED_PROXIES, or as the framework says where its NUM_PROXIES is set. Unlike there, a header
        that anybody can send counts for nothing where neither is. Raises `ImproperlyConfigured` where there is no
        address."""
        if api_settings.NUM_PROXIES is not None and not conf.get_settings().trusted_proxies:
            return str(super().get_ident(request))
        return client_of(request.META)


class AnonRateThrottle(throttling.AnonRateThrottle, ClusterRateThrottle):
    """Anonymous clients by address; scope `anon`."""


class UserRateThrottle(throttling.UserRateThrottle, ClusterRateThrottle):
    """Users, and anonymous clients by address; scope `user`."""


class ScopedRateThrottle(throttling.ScopedRateThrottle, ClusterRateThrottle):
    """By the `throttle_scope` of a view, for users and addresses."""
