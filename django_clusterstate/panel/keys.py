"""The look-up of a key: who owns it, and what the nodes hold of it."""

import asyncio
from dataclasses import dataclass, field

from asgiref.sync import async_to_sync
from django import forms
from django.core.cache import caches
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import conf, ratelimit
from ..cache import ClusterCache
from ..core.limiter import Algorithm, Decision, Rule
from ..wire import messages as wire
from ..wire.framing import frame
from . import words
from .reports import PATIENCE, answer_in_time, known_table

ALGORITHM_LABELS: dict[Algorithm, str | Promise] = {
    Algorithm.FIXED_WINDOW: _("fixed window"),
    Algorithm.SLIDING_WINDOW: _("sliding window"),
    Algorithm.TOKEN_BUCKET: _("token bucket"),
}


def cluster_caches() -> dict[str, ClusterCache]:
    """This project's caches in the cluster, by alias. Raises `ImproperlyConfigured` when one can't be made."""
    made = {alias: caches[alias] for alias in caches}
    return {alias: cache for alias, cache in made.items() if isinstance(cache, ClusterCache)}


class KeyForm(forms.Form):
    """A key as its user writes it: to a cache of this project, to a rate limit, or to `cluster.owner()`.

    `cache` is None unless the key is a cache's. Raises `ImproperlyConfigured` when a cache can't be made.
    """

    kind = forms.ChoiceField(label=_("Kind"))
    group = forms.CharField(label=_("Group"), required=False, strip=False, help_text=_("Of a rate limit only."))
    key = forms.CharField(label=_("Key"), strip=False, help_text=_("As you pass it to cache.get(), for example."))
    version = forms.IntegerField(
        label=_("Version"), required=False, help_text=_("Of a cache key only; empty for the cache's own.")
    )

    def __init__(self, data: QueryDict | None = None) -> None:
        super().__init__(data)
        self._caches = cluster_caches()
        self.fields["kind"].choices = [  # type: ignore[attr-defined] # of a ChoiceField
            *((f"cache:{alias}", gettext("Cache “%(alias)s”") % {"alias": alias}) for alias in self._caches),
            ("limit", gettext("Rate limit")),
            ("plain", gettext("Plain key")),
        ]

    # All below are only of a valid form.

    @property
    def cache(self) -> ClusterCache | None:
        kind, __, alias = self.cleaned_data["kind"].partition(":")
        return self._caches[alias] if kind == "cache" else None

    @property
    def is_limit(self) -> bool:
        return bool(self.cleaned_data["kind"] == "limit")

    def routing_key(self) -> bytes:
        """What decides who owns the key."""
        cache, key = self.cache, self.cleaned_data["key"]
        if cache is not None:
            return cache.routing_key(key, self.cleaned_data["version"])
        if self.is_limit:
            return ratelimit.routing_key(self.cleaned_data["group"], key)
        return bytes(key.encode())

    @property
    def name(self) -> str:
        """The key with its kind, for the log."""
        data = self.cleaned_data
        parts = [data["kind"], *([data["group"]] if self.is_limit else []), data["key"]]
        if self.cache is not None and data["version"] is not None:
            parts.append(f"version {data['version']}")
        return " / ".join(parts)


@dataclass(frozen=True, slots=True)
class Count:
    """What a node counts of a limit key under one rule."""

    node: str
    rule: Rule
    decision: Decision  # on a hit of cost 1

    @property
    def rate(self) -> str:
        return words.rate(self.rule)

    @property
    def algorithm(self) -> str | Promise:
        return ALGORITHM_LABELS[self.rule.algorithm]

    @property
    def used(self) -> int:
        return self.decision.limit - self.decision.remaining

    @property
    def frees(self) -> str:
        return "" if self.decision.allowed else words.duration(self.decision.retry_after)

    @property
    def resets(self) -> str:
        return words.duration(self.decision.reset_after)


@dataclass(frozen=True, slots=True)
class LookUp:
    """What is known of a key.

    `ranking`: the owner, and who takes over after it; empty when no node is known. `entry`: what the owner says of
    a cache key, None if it doesn't or the key is none. `counts`: of a limit key, at the owner first, then at those who
    may have counted in its place. `silent`: who didn't answer, and why. `storage`: where limits are counted in the
    nodes' place, if they are.
    """

    ranking: list[str]
    entry: wire.Looked | None = None
    counts: list[Count] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    storage: str = ""

    @property
    def owner(self) -> str:
        return self.ranking[0] if self.ranking else ""

    @property
    def problem(self) -> str:
        """Why the owner's account is missing; empty when it isn't."""
        return self.silent.get(self.owner, "") if self.ranking else gettext("No node answers, or none has joined yet.")

    @property
    def expires(self) -> str:
        """In how long the entry does; empty: never."""
        return "" if self.entry is None or self.entry.ttl is None else words.duration(self.entry.ttl)


def look_up(form: KeyForm) -> LookUp:
    """As `alook_up`."""
    return async_to_sync(alook_up)(form)


async def alook_up(form: KeyForm) -> LookUp:
    """What the nodes say of a key within PATIENCE."""
    key, client, until = form.routing_key(), conf.get_async_client(), asyncio.get_running_loop().time() + PATIENCE
    table = await known_table(client, until - PATIENCE / 2)
    nodes = table.ranking(key)
    ranking, nodes = [node.name for node in nodes], nodes[:1]
    if form.cache is not None:
        request: wire.Request = wire.Look(key)
    elif form.is_limit:
        storage = conf.get_limits_storage()
        if storage is not None:
            return LookUp(ranking, storage=storage.name)
        request = wire.FindLimits(key)
        nodes += table.substitutes(key, client.routing.local)
    else:
        return LookUp(ranking)
    data = frame(wire.encode(request))
    answers = await asyncio.gather(*(answer_in_time(client, node, data, until) for node in nodes))
    said = [(node.name, answer) for node, answer in zip(nodes, answers, strict=True)]
    return LookUp(
        ranking,
        next((answer for _, answer in said if isinstance(answer, wire.Looked)), None),
        [Count(name, *held) for name, answer in said if isinstance(answer, wire.LimitsFound) for held in answer.limits],
        {name: answer for name, answer in said if isinstance(answer, str)},
    )
