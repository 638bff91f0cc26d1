"""The admin page "Cluster": the members as `manage.py clusterstatus` shows them, who owns a key, and the events."""

from collections.abc import Callable
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
from .panel import events
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
    events_template = "admin/django_clusterstate/cluster/events.html"
    events_live_template = "admin/django_clusterstate/cluster/events_live.html"

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path("", self.admin_site.admin_view(self.changelist_view), name=f"{name}_changelist"),
            path("events/", self.admin_site.admin_view(self.events_view), name=f"{name}_events"),
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        def gather() -> dict[str, Any]:
            return overview() if "live" in request.GET else {**overview(), **_key_context(request.GET)}

        page = {"title": self.opts.verbose_name_plural, "tab": "overview", **(extra_context or {})}
        return self._answer(request, gather, self.change_list_template, self.live_template, page)

    def events_view(self, request: HttpRequest) -> HttpResponse:
        """All events, or the one that `?name` says."""
        name = request.GET.get("name", "")

        def gather() -> dict[str, Any]:
            return events.gather(name, request.GET.get("q", ""))

        page = {"title": name or gettext("Events"), "tab": "events"}
        return self._answer(request, gather, self.events_template, self.events_live_template, page)

    def _answer(
        self,
        request: HttpRequest,
        gather: Callable[[], dict[str, Any]],
        template: str,
        live_template: str,
        page: dict[str, Any],
    ) -> HttpResponse:
        """A page of the panel; on `?live`, by which its script asks, only what may have changed."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            gathered = gather()
        except ImproperlyConfigured as error:
            gathered = {"misconfigured": str(error)}
        if "live" in request.GET:
            return TemplateResponse(request, live_template, gathered)
        context = {**self.admin_site.each_context(request), "opts": self.opts, **gathered, **page}
        request.current_app = self.admin_site.name
        return TemplateResponse(request, template, context)


def _key_context(query: QueryDict) -> dict[str, Any]:
    form = KeyForm(query if "key" in query else None)
    if not form.is_valid():
        return {"form": form}
    try:
        return {"form": form, "ranking": cluster.ranking(form.routing_key())}
    except ClusterStateError as error:
        return {"form": form, "key_error": str(error)}
