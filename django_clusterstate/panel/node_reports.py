"""Requests the reports of all nodes for a page, at once and with a short timeout."""

import asyncio
import time
from dataclasses import dataclass, field

from .. import runtime
from ..client.aio import AsyncClient, from_now
from ..client.routing import Target, missing_replies
from ..cluster import ClusterStatus
from ..exceptions import ClusterStateError
from ..wire import messages as wire

PAGE_TIMEOUT = 0.4  # seconds until the page is shown without the nodes that haven't answered

_GET_REPORT = wire.request_frame(wire.GetReport())
_PING = wire.request_frame(wire.Ping())


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports of the nodes that answered, and the round-trip times to them in seconds, by name."""

    status: ClusterStatus
    replies: dict[str, wire.ReportReply] = field(default_factory=dict)
    round_trips: dict[str, float] = field(default_factory=dict)


async def gather() -> Reports:
    """The reports of all nodes that answer within PAGE_TIMEOUT."""
    client, until = runtime.get_async_client(), from_now(PAGE_TIMEOUT)
    table = await client.table(from_now(PAGE_TIMEOUT / 2))
    targets = list({client.routing.local, *table.targets.values()})
    answers = await asyncio.gather(*(_report_of(client, target, until) for target in targets))
    reports, round_trips, statuses = {}, {}, {}
    for target, (reply, seconds) in zip(targets, answers, strict=True):
        if isinstance(reply, wire.ReportReply):
            name = reply.status.identity.name
            reports[name], round_trips[name], statuses[target] = reply, seconds, reply.status
    silent = missing_replies(targets, [reply for reply, _ in answers], wire.ReportReply)
    status = ClusterStatus.of(statuses, client.routing.local, silent)
    return Reports(status, reports, round_trips)


async def _report_of(
    client: AsyncClient, target: Target, until: float | None
) -> tuple[wire.Reply | ClusterStateError, float]:
    """The node's report, or the error, and the round-trip time in seconds."""
    [reply] = await client.call_each([(target, _GET_REPORT)], until)
    start = time.perf_counter()
    if isinstance(reply, wire.ReportReply):
        [pong] = await client.call_each([(target, _PING)], until)  # over the connection that is open now
        reply = pong if isinstance(pong, ClusterStateError) else reply
    return reply, time.perf_counter() - start
