"""How the cache asks the nodes, blocking or not, and where their failures end."""

import time
from collections.abc import Iterable

from .. import runtime
from ..client.routing import Target
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from ..wire.framing import frame
from .requests import Answers, MakeRequest, Requests, SizeOf, first_round, without_failed

READS = (wire.Get, wire.GetWithTtl)
_NEITHER = None, None  # neither a near value nor a ticket


class Calls(Requests):
    """What goes to one node is answered by None where the node fails; what goes to several lacks those answers."""

    def _call(self, key: bytes, request: wire.Request) -> wire.Reply | None:
        try:
            return runtime.get_client().call(key, frame(wire.encode(request)))
        except ClusterStateError as error:
            self._failed(error)
            return None
        finally:
            if type(request) not in READS:
                self._near.drop(key)

    def _value(self, key: bytes) -> wire.Value | None:
        near, ticket = self._near_value(key, time.monotonic()) if self._near_ttl else _NEITHER
        if near is not None:
            return near
        request = wire.get_frame(key) if ticket is None else frame(wire.encode(wire.GetWithTtl([key])))
        try:
            reply = runtime.get_client().call(key, request)
        except ClusterStateError as error:
            self._failed(error)
            return None
        if ticket is not None:
            return self._put_near(key, reply, ticket)
        return reply.values[0] if isinstance(reply, wire.ValuesReply) else None

    def _ask(self, target: Target, request: wire.Request) -> wire.Reply | None:
        try:
            return runtime.get_client().call_node(target, frame(wire.encode(request)))
        except ClusterStateError as error:
            self._failed(error)
            return None
        finally:
            if isinstance(request, wire.Delete):
                self._near.drop(*request.keys)

    def _call_owners(self, keys: Iterable[bytes], make: MakeRequest, size_of: SizeOf = len) -> Answers:
        """One round trip for each owner, the owners in parallel; another one for what had no room in the first."""
        client = runtime.get_client()
        answers: Answers = []
        keys = list(keys)
        try:
            later = self._groups(client.table(), keys)
            while later:
                groups, later = first_round(later, size_of)
                replies = client.call_each([(target, frame(wire.encode(make(group)))) for target, group in groups])
                later = self._take(answers, groups, replies) + without_failed(later, groups, replies)
        finally:
            if make not in READS:
                self._near.drop(*keys)
        return answers

    async def _acall(self, key: bytes, request: wire.Request) -> wire.Reply | None:
        try:
            return await runtime.get_async_client().call(key, frame(wire.encode(request)))
        except ClusterStateError as error:
            self._failed(error)
            return None
        finally:
            if type(request) not in READS:
                self._near.drop(key)

    async def _avalue(self, key: bytes) -> wire.Value | None:
        near, ticket = self._near_value(key, time.monotonic()) if self._near_ttl else _NEITHER
        if near is not None:
            return near
        request = wire.get_frame(key) if ticket is None else frame(wire.encode(wire.GetWithTtl([key])))
        try:
            reply = await runtime.get_async_client().call(key, request)
        except ClusterStateError as error:
            self._failed(error)
            return None
        if ticket is not None:
            return self._put_near(key, reply, ticket)
        return reply.values[0] if isinstance(reply, wire.ValuesReply) else None

    async def _aask(self, target: Target, request: wire.Request) -> wire.Reply | None:
        try:
            return await runtime.get_async_client().call_node(target, frame(wire.encode(request)))
        except ClusterStateError as error:
            self._failed(error)
            return None
        finally:
            if isinstance(request, wire.Delete):
                self._near.drop(*request.keys)

    async def _acall_owners(self, keys: Iterable[bytes], make: MakeRequest, size_of: SizeOf = len) -> Answers:
        client = runtime.get_async_client()
        answers: Answers = []
        keys = list(keys)
        try:
            later = self._groups(await client.table(), keys)
            while later:
                groups, later = first_round(later, size_of)
                replies = await client.call_each(
                    [(target, frame(wire.encode(make(group)))) for target, group in groups]
                )
                later = self._take(answers, groups, replies) + without_failed(later, groups, replies)
        finally:
            if make not in READS:
                self._near.drop(*keys)
        return answers
