"""`manage.py clusterstatus`: the cluster on a terminal."""

import json
import sys
import time
from argparse import ArgumentParser
from typing import Any

import msgspec
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.template.defaultfilters import filesizeformat

from ... import cluster, runtime
from ...core.membership.messages import MemberState
from ...wire.messages import StatusReply

ASK_EVERY = 0.1

_COLUMNS = "{:<20} {:<9} {:<22} {:>9} {:>9} {:>10} {:>10} {:>12}  {}"


class Command(BaseCommand):
    help = "Shows the cluster. Exit code 1 when a node doesn't answer, when views differ, or with any other problem."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print everything that the nodes say, as JSON")
        parser.add_argument("--wait-for", type=int, metavar="N", help="return when N members serve and agree")
        parser.add_argument(
            "--timeout", type=float, default=30.0, metavar="SECONDS", help="how long to wait (default: %(default)g)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            status = cluster.status() if options["wait_for"] is None else _wait_for(options)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(as_json(status), indent=2))
        elif status.nodes:
            self._print(status)
        if not status.nodes:
            raise CommandError(
                f"no node answers at {runtime.get_settings().socket}. Start one with: manage.py clusternode"
            )
        if not status.agree or status.problems or options["wait_for"] not in (None, status.serving):
            sys.exit(1)

    def _print(self, status: cluster.ClusterStatus) -> None:
        self.stdout.write(
            _COLUMNS.format("node", "state", "address", "uptime", "heard", "entries", "memory", "requests", "view")
        )
        for name, node in status.nodes.items():
            self.stdout.write(self._row(status, name, node))
        for name, why in status.silent.items():
            self.stdout.write(self.style.ERROR(f"{name:<20} silent    {why}"))
        for problem in status.problems:
            self.stdout.write(self.style.ERROR(problem))
        for sender, receiver in status.unreachable:
            self.stdout.write(self.style.WARNING(f"{sender} cannot reach {receiver}"))
        verdict = "all agree"
        if not status.agree:
            joining = sum(node.state is MemberState.JOINING for node in status.nodes.values())
            verdict = (
                f"no agreement: {len(status.epochs)} different views, {len(status.silent)} silent, {joining} joining"
            )
        self.stdout.write(f"asked: {status.asked or '(this host has no node)'}; {verdict}")

    def _row(self, status: cluster.ClusterStatus, name: str, node: StatusReply) -> str:
        return _COLUMNS.format(
            name[:20],
            node.state,
            node.identity.address,
            f"{node.uptime:.0f} s",
            _heard(status, name),
            node.stats.cache_entries + node.stats.limit_entries,
            filesizeformat(node.memory).replace("\xa0", " "),
            node.stats.requests,
            f"{node.epoch:016x}",
        )


def _wait_for(options: dict[str, Any]) -> cluster.ClusterStatus:
    """Asks until as many serve as are wanted and agree, or the time is up."""
    until = time.monotonic() + options["timeout"]
    while True:
        status = cluster.status()
        if (status.agree and status.serving == options["wait_for"]) or time.monotonic() >= until:
            return status
        time.sleep(ASK_EVERY)


def _heard(status: cluster.ClusterStatus, name: str) -> str:
    """When the asked node last heard this one."""
    if name == status.asked or status.asked not in status.nodes:
        return "-"
    ages = [m.heard_ago for m in status.nodes[status.asked].members if m.identity.name == name]
    return f"{ages[0]:.1f} s" if ages else "never"


def as_json(status: cluster.ClusterStatus) -> dict[str, Any]:
    """Everything that the nodes say, with their field names; boot ids in hexadecimal."""
    nodes = {name: _named_fields(node) for name, node in status.nodes.items()}
    return {
        "agree": status.agree,
        "asked": status.asked,
        "nodes": nodes,
        "silent": status.silent,
        "problems": status.problems,
    }


def _named_fields(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _named_fields(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [_named_fields(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
