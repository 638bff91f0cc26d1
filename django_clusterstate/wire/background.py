"""Work that blocks for as long as it likes, such as a name look-up, in a daemon thread of its own.

Not in an executor: a pool is full once a few threads hang, and a process or an event loop that ends waits for its pool.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs `work` in a thread, one at a time: a caller that comes while it runs is given the same future."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._name = name
        self._running: tuple[int, Future[T]] | None = None

    def start(self) -> "Future[T]":
        """The result of the run in progress, or of a new one. Cancelling the future doesn't stop the work."""
        pid, running = os.getpid(), self._running
        # A thread doesn't survive a fork: in the child its future would never be done.
        if running is not None and running[0] == pid and not running[1].done():
            return running[1]
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._running = (pid, future)
        threading.Thread(target=self._run, args=[future], name=self._name, daemon=True).start()
        return future

    def _run(self, future: "Future[T]") -> None:
        try:
            result = self._work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
