"""The settings of this process, its clients, and the objects that its caches and limits share.

The only module with process-wide state.
"""

import atexit
import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, ParamSpec, TypeVar

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .client import operations
from .client.aio import AsyncClient
from .client.blocking import Client
from .client.dialing import Dialer
from .client.event_sender import EventSender
from .client.operations import Operation
from .client.routing import Routing
from .limits_storage import LimitsStorage
from .settings import PREFIX, Settings, read_settings
from .wire.status import RequesterStats

P = ParamSpec("P")
T = TypeVar("T")
_cached: list["functools._lru_cache_wrapper[Any]"] = []
_shared: dict[Hashable, Any] = {}


def shared(name: Hashable, make: Callable[[], T]) -> T:
    """This process's object of that name, created at the first call, and the same for all threads.

    Names are few, such as a project's cache aliases. No lock is held, which a forked child would inherit: several
    threads may create an object at the same time, and all get the one that was stored first.
    """
    found = _shared.get(name)
    if found is None:
        found = _shared.setdefault(name, make())
    made: T = found
    return made


def once(make: Callable[[], T]) -> "functools._lru_cache_wrapper[T]":
    """Decorates a function without arguments: its result is cached for all threads until the settings change."""
    cached = functools.cache(lambda: shared(make, make))
    _cached.append(cached)
    return cached


@once
def get_settings() -> Settings:
    """This process's settings. Raises `ImproperlyConfigured`."""
    return read_settings(getattr(django_settings, "CLUSTERSTATE", {}))


def use_options(options: Mapping[str, Any]) -> Settings:
    """Overrides settings with a command's options, for the rest of this process. Raises `ImproperlyConfigured`."""
    for entry, value in options.items():
        os.environ[f"{PREFIX}{entry}"] = str(value)
    forget()
    return get_settings()


@once
def get_routing() -> Routing:
    """The view, circuit breakers and counts of this process, which both clients share."""
    return Routing(get_settings().socket)


@once
def get_dialer() -> Dialer:
    """Makes the connections of both clients of this process."""
    settings = get_settings()
    return Dialer(settings.link_keys, settings.deadline, busy_poll=settings.busy_poll)


@once
def get_client() -> Client:
    """The blocking client of this process."""
    return Client(get_routing(), get_dialer())


@once
def get_async_client() -> AsyncClient:
    """The asyncio client of this process."""
    return AsyncClient(get_routing(), get_dialer())


def run(operation: Operation[T]) -> T:
    """Runs an operation with the blocking client. Returns its result, or raises its exception."""
    return operations.run(operation, get_client())


def arun(operation: Operation[T]) -> Coroutine[Any, Any, T]:
    """Asynchronous `run()`."""
    return operations.arun(operation, get_async_client())


def blocking(function: Callable[P, Operation[T]]) -> Callable[P, T]:
    """Decorates a function that returns an operation, so that it runs the operation and returns the result."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return operations.run(function(*args, **kwargs), get_client())

    return call


def asynchronous(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The asynchronous twin of a function that `blocking` decorates."""
    make_operation: Callable[P, Operation[T]] = inspect.unwrap(function)

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await operations.arun(make_operation(*args, **kwargs), get_async_client())

    call.__name__ = f"a{function.__name__}"
    call.__qualname__ = f"{function.__qualname__.removesuffix(function.__name__)}{call.__name__}"
    call.__doc__ = f"Asynchronous `{function.__name__}()`."
    return call


def get_stats() -> RequesterStats:
    """The counts of this process that are not yet reported to a node. Each report replaces the object."""
    return get_routing().stats


@once
def get_event_sender() -> EventSender:
    """Sends the events that this process tracks to their owners."""
    return EventSender(get_client())


@once
def get_limits_storage() -> LimitsStorage | None:
    """The storage that LIMITS_STORAGE names, None if nodes count the limits. Raises `ImproperlyConfigured`."""
    settings = get_settings()
    if settings.limits_storage is None:
        return None
    return LimitsStorage(settings.limits_storage, settings.cluster, settings.deadline)


def forget() -> None:
    """Drops the settings, so that the next use reads them again, and closes the connections of the clients."""
    _close(get_event_sender, get_client, get_limits_storage)
    _shared.clear()  # first, or another thread would cache an object from here again
    for cached in _cached:
        cached.cache_clear()


def _close(*makers: "functools._lru_cache_wrapper[Any]") -> None:
    for maker in makers:
        made = maker() if maker.cache_info().currsize else None
        if made is not None:
            made.close()


# Python's development mode warns of sockets that are open at exit. The event sender registers later, so it runs first.
atexit.register(_close, get_client, get_limits_storage)


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("CLUSTERSTATE", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        forget()


setting_changed.connect(_setting_changed)
