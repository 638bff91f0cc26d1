"""`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache"}}`"""

from .backend import ClusterCache
from .codec import MAX_VALUE_BYTES, JsonSerializer, MsgpackSerializer, PickleSerializer

__all__ = ["MAX_VALUE_BYTES", "ClusterCache", "JsonSerializer", "MsgpackSerializer", "PickleSerializer"]
