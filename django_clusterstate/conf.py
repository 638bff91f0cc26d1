"""The settings of this process, its clients, what its caches share and the events that it has tracked.

The only place that keeps process-wide state.
"""

import functools
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .client.aio import AsyncClient
from .client.sync import Client
from .client.tracking import Tracker
from .limits_storage import AsyncLimitsStorage, LimitsStorage
from .settings import PREFIX, Settings, read_settings


@functools.cache
def get_settings() -> Settings:
    """This process's settings. Raises `ImproperlyConfigured`."""
    return read_settings(getattr(django_settings, "CLUSTERSTATE", {}))


def use_options(options: Mapping[str, Any]) -> Settings:
    """Puts a command's options over the settings, for the rest of this process. Raises `ImproperlyConfigured`."""
    for entry, value in options.items():
        os.environ[f"{PREFIX}{entry}"] = str(value)
    forget()
    return get_settings()


_Shared = TypeVar("_Shared")
_shared: dict[Hashable, Any] = {}


def shared(name: Hashable, make: Callable[[], _Shared]) -> _Shared:
    """This process's object of that name, made when it is first asked for: the same for all threads.

    Names are a project's cache aliases and the like, so they are few.
    """
    found = _shared.get(name)
    if found is None:
        found = _shared.setdefault(name, make())
    made: _Shared = found
    return made


@functools.cache
def get_client() -> Client:
    """This process's blocking requester."""
    with _making:
        return _made_client()


@functools.cache
def get_async_client() -> AsyncClient:
    """This process's asyncio requester."""
    with _making:
        return _made_async_client()


@functools.cache
def get_tracker() -> Tracker:
    """What this process tracks, on its way to the owners."""
    client = get_client()
    with _making:
        return _made_tracker(client)


# `functools.cache` lets threads that come at the same moment each make one; behind the lock they get the same.
_making = threading.Lock()


@functools.cache
def _made_client() -> Client:
    settings = get_settings()
    return Client(settings.socket, settings.link_keys, settings.deadline)


@functools.cache
def _made_async_client() -> AsyncClient:
    settings = get_settings()
    return AsyncClient(settings.socket, settings.link_keys, settings.deadline)


@functools.cache
def get_limits_storage() -> LimitsStorage | None:
    """What counts the limits in the nodes' place, if anything does. Raises `ImproperlyConfigured`."""
    with _making:
        return _made_limits_storage()


@functools.cache
def get_async_limits_storage() -> AsyncLimitsStorage | None:
    """The same, for asyncio."""
    with _making:
        return _made_async_limits_storage()


@functools.cache
def _made_limits_storage() -> LimitsStorage | None:
    settings = get_settings()
    uri = settings.limits_storage
    return None if uri is None else LimitsStorage(uri, settings.cluster, settings.deadline)


@functools.cache
def _made_async_limits_storage() -> AsyncLimitsStorage | None:
    settings = get_settings()
    uri = settings.limits_storage
    return None if uri is None else AsyncLimitsStorage(uri, settings.cluster, settings.deadline)


@functools.cache
def _made_tracker(client: Client) -> Tracker:
    return Tracker(client)


_KEPT = (
    *(get_settings, get_client, get_async_client, get_limits_storage, get_async_limits_storage, get_tracker),
    *(_made_client, _made_async_client, _made_limits_storage, _made_async_limits_storage, _made_tracker),
)


def forget() -> None:
    """Reads the settings anew when they are next needed, and closes the connections made by the old ones."""
    for made in (get_tracker, get_client, get_limits_storage):
        if made.cache_info().currsize and (blocking := made()) is not None:
            blocking.close()
    for cached in _KEPT:
        cached.cache_clear()
    _shared.clear()


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("CLUSTERSTATE", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        forget()


setting_changed.connect(_setting_changed)
