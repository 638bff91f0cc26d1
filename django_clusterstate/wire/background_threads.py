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
        self._running: dict[int, Future[T]] = {}  # by process ID: no thread survives a fork

    def start(self) -> "Future[T]":
        """The future of the current run, or of a new one. Cancelling it doesn't stop the work."""
        pid = os.getpid()
        running = self._running.get(pid)
        if running is not None:
            return running
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        running = self._running.setdefault(pid, future)
        if running is future:  # otherwise another thread was faster
            thread = threading.Thread(target=self._run, args=[pid, future], name=self._name, daemon=True)
            try:
                thread.start()
            except BaseException:
                self._running.pop(pid, None)
                raise
        return running

    def _run(self, pid: int, future: "Future[T]") -> None:
        try:
            result = self._work()
        except BaseException as error:
            self._running.pop(pid, None)
            future.set_exception(error)
        else:
            self._running.pop(pid, None)
            future.set_result(result)
