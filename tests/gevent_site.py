"""A site for gunicorn's gevent worker: what the cache has for one key, or for several."""

import json
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
django.setup()

from django.core.cache import cache, caches  # noqa: E402 - after the setup

from django_clusterstate import cluster  # noqa: E402
from django_clusterstate.cache import ClusterCache  # noqa: E402

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    keys = parse_qs(environ["QUERY_STRING"]).get("key", [])
    if len(keys) > 1:
        cache.get_many(keys)
    for key in keys[:1]:
        cache.get(key)
    start_response("200 OK", [("Content-Type", "application/json")])
    backend = caches["default"]
    assert isinstance(backend, ClusterCache)
    owner = cluster.owner(backend.routing_key(keys[0])) if keys else None
    patched = socket.socket.__module__.startswith("gevent")
    return [json.dumps({"owner": owner, "patched": patched}).encode()]
