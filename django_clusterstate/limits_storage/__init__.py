"""LIMITS_STORAGE: limits counted in Redis, Valkey or Memcached, through the package `limits`."""

from .storages import AsyncLimitsStorage, LimitsStorage

__all__ = ["AsyncLimitsStorage", "LimitsStorage"]
