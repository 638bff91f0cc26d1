"""What a forked child must not use as its parent left it: sockets, locks, threads, and counts that were not told yet.

Python runs its hooks only for forks that Python makes. uWSGI forks its workers in C, as other servers that embed Python
may. So the process id is compared wherever such a thing is used; `os.register_at_fork` merely lets go of it sooner.
"""

import os
import socket
import threading
import weakref
from abc import ABC, abstractmethod
from os import getpid


class PerProcess(ABC):
    """Base class of what belongs to one process. Each public method begins with:

    if getpid() != self._pid:
        self._forked()
    """

    def __init__(self) -> None:
        self._pid = getpid()
        self._renewals: dict[int, threading.RLock] = {}
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _after_fork(this))

    @abstractmethod
    def _start_anew(self) -> None:
        """Lets go of the parent's connections without a word to the other side, and begins empty."""

    def _forked(self) -> None:
        """Starts anew, once in each process whichever of its threads come at the same time."""
        pid = getpid()
        # A lock of the child's own: one of the parent's may be held, by a thread that the child doesn't have.
        with self._renewals.setdefault(pid, threading.RLock()):
            if self._pid != pid:
                self._start_anew()
                self._pid = pid


def _after_fork(reference: "weakref.ref[PerProcess]") -> None:
    this = reference()
    if this is not None:
        this._forked()


def replace_inherited(fileno: int) -> None:
    """Puts a closed socket in the place of an inherited one, in a child that may run on its copy of the parent's loop.

    Closing the loop's transport would also remove the parent's connection from the epoll instance that both share.
    """
    ours, other = socket.socketpair()
    other.close()
    with ours:
        os.dup2(ours.fileno(), fileno, inheritable=False)
