"""`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache"}}`"""

from .backend import ClusterCache
from .codec import JsonSerializer, MsgpackSerializer, PickleSerializer
from .requests import MAX_VALUE_BYTES

__all__ = ["MAX_VALUE_BYTES", "ClusterCache", "JsonSerializer", "MsgpackSerializer", "PickleSerializer"]
