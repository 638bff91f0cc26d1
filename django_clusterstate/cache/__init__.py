"""`CACHES = {"default": {"BACKEND": "django_clusterstate.cache.ClusterCache"}}`"""

from .backend import ClusterCache
from .requests import MAX_VALUE_BYTES
from .values import JsonSerializer, MsgpackSerializer, PickleSerializer

__all__ = ["MAX_VALUE_BYTES", "ClusterCache", "JsonSerializer", "MsgpackSerializer", "PickleSerializer"]
