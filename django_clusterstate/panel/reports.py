"""What the nodes tell of themselves, asked for a page: all at once, and for no longer than a reader waits."""

import asyncio
import time
from dataclasses import dataclass, field

from .. import runtime
from ..client.aio import AsyncClient, from_now
from ..client.routing import Target, silence
from ..cluster import ClusterStatus
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from ..wire.framing import frame

PATIENCE = 0.4  # seconds until the page is shown without those that haven't answered

_GET_REPORT = frame(wire.encode(wire.GetReport()))
_PING = frame(wire.encode(wire.Ping()))


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports of the nodes that answered, by name, and the seconds to each of them and back."""

    status: ClusterStatus
    of: dict[str, wire.ReportReply] = field(default_factory=dict)
    round_trips: dict[str, float] = field(default_factory=dict)


async def gather() -> Reports:
    """Asks every node."""
    client, until = runtime.get_async_client(), from_now(PATIENCE)
    table = await client.table(from_now(PATIENCE / 2))
    targets = list({client.routing.local, *table.targets.values()})
    answers = await asyncio.gather(*(_report_of(client, target, until) for target in targets))
    of, round_trips = {}, {}
    for reply, seconds in answers:
        if isinstance(reply, wire.ReportReply):
            name = reply.status.identity.name
            of[name], round_trips[name] = reply, seconds
    silent = silence(targets, [reply for reply, _ in answers], wire.ReportReply)
    return Reports(ClusterStatus.of(table, [report.status for report in of.values()], silent), of, round_trips)


async def _report_of(
    client: AsyncClient, target: Target, until: float | None
) -> tuple[wire.Reply | ClusterStateError, float]:
    """The node's report and the seconds there and back, or why there is none."""
    [reply] = await client.call_each([(target, _GET_REPORT)], until)
    start = time.perf_counter()
    if isinstance(reply, wire.ReportReply):
        [pong] = await client.call_each([(target, _PING)], until)  # by the connection that is there now
        reply = pong if isinstance(pong, ClusterStateError) else reply
    return reply, time.perf_counter() - start
