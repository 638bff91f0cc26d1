"""`manage.py clusterstatus`: prints the state of the cluster."""

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import msgspec
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.template.defaultfilters import filesizeformat

from ... import cluster, runtime
from ...core.membership.heartbeat import SERVING, MemberState
from ...wire.messages import StatusReply
from ...wire.status import MemberStatus

POLL_INTERVAL = 0.1  # seconds

_COLUMNS = "{:<20} {:<9} {:<22} {:>9} {:>9} {:>10} {:>10} {:>10} {:>12}  {}"


class Command(BaseCommand):
    help = (
        "Shows the state of the cluster. The exit code is 1 if a node is down or does not answer, if views differ, or "
        "if a node reports a problem."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print all that the nodes report, as JSON")
        parser.add_argument(
            "--wait-for",
            type=int,
            metavar="N",
            help="wait until exactly N nodes serve, agree and are synced; nodes that are down do not matter",
        )
        parser.add_argument(
            "--timeout", type=float, default=30.0, metavar="SECONDS", help="for --wait-for (default: %(default)g)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        wanted = options["wait_for"]
        try:
            status = cluster.status() if wanted is None else _wait_for(wanted, options["timeout"])
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(as_json(status), indent=2))
        elif status.nodes:
            self._print(status)
        if not status.nodes:
            reasons = "; ".join(status.silent.values()) or f"nothing is known at {runtime.get_settings().socket}"
            raise CommandError(
                f"no node answers: {reasons}. If none runs on this host, start one with: manage.py clusternode"
            )
        complete = not down_members(status) if wanted is None else status.serving == wanted and status.synced
        if not (complete and status.agree) or status.problems:
            sys.exit(1)

    def _print(self, status: cluster.ClusterStatus) -> None:
        titles = ("node", "state", "address", "uptime", "heard", "entries", "copies", "memory", "requests", "view")
        self.stdout.write(_COLUMNS.format(*titles))
        for name, node in status.nodes.items():
            self.stdout.write(self._row(status, name, node))
        for name, why in status.silent.items():
            self.stdout.write(self.style.ERROR(f"{name[:20]:<20} silent    {why}"))
        down = down_members(status)
        for member in down:
            self.stdout.write(
                self.style.ERROR(
                    f"{member.identity.name[:20]:<20} down      {member.identity.address}, "
                    f"last heartbeat {member.heard_ago:.0f} s ago"
                )
            )
        for problem in status.problems:
            self.stdout.write(self.style.ERROR(problem))
        for name, node in status.nodes.items():
            for shortcoming in _shortcomings(node):
                self.stdout.write(self.style.WARNING(f"{name} {shortcoming}"))
        for sender, receiver in status.unreachable:
            self.stdout.write(self.style.WARNING(f"{sender} cannot reach {receiver}"))
        if status.agree:
            verdict = f"{len(status.nodes)} agree, {len(down)} down" if down else "all nodes agree"
        else:
            joining = len([node for node in status.nodes.values() if node.state is MemberState.JOINING])
            verdict = (
                f"no agreement: {len(status.epochs)} different views, {len(status.silent)} silent, {joining} joining, "
                f"{len(down)} down"
            )
        self.stdout.write(f"this host's node: {status.asked or 'none answers'}; {verdict}")

    def _row(self, status: cluster.ClusterStatus, name: str, node: StatusReply) -> str:
        stats = node.stats
        owned = stats.cache_owned + stats.limit_owned
        return _COLUMNS.format(
            name[:20],
            node.state,
            node.identity.address,
            f"{node.uptime:.0f} s",
            _heard(status, name),
            owned,
            stats.cache_entries + stats.limit_entries - owned,
            filesizeformat(node.memory).replace("\xa0", " "),
            stats.requests,
            f"{node.epoch:016x}",
        )


def _wait_for(wanted: int, timeout: float) -> cluster.ClusterStatus:
    """Polls until exactly `wanted` nodes serve, agree and are synced, or for `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        status = cluster.status()
        if (status.agree and status.synced and status.serving == wanted) or time.monotonic() >= until:
            return status
        time.sleep(POLL_INTERVAL)


def _shortcomings(node: StatusReply) -> Iterator[str]:
    """What keeps the copies of a node from being complete, as predicates of it."""
    copies = node.copies
    if not copies.synced and (copies.missing or node.state in SERVING):
        yield f"is not synced: {copies.why_not_synced}"
    if copies.is_late:
        yield f"waits for other nodes to copy {copies.lag:,} changes, the first for {copies.lag_seconds:.1f} s"


def down_members(status: cluster.ClusterStatus) -> list[MemberStatus]:
    """The members that a node has declared down and that don't answer, by name."""
    down = {
        member.identity.name: member
        for node in status.nodes.values()
        for member in node.members
        if member.state is MemberState.DOWN and member.identity.name not in status.nodes
    }
    return [down[name] for name in sorted(down)]


def _heard(status: cluster.ClusterStatus, name: str) -> str:
    """How long ago this host's node received a heartbeat of the named one."""
    if name == status.asked or status.asked not in status.nodes:
        return "-"
    ages = [m.heard_ago for m in status.nodes[status.asked].members if m.identity.name == name]
    return f"{ages[0]:.1f} s" if ages else "never"


def as_json(status: cluster.ClusterStatus) -> dict[str, Any]:
    """All that the nodes report, with the names of its fields. Boot IDs are hexadecimal."""
    nodes = {name: _named_fields(node) for name, node in status.nodes.items()}
    return {
        "agree": status.agree,
        "asked": status.asked,
        "nodes": nodes,
        "silent": status.silent,
        "down": [member.identity.name for member in down_members(status)],
        "problems": status.problems,
    }


def _named_fields(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _named_fields(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [_named_fields(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
