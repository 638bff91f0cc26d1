"""What `ClusterCache` offers beyond Django's cache API, in both faces."""

from typing import Any

from ..wire import messages as wire
from .calls import Calls


class Extras(Calls):
    """Each method has a twin for asynchronous code, with an `a` before its name."""

    # -- timeouts -------------------------------------------------------------------------------------------

    def ttl(self, key: Any, version: int | None = None) -> float | None:
        """Seconds that the key has left; None when it never expires, 0 when it is absent."""
        wire_key = self.routing_key(key, version)
        return self._left(self._call(wire_key, wire.Look(wire_key)))

    async def attl(self, key: Any, version: int | None = None) -> float | None:
        wire_key = self.routing_key(key, version)
        return self._left(await self._acall(wire_key, wire.Look(wire_key)))

    def expire(self, key: Any, timeout: float | None, version: int | None = None) -> bool:
        """`touch()` by the name that django-redis has for it."""
        return self.touch(key, timeout, version)

    async def aexpire(self, key: Any, timeout: float | None, version: int | None = None) -> bool:
        return await self.atouch(key, timeout, version)

    def persist(self, key: Any, version: int | None = None) -> bool:
        """From now on the key never expires; False when it is absent."""
        return self.touch(key, None, version)

    async def apersist(self, key: Any, version: int | None = None) -> bool:
        return await self.atouch(key, None, version)
