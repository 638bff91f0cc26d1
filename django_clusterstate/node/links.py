"""The links of a node: three outgoing connections to each peer, dialed again whenever they are lost.

The first carries only heartbeats, which can wait, so the peer reads it together with those of other nodes. The second
is read at once: it carries users' messages, and the last heartbeat of a leaving node. The third carries copies and
forwarded requests, each of which has a reply.
"""

import asyncio
import contextlib
import math
import random
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.membership.heartbeat import Identity
from ..exceptions import ProtocolError, Refused, Unavailable
from ..wire.address import TcpAddress, parse_ip
from ..wire.aio import AsyncConnection, connect
from ..wire.derived_keys import LinkKey
from ..wire.handshake import DialedItself, Hello, OtherInstance, OtherNode, Role
from ..wire.messages import Deliver, Forward, channel_tag, request_frame
from .channels.queues import NODE_GROUPS
from .log import RateLimitedLog
from .problems import Misdirected

DIAL_TIMEOUT = 1.0
COPIES_TIMEOUT = 5.0  # seconds after which a connection for copies is dialed again if a forwarded request has no reply
REDIAL = (0.05, 1.0)  # seconds between dials, from the first to the last
MAX_LINKS = 1024
REDIAL_AFTER = 1.0  # seconds: a newer link isn't dialed again
DROPPED_AFTER = 60.0  # seconds until an address that doesn't answer and wasn't named again is dropped
KEEPALIVE_AFTER = 30  # seconds that a connection is idle
USER_TIMEOUT_MS = 5000  # a peer that acknowledges nothing for that time is dialed again
OWN_FOR = 60.0  # seconds until an address at which this node itself answered is dialed again
MISDIRECTED_FOR = 60.0  # seconds that a wrong address of a peer is shown after it was last dialed or heard
MAX_MISDIRECTED = 256


class Peer(NamedTuple):
    """An instance of another node, as its sealed handshake or its heartbeat shows it."""

    name: str
    boot: bytes


