"""Creates the source of addresses for a `DISCOVERY` setting, and the source that needs Django: its database."""

import asyncio
import datetime
from collections.abc import Callable, Sequence
from typing import Any

from django.db import Error, IntegrityError, connections, router
from django.db.models import Max
from django.db.models.functions import Now

from .models import NodeAddress
from .node.discovery import DNS_EVERY, DNS_TIMEOUT, LIST_EVERY, LIST_TIMEOUT, ConfiguredDiscovery, Discovery
from .node.log import logger
from .wire.address import TcpAddress, parse_ip, parse_tcp
from .wire.background_threads import BackgroundWork, T

ANNOUNCE_EVERY = 30.0
RETRY_AFTER = 5.0  # seconds, while the database fails
ANNOUNCE_WITHIN = 3.0  # seconds; then the rows of others are read although this node's isn't written yet
FIRST_INTERVALS = (0.2, 1.0, 3.0)  # seconds: nodes that start at the same moment soon find each other
FRESH = datetime.timedelta(seconds=3 * ANNOUNCE_EVERY)
FORGET_AFTER = datetime.timedelta(days=1)
MAX_ROWS = 1024  # the maximum of links of a node


class DatabaseNow(Now):
    """The time of the database's clock, so that the hosts' clocks may differ. SQLite has only the host's clock."""

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        """The time in UTC, as Django stores it: CURRENT_TIMESTAMP would be in the time zone of the session."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra)


class DatabaseDiscovery:
    """Keeps a row with this node's address, and reads the rows of other nodes that were renewed within `FRESH`.

    The rows of killed nodes stay for a day, but their addresses are not used: they may belong to other hosts by now.
    A row that was renewed between two reads is used whatever its time says: on SQLite the times are those of the
    hosts' clocks. While this node's row cannot be written (a full disk, a lock, a read-only database), other nodes
    probably can't write theirs either: the ages are then relative to the newest row. Reading and writing don't depend
    on each other.
    """

    configured: Sequence[TcpAddress] = ()

    def __init__(self, name: str, cluster: str, address: str) -> None:
        self.problem = ""
        self._name = name
        self._cluster = cluster
        self._address = address
        self._intervals = list(FIRST_INTERVALS)
        self._failed = False
        self._seen: dict[str, datetime.datetime] = {}  # the times of the rows when they were last read
        self._warned: set[str] = set()
        self._announcing = BackgroundWork(_with_own_connection(self._announce), "discovery, writing")
        self._reading = BackgroundWork(_with_own_connection(self._read), "discovery, reading")
        self._withdrawing = BackgroundWork(_with_own_connection(self._withdraw), "discovery, leaving")

    @property
    def interval(self) -> float:
        if self._intervals:
            return self._intervals.pop(0)
        return RETRY_AFTER if self._failed else ANNOUNCE_EVERY

    async def addresses(self) -> Sequence[str]:
        self._failed, self.problem = True, ""
        try:
            async with asyncio.timeout(ANNOUNCE_WITHIN):
                await asyncio.wrap_future(self._announcing.start())
        except TimeoutError:
            self.problem = f"this node's row has not been written after {ANNOUNCE_WITHIN:g} s: is the database locked?"
        except Exception as error:  # a database may raise anything
            self.problem = f"this node's row cannot be written: {type(error).__name__}: {error}"
        rows = await asyncio.wrap_future(self._reading.start())
        self._failed = bool(self.problem)
        return self._reachable(rows)

    async def withdraw(self) -> None:
        await asyncio.wrap_future(self._withdrawing.start())

    def _announce(self) -> None:
        rows = NodeAddress.objects.filter(cluster=self._cluster)
        if not rows.filter(name=self._name).update(address=self._address, seen=DatabaseNow()):
            try:
                NodeAddress.objects.create(
                    cluster=self._cluster, name=self._name, address=self._address, seen=DatabaseNow()
                )
            except IntegrityError:  # another node of this name was faster
                logger.debug("discovery row of %s written by another node at the same moment", self._name)
        rows.filter(seen__lt=DatabaseNow() - FORGET_AFTER).delete()

    def _read(self) -> dict[str, str]:
        rows = NodeAddress.objects.filter(cluster=self._cluster)
        now = rows.aggregate(newest=Max("seen"))["newest"] if self.problem else DatabaseNow()
        if now is None:
            return {}
        others = rows.exclude(name=self._name).order_by("-seen")
        fresh = dict(others.filter(seen__gt=now - FRESH).values_list("name", "address")[:MAX_ROWS])
        before, self._seen = self._seen, {}
        for name, address, seen in others.values_list("name", "address", "seen")[:MAX_ROWS]:
            self._seen[name] = seen
            if seen > before.get(name, seen):
                fresh[name] = address
        return fresh

    def _withdraw(self) -> None:
        NodeAddress.objects.filter(cluster=self._cluster, name=self._name, address=self._address).delete()

    def _reachable(self, rows: dict[str, str]) -> list[str]:
        """The addresses to dial: none on the loopback interface unless this node advertises such an address too."""
        ours = parse_tcp(self._address)
        found = []
        for name, text in rows.items():
            try:
                address = parse_ip(text)
            except ValueError:
                problem = f"address of node {name} in the discovery table is invalid, so it is not dialed: {text!r}"
                self._warn(name, problem)
                continue
            if ours.is_loopback and (text == self._address or not address.is_loopback):
                # Nodes of two hosts that both have the default address would each dial themselves.
                self._warn(
                    "ours",
                    f"this node advertises {ours}, which node {name} cannot reach. Set CLUSTERSTATE_BIND to an address "
                    "of this host that the others can reach",
                )
                found.append(text)
            elif address.is_loopback and not ours.is_loopback:
                self._warn(
                    name,
                    f"node {name} advertises {text}, which is reachable only from its own host, so it is not dialed "
                    "and stays out of the cluster. Set CLUSTERSTATE_BIND there to an address of that host",
                )
            else:
                found.append(text)
        return found

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned and len(self._warned) < MAX_ROWS:  # once
            self._warned.add(about)
            logger.warning("discovery: %s", text)


def _with_own_connection(work: Callable[[], T]) -> Callable[[], T]:
    """Closes the thread's database connections afterwards, so that none is used after a restart of the database."""

    def run() -> T:
        try:
            return work()
        finally:
            connections.close_all()

    return run


