"""The data of the panel's first page, for `live.html`."""

import asyncio
from itertools import chain
from typing import Any

from asgiref.sync import async_to_sync
from django.utils import timezone

from .. import runtime
from . import members, traffic
from .key_lookup import KeyForm, KeyQuery, KeyState, alook_up
from .node_reports import Reports, gather
from .reachability import heartbeat_table
from .timeline import merge


def overview(form: KeyForm | None = None) -> dict[str, Any]:
    """The state of the cluster as the nodes that answer report it, and their state of the form's key if it is valid.

    Raises `ImproperlyConfigured`.
    """
    query = form.query() if form is not None and form.is_valid() else None
    reports, found = async_to_sync(_gather)(query)
    return {**_context(reports), "found": found}


async def _gather(query: KeyQuery | None) -> tuple[Reports, KeyState | None]:
    if query is None:
        return await gather(), None
    return await asyncio.gather(gather(), alook_up(query))


def _context(reports: Reports) -> dict[str, Any]:
    settings, replies = runtime.get_settings(), reports.replies
    return {
        "status": reports.status,
        "observer": members.observer(reports),
        "rows": members.rows(reports),
        "views": members.views(reports),
        "versions": members.versions(reports),
        "curves": traffic.curves(replies.values()),
        "denied": traffic.top(chain.from_iterable(report.denied for report in replies.values())),
        "busiest": traffic.top(chain.from_iterable(report.busiest for report in replies.values())),
        "shares": traffic.shares(reports),
        "heartbeats": heartbeat_table(reports, settings.timings),
        "timeline": merge({name: report.timeline for name, report in replies.items()}, timezone.now()),
        "socket": str(settings.socket),
    }
