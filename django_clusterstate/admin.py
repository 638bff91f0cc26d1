"""The admin page "Cluster": the members as `manage.py clusterstatus` shows them, and who owns a key."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.timesince import timesince
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from . import cluster, conf, models, ratelimit
from .cache import ClusterCache
from .cluster import ClusterStatus
from .core.messages import GONE, State
from .exceptions import ClusterStateError
from .wire.messages import Status

STATE_LABELS: dict[State, str | Promise] = {
    State.JOINING: _("joining"),
    State.ALIVE: _("alive"),
    State.SUSPECT: _("suspect"),
    State.DOWN: _("down"),
    State.LEAVING: _("leaving"),
    State.LEFT: _("left"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One member in the table.

    `told` is its own account, None when it gave none; `silent` then says why, if it was asked. `state` is its own
    word, else the observer's; `seen_as` is the observer's where the two differ. `heard_ago` is None for the observer,
    and for a member that it has never heard.
    """

    name: str
    state: State
    address: str
    told: Status | None = None
    silent: str = ""
    seen_as: State | None = None
    heard_ago: float | None = None
    is_observer: bool = False

    @property
    def state_label(self) -> str | Promise:
        return STATE_LABELS[self.state]

    @property
    def seen_as_label(self) -> str | Promise:
        return "" if self.seen_as is None else STATE_LABELS[self.seen_as]

    @property
    def uptime(self) -> str:
        return "" if self.told is None else duration(self.told.uptime)

    @property
    def heard(self) -> str:
        return "" if self.heard_ago is None else duration(self.heard_ago)

    @property
    def entries(self) -> int:
        return 0 if self.told is None else self.told.stats.cache_entries + self.told.stats.limit_entries

    @property
    def epoch(self) -> str:
        return "" if self.told is None else f"{self.told.epoch:016x}"


def observer(status: ClusterStatus) -> str:
    """The node whose heartbeats the page shows: this host's, or the first that answers; empty when none does."""
    return status.asked or next(iter(status.nodes), "")


def rows(status: ClusterStatus) -> list[Row]:
    """Those that answered and those that the observer knows of, by name; at the end those that are gone."""
    name = observer(status)
    seen = {member.identity.name: member for member in status.nodes[name].members} if name else {}
    table = []
    for member_name in {*status.nodes, *seen}:
        told, member = status.nodes.get(member_name), seen.get(member_name)
        heard_ago = None if member is None else member.heard_ago
        if told is not None:
            differs = member is not None and member.state != told.state
            table.append(
                Row(
                    member_name,
                    told.state,
                    told.identity.address,
                    told=told,
                    seen_as=member.state if member is not None and differs else None,
                    heard_ago=heard_ago,
                    is_observer=member_name == name,
                )
            )
        elif member is not None:
            silent = status.silent.get(member_name, "")
            table.append(Row(member_name, member.state, member.identity.address, silent=silent, heard_ago=heard_ago))
    return sorted(table, key=lambda row: (row.state in GONE, row.name))


def views(status: ClusterStatus) -> list[tuple[str, list[str]]]:
    """The epochs of the nodes that answered, and who has which; the most common first."""
    holders: dict[str, list[str]] = {}
    for name, node in status.nodes.items():
        holders.setdefault(f"{node.epoch:016x}", []).append(name)
    return sorted(holders.items(), key=lambda view: (-len(view[1]), view[1]))


def duration(seconds: float) -> str:
    """`4.2 s`, or from a minute on in the words of Django's `timesince`."""
    if seconds < 60:
        return gettext("%(seconds)s s") % {"seconds": number_format(seconds, decimal_pos=1)}
    now = timezone.now()
    return timesince(now - timedelta(seconds=seconds), now)


class KeyForm(forms.Form):
    """A key as its user writes it: to a cache of this project, to a rate limit, or to `cluster.owner()`.

    Raises `ImproperlyConfigured` when a cache of the project can't be made.
    """

    kind = forms.ChoiceField(label=_("Kind"))
    group = forms.CharField(label=_("Group"), required=False, strip=False, help_text=_("Of a rate limit only."))
    key = forms.CharField(label=_("Key"), strip=False, help_text=_("As you pass it to cache.get(), for example."))

    def __init__(self, data: QueryDict | None = None) -> None:
        super().__init__(data)
        made = {alias: caches[alias] for alias in caches}
        self._caches = {alias: cache for alias, cache in made.items() if isinstance(cache, ClusterCache)}
        self.fields["kind"].choices = [  # type: ignore[attr-defined] # of a ChoiceField
            *((f"cache:{alias}", gettext("Cache “%(alias)s”") % {"alias": alias}) for alias in self._caches),
            ("limit", gettext("Rate limit")),
            ("plain", gettext("Plain key")),
        ]

    def routing_key(self) -> bytes:
        """What decides who owns the key. Only of a valid form."""
        kind, group, key = (self.cleaned_data[field] for field in ("kind", "group", "key"))
        if kind == "limit":
            return ratelimit.routing_key(group, key)
        if kind == "plain":
            plain: bytes = key.encode()
            return plain
        return self._caches[kind.removeprefix("cache:")].routing_key(key)


@admin.register(models.Cluster)
class ClusterAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic when it runs
    """The page stands where other models have their list; there is nothing to add, change or delete."""

    change_list_template = "admin/django_clusterstate/cluster/change_list.html"
    live_template = "admin/django_clusterstate/cluster/live.html"

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_changelist"
        return [path("", self.admin_site.admin_view(self.changelist_view), name=name)]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        live = "live" in request.GET  # asked by the page's script, for what may have changed
        try:
            cluster_context = _cluster_context(QueryDict() if live else request.GET)
        except ImproperlyConfigured as error:
            cluster_context = {"misconfigured": str(error)}
        if live:
            return TemplateResponse(request, self.live_template, cluster_context)
        context = {
            **self.admin_site.each_context(request),
            "title": self.opts.verbose_name_plural,
            "opts": self.opts,
            "tab": "overview",
            **cluster_context,
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.change_list_template, context)


def _cluster_context(query: QueryDict) -> dict[str, Any]:
    """What the nodes say. Raises `ImproperlyConfigured`."""
    status = cluster.status()
    return {
        "status": status,
        "observer": observer(status),
        "rows": rows(status),
        "views": views(status),
        "socket": str(conf.get_settings().socket),
        **_key_context(query),
    }


def _key_context(query: QueryDict) -> dict[str, Any]:
    form = KeyForm(query if "key" in query else None)
    if not form.is_valid():
        return {"form": form}
    try:
        return {"form": form, "ranking": cluster.ranking(form.routing_key())}
    except ClusterStateError as error:
        return {"form": form, "key_error": str(error)}
