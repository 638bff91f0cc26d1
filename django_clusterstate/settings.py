"""Reads and checks `CLUSTERSTATE` and its environment variables. `docs/settings.md` describes each entry.

Each entry can also come from the environment, as `CLUSTERSTATE_<ENTRY>`, which wins: hosts differ, and settings.py
usually does not.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environ
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.encoding import force_bytes
from django.views.decorators.debug import sensitive_variables

from .clientip import Proxies
from .core.membership.members import Timings
from .wire.address import Address, TcpAddress, UnixAddress, parse_address, parse_tcp
from .wire.derived_keys import MAX_SECRETS, LinkKey, SecretKey, derive_heartbeat_keys, derive_link_keys

PREFIX = "CLUSTERSTATE_"
DEFAULT_PORT = 4370
POLICIES = ("local", "allow", "deny")
HEADERS = ("draft", "x", "both", "off")
RUN_DIRECTORY = Path("/tmp")  # noqa: S108 - node and requesters check the directory made in it, see wire/unix_sockets.py
MAX_SOCKET_PATH = 107  # bytes, by Linux: 108 with the zero at the end
MIN_SECRET = 32  # characters; Django's own check requires 50
_MIB = 1024 * 1024
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of entries: its name in `docs/settings.md` and in errors, which values have it, and how to read it from
    an environment variable. `from_text` raises `ValueError` or `KeyError`."""

    name: str
    expected: str
    accepts: Callable[[Any], bool]
    from_text: Callable[[str], Any] = str


def _is_list_of(*types: type) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(item, types) for item in value)

    return accepts


def _split(text: str) -> list[str]:
    """The items of a list as django-environ reads them, so that `CLUSTERSTATE_` variables look like all others."""
    items: list[str] = environ.Env.parse_value(text, list)
    return items


