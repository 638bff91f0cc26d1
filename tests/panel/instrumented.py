"""What the panel of a site that debug toolbar and Sentry watch says of a cache key, as JSON: run with `-m`.

The key is its argument: it is deleted by the panel, and read with `raising()`. `wrapped` are the methods of the cache
that the two have replaced.
"""

# ruff: noqa: E402
import json
import os
import sys

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.panel.instrumented_settings"
django.setup()

from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.core.cache import caches
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from django_clusterstate.cache import ClusterCache
from django_clusterstate.exceptions import Unavailable


def main(key: str) -> None:
    call_command("migrate", verbosity=0)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    cache = caches["default"]
    assert isinstance(cache, ClusterCache)
    where = reverse("admin:django_clusterstate_cluster_act", query={"kind": "cache:default", "key": key})
    response = client.post(where, {"action": "delete_cache_key"})
    (message,) = get_messages(response.wsgi_request)
    try:
        read = repr(cache.raising().get(key))
    except Unavailable:
        read = "Unavailable"
    wrapped = [name for name in ("delete", "get", "set") if name in vars(cache)]
    print(json.dumps({"level": message.level_tag, "message": str(message), "read": read, "wrapped": wrapped}))


if __name__ == "__main__":
    main(sys.argv[1])
