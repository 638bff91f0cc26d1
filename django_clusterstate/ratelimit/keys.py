"""What a limit asks of a request: whose it is, and what else a callable `(group, request)` may say."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.functional import LazyObject
from django.utils.module_loading import import_string

from .. import runtime
from ..clientip import client_ip, network_of

ALL = None
UNSAFE = ("DELETE", "PATCH", "POST", "PUT")

Asked = Callable[[str, HttpRequest], Any]
Key = str | Callable[[str, HttpRequest], Any]


def methods_of(method: str | Iterable[str] | None) -> frozenset[str] | None:
    """The HTTP methods that count; None for all."""
    if method is None:
        return None
    given = [method] if isinstance(method, str) else list(method)
    if not given or not all(isinstance(one, str) and one.isalpha() and one not in ("ALL", "UNSAFE") for one in given):
        raise ImproperlyConfigured(
            "method is 'GET' or another, several of them, or ALL or UNSAFE of django_clusterstate.decorators, not "
            f"{method!r}."
        )
    return frozenset(one.upper() for one in given)


def counted_group(group: str, methods: frozenset[str] | None) -> str:
    """The group under which requests of these methods count by themselves; None: of all."""
    return group if methods is None else f"{group} {','.join(sorted(methods))}"


def callable_of(what: str, given: Any) -> Asked | None:
    """The callable that was given, or that at the dotted path that was; None for anything else."""
    if callable(given):
        return synchronous(what, given)
    return _at_path(what, given) if _is_path(given) else None


def synchronous(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if iscoroutinefunction(function):
        raise ImproperlyConfigured(f"a callable {what} must be an ordinary function, not a coroutine function.")
    return function


def _is_path(given: object) -> bool:
    return isinstance(given, str) and "." in given and all(part.isidentifier() for part in given.split("."))


def _at_path(what: str, path: str) -> Callable[..., Any]:
    """The callable at a dotted path, imported when it is first needed: views are often what it imports itself."""

    def function(*args: Any) -> Any:
        return synchronous(what, import_string(path))(*args)

    return function


def key_of(key: Key) -> Callable[[str, HttpRequest], str]:
    """What tells clients apart, as a function `(group, request)`."""
    if isinstance(key, str):
        if key in _KEYS:
            return _KEYS[key]
        kind, _, name = key.partition(":")
        if kind in _VALUES and name:
            value = _VALUES[kind]
            return lambda _, request: f"{key}:{value(request, name)}"
    function = callable_of("key", key)
    if function is not None:
        return lambda group, request: str(function(group, request))
    raise ImproperlyConfigured(
        f"{key!r} is no key: use 'ip', 'user', 'user_or_ip', 'get:NAME', 'post:NAME', 'header:NAME', a callable "
        "(group, request) or its dotted path."
    )


def client_of(meta: Mapping[str, Any]) -> str:
    """What a request's client is told apart by: its address, or the network that it is in.

    Raises `ImproperlyConfigured` where that is no IP address: all clients would be one.
    """
    settings = runtime.get_settings()
    try:
        return network_of(client_ip(meta, settings.trusted_proxies), settings.ipv4_mask, settings.ipv6_mask)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"The client's address is unusable: {error}, so clients can't be told apart by it. Behind a unix socket, "
            "set CLUSTERSTATE['TRUSTED_PROXIES'], or use another key."
        ) from None


def _ip(group: str, request: HttpRequest) -> str:
    return f"ip:{client_of(request.META)}"


async def load_user(request: HttpRequest) -> None:
    """`request.user` asks the database when it is first used, which must not happen on the event loop."""
    user = getattr(request, "user", None)
    if isinstance(user, LazyObject):
        await sync_to_async(bool)(user)


def _user(group: str, request: HttpRequest) -> str:
    return f"user:{getattr(request, 'user', None) and request.user.pk}"


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
