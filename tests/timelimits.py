"""Signal handlers that end what is under way, as time limits of task queues do."""

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


class SoftTimeLimit(Exception):
    """As Celery's, whose handler is a function, and rq's, whose handler is a method."""


def raises(signum: int, frame: FrameType | None) -> NoReturn:
    raise SoftTimeLimit


def calls_another(*args: Any) -> None:
    raises(0, None)


class Handlers:
    def method(self, signum: int, frame: FrameType | None) -> NoReturn:
        raise SoftTimeLimit

    def __call__(self, *args: object) -> NoReturn:
        raise SoftTimeLimit


def with_more(name: str, signum: int, frame: FrameType | None) -> NoReturn:
    raise SoftTimeLimit(name)


def wrapped(*args: Any, **kwargs: Any) -> None:
    try:
        raises(0, None)
    except SoftTimeLimit as error:
        raise TimeoutError from error


HANDLERS: dict[str, Callable[..., Any]] = {
    "function": raises,
    "calls another": calls_another,
    "method": Handlers().method,
    "object": Handlers(),
    "partial": functools.partial(with_more, "name"),
    "lambda": lambda *args: raises(0, None),
    "wrapped": wrapped,
}


@contextmanager
def handling(handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
