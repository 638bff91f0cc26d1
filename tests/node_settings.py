"""Settings for node processes that tests start: the demonstration's, with what the environment asks for."""

import os

from testproject.settings import *  # noqa: F403

if os.environ.get("SIGNALS_FILE"):
    INSTALLED_APPS = [*INSTALLED_APPS, "tests.signals_app"]  # noqa: F405
if os.environ.get("REDIS_PORT"):
    CHANNEL_LAYERS = {
        "redis": {
            "BACKEND": os.environ.get("REDIS_LAYER", "channels_redis.core.RedisChannelLayer"),
            "CONFIG": {"hosts": [("127.0.0.1", int(os.environ["REDIS_PORT"]))]},
        }
    }
    CLUSTERSTATE = {"CHANNEL_LAYER": "redis"}
