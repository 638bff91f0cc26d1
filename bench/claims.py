"""What this package claims about its speed, and whether a run bears it out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cases import (
    ADENIED,
    AFIXED,
    DECORATED,
    DENIED,
    DJANGO_RATELIMIT,
    FIXED,
    LIMITS,
    LOCAL,
    MEMCACHED,
    MEMCACHED_UNIX,
    OWNER,
    PING_TCP,
    PING_UNIX,
    REDIS,
    REDIS_HIREDIS,
    REDIS_UNIX,
    REMOTE,
    SEVERAL,
    nodes,
)
from .measure import Result


@dataclass(frozen=True)
class Ratio:
    """How many times as long `slow` takes as `fast`, both names of cases. `at_least` or `at_most` make it a claim."""

    text: str
    slow: str
    fast: str
    at_least: float | None = None
    at_most: float | None = None

    def value(self, results: Mapping[str, Result]) -> float | None:
        """At one place; None when one of the two wasn't measured."""
        slow, fast = results.get(self.slow), results.get(self.fast)
        return slow.times(fast) if slow and fast and slow.rounds and fast.rounds else None

    def held(self, values: Sequence[float | None]) -> bool | None:
        """Whether all places bear it out. None when it wasn't measured, or claims nothing."""
        measured = [value for value in values if value is not None]
        if not measured or not self.bound:
            return None
        at_least, at_most = self.at_least or 0, self.at_most or math.inf
        return all(at_least <= value <= at_most for value in measured)

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}" if self.at_most is not None else ""


HIT, GET, AGET = f"{FIXED}: {REMOTE}", f"cache.get: {REMOTE}", f"cache.aget: {REMOTE}"
TWO = f"{SEVERAL}: {REMOTE}"
LOCAL_GET, LOCAL_AGET = f"cache.get: {LOCAL}", f"cache.aget: {LOCAL}"

CLAIMS = (
    Ratio("a limit on another node: django-ratelimit on Redis takes", f"{FIXED}: {DJANGO_RATELIMIT}", HIT, at_least=6),
    Ratio("a get from this host's node: Django's Redis cache takes", f"cache.get: {REDIS}", LOCAL_GET, at_least=3),
    Ratio("a get from another node: Django's Redis cache takes", f"cache.get: {REDIS}", GET, at_least=3),
    Ratio("a get from this host's node: Django's Memcached takes", f"cache.get: {MEMCACHED}", LOCAL_GET, at_least=1.3),
    Ratio("a get from another node: Django's Memcached takes", f"cache.get: {MEMCACHED}", GET, at_least=1.3),
    Ratio("a bare ping-pong by unix socket: a get from this host's node", LOCAL_GET, f"floor: {PING_UNIX}", at_most=3),
    Ratio("a bare ping-pong by TCP: a get from another node takes", GET, f"floor: {PING_TCP}", at_most=3),
    Ratio("an aget from this host's node: Django's Redis cache takes", f"cache.aget: {REDIS}", LOCAL_AGET, at_least=5),
    Ratio("an aget from another node: Django's Redis cache takes", f"cache.aget: {REDIS}", AGET, at_least=5),
    Ratio(
        f"an owner among {nodes(10)}: one among {nodes(1000)} takes",
        f"{OWNER}: {nodes(1000)}", f"{OWNER}: {nodes(10)}", at_most=2,
    ),
    Ratio("a key of another node that was just denied: a routed decision", HIT, f"{DENIED}: {REMOTE}", at_least=20),
)  # fmt: skip

ASIDES = (
    Ratio("a bare ping-pong by unix socket: a get from another node takes", GET, f"floor: {PING_UNIX}"),
    Ratio("a get from another node: Redis with hiredis takes", f"cache.get: {REDIS_HIREDIS}", GET),
    Ratio("a get from this host's node: Redis by unix socket takes", f"cache.get: {REDIS_UNIX}", LOCAL_GET),
    Ratio("a get from this host's node: Memcached by unix socket takes", f"cache.get: {MEMCACHED_UNIX}", LOCAL_GET),
    Ratio("an aget from another node: Redis with hiredis takes", f"cache.aget: {REDIS_HIREDIS}", AGET),
    Ratio("a limit on another node: limits on Redis takes", f"{FIXED}: {LIMITS}", HIT),
    Ratio("an ahit on another node: limits.aio on Redis takes", f"{AFIXED}: {LIMITS}", f"{AFIXED}: {REMOTE}"),
    Ratio("two rates on another node: django-ratelimit on Redis takes", f"{SEVERAL}: {DJANGO_RATELIMIT}", TWO),
    Ratio("one rate on another node: two rates take", TWO, HIT),
    Ratio("an ahit on a key just denied: a routed one", f"{AFIXED}: {REMOTE}", f"{ADENIED}: {REMOTE}"),
    Ratio("a decorated view: django-ratelimit's takes", f"{DECORATED}: {DJANGO_RATELIMIT}", f"{DECORATED}: {REMOTE}"),
)
