"""Receiving: one `Receiver` for each event loop, with a `QueueReader` for each queue that a consumer waits on."""

import asyncio
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from channels.layers import BaseChannelLayer

from .. import runtime
from ..client.forks import replace_inherited
from ..client.log import logger
from ..client.loops import suppress_destroyed_warning
from ..client.routing import Target
from ..core.channels import ChannelGroups
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from ..wire.aio import AsyncConnection, connect
from .buffers import Buffers

POLL = 2.0  # seconds that the node holds a `Receive`; then the reader checks for consumers, and for the node
MAX_MESSAGES = 50  # of one reply
RETRY_AFTER = (0.05, 1.0)  # seconds between attempts to reach the node, from the first to the longest
LOG_AFTER = 5.0  # seconds without success until it is logged: a restart of a node takes less
SWEEP_BATCH = 1000  # expired messages and memberships that are freed at once: half a millisecond
SWEEP_EVERY, SWEEP_PAUSE = 1.0, 0.01  # seconds between sweeps, and between the batches of one sweep


class Receiver:
    """Receives for one event loop, with the options of `layer`. `node_of` finds the node on which a channel lives.

    Expired messages and memberships are freed once a second by a timer, which runs while there are any.
    """

    def __init__(self, layer: BaseChannelLayer, node_of: Callable[[str], Awaitable[Target]]) -> None:
        self.node_of = node_of
        self.pid = os.getpid()
        self.id = secrets.token_hex(4)  # in channel names: another event loop can't have the messages fetched by this
        self.buffers = Buffers()
        self.memberships = ChannelGroups()
        self._layer = layer
        self._sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[asyncio.Future[bytes]]] = {}
        self._readers: dict[str, QueueReader] = {}

    async def receive(self, channel: str) -> bytes:
        """The channel's next message, encoded; waits for it without a time limit."""
        payload = self.buffers.take(channel, self._loop.time())
        if payload is not None:
            return payload
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.setdefault(channel, deque()).append(future)
        self._reader(self._layer.non_local_name(channel)).wanted.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.put(channel, future.result(), first=True)  # it came at the same moment: the next consumer gets it
            raise
        finally:
            self._stop_waiting(channel, future)

    def put(self, channel: str, payload: bytes, *, first: bool = False) -> None:
        """Gives a message to a waiting consumer, otherwise keeps it; `first` before all others of its channel."""
        for future in self._waiting.get(channel, ()):
            if not future.done():
                future.set_result(payload)
                return
        expiry, capacity = self._layer.expiry, self._layer.get_capacity(channel)
        dropped = self.buffers.dropped
        self.buffers.put(channel, payload, expiry, capacity, self._loop.time(), first=first)
        if self.buffers.dropped != dropped:
            runtime.get_stats().channel_dropped += self.buffers.dropped - dropped
        self._schedule_sweep(SWEEP_EVERY)

    def join(self, group: str, channel: str, expiry: float) -> None:
        """Remembers a membership, to restore it at a node that has lost it."""
        self.memberships.add(group, channel, expiry, self._loop.time())
        self._schedule_sweep(SWEEP_EVERY)

    def has_consumer(self, queue: str) -> bool:
        """Whether a consumer waits for a message of this queue."""
        # The first one nearly always decides: the consumers of a process wait on one queue.
        return any(
            self._layer.non_local_name(channel) == queue and any(not future.done() for future in waiting)
            for channel, waiting in self._waiting.items()
        )

    def memberships_of(self, queue: str) -> list[wire.GroupAdd]:
        """Requests that restore the memberships of the queue's channels, at a node that may have lost them."""
        return [
            wire.GroupAdd(group, channel, remaining)
            for group, channel, remaining in self.memberships.remaining(self._loop.time())
            if self._layer.non_local_name(channel) == queue
        ]

    def abandon(self) -> None:
        """In a forked child: leaves connections and messages to the parent."""
        for reader in self._readers.values():
            reader.abandon()

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        tasks = [reader.task for reader in self._readers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _schedule_sweep(self, seconds: float) -> None:
        if self._sweep is None:
            self._sweep = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        checked = self.buffers.expire(now, SWEEP_BATCH)
        checked += self.memberships.expire(now, SWEEP_BATCH - checked)
        self._sweep = None
        if self.buffers or self.memberships:
            self._schedule_sweep(SWEEP_EVERY if checked < SWEEP_BATCH else SWEEP_PAUSE)

    def _reader(self, queue: str) -> "QueueReader":
        reader = self._readers.get(queue)
        if reader is None or reader.task.done():
            reader = self._readers[queue] = QueueReader(self, queue)
            reader.task.add_done_callback(partial(self._forget_reader, queue, reader))
        return reader

    def _forget_reader(self, queue: str, reader: "QueueReader", _: object) -> None:
        if self._readers.get(queue) is reader:
            del self._readers[queue]

    def _stop_waiting(self, channel: str, future: "asyncio.Future[bytes]") -> None:
        waiting = self._waiting.get(channel)
        if waiting is not None:
            waiting.remove(future)
            if not waiting:
                del self._waiting[channel]


class QueueReader:
    """Fetches the messages of one queue from its node, on a connection of its own, while a consumer waits for any."""

    def __init__(self, receiver: Receiver, queue: str) -> None:
        self.wanted = asyncio.Event()
        self._receiver = receiver
        self._queue = queue
        # Several at once only from a process's own queue: from a shared one they would be kept from other processes.
        limit = MAX_MESSAGES if queue.endswith("!") else 1
        self._request = wire.request_frame(wire.Receive(queue, POLL, limit))
        self._connection: AsyncConnection | None = None
        self._node: Target | None = None
        self._failing_since: float | None = None
        self._failure_logged = False
        self.task = asyncio.create_task(self._run(), name=f"receiving {queue}")
        suppress_destroyed_warning(self.task)

    def abandon(self) -> None:
        """In a forked child: leaves the connection to the parent."""
        if self._connection is not None:
            replace_inherited(self._connection.fileno())
        self.task.cancel()

    async def _run(self) -> None:
        pause = RETRY_AFTER[0]
        try:
            while await self._is_wanted():
                try:
                    connection = await self._connect()
                    reply = await connection.request(self._request)
                except ClusterStateError as error:
                    self._failed(error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_AFTER[1])
                    continue
                pause = RETRY_AFTER[0]
                self._succeeded()
                if isinstance(reply, wire.ReceiveReply) and reply.payload is not None:
                    self._receiver.put(reply.channel, reply.payload)
                    for channel, payload in reply.more:
                        self._receiver.put(channel, payload)
        finally:
            if self._connection is not None:
                self._connection.close()

    async def _is_wanted(self) -> bool:
        """Waits for a consumer that wants a message, for `POLL` seconds at most: it often returns for the next one.

        Returns False if none does: nothing is fetched in advance.
        """
        self.wanted.clear()
        if not self._receiver.has_consumer(self._queue):
            try:
                async with asyncio.timeout(POLL):
                    await self.wanted.wait()
            except TimeoutError:
                return self._receiver.has_consumer(self._queue)
        return True

    async def _connect(self) -> AsyncConnection:
        """The connection to the queue's present node. A new one begins with the memberships of the queue's channels."""
        node = await self._receiver.node_of(self._queue)
        if self._connection is None or self._connection.closed or node is not self._node:
            if self._connection is not None:
                self._connection.close()
            self._node = node
            keys = runtime.get_settings().link_keys
            try:
                self._connection = await connect(node.address, keys, 2 * POLL, hello=node.hello)
            except ClusterStateError as error:
                raise type(error)(f"{node}: {error}") from error
            for request in self._receiver.memberships_of(self._queue):
                await self._connection.request(wire.request_frame(request))
        return self._connection

    def _failed(self, error: ClusterStateError) -> None:
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        failing_for = now - self._failing_since
        if failing_for > LOG_AFTER and not self._failure_logged:
            self._failure_logged = True
            logger.warning(
                "channels %s: nothing received for %.1f s, consumers wait; retrying every second: %s",
                self._queue,
                failing_for,
                error,
            )

    def _succeeded(self) -> None:
        if self._failure_logged:
            logger.warning("channels %s: receiving again", self._queue)
        self._failing_since, self._failure_logged = None, False
