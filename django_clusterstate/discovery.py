"""What `DISCOVERY` may say, and the source that needs Django: the project's own database."""

import datetime
import logging
from collections.abc import Sequence

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.utils import timezone

from .models import NodeAddress
from .node.discovery import Discovery, DnsDiscovery, ListDiscovery
from .wire.address import parse_tcp

logger = logging.getLogger("django_clusterstate.node")

ANNOUNCE_EVERY = 30.0
FIRST_LOOKS = (0.2, 1.0, 3.0)  # seconds: nodes that start at the same moment look again soon
FRESH = datetime.timedelta(seconds=2 * ANNOUNCE_EVERY)
FORGET_AFTER = datetime.timedelta(days=1)


class DatabaseDiscovery:
    """Each node keeps a row with its address, and reads those of the others.

    Rows of nodes that were killed stay for a day: they cost a refused dial now and then.
    """

    def __init__(self, name: str, cluster: str, address: str) -> None:
        self._name = name
        self._cluster = cluster
        self._address = address
        self._looks = list(FIRST_LOOKS)
        self._warned = False

    @property
    def interval(self) -> float:
        return self._looks.pop(0) if self._looks else ANNOUNCE_EVERY

    async def addresses(self) -> Sequence[str]:
        return await sync_to_async(self._announce_and_read, thread_sensitive=False)()

    def _announce_and_read(self) -> Sequence[str]:
        close_old_connections()
        try:
            now = timezone.now()
            NodeAddress.objects.update_or_create(
                cluster=self._cluster, name=self._name, defaults={"address": self._address, "seen": now}
            )
            rows = NodeAddress.objects.filter(cluster=self._cluster)
            rows.filter(seen__lt=now - FORGET_AFTER).delete()
            others = dict(rows.exclude(name=self._name).values_list("name", "address"))
            fresh = rows.exclude(name=self._name).filter(seen__gt=now - FRESH)
            self._warn_of_unreachable(dict(fresh.values_list("name", "address")))
            return list(others.values())
        finally:
            close_old_connections()

    def _warn_of_unreachable(self, others: dict[str, str]) -> None:
        """Two hosts that keep the default address are two clusters: each would dial itself."""
        ours = parse_tcp(self._address)
        strangers = [n for n, a in others.items() if a == self._address or not parse_tcp(a).is_loopback]
        if ours.is_loopback and strangers and not self._warned:
            self._warned = True
            logger.warning(
                "node %s can't reach us: we advertise %s, which is only this host. Set CLUSTERSTATE_BIND to an address "
                "of this host that the others can reach",
                min(strangers),
                self._address,
            )

    async def withdraw(self) -> None:
        await sync_to_async(self._withdraw, thread_sensitive=False)()

    def _withdraw(self) -> None:
        close_old_connections()
        try:
            NodeAddress.objects.filter(cluster=self._cluster, name=self._name, address=self._address).delete()
        finally:
            close_old_connections()


def make_discovery(spec: str, name: str, cluster: str, address: str) -> Discovery:
    """The source for a `DISCOVERY` setting: `database`, `dns://name:port`, or `host:port,host:port`.

    Raises `ValueError`, which says so.
    """
    if spec == "database":
        return DatabaseDiscovery(name, cluster, address)
    try:
        if spec.startswith("dns://"):
            return DnsDiscovery(parse_tcp(spec.removeprefix("dns://")))
        return ListDiscovery([parse_tcp(part) for part in spec.split(",")])
    except ValueError as error:
        raise ValueError(
            f"discovery {spec!r}: {error}. It may be 'database', 'dns://NAME:PORT', or addresses separated by commas."
        ) from error
