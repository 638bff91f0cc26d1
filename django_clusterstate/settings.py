"""What `CLUSTERSTATE` and the environment say, read and checked. `docs/settings.md` describes each entry.

Each entry can also come from the environment, as `CLUSTERSTATE_<ENTRY>`, which wins: hosts differ and settings.py
doesn't.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environ
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.encoding import force_bytes
from django.views.decorators.debug import sensitive_variables

from .clientip import Proxies
from .core.membership.transitions import Timings
from .wire.address import Address, TcpAddress, UnixAddress, parse_address, parse_tcp
from .wire.keys import MAX_SECRETS, Key, LinkKey, derive_channel_keys, derive_link_keys

DEFAULT_PORT = 4370
POLICIES = ("local", "allow", "deny")
HEADERS = ("draft", "x", "both", "off")
RUN_FOLDER = Path("/tmp")  # noqa: S108 - the folder made in it is checked by node and requesters, see wire/unix_sockets.py
MAX_SOCKET_PATH = 107  # bytes, by Linux: 108 with the zero at the end
MIN_SECRET = 32  # characters; Django's own check asks for 50

_MIB = 1024 * 1024
READ = {
    "NODE_NAME": str,
    "CLUSTER": str,
    "BIND": str,
    "ADVERTISE": str,
    "SOCKET": str,
    "SECRET": str,
    "SECRET_FALLBACKS": list,
    "DISCOVERY": str,
    "CHANNEL_LAYER": str,
    "HEARTBEAT_INTERVAL": float,
    "SUSPECT_AFTER": float,
    "DOWN_AFTER": float,
    "DEADLINE": float,
    "ON_UNAVAILABLE": str,
    "TRUSTED_PROXIES": list,
    "IPV4_MASK": int,
    "IPV6_MASK": int,
    "LIMITS": dict,  # a list of them
    "LIMITS_ENABLED": bool,
    "LIMITS_HEADERS": str,
    "LIMITS_VIEW": str,
    "CACHE_MAX_BYTES": int,
    "LIMITS_MAX_BYTES": int,
    "LIMITS_STORAGE": str,
    "METRICS_TOKEN": str,
    "WEIGHT": float,
}
_WORDS: dict[type, str] = {
    str: "text",
    list: "a list of text",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    dict: "a list of dicts",
}
_EXPECTED = {"SECRET": "text or bytes", "SECRET_FALLBACKS": "a list of text or bytes"}
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
PREFIX = "CLUSTERSTATE_"
DEFAULTS: dict[str, Any] = {
    "CLUSTER": "default",
    "BIND": f"127.0.0.1:{DEFAULT_PORT}",
    "DISCOVERY": "database",
    "HEARTBEAT_INTERVAL": 0.5,
    "SUSPECT_AFTER": 1.5,
    "DOWN_AFTER": 3.0,
    "DEADLINE": 0.1,
    "ON_UNAVAILABLE": "local",
    "IPV4_MASK": 32,
    "IPV6_MASK": 64,  # what one customer is given, as a rule
    "LIMITS": [],
    "LIMITS_ENABLED": True,
    "LIMITS_HEADERS": "draft",
    "CACHE_MAX_BYTES": 256 * _MIB,
    "LIMITS_MAX_BYTES": 64 * _MIB,
    "WEIGHT": 1.0,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What `docs/settings.md` describes, read and checked. Times in seconds, sizes in bytes."""

    node_name: str
    cluster: str
    bind: TcpAddress
    advertise: TcpAddress | None  # as it is set: the node finds the address when it starts
    socket: Address
    secrets: tuple[str | bytes, ...] = field(repr=False)
    discovery: str
    channel_layer: str | None
    timings: Timings
    deadline: float
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
    limits_storage: str | None = field(repr=False)  # it may have a password
    metrics_token: str | None = field(repr=False)
    weight: float

    @property
    def link_keys(self) -> tuple[LinkKey, ...]:
        return derive_link_keys(self.secrets, self.cluster)

    @property
    def channel_keys(self) -> tuple[Key, ...]:
        return derive_channel_keys(self.secrets, self.cluster)

    @property
    def secret_problem(self) -> str:
        """Why the secret is too weak to be reached from other hosts; empty when it isn't."""
        for number, secret in enumerate(self.secrets[:MAX_SECRETS]):  # who knows any of them is admitted
            what = f"fallback {number}" if number else "it"
            if force_bytes(secret).startswith(b"django-insecure-"):
                return f"{what} is the one that startproject made, which is in your repository"
            if len(secret) < MIN_SECRET:
                return f"{what} has {len(secret)} characters, fewer than {MIN_SECRET}"
        return ""