TEXT = Kind("str", "text", lambda value: isinstance(value, str))
SECRET = Kind("str", "text or bytes", lambda value: isinstance(value, str | bytes))
NUMBER = Kind("float", "a number", lambda value: type(value) in (int, float) and math.isfinite(value), float)
INTEGER = Kind("int", "a whole number", lambda value: type(value) is int, int)
BOOLEAN = Kind("bool", "true or false", lambda value: isinstance(value, bool), lambda text: _TRUTH[text.lower()])
SECRETS = Kind("list", "a list of text or bytes", _is_list_of(str, bytes), _split)
PROXIES = Kind(
    "list", "a list of text, or a number", lambda value: type(value) is int or _is_list_of(str)(value), _split
)
DICTS = Kind("dict", "a list of dicts", _is_list_of(dict), json.loads)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of `CLUSTERSTATE`.

    `allowed` says whether it may have a value of its kind; `expected` describes these in errors. `parse` makes the
    attribute of `Settings` from the value, or raises `ValueError`. Errors do not show the value of a `secret` entry. An
    empty value of an entry without a default is None.
    """

    kind: Kind
    default: Any = None
    allowed: Callable[[Any], object] = lambda _: True
    expected: str = ""
    parse: Callable[[Any], Any] = lambda value: value
    secret: bool = False

    @sensitive_variables()
    def read(self, name: str, options: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
        """The attribute of `Settings`. Raises `ImproperlyConfigured`, which names the entry or its variable."""
        subject, value = f"CLUSTERSTATE[{name!r}]", options.get(name)
        text = environment.get(f"{PREFIX}{name}")
        if text:
            subject = f"{PREFIX}{name}"
            try:
                value = self.kind.from_text(text)
            except (ValueError, KeyError) as error:
                raise self._wrong(subject, self.kind.expected, text) from error
        elif value is None:
            return None if self.default is None else self.parse(self.default)
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not self.kind.accepts(value):
            raise self._wrong(subject, self.kind.expected, value)
        if not value and self.default is None:
            return None
        if not self.allowed(value):
            raise self._wrong(subject, self.expected, value)
        try:
            return self.parse(value)
        except ValueError as error:
            raise ImproperlyConfigured(f"{subject}: {error}") from error

    @sensitive_variables()
    def _wrong(self, subject: str, expected: str, value: Any) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"{subject} must be {expected}{'' if self.secret else f', not {value!r}'}.")


def _is_node_name(name: str) -> bool:
    return len(name) <= 100 and name.isprintable()


def _is_cluster_name(cluster: str) -> bool:
    return 0 < len(cluster) <= 60 and cluster.isascii() and all(c.isalnum() or c in "._-" for c in cluster)


def _is_positive(number: float) -> bool:
    return number > 0


def _parse_socket(text: str) -> Address:
    address = parse_address(text)
    if isinstance(address, UnixAddress) and len(os.fsencode(address.path)) > MAX_SOCKET_PATH:
        raise ValueError(f"{text!r} is too long for the path of a socket, which has {MAX_SOCKET_PATH} bytes at most")
    return address


def _parse_proxies(value: Any) -> Proxies:
    return Proxies.parse([str(value)] if isinstance(value, int) else value)


ENTRIES = {
    "NODE_NAME": Entry(TEXT, allowed=_is_node_name, expected="1 to 100 characters"),
    "CLUSTER": Entry(TEXT, "default", _is_cluster_name, "1 to 60 letters, digits, dots, - and _"),
    "BIND": Entry(TEXT, f"127.0.0.1:{DEFAULT_PORT}", parse=parse_tcp),
    "ADVERTISE": Entry(TEXT, parse=parse_tcp),
    "SOCKET": Entry(TEXT, parse=_parse_socket),
    "SECRET": Entry(SECRET, secret=True),
    "SECRET_FALLBACKS": Entry(SECRETS, [], secret=True),
    "DISCOVERY": Entry(TEXT, "database"),
    "CHANNEL_LAYER": Entry(TEXT),
    "HEARTBEAT_INTERVAL": Entry(NUMBER, 0.5),
    "SUSPECT_AFTER": Entry(NUMBER, 1.5),
    "DOWN_AFTER": Entry(NUMBER, 3.0),
    "DEADLINE": Entry(NUMBER, 0.1, _is_positive, "a number of seconds above 0"),
    "BUSY_POLL": Entry(BOOLEAN, True),
    "ON_UNAVAILABLE": Entry(TEXT, "local", POLICIES.__contains__, "'local', 'allow' or 'deny'"),
    "TRUSTED_PROXIES": Entry(PROXIES, [], parse=_parse_proxies),
    "IPV4_MASK": Entry(INTEGER, 32, range(33).__contains__, "a number of bits from 0 to 32"),
    # A /64 is what one customer usually gets.
    "IPV6_MASK": Entry(INTEGER, 64, range(129).__contains__, "a number of bits from 0 to 128"),
    "LIMITS": Entry(DICTS, [], parse=tuple),
    "LIMITS_ENABLED": Entry(BOOLEAN, True),
    "LIMITS_HEADERS": Entry(TEXT, "draft", HEADERS.__contains__, "'draft', 'x', 'both' or 'off'"),
    "LIMITS_VIEW": Entry(TEXT),
    "CACHE_MAX_BYTES": Entry(INTEGER, 256 * _MIB, _is_positive, "a number of bytes above 0"),
    "LIMITS_MAX_BYTES": Entry(INTEGER, 64 * _MIB, _is_positive, "a number of bytes above 0"),
    "BACKUPS": Entry(INTEGER, 1, (0, 1).__contains__, "0 or 1"),
    "DRAIN": Entry(NUMBER, 10.0, _is_positive, "a number of seconds above 0"),
    "LIMITS_STORAGE": Entry(TEXT, secret=True),  # it may contain a password
    "METRICS_TOKEN": Entry(TEXT, secret=True),
    "WEIGHT": Entry(NUMBER, 1.0, lambda weight: 0 < weight <= 1000, "a number above 0, up to 1000"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The entries of `CLUSTERSTATE`, read and checked. Times in seconds, sizes in bytes.

    `advertise` is None unless it is set: the node then determines its address when it starts.
    """

    node_name: str
    cluster: str
    bind: TcpAddress
    advertise: TcpAddress | None
    socket: Address
    secrets: tuple[str | bytes, ...] = field(repr=False)
    discovery: str
    channel_layer: str | None
    timings: Timings
    deadline: float
    busy_poll: bool
    on_unavailable: str
    trusted_proxies: Proxies
    ipv4_mask: int
    ipv6_mask: int
    limits: tuple[dict[str, Any], ...]
    limits_enabled: bool
    limits_headers: str
    limits_view: str | None
    cache_max_bytes: int
    limits_max_bytes: int
    backups: int
    drain: float
    limits_storage: str | None = field(repr=False)
    metrics_token: str | None = field(repr=False)
    weight: float

    @property
    def link_keys(self) -> tuple[LinkKey, ...]:
        return derive_link_keys(self.secrets, self.cluster)

    @property
    def channel_keys(self) -> tuple[SecretKey, ...]:
        return derive_heartbeat_keys(self.secrets, self.cluster)

    @property
    def secret_problem(self) -> str:
        """Why the secret is too weak for an address that other hosts can reach; empty if it is strong enough."""
        for number, secret in enumerate(self.secrets[:MAX_SECRETS]):  # any of them admits a node
            subject = f"fallback {number}" if number else "it"
            if force_bytes(secret).startswith(b"django-insecure-"):
                return f"{subject} was generated by startproject, so it is probably in your repository"
            if len(secret) < MIN_SECRET:
                return f"{subject} has {len(secret)} characters, fewer than {MIN_SECRET}"
        return ""