@dataclass(eq=False, repr=False)
class Links:
    """Keeps a link to every known address but this node's own.

    A link means whichever node answers at an address, until a heartbeat says which one it is: from then on only that
    instance of that node is accepted there.

    `on_open(peer, address)` is called when a peer has completed the handshake; `on_refused(peer)` when its process is
    gone: its link was closed and the next dial refused, or another instance of it answers. `log` takes a line for each
    address that can't be used. `misdirected` holds, by name, the peers whose advertised address leads to another node.
    """

    me: Identity
    keys: Sequence[LinkKey]
    clock: Callable[[], float]
    on_open: Callable[[Peer, str], None]
    on_refused: Callable[[Peer], None]
    log: RateLimitedLog
    dropped: int = 0  # messages that found a link too slow
    unreachable: int = 0  # messages of users for a peer whose link was down, as while it restarts
    reached: bool = False  # set when another node has reached this one at the address that it advertises
    leaving: bool = False  # set when this node leaves: heartbeats, which can't wait then, take both connections
    misdirected: dict[str, Misdirected] = field(default_factory=dict)
    _links: dict[str, "Link"] = field(default_factory=dict)
    _own: dict[str, float] = field(default_factory=dict)  # this node's addresses, and until when they aren't dialed

    def __post_init__(self) -> None:
        self._own[self.me.address] = math.inf

    def add(self, addresses: Iterable[str]) -> None:
        """Makes links to these addresses; those that exist are kept for longer."""
        now = self.clock()
        for address in addresses:
            link = self._links.get(address)
            if link is not None:
                link.named_at = now
            elif address not in self._own and len(self._links) < MAX_LINKS:
                try:
                    self._links[address] = Link(self, parse_ip(address), now)
                except ValueError as error:
                    self.log.write(f"peer address ignored: {error}", "addresses")

    def has(self, address: str) -> bool:
        return address in self._links or address in self._own

    def dial(self, identity: Identity) -> None:
        """Dials this instance, which has just sent a heartbeat, at once, however often dials were refused before."""
        peer = Peer(identity.name, identity.boot)
        if identity.address in self._own:
            if self.reached or identity.address != self.me.address:
                self.note_misdirected(peer.name, identity.address, self.me.name)
            return
        self.add([identity.address])
        link = self._links.get(identity.address)
        if link is not None:
            link.expect(peer, self.clock())

    def note_misdirected(self, name: str, address: str, found: str) -> None:
        """Notes that `found` answers at the address which `name` advertises."""
        if name in self.misdirected or len(self.misdirected) < MAX_MISDIRECTED:
            self.misdirected[name] = Misdirected(address, found, self.clock())

    def fan_out(self, message: Deliver) -> None:
        data = request_frame(message)
        heartbeat = message.group.startswith(NODE_GROUPS)
        for link in self._peers():
            connection = link.heartbeats if heartbeat else link.connection
            if connection is not None and not connection.closed:
                if not connection.cast(data):
                    self.dropped += 1
            elif not heartbeat:
                self.unreachable += 1
            if heartbeat and self.leaving and link.connection:
                link.connection.cast(data)

    def _peers(self) -> Iterable["Link"]:
        """One link to each peer, since it may answer at more than one address: an open link if there is one, and rather
        that of the address which the peer advertises."""
        best: dict[bytes, Link] = {}
        for link in self._links.values():
            if link.peer is not None:
                other = best.get(link.peer.boot)
                if other is None or link.rank > other.rank:
                    best[link.peer.boot] = link
        return best.values()

    def forward(self, tag: str, message: Forward) -> None:
        """Sends the message to the peer with this tag (see `channel_tag`)."""
        data = request_frame(message)
        for link in self._links.values():  # one of an address that the peer had before isn't open
            if link.connection and link.is_open and link.peer is not None and channel_tag(link.peer.name) == tag:
                if not link.connection.cast(data):
                    self.dropped += 1
                return
        self.unreachable += 1

    def copies(self) -> Iterator[tuple[bytes, AsyncConnection]]:
        """The open connections for copies, each with the boot ID of its peer."""
        for link in self._links.values():
            if link.copies is not None and not link.copies.closed and link.peer is not None:
                yield link.peer.boot, link.copies

    def redial(self, name: str) -> None:
        """Dials a peer again because requests to it fail: that shows whether its process has ended."""
        now = self.clock()
        for address, link in self._links.items():
            if link.peer is not None and link.peer.name == name and now - link.opened > REDIAL_AFTER:
                self.reset(address)

    def reset(self, address: str) -> None:
        """Closes the link, which is then dialed again: messages in a connection to a lost host may wait for long."""
        link = self._links.get(address)
        if link is not None and link.connection is not None:
            link.connection.close()

    def connected_boots(self) -> list[bytes]:
        """The boot IDs of the peers to which a link is open."""
        links = self._links.values()
        return [link.peer.boot for link in links if link.peer is not None and link.connection is not None]

    def tick(self) -> None:
        now = self.clock()
        for address, link in list(self._links.items()):
            if link.task.done() or (link.connection is None and now - link.named_at > DROPPED_AFTER):
                link.task.cancel()
                del self._links[address]
        self._own = {address: until for address, until in self._own.items() if until > now}
        for name in [name for name, wrong in self.misdirected.items() if now - wrong.seen > MISDIRECTED_FOR]:
            del self.misdirected[name]

    def note_own(self, address: TcpAddress) -> None:
        """Suspends dialing an address at which this node itself, or a relay of its messages, answered."""
        self._own.setdefault(str(address), self.clock() + OWN_FOR)

    async def close(self) -> None:
        tasks = [link.task for link in self._links.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()


class Link:
    """One address, dialed until it answers, and again when it is lost."""

    def __init__(self, links: Links, address: TcpAddress, now: float) -> None:
        self.named_at = now
        self.peer: Peer | None = None  # to which the link is or was open
        self.connection: AsyncConnection | None = None
        self.heartbeats: AsyncConnection | None = None
        self.copies: AsyncConnection | None = None
        self.opened = now
        self.retry = asyncio.Event()
        self._expected: Peer | None = None  # None: any
        self._links = links
        self._address = address
        self.task = asyncio.create_task(self._run(), name=f"link to {address}")

    @property
    def is_open(self) -> bool:
        return self.connection is not None and not self.connection.closed

    @property
    def rank(self) -> tuple[bool, bool]:
        """Whether it is open, and whether its address is the one that its peer's heartbeats name."""
        return self.is_open, self._expected == self.peer

    def expect(self, peer: Peer, now: float) -> None:
        """Lets the next dial accept only this instance of this node.

        A link that is open stays: its peer has proved that the address is its own, and a heartbeat only says so. Two
        nodes may advertise one address for any time.
        """
        self.named_at = now
        if self.is_open and self.peer is not None and self.peer.name != peer.name:
            self._links.note_misdirected(peer.name, str(self._address), self.peer.name)
            return
        self._expected = peer
        if self.connection is None:
            self.retry.set()

    async def _run(self) -> None:
        pause = REDIAL[0]
        try:
            while True:
                self._close()
                lost = asyncio.Event()
                if await self._dial(lost):
                    pause = REDIAL[0]
                    await lost.wait()
                    continue
                self.retry.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):
                        await self.retry.wait()
                pause = min(pause * 2, REDIAL[1])
        except DialedItself:
            self._links.note_own(self._address)
            if self._expected is not None:
                self._links.note_misdirected(self._expected.name, str(self._address), self._links.me.name)
        finally:
            self._close()

    def _close(self) -> None:
        """Closes all connections, whichever was lost."""
        for connection in (self.connection, self.heartbeats, self.copies):
            if connection is not None:
                connection.close()
        self.connection = self.heartbeats = self.copies = None

    async def _dial(self, lost: asyncio.Event) -> bool:
        """Dials the address. Returns whether a peer answered. Raises `DialedItself` if this node itself did."""
        links, expected = self._links, self._expected
        try:
            self.heartbeats = await self._connect(lost, expected)
            verdict = self.heartbeats.verdict
            peer = Peer(verdict.name, verdict.boot)
            connection = await self._connect(lost, peer)
            try:
                self.copies = await self._connect(lost, peer, COPIES_TIMEOUT)
            except BaseException:
                connection.close()
                raise
        except OtherInstance as other:
            self._refused(Peer(other.name, expected.boot if expected is not None else b""))
            if self._expected == expected:
                self._expected = None  # the instance that answers now is accepted like any that discovery finds
        except OtherNode as other:
            if expected is not None:
                links.note_misdirected(expected.name, str(self._address), other.name)
        except DialedItself:
            raise
        except ProtocolError as error:
            links.log.write(
                f"link to {self._address} failed, retrying every {REDIAL[1]:g} s: {error}", str(self._address)
            )
        except Unavailable as error:
            if isinstance(error, Refused) and self.peer is not None:
                self._refused(self.peer)
        else:
            links.misdirected.pop(peer.name, None)
            self.peer, self.connection, self.opened = peer, connection, links.clock()
            links.on_open(peer, str(self._address))
            return True
        return False

    def _refused(self, peer: Peer) -> None:
        self.peer = None
        self._links.on_refused(peer)

    async def _connect(
        self, lost: asyncio.Event, expected: Peer | None, deadline: float = DIAL_TIMEOUT
    ) -> AsyncConnection:
        me = self._links.me
        name, boot = expected or ("", b"")
        hello = Hello(Role.NODE, name, boot, name=me.name, boot=me.boot, address=me.address)
        connection = await connect(self._address, self._links.keys, deadline, lost.set, hello)
        connection.set_option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        # A firewall between the hosts may drop the state of the second connection, which can be idle for hours.
        connection.set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.set_option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_AFTER)
        return connection