@sensitive_variables()
def read_settings(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings from a `CLUSTERSTATE` dict and an environment.

    Raises `ImproperlyConfigured`, naming the entry and what it may be.
    """
    unknown = sorted(set(options) - set(READ))
    if unknown:
        raise ImproperlyConfigured(
            f"CLUSTERSTATE has no entry {unknown[0]!r}. The entries are: {', '.join(sorted(READ))}."
        )
    given = {entry: _typed(entry, value) for entry, value in options.items() if value is not None}
    values = {**DEFAULTS, **given, **_from_environment(environment)}
    name = values.get("NODE_NAME") or socket.gethostname()
    cluster = values["CLUSTER"]
    bind = _parsed("BIND", parse_tcp, values["BIND"])
    advertise = values.get("ADVERTISE")
    return Settings(
        node_name=_checked("NODE_NAME", name, 0 < len(name) <= 100 and name.isprintable(), "1 to 100 characters"),
        cluster=_checked("CLUSTER", cluster, _is_channel_name(cluster), "1 to 60 letters, digits, dots, - and _"),
        bind=bind,
        advertise=_parsed("ADVERTISE", parse_tcp, advertise) if advertise else None,
        socket=_parsed("SOCKET", _parse_socket, values.get("SOCKET") or str(default_socket_path(cluster, name))),
        secrets=_secrets(values),
        discovery=values["DISCOVERY"],
        channel_layer=values.get("CHANNEL_LAYER") or None,
        timings=_timings(values),
        deadline=_checked("DEADLINE", values["DEADLINE"], values["DEADLINE"] > 0, "seconds above 0"),
        on_unavailable=_checked(
            "ON_UNAVAILABLE", values["ON_UNAVAILABLE"], values["ON_UNAVAILABLE"] in POLICIES, "local, allow or deny"
        ),
        trusted_proxies=_parsed("TRUSTED_PROXIES", Proxies.parse, values.get("TRUSTED_PROXIES", ())),
        ipv4_mask=_checked("IPV4_MASK", values["IPV4_MASK"], 0 <= values["IPV4_MASK"] <= 32, "bits, 0 to 32"),
        ipv6_mask=_checked("IPV6_MASK", values["IPV6_MASK"], 0 <= values["IPV6_MASK"] <= 128, "bits, 0 to 128"),
        limits=tuple(values["LIMITS"]),
        limits_enabled=values["LIMITS_ENABLED"],
        limits_headers=_checked(
            "LIMITS_HEADERS", values["LIMITS_HEADERS"], values["LIMITS_HEADERS"] in HEADERS, "draft, x, both or off"
        ),
        limits_view=values.get("LIMITS_VIEW") or None,
        cache_max_bytes=_checked("CACHE_MAX_BYTES", values["CACHE_MAX_BYTES"], values["CACHE_MAX_BYTES"] > 0, "bytes"),
        limits_max_bytes=_checked(
            "LIMITS_MAX_BYTES", values["LIMITS_MAX_BYTES"], values["LIMITS_MAX_BYTES"] > 0, "bytes"
        ),
        limits_storage=values.get("LIMITS_STORAGE") or None,
        metrics_token=values.get("METRICS_TOKEN") or None,
        weight=_checked("WEIGHT", values["WEIGHT"], 0 < values["WEIGHT"] <= 1000, "a number above 0, up to 1000"),
    )


@sensitive_variables()
def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    env = environ.Env()
    # A value that begins with a dollar sign is a value, as a secret may well do, not the name of another variable.
    env.escape_proxy = True
    env.ENVIRON = {name: text.replace("$", r"\$") for name, text in environment.items() if name.startswith(PREFIX)}
    found = {}
    for entry, kind in READ.items():
        variable = f"{PREFIX}{entry}"
        if environment.get(variable):
            try:
                found[entry] = _typed(entry, _read(env, variable, kind))
            except (ValueError, KeyError) as error:
                raise ImproperlyConfigured(
                    f"{variable} must be {_WORDS[kind]}, not {environment[variable]!r}."
                ) from error
    return found


@sensitive_variables()
def _read(env: environ.Env, variable: str, kind: type) -> Any:
    if kind is dict:
        return json.loads(env.get_value(variable, cast=str))
    if kind is bool:
        return _TRUTH[env.get_value(variable, cast=str).lower()]
    # Not its cast to float, by which "100ms" is 100.0.
    return kind(env.get_value(variable, cast=list if kind is list else str))


@sensitive_variables()
def _typed(entry: str, value: Any) -> Any:
    """The value, if it is of the entry's type. Says nothing of the value, which may be a secret."""
    kind = READ[entry]
    if entry == "TRUSTED_PROXIES" and type(value) is int:
        value = [str(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if entry == "SECRET":
        good = isinstance(value, str | bytes)
    elif entry == "SECRET_FALLBACKS":
        good = isinstance(value, list | tuple) and all(isinstance(item, str | bytes) for item in value)
    elif kind is list:
        good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    elif kind is dict:
        good = isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)
    elif kind is float:
        good = type(value) in (int, float) and math.isfinite(value)
    else:
        good = type(value) is kind if kind is int else isinstance(value, kind)
    if not good:
        raise ImproperlyConfigured(f"CLUSTERSTATE[{entry!r}] must be {_EXPECTED.get(entry, _WORDS[kind])}.")
    return value


def _checked(entry: str, value: Any, good: bool, expected: str) -> Any:
    if not good:
        raise ImproperlyConfigured(f"CLUSTERSTATE[{entry!r}] must be {expected}, not {value!r}.")
    return value


def _parsed(entry: str, parse: Any, given: Any) -> Any:
    try:
        return parse(given)
    except ValueError as error:
        raise ImproperlyConfigured(f"CLUSTERSTATE[{entry!r}]: {error}") from error


def _parse_socket(text: str) -> Address:
    address = parse_address(text)
    if isinstance(address, UnixAddress) and len(os.fsencode(address.path)) > MAX_SOCKET_PATH:
        raise ValueError(f"{text!r} is too long for the path of a socket, which has {MAX_SOCKET_PATH} bytes at most")
    return address


@sensitive_variables()
def _timings(values: Mapping[str, Any]) -> Timings:
    try:
        return Timings(values["HEARTBEAT_INTERVAL"], values["SUSPECT_AFTER"], values["DOWN_AFTER"])
    except ValueError as error:
        raise ImproperlyConfigured(
            f"CLUSTERSTATE's HEARTBEAT_INTERVAL, SUSPECT_AFTER and DOWN_AFTER don't go together: {error}."
        ) from error


@sensitive_variables()
def _secrets(values: Mapping[str, Any]) -> tuple[str | bytes, ...]:
    if values.get("SECRET"):
        return _encodable((values["SECRET"], *values.get("SECRET_FALLBACKS", ())))
    if not django_settings.SECRET_KEY:
        raise ImproperlyConfigured("Set SECRET_KEY, or CLUSTERSTATE['SECRET']: the nodes know each other by it.")
    secrets = (django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS)
    if not all(isinstance(secret, str | bytes) for secret in secrets):
        raise ImproperlyConfigured("SECRET_KEY and each of SECRET_KEY_FALLBACKS must be text or bytes.")
    return _encodable(secrets)


@sensitive_variables()
def _encodable(secrets: tuple[str | bytes, ...]) -> tuple[str | bytes, ...]:
    """Refused here, where no report shows them: the error of an encoding that fails holds the text."""
    for secret in secrets:
        try:
            force_bytes(secret)
        except UnicodeEncodeError:
            raise ImproperlyConfigured(
                "A secret has a character that UTF-8 does not have. Is its environment variable in another encoding?"
            ) from None
    return secrets


def _is_channel_name(cluster: str) -> bool:
    return 0 < len(cluster) <= 60 and cluster.isascii() and all(c.isalnum() or c in "._-" for c in cluster)


def default_socket_path(cluster: str, node_name: str) -> Path:
    """A path that all processes of one user on one host agree on, short enough for the kernel (108 bytes).

    Not by `TMPDIR` or `XDG_RUNTIME_DIR`: a login session has them and a daemon of the same user doesn't, so a node and
    a `manage.py` command would look in two places; and the second's folder goes away when the user logs out.
    """
    tag = hashlib.blake2b(f"{cluster}|{node_name}".encode(), digest_size=6).hexdigest()
    return RUN_FOLDER / f"clusterstate-{os.geteuid()}" / f"{tag}.sock"
