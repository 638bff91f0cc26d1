"""Merges the timelines that the nodes report."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..core.membership.heartbeat import MemberState
from ..core.membership.timeline import EventKind, MemberEvent
from .formatting import LONGEST

MERGE_WITHIN = 10.0  # seconds between two nodes' reports of the same change
SHOWN = 50

LABELS: dict[str, str | Promise] = {
    EventKind.JOINED: _("joined"),
    EventKind.SUSPECTED: _("is suspect"),
    EventKind.HEARD_AGAIN: _("is no longer suspect"),
    EventKind.DOWN: _("is down"),
    EventKind.LEFT: _("left"),
    EventKind.ISOLATED: _("was isolated: lost most of its peers at once"),
    EventKind.RECONNECTED: _("was no longer isolated"),
    EventKind.STALLED: _("did not run for a while"),
}

_STYLES: dict[str, str] = {
    EventKind.JOINED: MemberState.ALIVE,
    EventKind.SUSPECTED: MemberState.SUSPECT,
    EventKind.ISOLATED: MemberState.SUSPECT,
    EventKind.DOWN: MemberState.DOWN,
    EventKind.LEFT: MemberState.LEFT,
}


@dataclass(slots=True)
class TimelineEntry:
    """A change of an instance of a node, `ago` seconds before, when the first of `reporters` noticed it. `number`
    counts the changes of this kind."""

    what: str
    name: str
    boot: bytes
    ago: float
    at: datetime
    number: int
    reporters: list[str] = field(default_factory=list)

    @property
    def label(self) -> str | Promise:
        return LABELS.get(self.what, self.what)

    @property
    def style(self) -> str:
        """The state whose colors the entry has."""
        return _STYLES.get(self.what, "other")

    @property
    def key(self) -> str:
        """Identifies the entry, also in later refreshes of the page."""
        return f"{self.what}-{self.boot.hex()}-{self.number}"


def merge(timelines: Mapping[str, Iterable[MemberEvent]], now: datetime) -> list[TimelineEntry]:
    """The last SHOWN changes, the latest first, from the timeline of each node."""
    entries: list[TimelineEntry] = []
    last: dict[tuple[str, str, bytes], TimelineEntry] = {}
    numbers: Counter[tuple[str, bytes]] = Counter()
    reported = sorted(
        ((event, reporter) for reporter, events in timelines.items() for event in events),
        key=lambda pair: -pair[0].ago,
    )
    for event, reporter in reported:
        change = (event.what, event.name, event.boot)
        known = last.get(change)
        if known is not None and reporter not in known.reporters and known.ago - event.ago <= MERGE_WITHIN:
            known.reporters.append(reporter)
            continue
        at = now - timedelta(seconds=min(LONGEST, event.ago))
        numbers[event.what, event.boot] += 1
        number = numbers[event.what, event.boot]
        entry = TimelineEntry(event.what, event.name, event.boot, event.ago, at, number, [reporter])
        last[change] = entry
        entries.append(entry)
    return entries[::-1][:SHOWN]
