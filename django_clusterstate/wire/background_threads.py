"""Blocking work without a deadline, such as a name lookup, in a daemon thread.

An executor isn't used: a few hanging threads fill its pool, and a process or event loop that ends waits for its pool.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWork(Generic[T]):
    """Runs `work` in a daemon thread, at most once at a time: callers during a run share its future."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._name = name
        self._running: tuple[int, Future[T]] | None = None

    def start(self) -> "Future[T]":
        """The future of the current run, or of a new one. Cancelling it doesn't stop the work."""
        pid, running = os.getpid(), self._running
        # No thread survives a fork: in a forked child the future of the parent's run would never be done.
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
