"""Limits on an engine that outlives the nodes: Redis, Valkey or Memcached, by the storages of the package `limits`."""

from .faces import AsyncLimitsStorage, LimitsStorage

__all__ = ["AsyncLimitsStorage", "LimitsStorage"]
