"""Operations that are written once, and run by the blocking client or by the asyncio client.

An operation is a generator. It yields a command for each thing that it needs from outside, and is resumed with the
command's result, or with the exception that the command raised. It does no I/O itself, so one function serves the
synchronous and the asynchronous half of the public API:

    def ping(target: Target) -> Operation[bool]:
        reply = yield CallNode(target, PING)
        return isinstance(reply, PongReply)

    run(ping(target), client)
    await arun(ping(target), async_client)
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct

from ..exceptions import ClusterStateError
from ..wire.messages import ViewReply
from .retries import may_be_executed
from .routing import GET_VIEW, Routing, Target

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ClientCommand(Protocol[T_co]):
    """One command of an operation, or all of an operation that has only one: generators take 0.4 us more.

    `client` is the blocking client in `run`; in `arun` it is the asyncio client, whose methods return awaitables.
    """

    def run(self, client: Any) -> T_co: ...
    def arun(self, client: Any) -> Awaitable[T_co]: ...


Operation = Generator[ClientCommand[Any], Any, T]


def run(operation: Operation[T], client: Any) -> T:
    """Runs an operation to its end in this thread. Returns its result, or raises its exception."""
    try:
        command = next(operation)
        while True:
            try:
                result = command.run(client)
            except BaseException as error:
                command = operation.throw(error)
            else:
                command = operation.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def arun(operation: Operation[T], client: Any) -> T:
    """Runs an operation to its end in the running event loop. Returns its result, or raises its exception."""
    try:
        command = next(operation)
        while True:
            try:
                result = await command.arun(client)
            except BaseException as error:
                command = operation.throw(error)
            else:
                command = operation.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


class RunOperation(Struct, Generic[T], frozen=True):
    """Runs an operation of several commands as one command."""

    operation: Operation[T]

    def run(self, client: Any) -> T:
        return run(self.operation, client)

    def arun(self, client: Any) -> Awaitable[T]:
        return arun(self.operation, client)


class CallNode(Struct, frozen=True):
    """Sends a framed request to one node. The result is its reply; raises `Unavailable` or `ProtocolError`."""

    target: Target
    request: bytes

    def run(self, client: Any) -> Any:
        return client.call_node(self.target, self.request)

    arun = run


class CallEach(Struct, frozen=True):
    """Sends framed requests to several nodes at once. The result has for each, in order, its reply or its error."""

    requests: Sequence[tuple[Target, bytes]]

    def run(self, client: Any) -> Any:
        return client.call_each(self.requests)

    arun = run


class GetTable(Struct, frozen=True):
    """The result is the current routing table, refreshed if it is old. Never raises for a failure of the cluster."""

    def run(self, client: Any) -> Any:
        return client.table()

    arun = run


class Sleep(Struct, frozen=True):
    """Waits. The result is None."""

    seconds: float

    def run(self, client: Any) -> Any:
        time.sleep(self.seconds)

    async def arun(self, client: Any) -> Any:
        await asyncio.sleep(self.seconds)


class CallEither(Struct, frozen=True):
    """Calls `function` in `run`, or awaits `async_function` in `arun`. The result and any exception are its own."""

    function: Callable[..., Any]
    async_function: Callable[..., Awaitable[Any]]
    args: Sequence[Any] = ()

    def run(self, client: Any) -> Any:
        return self.function(*self.args)

    async def arun(self, client: Any) -> Any:
        return await self.async_function(*self.args)


def refresh_view(routing: Routing, deadline: float, clock: Callable[[], float]) -> Operation[None]:
    """Requests the view until a node has replied that is a member, or `deadline` seconds have passed.

    Reports the counts of this process to one node. If no member replies, the old view stays.
    """
    began = clock()
    request, stats = routing.view_request()
    sources, reported, replied = routing.sources(began), False, False
    try:
        for source in sources:  # grows meanwhile
            before, reported = reported, True  # counts are never reported twice, also if this call is cancelled
            try:
                reply = yield CallNode(source, GET_VIEW if before else request)
            except ClusterStateError as error:
                reported = before or may_be_executed(error)
            else:
                if isinstance(reply, ViewReply):
                    if routing.learn(reply, source, began):
                        return
                    replied = True
                    sources += routing.more_sources(sources)
            if clock() - began >= deadline:
                break
        if replied:
            routing.found_no_member(began)
    finally:
        if not reported:
            routing.put_back(stats)
