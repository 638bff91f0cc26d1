"""The data of the tab "Events": all names, or the counts, keys and samples of one.

A node that doesn't answer in time is left out, and the page says so.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asgiref.sync import async_to_sync

from .. import events, runtime
from ..core.event_counts import MAX_NAME, MAX_SAMPLES
from ..core.top_keys import KeyCount
from ..events import RecentEvent
from ..exceptions import ClusterStateError
from .formatting import duration
from .node_reports import PAGE_TIMEOUT
from .svg import Bar, bars, lengths

MAX_NAMES = 200  # shown at once; each node may keep a thousand
MAX_KEYS = 20
MAX_COLUMNS = 8  # the number of fields that an event can have
CHART = (600, 80)  # width and height, as in the templates
SHARE = 100  # length of the longest bar of a key


@dataclass(frozen=True, slots=True)
class Chart:
    """Counts by time: `bars` from the oldest to the latest, `counts` the latest first."""

    bars: list[Bar]
    counts: list[int]
    total: int
    peak: int


@dataclass(frozen=True, slots=True)
class TopEventKey:
    """A key that was tracked at most `times` and at least `least` times, with its percentage among all kept keys."""

    key: str
    times: int
    least: int
    percent: float
    length: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One event. `values` belong to the columns, None if it has no such field; `others` are its other fields."""

    id: str
    key: str
    ago: str
    node: str
    values: list[str | None]
    others: list[tuple[str, str]]


def gather(name: str, query: str) -> dict[str, Any]:
    """The context of the templates: of one event, or without a name of all events whose names contain `query`.

    Raises `ImproperlyConfigured`.
    """
    return async_to_sync(_gather)(name, query)


async def _gather(name: str, query: str) -> dict[str, Any]:
    silent: dict[str, str] = {}
    try:
        context = await (_one(name, silent) if name else _all(query, silent))
    except ClusterStateError as error:
        context = {"unanswered": list(silent.values()) or [str(error)]}
    return {"name": name, "silent": silent, "socket": str(runtime.get_settings().socket), **context}


async def _all(query: str, silent: dict[str, str]) -> dict[str, Any]:
    known = await events.anames(patience=PAGE_TIMEOUT, silent=silent)
    wanted = query.strip().casefold()
    found = sorted(
        (one for one in known if wanted in one.name.casefold()), key=lambda one: (-one.hour, -one.total, one.name)
    )
    return {
        "query": query,
        "known": len(known),
        "names": [(one, duration(one.last_ago)) for one in found[:MAX_NAMES]],
        "more": max(0, len(found) - MAX_NAMES),
    }


async def _one(name: str, silent: dict[str, str]) -> dict[str, Any]:
    """The counts, keys and samples of an event; empty if it isn't known."""
    if len(name) > MAX_NAME:
        return {}
    details = await events.adetails(name, patience=PAGE_TIMEOUT, silent=silent)
    if not details.counts.total:
        return {}
    columns = _columns(details.recent)
    samples = [_sample(sample, columns) for sample in details.recent[:MAX_SAMPLES]]
    return {
        "total": details.counts.total,
        "minutes": chart(details.counts.minutes),
        "hours": chart(details.counts.hours),
        "keys": keys(details.top)[:MAX_KEYS],
        "more_keys": max(0, len(details.top) - MAX_KEYS),
        "columns": columns,
        "others": any(sample.others for sample in samples),
        "samples": samples,
    }


def chart(counts: list[int]) -> Chart:
    """The chart of counts that begin with the latest."""
    return Chart(bars(counts[::-1], *CHART), counts, sum(counts), max(counts))


def keys(top: Sequence[KeyCount[str]]) -> list[TopEventKey]:
    whole = sum(times for _, times, _ in top)
    return [
        TopEventKey(key, times, times - error, 100 * times / whole, length)
        for (key, times, error), length in zip(top, lengths([times for _, times, _ in top], SHARE), strict=True)
    ]


def _columns(samples: Sequence[RecentEvent]) -> list[str]:
    """The fields that most of the samples have."""
    return [name for name, _ in Counter(name for sample in samples for name in sample.fields).most_common(MAX_COLUMNS)]


def _sample(sample: RecentEvent, columns: Sequence[str]) -> Sample:
    fields = {name: str(value) for name, value in sample.fields.items()}  # as tracked, not formatted for a language
    return Sample(
        f"{sample.node}-{sample.number}",
        sample.key,
        duration(sample.ago),
        sample.node,
        [fields.pop(name, None) for name in columns],
        list(fields.items()),
    )
