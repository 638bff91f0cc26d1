"""Fetched messages that no consumer has received yet. Pure; `now` is seconds of the caller's clock."""

from collections import deque

from ..core.channels import ABANDONED_AFTER, MAX_BYTES, OVERHEAD, QUEUE_OVERHEAD
from ..core.expiry import Expiry

MAX_BUFFERS = 10_000  # channels with messages


class Buffers:
    """Messages by channel, first in, first out.

    `dropped`: messages that a channel with a consumer lost over its capacity, and all of the channels that were dropped
    because there were too many channels or bytes.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._messages: dict[str, deque[tuple[float, bytes]]] = {}
        self._expiry: Expiry[str] = Expiry()  # by the first message of each channel
        self._bytes = 0

    def __len__(self) -> int:
        """The number of channels with messages."""
        return len(self._messages)

    def count(self, channel: str) -> int:
        return len(self._messages.get(channel, ()))

    def put(
        self, channel: str, payload: bytes, expiry: float, capacity: int, now: float, *, first: bool = False
    ) -> None:
        """Keeps a message for `expiry` seconds, `first` before all others. A full channel drops its oldest message."""
        until = now + expiry
        messages = self._messages.get(channel)
        if messages is not None and len(messages) >= capacity:
            if until - messages[0][0] < ABANDONED_AFTER:
                self.dropped += 1
            self._bytes -= _size(messages.pop() if first else messages.popleft())
        self._make_room(len(payload) + OVERHEAD + QUEUE_OVERHEAD, 0 if channel in self._messages else 1)
        messages = self._messages.get(channel)
        if messages is None:
            messages = self._messages[channel] = deque()
            self._bytes += QUEUE_OVERHEAD
            self._expiry.set(channel, until, now)
        message = until, payload
        if first:
            messages.appendleft(message)
        else:
            messages.append(message)
        self._bytes += _size(message)

    def take(self, channel: str, now: float) -> bytes | None:
        """The channel's next message that hasn't expired."""
        messages = self._messages.get(channel)
        if messages is None:
            return None
        taken = None
        while messages and taken is None:
            until, payload = message = messages.popleft()
            self._bytes -= _size(message)
            if until > now:
                taken = payload
        if not messages:
            self._forget(channel)
        return taken

    def expire(self, now: float, budget: int) -> int:
        """Frees expired messages. Checks at most `budget` messages and channels, and returns how many it checked."""
        left = budget
        while left > 0 and (channel := self._expiry.pop(now)) is not None:
            messages = self._messages[channel]
            left -= 1
            while left > 0 and messages and messages[0][0] <= now:
                self._bytes -= _size(messages.popleft())
                left -= 1
            if messages:
                self._expiry.set(channel, messages[0][0], now)
            else:
                self._forget(channel)
        return budget - left

    def _make_room(self, size: int, channels: int) -> None:
        while self._messages and (self._bytes + size > MAX_BYTES or len(self._messages) + channels > MAX_BUFFERS):
            oldest = next(iter(self._messages))
            self.dropped += len(self._messages[oldest])
            self._forget(oldest)

    def _forget(self, channel: str) -> None:
        self._bytes -= QUEUE_OVERHEAD + sum(map(_size, self._messages.pop(channel)))
        self._expiry.discard(channel)


def _size(message: tuple[float, bytes]) -> int:
    return OVERHEAD + len(message[1])
