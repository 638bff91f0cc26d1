"""Which connections keep their slots when all are taken.

A new connection isn't refused because of those of others: a connection of the source that holds most is closed for it,
an idle one if there is any. A source is another host, by its address, or a process of this host.
"""

import enum
import socket
import struct
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from ipaddress import IPv6Address, IPv6Network
from typing import Generic, NamedTuple, Protocol, TypeVar

SECOND_CHANCES = 64  # connections in use that are passed over in the search for one that isn't


class SourceKind(enum.Enum):
    NODE = "node"
    LOCAL = "local"  # a process of this host, by the unix socket
    REMOTE = "remote"


class Source(NamedTuple):
    kind: SourceKind
    name: str

    def __str__(self) -> str:
        return f"process {self.name} of this host" if self.kind is SourceKind.LOCAL else self.name


def network_of(host: str) -> str:
    """The address, or of an IPv6 address the /64 that it belongs to, which one host has to itself."""
    if ":" not in host:
        return host
    address = IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


def source_of(sock: socket.socket) -> Source:
    """The other host by its network, or a process of this host by its ID."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return Source(SourceKind.LOCAL, str(struct.unpack("3i", credentials)[0]))
    try:
        return Source(SourceKind.REMOTE, network_of(sock.getpeername()[0]))
    except OSError:  # it is closed already
        return Source(SourceKind.REMOTE, "")


class Connected(Hashable, Protocol):
    used: bool  # since it was last considered for eviction; set by the connection


C = TypeVar("C", bound=Connected)


class ConnectionSlots(Generic[C]):
    """At most `most` connections, of them at most `for_nodes` of nodes.

    Connections of nodes are evicted only for those of nodes. Those of this host's processes aren't evicted for those of
    other hosts as long as there are at most `for_local` of them.
    """

    def __init__(self, most: int, for_nodes: int, for_local: int) -> None:
        self.most = most
        self.for_nodes = for_nodes
        self.for_local = for_local
        self._connections: dict[Source, OrderedDict[C, None]] = {}
        self.sources: dict[C, Source] = {}  # of each connection
        self._counts = dict.fromkeys(SourceKind, 0)

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[C]:
        return iter(list(self.sources))

    def enter(self, connection: C, source: Source) -> C | None:
        """Gives a connection a slot. Returns the connection to close for it, if any: the new one itself if no other
        may be evicted."""
        self.discard(connection)
        evicted = None
        too_many_nodes = source.kind is SourceKind.NODE and self._counts[SourceKind.NODE] >= self.for_nodes
        if too_many_nodes or len(self.sources) >= self.most:
            evicted = self._to_evict(source, nodes=too_many_nodes)
            if evicted is None:
                return connection
            self.discard(evicted)
        self.sources[connection] = source
        self._connections.setdefault(source, OrderedDict())[connection] = None
        self._counts[source.kind] += 1
        return evicted

    def discard(self, connection: C) -> None:
        source = self.sources.pop(connection, None)
        if source is not None:
            self._counts[source.kind] -= 1
            connections = self._connections[source]
            del connections[connection]
            if not connections:
                del self._connections[source]

    def _to_evict(self, incoming: Source, *, nodes: bool) -> C | None:
        candidates = [source for source in self._connections if self._may_be_evicted_for(source, incoming, nodes=nodes)]
        if not candidates:
            return None
        largest = max(candidates, key=lambda source: len(self._connections[source]))
        connections = self._connections[largest]
        for _ in range(min(len(connections), SECOND_CHANCES)):
            first = next(iter(connections))
            if not first.used:
                return first
            first.used = False
            connections.move_to_end(first)
        # All are in use. One goes nevertheless for a kind that has its places reserved, or to make shares more equal.
        own = len(self._connections.get(incoming, ()))
        if incoming.kind is not largest.kind or len(connections) > own + 1:
            return next(iter(connections))
        return None

    def _may_be_evicted_for(self, source: Source, incoming: Source, *, nodes: bool) -> bool:
        if nodes or source.kind is SourceKind.NODE:
            return nodes and source.kind is SourceKind.NODE
        if source.kind is SourceKind.LOCAL and incoming.kind is SourceKind.REMOTE:
            return self._counts[SourceKind.LOCAL] > self.for_local
        return True
