"""The channels and groups that live on one node: the embedded channel layer's memory. Pure.

At most once, first in first out, nothing waits for ever: a message expires, and so does a channel's place in a group.
All channels of one process (`specific.x!y`) share one queue (`specific.x!`) and its capacity; every other channel has
its own.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable

Deliver = Callable[[str, bytes | None], None]

MAX_BYTES = 64 * 1024 * 1024  # of messages that wait, over all queues
OVERHEAD = 256  # bytes that a message takes besides, or else empty ones could pile up for ever
NODES_OWN = "clusterstate."  # how the names of the nodes' own groups begin: their heartbeats go there
MAX_MEMBERSHIPS = 100_000  # of channels in groups
MAX_WAITERS = 100_000
MAX_TAKEN = 256 * 1024  # bytes of messages that are taken at once besides the first
HEADERS = 16  # bytes that a message takes in a reply besides its payload and the name of its channel, at most
CHARACTER = 4  # bytes of one in a name, at most


def queue_name(channel: str) -> str:
    """`specific.x!` for `specific.x!y`, else the channel itself."""
    local, mark, _ = channel.partition("!")
    return local + mark


class Channels:
    """Times are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self.taken = 0
        self.dropped = 0
        self._bytes = 0
        self._queues: dict[str, deque[tuple[float, str, bytes]]] = {}
        self._waiters: dict[str, deque[tuple[Hashable, Deliver, float]]] = {}
        self._waiting: Counter[Hashable] = Counter()  # how many of them each connection has
        self._groups: dict[str, dict[str, float]] = {}
        self._memberships = 0

    def send(self, channel: str, payload: bytes, expiry: float, capacity: int, now: float) -> bool:
        """Hands the message to who waits for it, else keeps it. False when the queue is full."""
        name = queue_name(channel)
        while waiter := self._pop_waiter(name):
            deliver, until = waiter
            if until > now:
                self.taken += 1
                deliver(channel, payload)
                return True
            deliver(name, None)
        self._expire_queue(name, now)
        queue = self._queues.get(name, ())
        size = len(payload) + OVERHEAD
        if len(queue) >= capacity or self._bytes + size > MAX_BYTES:
            self.dropped += 1
            return False
        self._queues.setdefault(name, deque()).append((now + expiry, channel, payload))
        self._bytes += size
        self.taken += 1
        return True

    def receive(self, owner: Hashable, queue: str, deliver: Deliver, wait: float, now: float) -> None:
        """Calls `deliver` with the queue's next message: now, or when one comes within `wait` seconds, else None.

        `owner` is the connection that asks; `forget()` ends its waiting.
        """
        self._expire_queue(queue, now)
        if queue in self._queues:
            _, channel, payload = self._pop(queue)
            deliver(channel, payload)
        elif self._waiting.total() >= MAX_WAITERS:
            deliver(queue, None)
        else:
            self._waiters.setdefault(queue, deque()).append((owner, deliver, now + wait))
            self._waiting[owner] += 1

    def take(self, queue: str, most: int, room: int, now: float) -> list[tuple[str, bytes]]:
        """The next messages of a queue, without waiting for any: at most `most`, and at most `room` bytes in a reply.

        A message that doesn't fit stays in the queue.
        """
        self._expire_queue(queue, now)
        taken: list[tuple[str, bytes]] = []
        room = min(room, MAX_TAKEN)
        while queue in self._queues and len(taken) < most:
            _, channel, payload = self._queues[queue][0]
            room -= HEADERS + CHARACTER * len(channel) + len(payload)
            if room < 0:
                break
            taken.append(self._pop(queue)[1:])
        return taken

    def group_add(self, group: str, channel: str, expiry: float, now: float) -> None:
        if channel not in self._groups.get(group, ()):
            if self._memberships >= MAX_MEMBERSHIPS:
                self.dropped += 1
                return
            self._memberships += 1
        self._groups.setdefault(group, {})[channel] = now + expiry

    def group_discard(self, group: str, channel: str) -> None:
        members = self._groups.get(group)
        if members is not None and members.pop(channel, None) is not None:
            self._memberships -= 1
            if not members:
                del self._groups[group]

    def group(self, name: str, now: float) -> list[str]:
        """The channels that hear a group."""
        return [channel for channel, until in self._groups.get(name, {}).items() if until > now]

    def forget(self, owner: Hashable) -> None:
        """The connection is closed: nothing is delivered to it any more."""
        if not self._waiting.pop(owner, 0):
            return
        for queue in list(self._waiters):
            left = deque(waiter for waiter in self._waiters[queue] if waiter[0] is not owner)
            if left:
                self._waiters[queue] = left
            else:
                del self._waiters[queue]

    def flush(self) -> None:
        self._queues.clear()
        self._bytes = 0
        self._groups.clear()
        self._memberships = 0

    def tick(self, now: float) -> None:
        """Drops what has expired. Costs the number of queues: to be called about once a second."""
        for queue in list(self._queues):
            self._expire_queue(queue, now)
        for queue, waiters in list(self._waiters.items()):
            while waiters and waiters[0][2] <= now and (waiter := self._pop_waiter(queue)):
                waiter[0](queue, None)
        for group, members in list(self._groups.items()):
            for channel in [name for name, until in members.items() if until <= now]:
                self.group_discard(group, channel)

    def _pop_waiter(self, queue: str) -> tuple[Deliver, float] | None:
        waiters = self._waiters.get(queue)
        if not waiters:
            return None
        owner, deliver, until = waiters.popleft()
        if not waiters:
            del self._waiters[queue]
        self._waiting[owner] -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]
        return deliver, until

    def _pop(self, queue: str) -> tuple[float, str, bytes]:
        messages = self._queues[queue]
        message = messages.popleft()
        self._bytes -= len(message[2]) + OVERHEAD
        if not messages:
            del self._queues[queue]
        return message

    def _expire_queue(self, queue: str, now: float) -> None:
        while queue in self._queues and self._queues[queue][0][0] <= now:
            self._pop(queue)
            self.dropped += 1
