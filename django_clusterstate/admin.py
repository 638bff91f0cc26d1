"""The admin's pages of the cluster: the panel with the lookup of a key and its actions, and the events."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext

from . import models
from .panel import actions, events_tab, key_lookup
from .panel.overview import overview


@admin.register(models.Cluster)
class ClusterAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic when it runs
    """The panel is in place of the model's change list. There is nothing to add, change or delete."""

    change_list_template = "admin/django_clusterstate/cluster/change_list.html"
    live_template = "admin/django_clusterstate/cluster/live.html"
    events_template = "admin/django_clusterstate/cluster/events.html"
    events_live_template = "admin/django_clusterstate/cluster/events_live.html"

    def get_urls(self) -> list[URLPattern]:
        model = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path("", self.admin_site.admin_view(self.changelist_view), name=f"{model}_changelist"),
            path("events/", self.admin_site.admin_view(self.events_view), name=f"{model}_events"),
            path("act/", self.admin_site.admin_view(self.act_view), name=f"{model}_act"),
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        gather = overview if "live" in request.GET else partial(_whole_page, request)
        page = {"title": self.opts.verbose_name_plural, "tab": "overview", **(extra_context or {})}
        return self._respond(request, gather, self.change_list_template, self.live_template, page)

    def events_view(self, request: HttpRequest) -> HttpResponse:
        """All events, or the event of `?name`."""
        name = request.GET.get("name", "")
        gather = partial(events_tab.gather, name, request.GET.get("q", ""))
        page = {"title": name or gettext("Events"), "tab": "events"}
        return self._respond(request, gather, self.events_template, self.events_live_template, page)

    def _respond(
        self,
        request: HttpRequest,
        gather: Callable[[], dict[str, Any]],
        template: str,
        live_template: str,
        page: dict[str, Any],
    ) -> HttpResponse:
        """A page of the panel, or for the `?live` of its script only the part that may have changed."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            context = gather()
        except ImproperlyConfigured as error:
            context = {"misconfigured": str(error)}
        if "live" in request.GET:
            return TemplateResponse(request, live_template, context)
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context, **page}
        request.current_app = self.admin_site.name
        return TemplateResponse(request, template, context)

    def act_view(self, request: HttpRequest) -> HttpResponse:
        """Takes an action and redirects to the lookup. A GET request is only redirected: the login leads here if the
        session has ended before the POST."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            actions.act(request)
        page = f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"
        return HttpResponseRedirect(reverse(page, query=request.GET, current_app=self.admin_site.name))


def _whole_page(request: HttpRequest) -> dict[str, Any]:
    """The context of the page with the lookup and the actions of this user. Raises `ImproperlyConfigured`."""
    form = key_lookup.KeyForm(request.GET if "key" in request.GET else None)
    return {
        **overview(form),
        "form": form,
        "query": request.GET.urlencode(),
        "clear_form": actions.ClearForm(),
        "may": actions.permitted(request.user),
    }
