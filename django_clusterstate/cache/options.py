"""The options of one alias in CACHES, read and checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from django.core.exceptions import ImproperlyConfigured

MAX_NAMESPACE = 256  # bytes: the limit of the wire format
COMPRESS_ABOVE = 1024  # bytes: below, compression saves less than an entry's own overhead
LEASE = 10.0  # seconds
NEAR_ENTRIES = 1000
OPTIONS = {
    "SERIALIZER",
    "COMPRESSOR",
    "COMPRESS_ABOVE",
    "VALUE_TOO_BIG",
    "LEASE",
    "NEAR_TTL",
    "NEAR_ENTRIES",
    "MAX_BYTES",
    "ON_UNAVAILABLE",
}
DJANGO_OPTIONS = {"MAX_ENTRIES", "CULL_FREQUENCY"}  # accepted, without effect


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """LOCATION and OPTIONS of one alias. Times in seconds, sizes in bytes; docs/settings.md describes each."""

    namespace: bytes
    serializer: Any
    compressor: Any
    compress_above: int
    raise_too_big: bool
    lease: float
    near_ttl: float
    near_entries: int
    max_bytes: int | None
    raise_unavailable: bool

    @classmethod
    def read(cls, location: object, options: Mapping[str, Any]) -> Self:
        """Reads and checks LOCATION and OPTIONS of one alias. Raises `ImproperlyConfigured` for an unknown option or a
        wrong value."""
        unknown = set(options) - OPTIONS - DJANGO_OPTIONS
        if unknown:
            raise ImproperlyConfigured(f"ClusterCache has no option {min(unknown)!r}; it has {sorted(OPTIONS)}.")
        return cls(
            namespace=_namespace(location),
            serializer=options.get("SERIALIZER", "pickle"),
            compressor=options.get("COMPRESSOR"),
            compress_above=_number(options, "COMPRESS_ABOVE", COMPRESS_ABOVE, "bytes", whole=True),
            raise_too_big=_choice(options, "VALUE_TOO_BIG", "ignore", "raise") == "raise",
            lease=_number(options, "LEASE", LEASE, "seconds", positive=True),
            near_ttl=_number(options, "NEAR_TTL", 0, "seconds"),
            near_entries=_number(options, "NEAR_ENTRIES", NEAR_ENTRIES, "entries", positive=True, whole=True),
            max_bytes=_number(options, "MAX_BYTES", None, "bytes", positive=True, whole=True),
            raise_unavailable=_choice(options, "ON_UNAVAILABLE", "miss", "raise") == "raise",
        )


def _namespace(location: object) -> bytes:
    if not isinstance(location, str):
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name, not {location!r}.")
    namespace = (location or "default").encode()
    if len(namespace) > MAX_NAMESPACE or b"\0" in namespace:
        raise ImproperlyConfigured(
            f"ClusterCache's LOCATION must be a name of 1 to {MAX_NAMESPACE} bytes without a zero byte, "
            f"not {location!r}."
        )
    return namespace


def _choice(options: Mapping[str, Any], name: str, default: str, other: str) -> str:
    value: str = options.get(name, default)
    if value not in (default, other):
        raise ImproperlyConfigured(f"ClusterCache's {name} must be {default!r} or {other!r}, not {value!r}.")
    return value


def _number(
    options: Mapping[str, Any], name: str, default: Any, unit: str, *, positive: bool = False, whole: bool = False
) -> Any:
    """The number that an option holds, at least 0 or above 0; an integer if `whole`. The default isn't checked."""
    value = options.get(name, default)
    if value is default:
        return value
    is_number = type(value) is int or (type(value) is float and not whole)
    if not is_number or not 0 <= value < math.inf or (positive and value == 0):
        bound = " above 0" if positive else ""
        raise ImproperlyConfigured(f"ClusterCache's {name} must be a number of {unit}{bound}, not {value!r}.")
    return value