@sensitive_variables()
def read_settings(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from a `CLUSTERSTATE` dict and an environment.

    Raises `ImproperlyConfigured`, which names the entry and the values that it may have.
    """
    unknown = sorted(set(options) - set(ENTRIES))
    if unknown:
        raise ImproperlyConfigured(
            f"CLUSTERSTATE has no entry {unknown[0]!r}. The entries are: {', '.join(sorted(ENTRIES))}."
        )
    values = {name.lower(): entry.read(name, options, environment) for name, entry in ENTRIES.items()}
    values["node_name"] = values["node_name"] or socket.gethostname()
    if values["socket"] is None:
        values["socket"] = UnixAddress(str(default_socket_path(values["cluster"], values["node_name"])))
    secrets = _secrets(values.pop("secret"), values.pop("secret_fallbacks"))
    timings = _timings(values.pop("heartbeat_interval"), values.pop("suspect_after"), values.pop("down_after"))
    return Settings(secrets=secrets, timings=timings, **values)


def _timings(heartbeat_interval: float, suspect_after: float, down_after: float) -> Timings:
    try:
        return Timings(heartbeat_interval, suspect_after, down_after)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"CLUSTERSTATE: HEARTBEAT_INTERVAL, SUSPECT_AFTER and DOWN_AFTER contradict each other: {error}."
        ) from error


@sensitive_variables()
def _secrets(secret: str | bytes | None, fallbacks: list[str | bytes]) -> tuple[str | bytes, ...]:
    if secret:
        secrets = (secret, *fallbacks)
    elif django_settings.SECRET_KEY:
        secrets = (django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS)
    else:
        raise ImproperlyConfigured(
            "Set SECRET_KEY or CLUSTERSTATE['SECRET']: nodes and requesters authenticate with it."
        )
    if not SECRETS.accepts(secrets):
        raise ImproperlyConfigured("SECRET_KEY and each of SECRET_KEY_FALLBACKS must be text or bytes.")
    for one in secrets:
        try:
            force_bytes(one)
        except UnicodeEncodeError:  # which holds the text, so it must not be in the report
            raise ImproperlyConfigured(
                "A secret has a character that UTF-8 does not have. Is its environment variable in a different "
                "encoding?"
            ) from None
    return secrets


def default_socket_path(cluster: str, node_name: str) -> Path:
    """A path that all processes of one user on one host agree on, short enough for the kernel (108 bytes).

    It does not depend on `TMPDIR` or `XDG_RUNTIME_DIR`: a login session has them and a daemon of the same user does
    not, so a node and a `manage.py` command would use different paths. The directory in `XDG_RUNTIME_DIR` is also
    deleted when the user logs out.
    """
    tag = hashlib.blake2b(f"{cluster}|{node_name}".encode(), digest_size=6).hexdigest()
    return RUN_DIRECTORY / f"clusterstate-{os.geteuid()}" / f"{tag}.sock"
