"""A site with one limited view for each algorithm: synchronous under WSGI, asynchronous under ASGI (`DEMO_ASYNC`)."""

import os
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from django_clusterstate.decorators import cluster_ratelimit
from django_clusterstate.ratelimit import ALGORITHMS
from testproject.views import hello

LIMIT = 100
RATE = f"{LIMIT}/d"  # a hit more each quarter of an hour: no run takes so long


def _place(request: HttpRequest) -> HttpResponse:
    """Where this hit was counted: a node, or this process."""
    decision = request.ratelimit  # type: ignore[attr-defined]
    return JsonResponse({"place": decision.owner or decision.fallback})


async def _aplace(request: HttpRequest) -> HttpResponse:
    return _place(request)


def _limited(algorithm: str) -> Any:
    view = _aplace if os.environ.get("DEMO_ASYNC") else _place
    return cluster_ratelimit(group=algorithm, key="get:who", rate=RATE, algorithm=algorithm)(view)


urlpatterns = [path("", hello), *(path(f"{algorithm}/", _limited(algorithm)) for algorithm in ALGORITHMS)]
