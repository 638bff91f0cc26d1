"""The arguments of a limit that depend on the request: its key, its methods, and callables `(group, request)`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.functional import LazyObject
from django.utils.module_loading import import_string

from .. import runtime
from ..client.operations import CallEither
from ..clientip import client_ip, network_of

ALL = None
UNSAFE = ("DELETE", "PATCH", "POST", "PUT")

RequestFunction = Callable[[str, HttpRequest], Any]
KeyOption = str | Callable[[str, HttpRequest], Any]


def read_methods(method: str | Iterable[str] | None) -> frozenset[str] | None:
    """The HTTP methods that count; None for all."""
    if method is None:
        return None
    given = [method] if isinstance(method, str) else list(method)
    if not given or not all(isinstance(one, str) and one.isalpha() and one not in ("ALL", "UNSAFE") for one in given):
        raise ImproperlyConfigured(
            f"unknown method {method!r}; use 'GET' or another, a list of them, or ALL or UNSAFE of "
            "django_clusterstate.decorators."
        )
    return frozenset(one.upper() for one in given)


def group_of_methods(group: str, methods: frozenset[str] | None) -> str:
    """The group in which requests of these methods count apart from others; the group itself if all methods count."""
    return group if methods is None else f"{group} {','.join(sorted(methods))}"


def read_callable(option: str, given: Any) -> RequestFunction | None:
    """`given` if it is a callable, or the callable at a dotted path; None for anything else.

    A path is imported at the first call, since its module often imports the views.
    """
    if callable(given):
        return _check_blocking(option, given)
    if not isinstance(given, str) or "." not in given or not all(part.isidentifier() for part in given.split(".")):
        return None

    def imported(*args: Any) -> Any:
        return _check_blocking(option, import_string(given))(*args)

    return imported


def _check_blocking(option: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if iscoroutinefunction(function):
        raise ImproperlyConfigured(f"a callable {option} must be an ordinary function, not a coroutine function.")
    return function


def read_key(key: KeyOption) -> Callable[[str, HttpRequest], str]:
    """A function `(group, request)` that returns the key under which a request counts."""
    if isinstance(key, str):
        if key in _KEYS:
            return _KEYS[key]
        kind, _, name = key.partition(":")
        if kind in _VALUES and name:
            value = _VALUES[kind]
            return lambda _, request: f"{key}:{value(request, name)}"
    function = read_callable("key", key)
    if function is not None:
        return lambda group, request: str(function(group, request))
    raise ImproperlyConfigured(
        f"unknown key {key!r}; use 'ip', 'user', 'user_or_ip', 'get:NAME', 'post:NAME', 'header:NAME', a callable "
        "(group, request) or its dotted path."
    )


def client_of(meta: Mapping[str, Any]) -> str:
    """A client's IP address, or its network by the settings IPV4_MASK and IPV6_MASK.

    Raises `ImproperlyConfigured` if the address isn't an IP address, since all clients would then share one key.
    """
    settings = runtime.get_settings()
    try:
        return network_of(client_ip(meta, settings.trusted_proxies), settings.ipv4_mask, settings.ipv6_mask)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"The client's address is unusable as a key: {error}. Behind a proxy on a unix socket, set "
            "CLUSTERSTATE['TRUSTED_PROXIES']; or use a different key."
        ) from None


def _ip(group: str, request: HttpRequest) -> str:
    return f"ip:{client_of(request.META)}"


def load_user(request: HttpRequest) -> CallEither:
    """Loads `request.user` in asynchronous code, since its first use queries the database. The result is None."""
    return CallEither(lambda _: None, _aload_user, (request,))


async def _aload_user(request: HttpRequest) -> None:
    user = getattr(request, "user", None)
    if isinstance(user, LazyObject):
        await sync_to_async(bool)(user)


def _user(group: str, request: HttpRequest) -> str:
    user = getattr(request, "user", None)
    return f"user:{user.pk if user else None}"


def _user_or_ip(group: str, request: HttpRequest) -> str:
    user = getattr(request, "user", None)
    return f"user:{user.pk}" if user is not None and user.is_authenticated else _ip(group, request)


_KEYS: dict[str, Callable[[str, HttpRequest], str]] = {"ip": _ip, "user": _user, "user_or_ip": _user_or_ip}
USER_KEYS = ("user", "user_or_ip")
_VALUES: dict[str, Callable[[HttpRequest, str], str]] = {
    "get": lambda request, name: request.GET.get(name, ""),
    "post": lambda request, name: request.POST.get(name, ""),
    "header": lambda request, name: request.headers.get(name, ""),
}
