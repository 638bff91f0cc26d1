"""The look-up of a key: who owns it, and what the nodes hold of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from asgiref.sync import async_to_sync
from django import forms
from django.core.cache import caches
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import ratelimit, runtime
from ..cache import ClusterCache
from ..client.aio import from_now
from ..client.routing import silence
from ..core.limits.algorithms import Algorithm, Rule, RuleDecision
from ..wire import messages as wire
from ..wire.framing import frame
from . import formatting
from .reports import PATIENCE

ALGORITHM_LABELS: dict[Algorithm, str | Promise] = {
    Algorithm.FIXED_WINDOW: _("fixed window"),
    Algorithm.SLIDING_WINDOW: _("sliding window"),
    Algorithm.TOKEN_BUCKET: _("token bucket"),
}


def cluster_caches() -> dict[str, ClusterCache]:
    """This project's caches in the cluster, by alias. Raises `ImproperlyConfigured` when one can't be made."""
    made = {alias: caches[alias] for alias in caches}
    return {alias: cache for alias, cache in made.items() if isinstance(cache, ClusterCache)}


def offer(field: forms.Field, choices: list[tuple[str, str]]) -> None:
    """Choices that are known only when the form is made."""
    assert isinstance(field, forms.ChoiceField)
    field.choices = choices


class KeyQuery(NamedTuple):
    """What decides who owns a key, and what the nodes are asked of it; None: nothing."""

    key: bytes
    request: wire.Request | None


class KeyForm(forms.Form):
    """A key as its user writes it: to a cache of this project, to a rate limit, or to `cluster.owner()`.

    `cache` is None unless the key is a cache's. Raises `ImproperlyConfigured` when a cache can't be made.
    """

    kind = forms.ChoiceField(label=_("Kind"))
    group = forms.CharField(
        label=_("Group"),
        required=False,
        strip=False,
        help_text=_("Of a rate limit only. One on some methods has them behind it, as in “/api/ POST”."),
    )
    key = forms.CharField(
        label=_("Key"), required=False, strip=False, help_text=_("As you pass it to cache.get(), for example.")
    )
    version = forms.IntegerField(
        label=_("Version"), required=False, help_text=_("Of a cache key only; empty for the cache's own.")
    )

    def __init__(self, data: QueryDict | None = None) -> None:
        super().__init__(data)
        self._caches = cluster_caches()
        of_caches = [(f"cache:{alias}", gettext("Cache “%(alias)s”") % {"alias": alias}) for alias in self._caches]
        offer(self.fields["kind"], [*of_caches, ("limit", gettext("Rate limit")), ("plain", gettext("Plain key"))])

    # All below are only of a valid form.

    @property
    def cache(self) -> ClusterCache | None:
        kind, __, alias = self.cleaned_data["kind"].partition(":")
        return self._caches[alias] if kind == "cache" else None

    @property
    def is_limit(self) -> bool:
        return bool(self.cleaned_data["kind"] == "limit")

    @property
    def storage(self) -> str:
        """Where limits are counted in the nodes' place, if they are."""
        storage = runtime.get_limits_storage() if self.is_limit else None
        return "" if storage is None else storage.name

    def question(self) -> KeyQuery:
        """Not to be asked for in an event loop: a KEY_FUNCTION may look at this thread's database connection."""
        cache, key = self.cache, self.cleaned_data["key"]
        if cache is not None:
            whole = cache.routing_key(key, self.cleaned_data["version"])
            return KeyQuery(whole, wire.GetEntry(whole))
        if self.is_limit:
            whole = ratelimit.routing_key(self.cleaned_data["group"], key)
            return KeyQuery(whole, None if self.storage else wire.FindLimits(whole))
        return KeyQuery(key.encode(), None)

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
    decision: RuleDecision  # on a hit of cost 1

    @property
    def rate(self) -> str:
        return formatting.rate(self.rule)

    @property
    def algorithm(self) -> str | Promise:
        return ALGORITHM_LABELS[self.rule.algorithm]

    @property
    def used(self) -> int:
        return self.decision.limit - self.decision.remaining

    @property
    def frees(self) -> str:
        return "" if self.decision.allowed else formatting.duration(self.decision.retry_after)

    @property
    def resets(self) -> str:
        return formatting.duration(self.decision.reset_after)


@dataclass(frozen=True, slots=True)
class LookUp:
    """What is known of a key.

    `ranking`: the owner, and who takes over after it; empty when no node is known. `entry`: what the owner says of
    a cache key, None if it doesn't or the key is none. `counts`: of a limit key, at the owner first, then at those who
    have counted in its place. `silent`: who didn't answer, and why.
    """

    ranking: list[str]
    entry: wire.EntryReply | None = None
    counts: list[Count] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)

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
        return "" if self.entry is None or self.entry.ttl is None else formatting.duration(self.entry.ttl)


def look_up(question: KeyQuery) -> LookUp:
    """As `alook_up`."""
    return async_to_sync(alook_up)(question)


async def alook_up(question: KeyQuery) -> LookUp:
    """What the nodes say of a key within PATIENCE: of a cache key its owner, of a limit's all."""
    client, until = runtime.get_async_client(), from_now(PATIENCE)
    nodes = (await client.table(from_now(PATIENCE / 2))).ranking(question.key)
    ranking = [node.name for node in nodes]
    if question.request is None:
        return LookUp(ranking)
    if isinstance(question.request, wire.GetEntry):
        nodes = nodes[:1]
    request = frame(wire.encode(question.request))
    replies = await client.call_each([(node, request) for node in nodes], until)
    return LookUp(
        ranking,
        next((reply for reply in replies if isinstance(reply, wire.EntryReply)), None),
        [
            Count(node.name, *held)
            for node, reply in zip(nodes, replies, strict=True)
            if isinstance(reply, wire.LimitsReply)
            for held in reply.limits
        ],
        silence(nodes, replies, (wire.EntryReply, wire.LimitsReply)),
    )
