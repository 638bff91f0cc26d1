"""Threads that do something at the same moment, with a switch between them wherever the interpreter allows one."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

SECONDS = 60.0


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Within the context, no thread runs for longer than a microsecond while others want to."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def at_once(function: Callable[[], T], threads: int = 8) -> list[T]:
    """The results of a function that several threads call at the same moment."""
    barrier = threading.Barrier(threads, timeout=SECONDS)

    def run() -> T:
        barrier.wait()
        return function()

    with frequent_switches(), ThreadPoolExecutor(threads) as pool:
        return [future.result(SECONDS) for future in [pool.submit(run) for _ in range(threads)]]
