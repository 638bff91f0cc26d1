"""State that a forked child must not share with its parent: sockets, locks, threads, and counts not yet reported.

Python runs its fork hooks only for forks that Python makes. uWSGI and other servers that embed Python fork in C. So the
process ID is compared before each use; `os.register_at_fork` only resets sooner.
"""

import os
import socket
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from os import getpid


class PerProcess(ABC):
    """Base class of objects with state of one process. Each public method begins with `self.reset_if_forked()`."""

    def __init__(self) -> None:
        self.pid = getpid()
        self._resets: dict[int, threading.RLock] = {}
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _after_fork(reference))

    @abstractmethod
    def _reset(self) -> None:
        """Drops the parent's connections without sending anything on them, and starts with an empty state."""

    def reset_if_forked(self) -> None:
        """Resets the state once in a forked child, whichever of its threads call it at the same time."""
        pid = getpid()
        if pid == self.pid:
            return
        # A lock of the child's own: a thread that the child doesn't have may hold one of the parent's.
        with self._resets.setdefault(pid, threading.RLock()):
            if self.pid != pid:
                self._reset()
                self.pid = pid


def _after_fork(reference: "weakref.ref[PerProcess]") -> None:
    this = reference()
    if this is not None:
        this.reset_if_forked()


def is_uwsgi_master() -> bool:
    """Whether this process is uWSGI's master: it forks its workers in C, whatever its threads are doing."""
    uwsgi = sys.modules.get("uwsgi")  # exists only in processes of uWSGI
    return uwsgi is not None and uwsgi.masterpid() == getpid()


def replace_inherited(fileno: int) -> None:
    """Puts a closed socket in the place of an inherited one, in a child that may run on its copy of the parent's loop.

    Closing the loop's transport would also remove the parent's connection from the epoll instance that both share.
    """
    ours, other = socket.socketpair()
    other.close()
    with ours:
        os.dup2(ours.fileno(), fileno, inheritable=False)
