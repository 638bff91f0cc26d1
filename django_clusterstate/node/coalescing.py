"""Many sockets read at one wake-up, as network cards coalesce interrupts.

Among a hundred nodes each receives two hundred heartbeats a second. To wake up for each costs several times as much as
to handle it.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable

MIN_SOCKETS = 8  # with fewer, messages are read as they arrive
MAX_DELAY = 0.25  # seconds between two reads of all sockets


class Coalescer:
    """Calls the `read` of each socket that has data: at once, or every `delay` seconds while there are many sockets."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._epoll = select.epoll()
        self._reads: dict[int, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._polled = asyncio.Event()

    async def sleep(self, seconds: float) -> float:
        """Sleeps for `seconds`, or until the next read of many sockets to save a wake-up. Returns the planned time."""
        if self._timer is None:
            await asyncio.sleep(seconds)
            return seconds
        await self._polled.wait()
        return self._delay

    def add(self, fileno: int, read: Callable[[], None]) -> None:
        self._reads[fileno] = read
        self._epoll.register(fileno, select.EPOLLIN)
        if self._timer is None:
            self._read_when_ready()

    def remove(self, fileno: int, read: Callable[[], None]) -> None:
        if self._reads.get(fileno) == read:  # otherwise the socket was closed, and its number is another's now
            del self._reads[fileno]
            with contextlib.suppress(OSError):  # a closed socket was unregistered with that
                self._epoll.unregister(fileno)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._polled.set()
        self._epoll.close()

    def _on_data(self) -> None:
        self._poll()
        if len(self._reads) >= MIN_SOCKETS:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._read_later()

    def _on_timer(self) -> None:
        try:
            self._poll()
        finally:  # also after an error, since the node's tick waits for it
            self._polled.set()
            self._polled.clear()
            if len(self._reads) >= MIN_SOCKETS:
                self._read_later()
            else:
                self._timer = None
                self._read_when_ready()

    def _read_when_ready(self) -> None:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_data)

    def _read_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._delay, self._on_timer)

    def _poll(self) -> None:
        for fileno, _ in self._epoll.poll(0):
            if read := self._reads.get(fileno):  # one read may close another's socket
                read()
