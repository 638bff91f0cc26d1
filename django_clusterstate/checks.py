"""System checks. `docs/settings.md` describes each ID and its remedy."""

from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from . import runtime
from .cache.alias_quotas import read_quotas
from .database_discovery import make_discovery
from .middleware import read_limits
from .settings import Settings

SLOW_DEADLINE = 1.0
MIDDLEWARE = "django_clusterstate.middleware.ClusterRatelimitMiddleware"
IN_MEMORY_LAYER = "channels.layers.InMemoryChannelLayer"


@register("clusterstate")
def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The system checks of `CLUSTERSTATE`, the channel layer and the caches; none of them contacts a node."""
    try:
        settings = runtime.get_settings()
    except ImproperlyConfigured as error:
        hint = "docs/settings.md describes each entry, and how the environment sets it."
        return [Error(str(error), hint=hint, id="clusterstate.E001")]
    found = check_channel_layer(settings.channel_layer)
    try:
        found += check_addresses(settings)
    except ValueError as error:
        found.append(Error(str(error), hint="docs/settings.md describes DISCOVERY.", id="clusterstate.E004"))
    found += check_limits(settings)
    try:
        read_quotas(settings.cache_max_bytes)
    except ImproperlyConfigured as error:
        hint = "docs/settings.md describes the options of the cache backend."
        found.append(Error(str(error), hint=hint, id="clusterstate.E006"))
    try:
        runtime.get_limits_storage()
    except ImproperlyConfigured as error:
        hint = "Remove it to count limits in the nodes; docs/outgrowing.md describes the alternatives."
        found.append(Error(str(error), hint=hint, id="clusterstate.E007"))
    if settings.secret_problem and not settings.bind.is_loopback:
        problem = f"The secret is too weak for {settings.bind}, which other hosts can reach: {settings.secret_problem}."
        hint = "Set CLUSTERSTATE['SECRET'] to a long random string; until then clusternode will not start."
        found.append(Warning(problem, hint=hint, id="clusterstate.W001"))
    if settings.deadline > SLOW_DEADLINE:
        problem = f"CLUSTERSTATE['DEADLINE'] is {settings.deadline:g} s: a node that is down delays requests that long."
        hint = "The default is 0.1 s, about a thousand times the usual time of a reply."
        found.append(Warning(problem, hint=hint, id="clusterstate.W002"))
    return found


def check_addresses(settings: Settings) -> list[CheckMessage]:
    """Warns if the other nodes of a `DISCOVERY` list can't reach this host's node. Raises `ValueError` if the setting
    is invalid. Doesn't resolve names: a check must not wait for DNS."""
    advertised = settings.advertise or settings.bind
    discovery = make_discovery(settings.discovery, settings.node_name, settings.cluster, str(advertised))
    elsewhere = [str(address) for address in discovery.configured if not address.is_loopback]
    if elsewhere and advertised.is_loopback:
        entry = "BIND" if settings.advertise is None else "ADVERTISE"
        problem = (
            f"{entry} is {advertised}, which is reachable only from this host, but DISCOVERY names {elsewhere[0]}: the "
            "two nodes would form two clusters."
        )
        hint = "Set CLUSTERSTATE_BIND on each host to an address of that host which the others can reach."
        return [Warning(problem, hint=hint, id="clusterstate.W004")]
    return []


def check_limits(settings: Settings) -> list[CheckMessage]:
    try:
        read_limits(settings.limits)
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="Each entry has a path and the decorator's arguments.", id="clusterstate.E005")]
    try:
        if settings.limits_view:
            import_string(settings.limits_view)
    except ImportError as error:
        hint = "Set the dotted path of a view that takes the request and the Ratelimited exception."
        return [Error(f"CLUSTERSTATE['LIMITS_VIEW']: {error}", hint=hint, id="clusterstate.E005")]
    if settings.limits and MIDDLEWARE not in django_settings.MIDDLEWARE:
        problem = "CLUSTERSTATE['LIMITS'] has no effect without its middleware."
        hint = f"Add {MIDDLEWARE!r} to MIDDLEWARE, after AuthenticationMiddleware."
        return [Warning(problem, hint=hint, id="clusterstate.W003")]
    return []


def check_channel_layer(alias: str | None) -> list[CheckMessage]:
    if alias is None:
        return []
    layers = getattr(django_settings, "CHANNEL_LAYERS", {})
    if alias not in layers:
        problem = f"CLUSTERSTATE['CHANNEL_LAYER'] is {alias!r}, which is not an alias in CHANNEL_LAYERS."
        return [Error(problem, hint="Remove it to use the embedded layer.", id="clusterstate.E002")]
    if layers[alias].get("BACKEND") == IN_MEMORY_LAYER:
        problem = (
            f"The channel layer {alias!r} works within one process only: it cannot carry heartbeats between nodes."
        )
        hint = "Remove CHANNEL_LAYER to use the embedded layer, or use channels_redis."
        return [Error(problem, hint=hint, id="clusterstate.E003")]
    return []
