"""Curves of the last ten minutes, shares of the keys, and the most frequent keys of limits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..core.counter_history import INTERVAL, INTERVALS
from ..core.membership.heartbeat import SERVING
from ..core.top_keys import KeyCount, merged
from ..ratelimit import split_key
from ..wire.messages import ReportReply
from .node_reports import Reports
from .svg import lengths, line

WIDTH, HEIGHT = 240.0, 40.0  # of a curve
BAR = 120.0  # the longest share
SHOWN = 10  # keys

CURVES: dict[str, str | Promise] = {
    "requests": _("Requests"),
    "denials": _("Denials"),
    "hits": _("Cache hits"),
    "misses": _("Cache misses"),
    "errors": _("Failed exchanges"),
    "fallbacks": _("Fallbacks"),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A counter of all nodes together, per second. The oldest value comes first."""

    name: str
    label: str | Promise
    values: list[float]

    @property
    def points(self) -> str:
        return line(self.values, WIDTH, HEIGHT)

    @property
    def now(self) -> float:
        return self.values[-1]

    @property
    def peak(self) -> float:
        return max(self.values)


def curves(reports: Iterable[ReportReply]) -> list[Curve]:
    """A curve for each counter. The nodes' intervals don't begin together, so a time is exact to five seconds."""
    rates = [report.rates for report in reports]
    return [
        Curve(name, label, _per_second([of_node.get(name, []) for of_node in rates])) for name, label in CURVES.items()
    ]


def _per_second(nodes: Sequence[list[int]]) -> list[float]:
    sums = [0] * INTERVALS
    for counts in nodes:
        for back, count in enumerate(counts[:INTERVALS]):
            sums[back] += count
    return [total / INTERVAL for total in reversed(sums)]


@dataclass(frozen=True, slots=True)
class Share:
    """A node's share of the keys by its weight, and its actual share of all entries, copies not counted, with the
    lengths of their bars."""

    name: str
    expected_percent: float
    actual_percent: float
    entries: int
    expected_length: str
    actual_length: str


def shares(reports: Reports) -> list[Share]:
    """The shares of the nodes that answered and serve, by name."""
    nodes = [status for status in reports.status.nodes.values() if status.state in SERVING]
    entries = [status.stats.cache_owned + status.stats.limit_owned for status in nodes]
    weights, held = sum(status.identity.weight for status in nodes), sum(entries)
    expected = [100 * status.identity.weight / weights for status in nodes]
    actual = [100 * count / held if held else 0.0 for count in entries]
    bars = lengths([*expected, *actual], BAR)
    return [
        Share(status.identity.name, *of)
        for status, *of in zip(nodes, expected, actual, entries, bars[: len(nodes)], bars[len(nodes) :], strict=True)
    ]


@dataclass(frozen=True, slots=True)
class TopKey:
    """A key of limits, hit or denied at most `times` and at least `least` times. `group` is None if it is hashed."""

    group: str | None
    key: str
    times: int
    least: int
    length: str

    @property
    def query(self) -> str:
        """The query string of the page that looks the key up."""
        return urlencode({"kind": "limit", "group": self.group, "key": self.key})


def top(counted: Iterable[KeyCount[bytes]]) -> list[TopKey]:
    """The most frequent keys. Several nodes report the same key if one has counted in place of the owner."""
    first = sorted(merged(counted), key=lambda one: (-one.times, one.key))[:SHOWN]
    bars = lengths([one.times for one in first], BAR)
    return [_top_key(*one, bar) for one, bar in zip(first, bars, strict=True)]


def _top_key(key: bytes, times: int, error: int, length: str) -> TopKey:
    group, user_key = split_key(key) or (None, "")
    try:
        urlencode({"group": group, "key": user_key})
    except UnicodeEncodeError:  # a lone surrogate, which no page can show and no form can send
        group = None
    shown = user_key if group is not None else key.decode(errors="backslashreplace")
    return TopKey(group, shown, times, times - error, length)
