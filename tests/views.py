"""Limited views of both kinds, and requests to them."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from django_clusterstate.decorators import cluster_ratelimit

Ask = Callable[..., HttpResponse]


class ViewVariant:
    """Makes synchronous or asynchronous views, and calls them."""

    def __init__(self, runner: asyncio.Runner | None) -> None:
        self.runner = runner

    def view(self, respond: Callable[[HttpRequest], Any] | None = None) -> Any:
        def say(request: HttpRequest) -> Any:
            return respond(request) if respond else HttpResponse(f"limited={getattr(request, 'limited', None)}")

        if self.runner is None:

            def view(request: HttpRequest) -> Any:
                """Says it."""
                return say(request)

            return view

        async def aview(request: HttpRequest) -> Any:
            """Says it."""
            return say(request)

        return aview

    def call(self, view: Any, request: HttpRequest | None = None) -> Any:
        request = request or RequestFactory().get("/")
        return view(request) if self.runner is None else self.runner.run(view(request))

    def limited(self, respond: Callable[[HttpRequest], Any] | None = None, **options: Any) -> Ask:
        """Calls a view with these limits, in a group that no other test counts in."""
        options.setdefault("group", uuid4().hex)
        view = cluster_ratelimit(**options)(self.view(respond))
        return lambda request=None: self.call(view, request)


def get(**extra: Any) -> HttpRequest:
    return RequestFactory().get("/", **extra)


def from_ip(address: str) -> HttpRequest:
    return get(REMOTE_ADDR=address)


def by(user: object) -> HttpRequest:
    request = get()
    request.user = user  # type: ignore[assignment]
    return request


def statuses(ask: Ask, *requests: HttpRequest) -> list[int]:
    return [ask(request).status_code for request in requests]
