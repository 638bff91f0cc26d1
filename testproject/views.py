"""A site that limits, caches and says who it is. The same views twice: for WSGI, and asynchronous ones for ASGI."""

import os
from typing import Any

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse

from django_clusterstate.decorators import cluster_ratelimit

SITE = os.environ.get("DEMO_SITE", "site")


def hello(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"site": SITE})


@cluster_ratelimit(group="limited", key="ip", rate="10/m")
def limited(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"site": SITE, "decision": _said(request)})


@cluster_ratelimit(group="limited", key="ip", rate="10/m")
async def alimited(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"site": SITE, "decision": _said(request)})


def value(request: HttpRequest) -> HttpResponse:
    """GET ?key= reads a value of the shared cache, GET ?key=&set= writes it: simple enough for curl."""
    key = request.GET.get("key")
    if not key:
        return HttpResponseBadRequest("say which: ?key=NAME\n")
    if "set" in request.GET:
        cache.set(key, request.GET["set"], 300)
    return JsonResponse({"site": SITE, "key": key, "value": cache.get(key)})


async def avalue(request: HttpRequest) -> HttpResponse:
    key = request.GET.get("key")
    if not key:
        return HttpResponseBadRequest("say which: ?key=NAME\n")
    if "set" in request.GET:
        await cache.aset(key, request.GET["set"], 300)
    return JsonResponse({"site": SITE, "key": key, "value": await cache.aget(key)})


def _said(request: HttpRequest) -> dict[str, Any]:
    decision = request.ratelimit  # type: ignore[attr-defined]
    return {"remaining": decision.remaining, "owner": decision.owner, "fallback": decision.fallback}
