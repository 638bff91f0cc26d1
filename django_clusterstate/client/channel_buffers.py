"""What a process keeps of the embedded channel layer: fetched messages, and its channels' places in groups. Pure.

Both expire and are bounded. Times are seconds of the caller's clock.
"""

from collections import deque
from collections.abc import Iterator

from ..core.expiry import Expiry

MAX_BUFFERS = 10_000  # channels with messages that nobody has taken yet
MAX_BYTES = 64 * 1024 * 1024  # of those messages
OVERHEAD = 256  # bytes that a message takes besides its payload, at most
CHANNEL_OVERHEAD = 900  # bytes that a channel takes besides its messages, about
MAX_PLACES = 100_000  # in groups: as many as a node has
NEGLECTED = 5.0  # seconds that a channel's first message waits, after which nobody seems to receive from it


class Buffers:
    """Messages by channel, first in first out. `dropped`: those lost for want of room in a channel that seems to be
    received from, and those of the oldest channels where all take too much."""

    def __init__(self) -> None:
        self.dropped = 0
        self._messages: dict[str, deque[tuple[float, bytes]]] = {}
        self._expiry: Expiry[str] = Expiry()  # by the first message of each channel
        self._bytes = 0

    def __len__(self) -> int:
        """Channels."""
        return len(self._messages)

    def count(self, channel: str) -> int:
        return len(self._messages.get(channel, ()))

    def put(
        self, channel: str, payload: bytes, expiry: float, capacity: int, now: float, *, first: bool = False
    ) -> None:
        """Keeps a message for `expiry` seconds, `first` before all others. Over the capacity the oldest goes."""
        until = now + expiry
        messages = self._messages.get(channel)
        if messages is not None and len(messages) >= capacity:
            self.dropped += until - messages[0][0] < NEGLECTED
            self._bytes -= _size(messages.pop() if first else messages.popleft())
        self._make_room(len(payload) + OVERHEAD + CHANNEL_OVERHEAD, 0 if channel in self._messages else 1)
        messages = self._messages.get(channel)
        if messages is None:
            messages = self._messages[channel] = deque()
            self._bytes += CHANNEL_OVERHEAD
            self._expiry.set(channel, until, now)
        message = until, payload
        messages.appendleft(message) if first else messages.append(message)
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

    def free(self, now: float, budget: int) -> int:
        """Frees what has expired, looking at `budget` messages and channels at most; at how many it looked."""
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
        self._bytes -= CHANNEL_OVERHEAD + sum(map(_size, self._messages.pop(channel)))
        self._expiry.discard(channel)


def _size(message: tuple[float, bytes]) -> int:
    return OVERHEAD + len(message[1])


class Memberships:
    """Places of channels in groups, to be taken again at a node that has forgotten them."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}
        self._expiry: Expiry[tuple[str, str]] = Expiry()

    def __len__(self) -> int:
        return len(self._until)

    def join(self, group: str, channel: str, expiry: float, now: float) -> None:
        place = group, channel
        if place in self._until or len(self._until) < MAX_PLACES:
            self._until[place] = now + expiry
            self._expiry.set(place, now + expiry, now)

    def leave(self, group: str, channel: str) -> None:
        if self._until.pop((group, channel), None) is not None:
            self._expiry.discard((group, channel))

    def left(self, now: float) -> Iterator[tuple[str, str, float]]:
        """Each group, channel, and the seconds that the place has left."""
        return ((*place, until - now) for place, until in self._until.items() if until > now)

    def free(self, now: float, budget: int) -> int:
        """As `Buffers.free`."""
        left = budget
        while left > 0 and (place := self._expiry.pop(now)) is not None:
            left -= 1
            del self._until[place]
        return budget - left
