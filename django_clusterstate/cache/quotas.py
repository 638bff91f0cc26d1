"""Which namespaces have room of their own in each node, by the aliases in CACHES."""

from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .backend import ClusterCache


def own_bytes(cache_max_bytes: int) -> dict[bytes, int]:
    """MAX_BYTES by namespace, of those that have it.

    Raises `ImproperlyConfigured` when aliases of one LOCATION differ in it, or all together are more than
    `cache_max_bytes`.
    """
    found: dict[bytes, tuple[str, int | None]] = {}
    for alias, max_bytes, namespace in _aliases():
        other, others = found.setdefault(namespace, (alias, max_bytes))
        if others != max_bytes:
            raise ImproperlyConfigured(
                f"The caches {other!r} and {alias!r} have one LOCATION, {namespace.decode()!r}, and so one MAX_BYTES: "
                f"give both the same, not {others} and {max_bytes}."
            )
    own = {namespace: max_bytes for namespace, (_, max_bytes) in found.items() if max_bytes is not None}
    if sum(own.values()) > cache_max_bytes:
        raise ImproperlyConfigured(
            f"The MAX_BYTES of all caches are {sum(own.values()):,} together, more than the {cache_max_bytes:,} of "
            "CLUSTERSTATE['CACHE_MAX_BYTES'], of which they are parts. Raise that, or lower one of them."
        )
    return own


def _aliases() -> list[tuple[str, int | None, bytes]]:
    found = []
    for alias, params in caches.settings.items():
        try:
            backend = import_string(params["BACKEND"])
        except ImportError:
            continue  # Django says so where it is used
        if isinstance(backend, type) and issubclass(backend, ClusterCache):
            cache = caches.create_connection(alias)
            assert isinstance(cache, ClusterCache)
            found.append((alias, cache.max_bytes, cache._namespace))
    return found
