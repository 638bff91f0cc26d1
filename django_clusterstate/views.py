"""Views for monitoring: the health, the readiness and the metrics of this host's node.

They are asynchronous, so they need no thread under ASGI; under WSGI Django runs them like any other view.
"""

from http import HTTPStatus

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import cluster, runtime

PERMISSION = "django_clusterstate.view_cluster"


@never_cache
@require_safe
async def health(request: HttpRequest) -> HttpResponse:
    """200 while this host's node serves, else 503 with the reason. Needs no permission; ignores all other nodes."""
    return _json(await cluster.aproblem())


@never_cache
@require_safe
async def ready(request: HttpRequest) -> HttpResponse:
    """200 while this host's node serves and each key has a backup, so that the next node of a deploy may be stopped;
    else 503 with the reason. Needs no permission."""
    return _json(await cluster.aunready())


def _json(problem: str) -> HttpResponse:
    if problem:
        return JsonResponse({"ok": False, "reason": problem}, status=HTTPStatus.SERVICE_UNAVAILABLE)
    return JsonResponse({"ok": True})


@never_cache
@require_safe
async def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics of this host's node. If it doesn't answer, 200 with `clusterstate_up 0`: a failed scrape would mean
    that this process is down.
    """
    refusal = await _refusal(request)
    if refusal:
        challenge = {"WWW-Authenticate": 'Bearer realm="cluster metrics"'}
        return HttpResponse(status=refusal, headers=challenge if refusal == HTTPStatus.UNAUTHORIZED else None)
    try:
        from .metrics import render  # noqa: PLC0415 - an extra, which health() doesn't need
    except ImportError:
        text = "Metrics need prometheus_client: pip install django-clusterstate[prometheus]\n"
        return HttpResponse(text, status=HTTPStatus.NOT_IMPLEMENTED, content_type="text/plain")
    body, content_type = render(await cluster.alocal_status(), request.headers.get("Accept", ""))
    return HttpResponse(body, content_type=content_type)


async def _refusal(request: HttpRequest) -> HTTPStatus | None:
    """The status with which a request is refused: 401 without a valid token or login, 403 for users without the
    permission; None if it has the token, or is from a staff user with the permission to view the cluster."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        token = runtime.get_settings().metrics_token
        known = token is not None and constant_time_compare(given.strip(), token)
        return None if known else HTTPStatus.UNAUTHORIZED
    user = await request.auser() if hasattr(request, "auser") else None
    if user is None or not user.is_authenticated:
        return HTTPStatus.UNAUTHORIZED
    return None if user.is_staff and await user.ahas_perm(PERMISSION) else HTTPStatus.FORBIDDEN
