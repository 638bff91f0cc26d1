"""What an alias of the cache may be given, and how that is read. All raise `ImproperlyConfigured`."""

import math
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

MAX_NAMESPACE = 256  # bytes, by the wire
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


def read_namespace(location: object) -> bytes:
    if not isinstance(location, str):
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name, not {location!r}.")
    namespace = (location or "default").encode()
    if len(namespace) > MAX_NAMESPACE or b"\0" in namespace:
        raise ImproperlyConfigured(f"ClusterCache's LOCATION must be a name of 1 to {MAX_NAMESPACE} bytes.")
    return namespace


def read_choice(options: Mapping[str, Any], name: str, default: str, other: str) -> str:
    value: str = options.get(name, default)
    if value not in (default, other):
        raise ImproperlyConfigured(f"ClusterCache's {name} must be {default!r} or {other!r}, not {value!r}.")
    return value


def read_number(options: Mapping[str, Any], name: str, default: float, what: str, *kinds: type) -> float:
    """A number of seconds or the like: above 0, unless the default is 0."""
    value = options.get(name, default)
    if type(value) not in (kinds or (int, float)) or not 0 <= value < math.inf or (default and not value):
        bound = " above 0" if default else ""
        raise ImproperlyConfigured(f"ClusterCache's {name} must be a number of {what}{bound}, not {value!r}.")
    return float(value)


def read_max_bytes(given: Any) -> int | None:
    if given is None or (type(given) is int and given > 0):
        return given
    raise ImproperlyConfigured(f"ClusterCache's MAX_BYTES must be a number of bytes above 0, not {given!r}.")
