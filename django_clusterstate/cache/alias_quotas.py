"""The cache quotas of a node: the bytes that each namespace has for itself, by MAX_BYTES of the aliases in CACHES."""

from collections.abc import Iterator

from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .backend import ClusterCache
from .options import CacheOptions


def read_quotas(cache_max_bytes: int) -> dict[bytes, int]:
    """MAX_BYTES by namespace, of the namespaces that have it.

    Raises `ImproperlyConfigured` where aliases of one LOCATION differ in MAX_BYTES, or all quotas together exceed
    `cache_max_bytes`.
    """
    first: dict[bytes, tuple[str, int | None]] = {}
    for alias, options in _cluster_caches():
        other, quota = first.setdefault(options.namespace, (alias, options.max_bytes))
        if quota != options.max_bytes:
            raise ImproperlyConfigured(
                f"The caches {other!r} and {alias!r} have the same LOCATION, {options.namespace.decode()!r}, but "
                f"different MAX_BYTES, {quota} and {options.max_bytes}: give both the same."
            )
    quotas = {namespace: quota for namespace, (_, quota) in first.items() if quota is not None}
    if sum(quotas.values()) > cache_max_bytes:
        raise ImproperlyConfigured(
            f"The MAX_BYTES of all caches add up to {sum(quotas.values()):,}, more than the {cache_max_bytes:,} of "
            "CLUSTERSTATE['CACHE_MAX_BYTES'], of which they are parts. Raise CACHE_MAX_BYTES, or lower a MAX_BYTES."
        )
    return quotas


def _cluster_caches() -> Iterator[tuple[str, CacheOptions]]:
    for alias, params in caches.settings.items():
        try:
            backend = import_string(params["BACKEND"])
        except ImportError:
            continue  # Django reports it where the alias is used
        if isinstance(backend, type) and issubclass(backend, ClusterCache):
            cache = caches.create_connection(alias)
            assert isinstance(cache, ClusterCache)
            yield alias, cache.options
