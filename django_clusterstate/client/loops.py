"""Which event loops of a process have ended, or were left behind, though nobody shut them down."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

MAX_LOOPS = 64  # that aren't running: each has sockets open, and whoever makes loops and never closes them makes many

Loop = asyncio.AbstractEventLoop


def left_behind(loops: Mapping[Loop, Any]) -> list[Loop]:
    """Those that are closed; those that aren't running as well, where they are more than `MAX_LOOPS`.

    One of these that runs again after all connects again.
    """
    idle = [loop for loop in list(loops) if not loop.is_running()]  # other threads may add theirs meanwhile
    return idle if len(idle) > MAX_LOOPS else [loop for loop in idle if loop.is_closed()]


def finish(closer: AsyncGenerator[None, None]) -> None:
    """Ends an asynchronous generator whose event loop no longer runs, and which only yields to it on its way out."""
    closing = closer.aclose()
    with contextlib.suppress(StopIteration, RuntimeError):  # its loop may be closed
        while True:
            closing.__await__().send(None)


def silence_at_end(task: "asyncio.Task[Any]") -> None:
    """Whoever closes an event loop without cancelling its tasks isn't told of those that we have started there.

    asyncio does the same with what it starts itself (in `gather()`, for one).
    """
    with contextlib.suppress(AttributeError):  # the tasks of another loop may lack it
        setattr(task, _LOGS_ITS_END, False)


_LOGS_ITS_END = "_log_destroy_pending"
