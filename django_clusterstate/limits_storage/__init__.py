"""LIMITS_STORAGE: limits counted in Redis, Valkey or Memcached, through the package `limits`."""

from .storage import LimitsStorage

__all__ = ["LimitsStorage"]
