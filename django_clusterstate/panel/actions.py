"""The actions of the panel: reset a limit, delete a cache key, empty a cache. Each has its own permission."""

from collections.abc import Callable
from dataclasses import dataclass

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, QueryDict
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import models, ratelimit, runtime
from ..client.routing import missing_replies
from ..exceptions import ClusterStateError
from ..ratelimit.limits import MAX_RATES
from ..wire import messages as wire
from . import key_lookup


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The result of an action. `level` is one of `django.contrib.messages`; `logged` is the text for the admin's log,
    empty if nothing was changed."""

    level: int
    message: str
    object_repr: str = ""
    action_flag: int = CHANGE
    logged: str = ""


class ClearForm(forms.Form):
    """The alias of the cache to empty, with a confirmation."""

    alias = forms.ChoiceField(label=_("Cache"))
    confirmed = forms.BooleanField(
        label=_("Yes, empty it"), error_messages={"required": _("Nothing was emptied: you did not confirm it.")}
    )

    def __init__(self, data: QueryDict | None = None) -> None:
        super().__init__(data)
        self.caches = key_lookup.cluster_caches()
        key_lookup.set_choices(self.fields["alias"], [(alias, alias) for alias in self.caches])


def permitted(user: User | AnonymousUser) -> set[str]:
    """The actions that a user may take. Each has the name of its permission."""
    label = models.Cluster._meta.app_label
    return {action for action in ACTIONS if user.has_perm(f"{label}.{action}")}


def act(request: HttpRequest) -> None:
    """Takes the action of a POST request, adds a message and an entry of the admin's log. Raises `PermissionDenied`.

    The key comes from the query string, as in the lookup: a browser changes line ends in the fields that it posts.
    """
    action = request.POST.get("action", "")
    if action not in permitted(request.user):
        raise PermissionDenied
    try:
        result = ACTIONS[action](request)
    except (ClusterStateError, ImproperlyConfigured) as error:
        result = ActionResult(messages.ERROR, str(error))
    messages.add_message(request, result.level, result.message)
    if result.logged:
        LogEntry.objects.create(
            user_id=request.user.pk,  # type: ignore[misc] # an anonymous user has no permission
            content_type=ContentType.objects.get_for_model(models.Cluster),
            object_repr=result.object_repr[:200],
            action_flag=result.action_flag,
            change_message=result.logged,
        )


def _reset_limit(request: HttpRequest) -> ActionResult:
    form = key_lookup.KeyForm(request.GET)
    if not form.is_valid() or not form.is_limit:
        return _invalid(form)
    if form.storage:
        return ActionResult(messages.ERROR, gettext("Limits are counted in %s and not in the nodes.") % form.storage)
    query = form.query()
    found = key_lookup.look_up(query)
    if not found.counts:
        nothing = ActionResult(messages.WARNING, gettext("Nothing was counted for this key."))
        return ActionResult(messages.ERROR, found.problem) if found.problem else nothing
    rules = list(dict.fromkeys(count.rule for count in found.counts))
    limits = [ratelimit.Limit(tuple(rules[at : at + MAX_RATES])) for at in range(0, len(rules), MAX_RATES)]
    group, key = form.cleaned_data["group"], form.cleaned_data["key"]
    others = {count.node for count in found.counts} - {found.owner}
    failed: set[str] = set()
    for limit in limits:
        if ratelimit.reset(limit, group, key) is None:
            failed.add(found.owner)
        failed |= _reset_at(others, query.key, limit)
    counts = ", ".join(f"{one.used} of {one.rate} at {one.node}" for one in found.counts if one.node not in failed)
    logged = f"Reset: {counts}." if counts else ""
    if not failed:
        return ActionResult(messages.SUCCESS, gettext("The limit was reset."), form.name, CHANGE, logged)
    silent = ", ".join(sorted(failed))
    if not logged:
        return ActionResult(messages.ERROR, gettext("Nothing was reset: no answer from %s.") % silent)
    message = gettext("The limit was reset, but not everywhere: no answer from %s.") % silent
    return ActionResult(messages.WARNING, message, form.name, CHANGE, logged)


def _reset_at(nodes: set[str], key: bytes, limit: ratelimit.Limit) -> set[str]:
    """Resets a key at these nodes. Returns the names of those that didn't answer."""
    client, request = runtime.get_client(), wire.request_frame(wire.Reset(key, list(limit.rules)))
    targets = [target for name, target in client.table().targets.items() if name in nodes]
    return set(missing_replies(targets, client.call_each([(target, request) for target in targets]), wire.FlagsReply))


def _delete_cache_key(request: HttpRequest) -> ActionResult:
    form = key_lookup.KeyForm(request.GET)
    if not form.is_valid() or form.cache is None:
        return _invalid(form)
    if not form.cache.raising().delete(form.cleaned_data["key"], version=form.cleaned_data["version"]):
        return ActionResult(messages.WARNING, gettext("The cache has no such key."))
    return ActionResult(messages.SUCCESS, gettext("The key was deleted."), form.name, DELETION, "Deleted the key.")


def _clear_cache(request: HttpRequest) -> ActionResult:
    form = ClearForm(request.POST)
    if not form.is_valid():
        return _invalid(form)
    alias = form.cleaned_data["alias"]
    replies = form.caches[alias].raising().clear_each()
    silent = missing_replies(list(replies), list(replies.values()), wire.ClearReply)
    why = "; ".join(silent.values())
    if len(silent) == len(replies):
        return ActionResult(messages.ERROR, why)
    level, message, logged = messages.SUCCESS, gettext("The cache “%s” was emptied.") % alias, "Emptied the cache."
    if silent:
        level, logged = messages.WARNING, f"Emptied the cache, but not everywhere: {why}"
        message = gettext("The cache “%(alias)s” was emptied, but not everywhere: %(error)s")
        message %= {"alias": alias, "error": why}
    return ActionResult(level, message, f"cache:{alias}", DELETION, logged)


def _invalid(form: forms.Form) -> ActionResult:
    """The errors of a form. Except for the missing confirmation, the page's own forms have none."""
    problems = [str(problem) for problems in form.errors.values() for problem in problems]
    return ActionResult(
        messages.ERROR, " ".join(problems) or gettext("This action is not available for a key of this kind.")
    )


ACTIONS: dict[str, Callable[[HttpRequest], ActionResult]] = {
    "reset_limit": _reset_limit,
    "delete_cache_key": _delete_cache_key,
    "clear_cache": _clear_cache,
}
