"""The settings of this process, its clients, what its caches share and the events that it has tracked.

The only place that keeps process-wide state.
"""

import atexit
import functools
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .client.aio import AsyncClient
from .client.blocking import Client
from .client.event_sender import EventSender
from .limits_storage import AsyncLimitsStorage, LimitsStorage
from .settings import PREFIX, Settings, read_settings
from .wire.status import RequesterStats

_Made = TypeVar("_Made")
_kept: list["functools._lru_cache_wrapper[Any]"] = []


def once(make: Callable[[], _Made]) -> "functools._lru_cache_wrapper[_Made]":
    """Keeps what is made until the settings change. Threads that come at the same moment may each make one: where that
    matters, it is to be `shared`."""
    kept = functools.cache(make)
    _kept.append(kept)
    return kept


@once
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


@once
def get_client() -> Client:
    """This process's blocking requester."""
    settings = get_settings()
    return shared(Client, lambda: Client(settings.socket, settings.link_keys, settings.deadline))


@once
def get_async_client() -> AsyncClient:
    """This process's asyncio requester."""
    settings, untold = get_settings(), get_client().routing.untold
    return shared(
        AsyncClient, lambda: AsyncClient(settings.socket, settings.link_keys, settings.deadline, untold=untold)
    )


def get_stats() -> RequesterStats:
    """Where this process counts, for both clients. Asked for each time anew: what was told counts no further."""
    return get_client().routing.untold.tally


@once
def get_event_sender() -> EventSender:
    """What this process tracks, on its way to the owners."""
    return shared(EventSender, lambda: EventSender(get_client()))


@once
def get_limits_storage() -> LimitsStorage | None:
    """What counts the limits in the nodes' place, if anything does. Raises `ImproperlyConfigured`."""
    settings = get_settings()
    uri = settings.limits_storage
    if uri is None:
        return None
    return shared(LimitsStorage, lambda: LimitsStorage(uri, settings.cluster, settings.deadline))


@once
def get_async_limits_storage() -> AsyncLimitsStorage | None:
    """The same, for asyncio."""
    settings = get_settings()
    uri = settings.limits_storage
    if uri is None:
        return None
    return shared(AsyncLimitsStorage, lambda: AsyncLimitsStorage(uri, settings.cluster, settings.deadline))


def forget() -> None:
    """Reads the settings anew when they are next needed, and closes the connections made by the old ones."""
    for made in (get_event_sender, get_client, get_limits_storage):
        if made.cache_info().currsize and (blocking := made()) is not None:
            blocking.close()
    for kept in _kept:
        kept.cache_clear()
    _shared.clear()


def _at_exit() -> None:
    """Closes the sockets: Python warns of those that are open when it ends, in its development mode."""
    for made in (get_client, get_limits_storage):
        if made.cache_info().currsize and (blocking := made()) is not None:
            blocking.close()


atexit.register(_at_exit)  # before the tracker's, which runs earlier therefore


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("CLUSTERSTATE", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        forget()


setting_changed.connect(_setting_changed)
