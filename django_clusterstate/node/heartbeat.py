"""Heartbeats through a Django Channels group: sends those of this node, receives those of its peers.

Uses only the channel-layer API, so any layer between the hosts will do.
"""

import asyncio
import hmac
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ..core.membership.heartbeat import Heartbeat, Identity
from ..core.membership.membership import Membership
from ..exceptions import ProtocolError
from ..wire.derived_keys import MAX_SECRETS, SecretKey
from ..wire.handshake import VERSIONS, common_version, incompatible
from ..wire.messages import DECODE_ERRORS
from .log import RateLimitedLog, logger

JITTER = 0.1
RENEW_EVERY = 20.0  # seconds between two additions to the group, which a layer that restarted has forgotten
SETTLED_AFTER = 1.0  # seconds without a failure
RETRY_AFTER = 0.5  # seconds, when the layer fails
LAYER_TIMEOUT = 2.0  # seconds that one call of the layer may take

_decode = msgspec.msgpack.Decoder(Heartbeat).decode


class ChannelGone(Exception):
    """The layer has lost the channel of this node: it needs another."""


class ChannelLayer(Protocol):
    """The part of the channel-layer specification that heartbeats need."""

    async def new_channel(self, prefix: str = ...) -> str: ...
    async def send(self, channel: str, message: dict[str, Any]) -> None: ...
    async def receive(self, channel: str) -> dict[str, Any]: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: dict[str, Any]) -> None: ...


def encode_heartbeat(beat: Heartbeat, keys: Sequence[SecretKey]) -> dict[str, Any]:
    """The channel message for a heartbeat, signed with every secret: some peers may not have the newest yet."""
    body = bytes(VERSIONS) + msgspec.msgpack.encode(beat)
    return {"type": "clusterstate.heartbeat", "body": body, "macs": [key.mac(body) for key in keys]}


def decode_heartbeat(message: dict[str, Any], keys: Sequence[SecretKey]) -> Heartbeat:
    """The heartbeat of a channel message.

    Raises `ProtocolError` when it isn't signed with one of these keys (before any of it is decoded), has a field out of
    bounds, or when its sender has no protocol version in common with this node.
    """
    body, macs = message.get("body"), message.get("macs")
    if not isinstance(body, bytes) or not isinstance(macs, list) or len(body) < 2 or len(macs) > MAX_SECRETS:
        raise ProtocolError("not a heartbeat")
    if not _is_signed(body, macs, keys):
        raise ProtocolError(
            "not signed with any of this node's secrets; its sender uses a different SECRET, "
            "or belongs to a different cluster"
        )
    if not common_version(body[0], body[1]):
        raise ProtocolError(f"no protocol version in common with its sender: {incompatible(body[0], body[1])}")
    try:
        return _decode(body[2:])
    except DECODE_ERRORS as error:
        raise ProtocolError(f"a field is out of bounds: {error}") from error


def _is_signed(body: bytes, macs: list[Any], keys: Sequence[SecretKey]) -> bool:
    """Whether one of the MACs was made with one of the keys."""
    expected = [key.mac(body) for key in keys]
    return any(isinstance(mac, bytes) and hmac.compare_digest(mac, own) for own in expected for mac in macs)


