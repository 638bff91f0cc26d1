"""Objects that a process has for each of its event loops, since connections can't be shared between loops."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

MAX_LOOPS = 64  # loops that aren't running: each has sockets open, and some programs never close the loops they make

Loop = asyncio.AbstractEventLoop
T = TypeVar("T")


class PerLoop(dict[Loop, T]):
    """One object for each event loop, such as its connections. `start()` makes the one of the running loop.

    An object is closed when its loop shuts down its asynchronous generators, as `asyncio.run` and asgiref do at the end
    of a loop (each `async_to_sync` call has a loop of its own). The objects of loops that ended in another way are
    dropped at the next `start()`.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._make = make
        self._close = close
        self._closers: dict[Loop, AsyncGenerator[None, None]] = {}

    async def start(self) -> T:
        """Makes, stores and returns the object of the running loop."""
        for ended in ended_loops(self):
            self._drop(ended)
        loop = asyncio.get_running_loop()
        made = self[loop] = self._make()
        closer = self._closers[loop] = self._close_with_loop(loop, made)
        await anext(closer)  # registers it with the loop
        return made

    async def close(self) -> None:
        """Closes the object of the running loop, if there is one."""
        closer = self._closers.get(asyncio.get_running_loop())
        if closer is not None:
            await closer.aclose()

    async def _close_with_loop(self, loop: Loop, made: T) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            dropped = self.get(loop) is not made
            if not dropped:
                self.pop(loop, None)
                self._closers.pop(loop, None)
            if not dropped or loop.is_closed():  # another loop may run again, in another thread
                await self._close(made)

    def _drop(self, loop: Loop) -> None:
        closer = self._closers.pop(loop, None)
        if closer is None:  # another thread was faster
            return
        made = self.pop(loop, None)
        # Freed before its end, the generator would schedule a coroutine, which is never awaited if the loop is closed.
        _finish(closer)
        if made is None:  # the loop is closing it
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed; any other may run again, in another thread
            loop.call_soon_threadsafe(lambda: loop.create_task(self._close(made)))


def ended_loops(loops: Mapping[Loop, Any]) -> list[Loop]:
    """The closed loops; also all idle loops if more than `MAX_LOOPS` aren't running.

    A loop that runs again after it was dropped connects again.
    """
    idle = [loop for loop in list(loops) if not loop.is_running()]  # other threads may add theirs meanwhile
    return idle if len(idle) > MAX_LOOPS else [loop for loop in idle if loop.is_closed()]


def _finish(closer: AsyncGenerator[None, None]) -> None:
    """Runs the rest of an asynchronous generator whose event loop isn't running."""
    closing = closer.aclose()
    with contextlib.suppress(StopIteration, RuntimeError):
        while True:
            closing.__await__().send(None)


def suppress_destroyed_warning(task: "asyncio.Task[Any]") -> None:
    """Keeps asyncio from logging "Task was destroyed but it is pending!" for a task of this package.

    A program that closes its event loop without cancelling all tasks would get that line for tasks that it never
    started. asyncio does the same for its own (in `gather()`, for example).
    """
    with contextlib.suppress(AttributeError):  # the tasks of another event loop may lack it
        setattr(task, "_log_destroy_pending", False)  # noqa: B010 - it isn't in the type stubs