def table_problem() -> tuple[str, bool]:
    """Why the discovery table can't be read (empty if it can), and whether the table doesn't exist.

    Takes a few seconds at most, and leaves no connection open.
    """
    try:
        work = BackgroundWork(_with_own_connection(_table_problem), "discovery, table")
        return work.start().result(ANNOUNCE_WITHIN)
    except TimeoutError:
        return f"no answer after {ANNOUNCE_WITHIN:g} s: is it locked or unreachable?", False


def _table_problem() -> tuple[str, bool]:
    connection = connections[router.db_for_read(NodeAddress)]
    try:
        NodeAddress.objects.exists()
    except Error as error:
        try:
            missing = NodeAddress._meta.db_table not in connection.introspection.table_names()
        except Error:  # the database can't be read at all, so the table may exist
            missing = False
        return f"{type(error).__name__}: {error}", missing
    return "", False


def make_discovery(spec: str, name: str, cluster: str, address: str) -> Discovery:
    """The source for a `DISCOVERY` setting: `database`, `dns://name:port`, or `host:port,host:port`.

    Raises `ValueError` if it is none of these.
    """
    if spec == "database":
        return DatabaseDiscovery(name, cluster, address)
    try:
        if spec.startswith("dns://"):
            return ConfiguredDiscovery([parse_tcp(spec.removeprefix("dns://"))], DNS_EVERY, DNS_TIMEOUT)
        return ConfiguredDiscovery([parse_tcp(part) for part in spec.split(",")], LIST_EVERY, LIST_TIMEOUT)
    except ValueError as error:
        raise ValueError(
            f"CLUSTERSTATE['DISCOVERY'] must be 'database', 'dns://NAME:PORT' or addresses with commas: {error}."
        ) from error
