"""Forked children: by Python, and by C as servers that embed Python fork, where none of Python's hooks run."""

import contextlib
import ctypes
import os
import signal
import threading
import traceback
from collections.abc import Callable

from testproject.processes import wait_until

SECONDS = 60.0  # a child that waits for longer never ends

FORKS: dict[str, Callable[[], int]] = {
    "python": os.fork,
    "c": lambda: int(ctypes.PyDLL(None).fork()),  # unlike CDLL it keeps the interpreter's lock, as such servers do
}

InChild = Callable[[Callable[[], bool]], Callable[[], bool]]


def in_child_of(fork: Callable[[], int]) -> InChild:
    """Starts work in a forked child, and returns a function that says whether all went well.

    A thread that was joined lives on for a moment, in which it may hold a mutex of the interpreter: a child that C
    forks then would wait for it forever. So it is waited for.
    """
    before = _unknown_threads()

    def in_child(work: Callable[[], bool]) -> Callable[[], bool]:
        wait_until(lambda: _unknown_threads() <= before, SECONDS, "the end of joined threads")
        pid = fork()
        if not pid:
            try:
                os._exit(0 if work() else 1)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
        return lambda: _went_well(pid)

    return in_child


def _unknown_threads() -> set[int]:
    """Those of this process that Python doesn't know, by the system's numbers."""
    return set(map(int, os.listdir("/proc/self/task"))) - {thread.native_id or 0 for thread in threading.enumerate()}


def _went_well(pid: int) -> bool:
    ended: list[int] = []

    def has_ended() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        ended.extend([status] if done else [])
        return bool(done)

    try:
        wait_until(has_ended, SECONDS, "the end of a child")
    except TimeoutError:
        os.kill(pid, signal.SIGABRT)  # so that faulthandler shows where it hangs
        with contextlib.suppress(TimeoutError):
            wait_until(has_ended, SECONDS, "the end of an aborted child")
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return False
    return os.waitstatus_to_exitcode(ended[0]) == 0
