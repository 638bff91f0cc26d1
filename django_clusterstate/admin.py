"""The admin page "Cluster": the members as `manage.py clusterstatus` shows them, and who owns a key."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from . import cluster, models, ratelimit
from .cache import ClusterCache
from .exceptions import ClusterStateError
from .panel.overview import overview


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
            cluster_context = overview() if live else {**overview(), **_key_context(request.GET)}
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


def _key_context(query: QueryDict) -> dict[str, Any]:
    form = KeyForm(query if "key" in query else None)
    if not form.is_valid():
        return {"form": form}
    try:
        return {"form": form, "ranking": cluster.ranking(form.routing_key())}
    except ClusterStateError as error:
        return {"form": form, "key_error": str(error)}