@dataclass(eq=False, repr=False)
class Heartbeats:
    """Sends and receives heartbeats until cancelled.

    `on_heard(beat, fresh)` is called for each authentic heartbeat; any other message is reported to `rejected_log`. A
    heartbeat is fresh, and so not a recording, if the layer says that it came over a link from the instance of the
    node that it names (`SessionMessage.session`).
    """

    membership: Membership
    layer: ChannelLayer
    group: str
    keys: Sequence[SecretKey]
    clock: Callable[[], float]
    on_heard: Callable[[Heartbeat, bool], None]
    rejected_log: RateLimitedLog
    rejected: int = 0  # messages that weren't authentic heartbeats
    failing: bool = False  # whether the layer fails, so that silence says nothing
    _failed_at: float = 0.0
    _channel: str = ""
    _soon: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_forever(), name="heartbeats out")
            tasks.create_task(self._receive_forever(), name="heartbeats in")

    def beat_soon(self) -> None:
        """Sends a heartbeat before the next interval, as for a peer that has just joined."""
        self._soon.set()

    async def beat(self) -> None:
        """Sends one heartbeat to all peers now. A failing layer is logged, not raised."""
        beat = self.membership.heartbeat(self.clock(), self._channel)
        await self._attempt(self.layer.group_send(self.group, encode_heartbeat(beat, self.keys)))

    async def answer(self, channel: str, to: Identity) -> None:
        """Sends one heartbeat to a single node, over the channel that its own heartbeat named. It lists that
        instance of the node first, which proves to it that this node runs now."""
        beat = self.membership.heartbeat(self.clock(), self._channel, answer_to=to)
        await self._attempt(self.layer.send(channel, encode_heartbeat(beat, self.keys)))

    async def _send_forever(self) -> None:
        interval = self.membership.timings.heartbeat
        renewed = self.clock()
        while not _is_cancelled():
            if self._channel and self.clock() - renewed > RENEW_EVERY:
                renewed = self.clock()
                await self._attempt(self.layer.group_add(self.group, self._channel))
            await self.beat()
            self._soon.clear()
            try:
                async with asyncio.timeout(interval * random.uniform(1 - JITTER, 1 + JITTER)):
                    await self._soon.wait()
                    await asyncio.sleep(interval / 10)  # one heartbeat for all peers that join at once
            except TimeoutError:
                pass

    async def _receive_forever(self) -> None:
        joined = False
        while not _is_cancelled():
            try:
                if not joined:
                    async with asyncio.timeout(LAYER_TIMEOUT):
                        self._channel = self._channel or await self.layer.new_channel()
                        await self.layer.group_add(self.group, self._channel)
                    joined = True
                self._take(await self.layer.receive(self._channel))
            except Exception as error:  # a layer may raise anything; none of it may end the node
                self._note(error)
                joined = False
                if isinstance(error, ChannelGone):
                    self._channel = ""
                await asyncio.sleep(RETRY_AFTER)

    def _take(self, message: dict[str, Any]) -> None:
        session = getattr(message, "session", None)
        try:
            beat = decode_heartbeat(message, self.keys)
            if session is not None and session != beat.identity.boot:
                raise ProtocolError(f"sender {beat.identity} does not match the peer on this connection")
        except ProtocolError as error:
            self.rejected += 1
            self.rejected_log.write(f"heartbeat dropped: {error}")
        else:
            self._hear(beat, session is not None)

    def _hear(self, beat: Heartbeat, fresh: bool) -> None:
        try:
            self.on_heard(beat, fresh)
        except Exception as error:  # a bug here, no failure of the layer, which would excuse all silence
            self.rejected += 1
            self.rejected_log.write(f"heartbeat dropped: {error!r} at the heartbeat of {beat.identity}")

    async def _attempt(self, call: Any) -> None:
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                await call
        except Exception as error:  # a layer may raise anything
            self._note(error)
        else:
            self._note(None)

    def _note(self, error: Exception | None) -> None:
        """Logs that the layer fails, and that it works again after some time without a failure, because sending and
        receiving may fail in turn."""
        now = self.clock()
        if error is not None:
            if not self.failing:
                logger.warning(
                    "channel layer failed, so no heartbeats arrive and no peer is declared down for that: %s: %s",
                    type(error).__name__, error,
                )  # fmt: skip
            self.failing, self._failed_at = True, now
        elif self.failing and now - self._failed_at > SETTLED_AFTER:
            self.failing = False
            logger.warning("channel layer recovered")


def _is_cancelled() -> bool:
    """Whether the running task was cancelled: a layer may lose a cancellation that arrives together with a message."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
