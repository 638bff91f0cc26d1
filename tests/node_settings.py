"""Settings for nodes and sites that tests start: the demonstration's, with what the environment asks for."""

import json
import os
import signal
import time
from typing import Any

from testproject.settings import *  # noqa: F403

if os.environ.get("SIGNALS_FILE"):
    INSTALLED_APPS = [*INSTALLED_APPS, "tests.signals_app"]  # noqa: F405

if os.environ.get("TEST_URLS"):
    ROOT_URLCONF = os.environ["TEST_URLS"]

if os.environ.get("TEST_CACHES"):
    CACHES = json.loads(os.environ["TEST_CACHES"])

if os.environ.get("TEST_DATABASE"):
    DATABASES = {"default": json.loads(os.environ["TEST_DATABASE"])}

if os.environ.get("TEST_LAYER"):
    _layer: dict[str, Any] = {"BACKEND": os.environ["TEST_LAYER"]}
    if os.environ.get("TEST_REDIS"):
        _layer["CONFIG"] = {"hosts": [f"redis://{os.environ['TEST_REDIS']}"]}
    CHANNEL_LAYERS = {"tested": _layer}
    CLUSTERSTATE = {"CHANNEL_LAYER": "tested"}

if os.environ.get("TEST_DEBUG"):
    LOGGING = {
        "version": 1,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "loggers": {"django_clusterstate": {"level": "DEBUG", "handlers": ["stderr"]}},
    }

if os.environ.get("TEST_BLOCK"):
    # Python runs it between two instructions of the event loop's thread, which does nothing else meanwhile.
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(float(os.environ["TEST_BLOCK"])))

if os.environ.get("TEST_VERSIONS"):
    from django_clusterstate.wire import handshake

    # Before anything else imports it: a node of another release.
    handshake.VERSIONS = tuple(map(int, os.environ["TEST_VERSIONS"].split("-")))  # type: ignore[assignment]
