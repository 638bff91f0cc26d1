"""What the nodes tell of themselves, asked for a page: all at once, and for no longer than a reader waits."""

import asyncio
import time
from dataclasses import dataclass, field

from asgiref.sync import async_to_sync

from .. import conf
from ..client.aio import AsyncClient
from ..client.routing import Table, Target
from ..cluster import ClusterStatus
from ..exceptions import ClusterStateError
from ..wire import messages as wire
from ..wire.framing import frame

ASK_AGAIN = 0.05  # seconds
PATIENCE = 0.4  # seconds until the page is shown without those that haven't answered

_GET_REPORT = frame(wire.encode(wire.GetReport()))
_PING = frame(wire.encode(wire.Ping()))


@dataclass(frozen=True, slots=True)
class Reports:
    """The reports of the nodes that answered, by name, and the seconds to each of them and back."""

    status: ClusterStatus
    of: dict[str, wire.Report] = field(default_factory=dict)
    round_trips: dict[str, float] = field(default_factory=dict)


def gather() -> Reports:
    """Asks every node."""
    return async_to_sync(agather)()


async def agather() -> Reports:
    client = conf.get_async_client()
    now = asyncio.get_running_loop().time()
    until = now + PATIENCE
    table = await known_table(client, now + PATIENCE / 2)
    targets = list({client.routing.local, *table.targets.values()})
    answers = await asyncio.gather(*(_report_of(client, target, until) for target in targets))
    return _sorted(table, dict(zip(targets, answers, strict=True)))


async def known_table(client: AsyncClient, until: float) -> Table:
    """The view, or the last one when nobody tells in time. A new process has none, and asks again and again."""
    try:
        async with asyncio.timeout_at(until):
            while not (table := await client.table()).targets:  # noqa: ASYNC110 - nothing tells when a node starts
                await asyncio.sleep(ASK_AGAIN)
            return table
    except TimeoutError:
        return client.routing.table


async def _report_of(client: AsyncClient, target: Target, until: float) -> tuple[wire.Report, float] | str:
    """The node's report and the seconds there and back, or why there is none."""
    report = await answer_in_time(client, target, _GET_REPORT, until)
    if not isinstance(report, wire.Report):
        return report if isinstance(report, str) else f"{target} answered with {type(report).__name__}"
    start = time.perf_counter()
    pong = await answer_in_time(client, target, _PING, until)  # by the connection that is there now
    return pong if isinstance(pong, str) else (report, time.perf_counter() - start)


async def answer_in_time(client: AsyncClient, target: Target, request: bytes, until: float) -> wire.Reply | str:
    """The node's answer, or why there is none."""
    try:
        async with asyncio.timeout_at(until):
            return await client.call_node(target, request)
    except TimeoutError:
        return f"{target}: no answer within {PATIENCE:g} s"
    except ClusterStateError as error:
        return str(error)


def _sorted(table: Table, answers: dict[Target, tuple[wire.Report, float] | str]) -> Reports:
    reports, round_trips, silent = {}, {}, {}
    for target, answer in answers.items():
        if isinstance(answer, str):
            silent[target.name or str(target.address)] = answer
        else:
            report, seconds = answer
            name = report.status.identity.name
            reports[name], round_trips[name] = report, seconds
    nodes = {name: reports[name].status for name in sorted(reports)}
    asked = table.local_name if table.local_name in nodes else ""
    return Reports(ClusterStatus(asked, nodes, dict(sorted(silent.items()))), reports, round_trips)
