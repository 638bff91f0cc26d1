"""The lookup of a key: its owner, and its state on the nodes."""

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
from ..client.routing import missing_replies
from ..core.limits.algorithms import Algorithm, Rule, RuleDecision
from ..wire import messages as wire
from . import formatting
from .node_reports import PAGE_TIMEOUT

ALGORITHM_LABELS: dict[Algorithm, str | Promise] = {
    Algorithm.FIXED_WINDOW: _("fixed window"),
    Algorithm.SLIDING_WINDOW: _("sliding window"),
    Algorithm.TOKEN_BUCKET: _("token bucket"),
}


def cluster_caches() -> dict[str, ClusterCache]:
    """This project's caches in the cluster, by alias. Raises `ImproperlyConfigured` if one can't be created."""
    made = {alias: caches[alias] for alias in caches}
    return {alias: cache for alias, cache in made.items() if isinstance(cache, ClusterCache)}


def set_choices(field: forms.Field, choices: list[tuple[str, str]]) -> None:
    """Sets choices that are known only when the form is created."""
    assert isinstance(field, forms.ChoiceField)
    field.choices = choices


class KeyQuery(NamedTuple):
    """The routing key, and the request for its state on the nodes; None if no request is needed."""

    key: bytes
    request: wire.Request | None


class KeyForm(forms.Form):
    """A key as users write it: of a cache of this project, of a rate limit, or the argument of `cluster.owner()`.

    The properties need a valid form. Raises `ImproperlyConfigured` if a cache can't be created.
    """

    kind = forms.ChoiceField(label=_("Kind"))
    group = forms.CharField(
        label=_("Group"),
        required=False,
        strip=False,
        help_text=_("For rate limits. A limit of some methods has them after the group, as in “/api/ POST”."),
    )
    key = forms.CharField(
        label=_("Key"), required=False, strip=False, help_text=_("As you pass it to cache.get(), for example.")
    )
    version = forms.IntegerField(
        label=_("Version"), required=False, help_text=_("For cache keys. Empty for the version of the cache.")
    )

    def __init__(self, data: QueryDict | None = None) -> None:
        super().__init__(data)
        self._caches = cluster_caches()
        of_caches = [(f"cache:{alias}", gettext("Cache “%(alias)s”") % {"alias": alias}) for alias in self._caches]
        set_choices(
            self.fields["kind"], [*of_caches, ("limit", gettext("Rate limit")), ("plain", gettext("Plain key"))]
        )

    @property
    def cache(self) -> ClusterCache | None:
        """The cache of the key, None for other kinds."""
        kind, __, alias = self.cleaned_data["kind"].partition(":")
        return self._caches[alias] if kind == "cache" else None

    @property
    def is_limit(self) -> bool:
        return bool(self.cleaned_data["kind"] == "limit")

    @property
    def storage(self) -> str:
        """The name of the storage that counts limits instead of the nodes; empty if there is none."""
        storage = runtime.get_limits_storage() if self.is_limit else None
        return "" if storage is None else storage.name

    def query(self) -> KeyQuery:
        """The query for the key of a valid form. Don't call it in an event loop: a KEY_FUNCTION may use this thread's
        database connection."""
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
class RuleCount:
    """The count that a node holds for a limit key and one rule."""

    node: str
    rule: Rule
    decision: RuleDecision  # for a hit of cost 1

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
    def denied_for(self) -> str:
        return "" if self.decision.allowed else formatting.duration(self.decision.retry_after)

    @property
    def expires_in(self) -> str:
        return formatting.duration(self.decision.reset_after)


@dataclass(frozen=True, slots=True)
class KeyState:
    """The state of a key on the nodes.

    `ranking`: the owner, and the nodes that take over after it; empty if no node is known. `entry`: the owner's reply
    about a cache key. `counts`: of a limit key, at the owner first, then at the nodes that have counted in its place.
    `silent`: the nodes that didn't answer, and the reasons.
    """

    ranking: list[str]
    entry: wire.EntryReply | None = None
    counts: list[RuleCount] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.ranking[0] if self.ranking else ""

    @property
    def problem(self) -> str:
        """Why the owner's reply is missing; empty if it isn't."""
        return self.silent.get(self.owner, "") if self.ranking else gettext("No node answers, or none has joined yet.")

    @property
    def expires(self) -> str:
        """The time until the entry expires; empty if it does not expire or does not exist."""
        return "" if self.entry is None or self.entry.ttl is None else formatting.duration(self.entry.ttl)


def look_up(query: KeyQuery) -> KeyState:
    """`alook_up()` for blocking code."""
    return async_to_sync(alook_up)(query)


async def alook_up(query: KeyQuery) -> KeyState:
    """The replies within PAGE_TIMEOUT of a cache key's owner, or of all nodes about a limit key."""
    client, until = runtime.get_async_client(), from_now(PAGE_TIMEOUT)
    nodes = (await client.table(from_now(PAGE_TIMEOUT / 2))).ranking(query.key)
    ranking = [node.name for node in nodes]
    if query.request is None:
        return KeyState(ranking)
    if isinstance(query.request, wire.GetEntry):
        nodes = nodes[:1]
    request = wire.request_frame(query.request)
    replies = await client.call_each([(node, request) for node in nodes], until)
    return KeyState(
        ranking,
        next((reply for reply in replies if isinstance(reply, wire.EntryReply)), None),
        [
            RuleCount(node.name, *held)
            for node, reply in zip(nodes, replies, strict=True)
            if isinstance(reply, wire.LimitsReply)
            for held in reply.limits
        ],
        missing_replies(nodes, replies, (wire.EntryReply, wire.LimitsReply)),
    )
