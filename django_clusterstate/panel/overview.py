"""The panel's first page: what `live.html` shows."""

import asyncio
from itertools import chain
from typing import Any

from asgiref.sync import async_to_sync
from django.utils import timezone

from .. import runtime
from . import members, traffic
from .keys import KeyForm, KeyQuery, LookUp, alook_up
from .reachability import matrix
from .reports import Reports, gather
from .timeline import merged


def overview(form: KeyForm | None = None) -> dict[str, Any]:
    """The state of the cluster as all nodes that answer tell it, and if the form is valid, what they hold of its key.

    Raises `ImproperlyConfigured`.
    """
    question = form.question() if form is not None and form.is_valid() else None
    reports, found = async_to_sync(_gather)(question)
    return {**_shown(reports), "found": found}


async def _gather(question: KeyQuery | None) -> tuple[Reports, LookUp | None]:
    if question is None:
        return await gather(), None
    return await asyncio.gather(gather(), alook_up(question))


def _shown(reports: Reports) -> dict[str, Any]:
    settings, told = runtime.get_settings(), reports.of
    return {
        "status": reports.status,
        "observer": members.observer(reports),
        "rows": members.rows(reports),
        "views": members.views(reports),
        "versions": members.versions(reports),
        "curves": traffic.curves(told.values()),
        "denied": traffic.top(chain.from_iterable(report.denied for report in told.values())),
        "busiest": traffic.top(chain.from_iterable(report.busiest for report in told.values())),
        "shares": traffic.shares(reports),
        "matrix": matrix(reports, settings.timings),
        "timeline": merged({name: report.timeline for name, report in told.items()}, timezone.now()),
        "socket": str(settings.socket),
    }
