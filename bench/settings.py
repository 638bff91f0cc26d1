"""Django's settings for this process: a cache alias for each thing that is measured."""

import importlib.util
from typing import Any

from django.conf import settings

from .servers import HOST, SECRET_KEY, Servers

RATE = "1000000/h"  # so large that every hit passes
RATES = [RATE, "10000000/d"]
DENYING = "1/d"


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def redis_in_python() -> dict[str, Any]:
    """Options by which redis-py works as `pip install redis` leaves it, even where hiredis is installed.

    redis-py takes hiredis, an extension module that writes and parses its protocol, whenever it finds it.
    """
    if not installed("redis") or not installed("hiredis"):
        return {}
    from redis._parsers import _RESP2Parser  # noqa: PLC0415 - may be missing
    from redis._parsers.encoders import Encoder  # noqa: PLC0415
    from redis.connection import PythonRespSerializer  # noqa: PLC0415

    encode = Encoder("utf-8", "strict", False).encode  # type: ignore[no-untyped-call]
    return {"parser_class": _RESP2Parser, "command_packer": PythonRespSerializer(6000, encode)}


def configure(servers: Servers) -> None:
    django = "django.core.cache.backends"
    redis_url = f"redis://{HOST}:{servers.redis_port}"
    in_python = redis_in_python()
    settings.configure(
        SECRET_KEY=SECRET_KEY,
        CACHES={
            "default": {"BACKEND": "django_clusterstate.cache.ClusterCache"},
            "locmem": {"BACKEND": f"{django}.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 100_000}},
            "redis": {"BACKEND": f"{django}.redis.RedisCache", "LOCATION": redis_url, "OPTIONS": in_python},
            "redis_hiredis": {"BACKEND": f"{django}.redis.RedisCache", "LOCATION": redis_url},
            "redis_unix": {
                "BACKEND": f"{django}.redis.RedisCache",
                "LOCATION": f"unix://{servers.redis_socket}",
                "OPTIONS": in_python,
            },
            "memcached": {
                "BACKEND": f"{django}.memcached.PyMemcacheCache",
                "LOCATION": f"{HOST}:{servers.memcached_port}",
            },
            "memcached_unix": {
                "BACKEND": f"{django}.memcached.PyMemcacheCache",
                "LOCATION": f"unix:{servers.memcached_socket}",
            },
        },
        RATELIMIT_USE_CACHE="redis",
    )
