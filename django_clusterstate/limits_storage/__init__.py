"""Limits on an engine that outlives the nodes: Redis, Valkey or Memcached, by the storages of the package `limits`."""

from .storages import AsyncLimitsStorage, LimitsStorage

__all__ = ["AsyncLimitsStorage", "LimitsStorage"]
