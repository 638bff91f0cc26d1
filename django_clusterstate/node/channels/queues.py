"""The channels and groups that live on one node: the memory of the embedded channel layer. Pure.

Delivery is at most once, first in first out. Messages expire, and so do memberships of channels in groups.
All channels of one process (`specific.x!y`) share one queue (`specific.x!`) and its capacity; every other channel has
its own.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable

from ...core.channels import ABANDONED_AFTER, MAX_BYTES, OVERHEAD, QUEUE_OVERHEAD, ChannelGroups
from ...core.expiry import Expiry

DeliverMessage = Callable[[str, bytes | None], None]

NODE_GROUPS = "clusterstate."  # the prefix of the nodes' own groups, for heartbeats
MAX_WAITERS = 100_000
NOTED_EVERY = 1.0  # seconds between two notes of the last receive from a queue
MAX_TAKEN = 256 * 1024  # bytes of messages that are taken at once after the first
HEADERS = 16  # bytes of a message in a reply without its payload and the name of its channel, at most
CHARACTER = 4  # bytes of a character in a name, at most


def queue_name(channel: str) -> str:
    """`specific.x!` for `specific.x!y`; any other channel is its own queue."""
    local, mark, _ = channel.partition("!")
    return local + mark


class ChannelQueues:
    """The queues and groups of the channels on one node. Times are monotonic seconds given by the caller.

    `taken`: messages accepted. `dropped`: messages and group memberships that were refused because this node, or a
    queue that is received from, was full. `unreceived`: messages that expired, or were refused by a full queue from
    which nothing was received for ABANDONED_AFTER seconds, such as that of a process that ended without leaving its
    groups, or of a node that has just started.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.dropped = 0
        self.unreceived = 0
        self._bytes = 0
        self._queues: dict[str, deque[tuple[float, str, bytes]]] = {}
        self._waiters: dict[str, deque[tuple[Hashable, DeliverMessage, float]]] = {}
        self._waiting: dict[Hashable, dict[str, int]] = {}  # how many waiters each connection has, by queue
        self.groups = ChannelGroups()
        self._queues_expiry: Expiry[str] = Expiry()  # due at the first message of each
        # Due at the first waiter of each queue. An entry stays when its waiter is answered sooner.
        self._waiters_expiry: Expiry[str] = Expiry(1 / 8)
        self._received: dict[str, float] = {}  # when a message was last received from a queue
        self._received_expiry: Expiry[str] = Expiry()
        self.waiters = 0  # requests to receive that have no message yet

    def send(self, channel: str, payload: bytes, expiry: float, capacity: int, now: float) -> bool:
        """Delivers the message to the first waiter, otherwise queues it. False when the queue is full."""
        name = queue_name(channel)
        while name in self._waiters:
            deliver, until = self._pop_waiter(name)
            if until > now:
                self.taken += 1
                self._note_receiver(name, now)
                deliver(channel, payload)
                return True
            deliver(name, None)
        self._expire_queue(name, now)
        queue = self._queues.get(name)
        size = len(payload) + OVERHEAD + (0 if queue else QUEUE_OVERHEAD)
        if self._bytes + size > MAX_BYTES or capacity <= (len(queue) if queue else 0):
            if now - self._received.get(name, -math.inf) > ABANDONED_AFTER:
                self.unreceived += 1
            else:
                self.dropped += 1
            return False
        if queue is None:
            queue = self._queues[name] = deque()
            self._queues_expiry.set(name, now + expiry, now)
        queue.append((now + expiry, channel, payload))
        self._bytes += size
        self.taken += 1
        return True

    def receive(self, owner: Hashable, queue: str, deliver: DeliverMessage, wait: float, now: float) -> None:
        """Calls `deliver` with the queue's next message, now or within `wait` seconds, and with None if there is none.

        `owner` is the connection of the requester; `forget()` ends its waiting.
        """
        self._expire_queue(queue, now)
        if queue in self._queues:
            self._note_receiver(queue, now)
            _, channel, payload = self._pop(queue)
            deliver(channel, payload)
        elif wait <= 0 or self.waiters >= MAX_WAITERS:
            deliver(queue, None)
        else:
            if queue not in self._waiters:
                self._waiters[queue] = deque()
                self._waiters_expiry.set(queue, now + wait, now)
            self._waiters[queue].append((owner, deliver, now + wait))
            queues = self._waiting.setdefault(owner, {})
            queues[queue] = queues.get(queue, 0) + 1
            self.waiters += 1

    def take(self, queue: str, most: int, room: int, now: float) -> list[tuple[str, bytes]]:
        """The next messages of a queue, without waiting for any: at most `most`, and at most `room` bytes in a reply.

        A message that doesn't fit stays in the queue.
        """
        taken: list[tuple[str, bytes]] = []
        room = min(room, MAX_TAKEN)
        while len(taken) < most:
            self._expire_queue(queue, now)
            if queue not in self._queues:
                break
            _, channel, payload = self._queues[queue][0]
            room -= HEADERS + CHARACTER * len(channel) + len(payload)
            if room < 0:
                break
            taken.append(self._pop(queue)[1:])
        return taken

    def group_add(self, group: str, channel: str, expiry: float, now: float) -> None:
        if not self.groups.add(group, channel, expiry, now):
            self.dropped += 1

    def forget(self, owner: Hashable) -> None:
        """Delivers nothing more to a connection, which is closed."""
        for queue, count in self._waiting.pop(owner, {}).items():
            self.waiters -= count
            self._received.pop(queue, None)
            self._received_expiry.discard(queue)
            left = deque(waiter for waiter in self._waiters[queue] if waiter[0] is not owner)
            if left:
                self._waiters[queue] = left
            else:
                del self._waiters[queue]

    def flush(self) -> None:
        self._queues.clear()
        self._bytes = 0
        self.groups = ChannelGroups()
        self._queues_expiry = Expiry()

    def expire(self, now: float, budget: int) -> int:
        """Drops expired messages and group memberships, and answers expired requests to receive: at most `budget`.

        Returns how many; a result equal to `budget` means that there may be more.
        """
        left = budget
        while left > 0 and (queue := self._queues_expiry.pop(now)) is not None:
            left -= max(1, self._expire_queue(queue, now, left))
            if queue in self._queues:
                self._queues_expiry.set(queue, self._queues[queue][0][0], now)
        while left > 0 and (queue := self._waiters_expiry.pop(now)) is not None:
            left -= max(1, self._expire_waiters(queue, now, left))
            if queue in self._waiters:
                self._waiters_expiry.set(queue, self._waiters[queue][0][2], now)
        while left > 0 and (queue := self._received_expiry.pop(now)) is not None:
            left -= 1
            del self._received[queue]
        left -= self.groups.expire(now, left)
        return budget - left

    def _note_receiver(self, queue: str, now: float) -> None:
        if now - self._received.get(queue, -math.inf) > NOTED_EVERY:
            self._received[queue] = now
            self._received_expiry.set(queue, now + ABANDONED_AFTER, now)

    def _expire_waiters(self, queue: str, now: float, most: int) -> int:
        answered = 0
        while answered < most and queue in self._waiters and self._waiters[queue][0][2] <= now:
            answered += 1
            deliver, _ = self._pop_waiter(queue)
            deliver(queue, None)
        return answered

    def _pop_waiter(self, queue: str) -> tuple[DeliverMessage, float]:
        waiters = self._waiters[queue]
        owner, deliver, until = waiters.popleft()
        if not waiters:
            del self._waiters[queue]
        self.waiters -= 1
        queues = self._waiting[owner]
        queues[queue] -= 1
        if not queues[queue]:
            del queues[queue]
            if not queues:
                del self._waiting[owner]
        return deliver, until

    def _pop(self, queue: str) -> tuple[float, str, bytes]:
        messages = self._queues[queue]
        message = messages.popleft()
        self._bytes -= len(message[2]) + OVERHEAD
        if not messages:
            del self._queues[queue]
            self._bytes -= QUEUE_OVERHEAD
            self._queues_expiry.discard(queue)
        return message

    def _expire_queue(self, queue: str, now: float, most: int = MAX_BYTES) -> int:
        """Drops the expired messages at the head of a queue, at most `most`. Returns how many."""
        dropped = 0
        while dropped < most and queue in self._queues and self._queues[queue][0][0] <= now:
            self._pop(queue)
            dropped += 1
        self.unreceived += dropped
        return dropped
