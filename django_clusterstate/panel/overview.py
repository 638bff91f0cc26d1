"""The panel's first page: what `live.html` shows."""

import asyncio
from itertools import chain
from typing import Any

from asgiref.sync import async_to_sync
from django.utils import timezone

from .. import conf
from . import members, traffic
from .keys import KeyForm, LookUp, alook_up
from .reachability import matrix
from .reports import Reports, agather, gather
from .timeline import merged


def overview() -> dict[str, Any]:
    """The state of the cluster as all nodes that answer tell it. Raises `ImproperlyConfigured`."""
    return shown(gather())


def overview_with(form: KeyForm) -> dict[str, Any]:
    """The same, and what the nodes hold of a key, asked at the same time."""

    async def ask() -> tuple[Reports, LookUp]:
        return await asyncio.gather(agather(), alook_up(form))

    reports, found = async_to_sync(ask)()
    return {**shown(reports), "found": found}


def shown(reports: Reports) -> dict[str, Any]:
    settings, told = conf.get_settings(), reports.of
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
