"""What this process asks of the nodes, as the nodes see it."""

import asyncio

import pytest

from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.aio import AsyncConnection
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.framing import HEADER


def watch_requests(monkeypatch: pytest.MonkeyPatch) -> list[wire.Message]:
    """A list that each request is added to when it is sent, but those for the view."""
    seen: list[wire.Message] = []

    def note(data: bytes) -> None:
        request = wire.decode_request(data[HEADER:])
        if not isinstance(request, wire.GetView):
            seen.append(request)

    call, send, request = BlockingConnection.call, BlockingConnection.send, AsyncConnection.request

    def watched_call(self: BlockingConnection, data: bytes) -> wire.Reply:
        note(data)
        return call(self, data)

    def watched_send(self: BlockingConnection, data: bytes) -> None:
        note(data)
        send(self, data)

    def watched_request(self: AsyncConnection, data: bytes) -> "asyncio.Future[wire.Reply]":
        note(data)
        return request(self, data)

    monkeypatch.setattr(BlockingConnection, "call", watched_call)
    monkeypatch.setattr(BlockingConnection, "send", watched_send)
    monkeypatch.setattr(AsyncConnection, "request", watched_request)
    return seen
