"""Many sockets read at one wake-up: interrupt coalescing, as network cards do it.

Among a hundred nodes each hears two hundred heartbeats a second. Waking up for each costs several times what they cost
themselves."""

import asyncio
import contextlib
import select
from collections.abc import Callable

MANY = 8  # sockets: with fewer, news is read as it comes
REST = 0.25  # seconds that it waits for more, with so many, at most


class Coalescer:
    """Calls the `read` of each socket that has something. With many, what comes waits for `rest` seconds at most."""

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._reads: dict[int, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked = asyncio.Event()
        self._loop.add_reader(self._epoll.fileno(), self._wake)

    async def rest(self, seconds: float) -> float:
        """Sleeps, or until many sockets are looked at: one wake-up does for both. Returns how long that was to take."""
        if self._timer is None:
            await asyncio.sleep(seconds)
            return seconds
        await self._looked.wait()
        return self._rest

    def add(self, fileno: int, read: Callable[[], None]) -> None:
        self._reads[fileno] = read
        self._epoll.register(fileno, select.EPOLLIN)

    def remove(self, fileno: int, read: Callable[[], None]) -> None:
        if self._reads.get(fileno) == read:  # else the socket was closed, and its number is another's now
            del self._reads[fileno]
            with contextlib.suppress(OSError):  # closed: then it was removed with that
                self._epoll.unregister(fileno)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._looked.set()
        self._epoll.close()

    def _wake(self) -> None:
        self._read()
        if len(self._reads) >= MANY:
            self._loop.remove_reader(self._epoll.fileno())
            self._timer = self._loop.call_later(self._rest, self._look)

    def _look(self) -> None:
        try:
            self._read()
        finally:  # whatever happens, the node's clock hangs on it
            self._looked.set()
            self._looked.clear()
            if len(self._reads) >= MANY:
                self._timer = self._loop.call_later(self._rest, self._look)
            else:
                self._timer = None
                self._loop.add_reader(self._epoll.fileno(), self._wake)

    def _read(self) -> None:
        for fileno, _ in self._epoll.poll(0):
            if read := self._reads.get(fileno):  # one read may close another's socket
                read()
