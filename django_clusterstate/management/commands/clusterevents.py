"""`manage.py clusterevents`: prints the tracked events."""

import contextlib
import json
import math
import time
from argparse import ArgumentParser
from typing import Any

import msgspec
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from ... import events
from ...core.event_counts import EventTotals
from ...exceptions import ClusterStateError

POLL_INTERVAL = 1.0  # seconds
LONGEST_BAR = 50  # characters
MAX_KEYS = 10

_COLUMNS = "{:<50} {:>12} {:>12} {:>12}  {}"


class Command(BaseCommand):
    help = (
        "Lists the tracked events, or shows the counts, keys and samples of one. The exit code is 1 if no node answers."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "name", nargs="?", default="", help="the name of an event; without it, all events are listed"
        )
        parser.add_argument(
            "--follow", action="store_true", help="print events of this name as they come, until Ctrl-C"
        )
        parser.add_argument("--json", action="store_true", help="print JSON; with --follow, one line for each event")

    def handle(self, *args: Any, **options: Any) -> None:
        name, as_json = options["name"], options["json"]
        if options["follow"] and not name:
            raise CommandError("--follow needs the name of an event")
        try:
            if options["follow"]:
                with contextlib.suppress(KeyboardInterrupt):
                    self._follow(name, as_json=as_json)
            elif name:
                self._show(name, as_json=as_json)
            else:
                self._list(as_json=as_json)
        except (ClusterStateError, ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error

    def _list(self, *, as_json: bool) -> None:
        known = events.names()
        if as_json:
            self.stdout.write(json.dumps([msgspec.structs.asdict(one) for one in known], indent=2))
            return
        self.stdout.write(_COLUMNS.format("event", "last minute", "last hour", "total", "last"))
        for one in known:
            self.stdout.write(_row(one))

    def _show(self, name: str, *, as_json: bool) -> None:
        details = events.details(name)
        if not details.counts.total:
            raise CommandError(f"no event {name!r} is known")
        if as_json:
            self.stdout.write(json.dumps(_as_dict(details), indent=2))
            return
        counts = details.counts
        self.stdout.write(
            f"{_printable(name)}: {counts.minutes[0]:,} in the last minute, {sum(counts.minutes):,} in the last hour, "
            f"{sum(counts.hours):,} in the last two days, {counts.total:,} in all\n"
        )
        self.stdout.write("minutes ago")
        most = max(counts.minutes)
        first = max((minute for minute, times in enumerate(counts.minutes) if times), default=-1)
        for minute in range(first + 1):
            times = counts.minutes[minute]
            self.stdout.write(f"{minute:>11} {times:>12,} {'#' * math.ceil(times * LONGEST_BAR / most)}".rstrip())
        self.stdout.write("\nmost frequent keys of the last hour or two")
        for key, times, error in details.top[:MAX_KEYS]:
            self.stdout.write(f"{times:>24,} {_printable(key)}" + (f" ({times - error:,} at least)" if error else ""))
        self.stdout.write("\nlast events")
        for sample in details.recent:
            self.stdout.write(_line(sample))

    def _follow(self, name: str, *, as_json: bool) -> None:
        """Prints the samples with a higher number than the last one that their node sent before."""
        last: dict[str, int] = {}
        while True:
            newest: dict[str, int] = {}
            for sample in reversed(events.recent(name)):
                if sample.number > last.get(sample.node, 0):
                    self.stdout.write(json.dumps(sample._asdict()) if as_json else _line(sample))
                newest[sample.node] = max(sample.number, newest.get(sample.node, 0))
            last |= newest  # which may be lower: a node that was restarted or has evicted the name starts again at 1
            self.stdout.flush()
            time.sleep(POLL_INTERVAL)


def _row(one: EventTotals) -> str:
    ago = f"{_duration(one.last_ago)} ago"
    return _COLUMNS.format(_printable(one.name), f"{one.minute:,}", f"{one.hour:,}", f"{one.total:,}", ago)


def _line(sample: events.RecentEvent) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(time.time() - sample.ago))
    fields = " ".join(f"{_printable(name)}={value!r}" for name, value in sample.fields.items())
    return f"{at}  {_printable(sample.key)}  {fields}".rstrip()


def _printable(text: str) -> str:
    """The text in one line and without control characters: a key may contain input of any client."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _as_dict(details: events.Details) -> dict[str, Any]:
    return {
        **details.counts._asdict(),
        "top": [one._asdict() for one in details.top],
        "recent": [one._asdict() for one in details.recent],
    }
