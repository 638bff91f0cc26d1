"""Django's own cache suite, unmodified, against three nodes.

Without the `cull` caches, as Django does for its Redis and Memcached backends: culling by number of entries is a
matter of its local backends. Here a byte bound with LRU does it, tested in `tests/core/cache/test_store.py`.
"""

import pytest
from cache.tests import BaseCacheTests, caches_setting_for_tests, redis_excluded_caches
from django.test import TestCase, override_settings


@pytest.mark.usefixtures("cluster")
@override_settings(
    CACHES=caches_setting_for_tests(
        BACKEND="django_clusterstate.cache.ClusterCache",
        exclude=redis_excluded_caches,
    )
)
class ClusterCacheTests(BaseCacheTests, TestCase):  # type: ignore[misc] # Django's tests have no types
    pass
