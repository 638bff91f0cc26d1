"""The links of a node: two outgoing connections to each peer, dialled again for ever.

Heartbeats have one to themselves. They can wait, so a peer reads it together with those of others. The second carries
what can't wait, and is read at once: users' messages, and once more that we leave.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Iterable, Sequence

from ..core.messages import Identity
from ..exceptions import ProtocolError, Unavailable
from ..wire.address import TcpAddress, parse_tcp
from ..wire.aio import AsyncConnection, connect
from ..wire.framing import frame
from ..wire.handshake import OwnChallenge
from ..wire.messages import Deliver, Forward, Ping, Pong, channel_tag, encode
from .channels import NODES_OWN

DIAL_TIMEOUT = 1.0
REDIAL = (0.05, 1.0)  # seconds between dials, from the first to the last
MAX_LINKS = 1024
DOUBT_EVERY = 1.0  # seconds: a link that is fresher than this isn't tried again
UNWANTED_AFTER = 60.0  # an address that nobody has named for so long, and that doesn't answer, is dropped
KEEPALIVE_AFTER = 30  # seconds that a connection is idle
USER_TIMEOUT_MS = 5000  # a peer that acknowledges nothing for so long has lost us: dial afresh

_PING = frame(encode(Ping()))


class Links:
    """Keeps a link to every wanted address but our own.

    `on_open(identity)` is called when a peer has answered; `on_refused(identity)` when its link was closed and a
    fresh dial was refused, which says that its process is gone. `report` is told in words of peers that refuse us.
    """

    def __init__(
        self,
        me: Identity,
        keys: Sequence[bytes],
        clock: Callable[[], float],
        on_open: Callable[[Identity], None],
        on_refused: Callable[[Identity], None],
        report: Callable[[str], None],
    ) -> None:
        self.me = me
        self.keys = keys
        self.on_open = on_open
        self.on_refused = on_refused
        self.report = report
        self.dropped = 0  # messages that found a link closed or too slow
        self.hurried = False  # set when we leave: then heartbeats take both ways, since they can't wait any more
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._ours: set[str] = {me.address}

    def now(self) -> float:
        return self._clock()

    def want(self, addresses: Iterable[str]) -> None:
        """Links to these addresses too; those known already are kept for longer."""
        now = self._clock()
        for address in addresses:
            link = self._links.get(address)
            if link is not None:
                link.wanted = now
            elif address not in self._ours and len(self._links) < MAX_LINKS:
                try:
                    self._links[address] = Link(self, parse_tcp(address), now)
                except ValueError as error:
                    self.report(f"a peer can't be reached: {error}")

    def knows(self, address: str) -> bool:
        return address in self._links or address in self._ours

    def heard(self, address: str) -> None:
        """A heartbeat came from there, so a dial is worth while now, however often it was refused before."""
        link = self._links.get(address)
        if link is None:
            self.want([address])
            return
        link.wanted = self._clock()
        if link.connection is None:
            link.retry.set()

    def fan_out(self, message: Deliver) -> None:
        data = frame(encode(message))
        patient = message.group.startswith(NODES_OWN)
        for link in self._links.values():
            if link.identity is not None:
                connection = link.patient if patient else link.connection
                if not (connection and connection.cast(data)):
                    self.dropped += 1
                if patient and self.hurried and link.connection:
                    link.connection.cast(data)

    def forward(self, tag: str, message: Forward) -> None:
        """To the peer with this tag (see `channel_tag`)."""
        data = frame(encode(message))
        for link in self._links.values():
            if link.identity is not None and channel_tag(link.identity.name) == tag:
                if link.connection and link.connection.cast(data):
                    return
                break
        self.dropped += 1

    def doubt(self, name: str) -> None:
        """A requester says that this peer fails: a fresh dial tells whether its process is gone, and harms nothing."""
        now = self._clock()
        for address, link in self._links.items():
            if link.identity is not None and link.identity.name == name and now - link.opened > DOUBT_EVERY:
                self.reset(address)

    def reset(self, address: str) -> None:
        """Closes the link and dials afresh: what waits in a connection to a lost host may wait for long."""
        link = self._links.get(address)
        if link is not None and link.connection is not None:
            link.connection.close()

    def open_to(self) -> list[bytes]:
        """The boot ids of the peers to which a link is open."""
        links = self._links.values()
        return [link.identity.boot for link in links if link.identity is not None and link.connection is not None]

    def tick(self) -> None:
        now = self._clock()
        for address, link in list(self._links.items()):
            if link.task.done() or (link.connection is None and now - link.wanted > UNWANTED_AFTER):
                link.task.cancel()
                del self._links[address]

    def is_ours(self, address: TcpAddress) -> None:
        """It was ourselves who answered there, or somebody who passes on what we say: not to be dialled again."""
        self._ours.add(str(address))

    async def close(self) -> None:
        tasks = [link.task for link in self._links.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()


class Link:
    """One address, dialled until it answers, and again when it is lost."""

    def __init__(self, links: Links, address: TcpAddress, now: float) -> None:
        self.wanted = now
        self.identity: Identity | None = None
        self.connection: AsyncConnection | None = None
        self.patient: AsyncConnection | None = None
        self.opened = now
        self.retry = asyncio.Event()
        self._links = links
        self._address = address
        self._complaint = ""
        self.task = asyncio.create_task(self._run(), name=f"link to {address}")

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
        except OwnChallenge:
            self._links.is_ours(self._address)
        finally:
            self._close()

    def _close(self) -> None:
        """Both connections, whichever was lost."""
        for connection in (self.connection, self.patient):
            if connection is not None:
                connection.close()
        self.connection = self.patient = None

    async def _dial(self, lost: asyncio.Event) -> bool:
        """Whether a peer answered. Raises `OwnChallenge` if it was ourselves."""
        links = self._links
        try:
            self.patient = await self._connect(lost)
            connection = await self._connect(lost)
            pong = await connection.request(_PING)
        except ProtocolError as error:
            if isinstance(error.__cause__, OwnChallenge):
                raise error.__cause__ from None
            self._complain(str(error))
            return False
        except Unavailable as error:
            if isinstance(error.__cause__, ConnectionRefusedError) and self.identity is not None:
                gone, self.identity = self.identity, None
                links.on_refused(gone)
            return False
        assert isinstance(pong, Pong)
        self._complaint = ""
        self.identity, self.connection, self.opened = pong.identity, connection, links.now()
        links.on_open(pong.identity)
        return True

    async def _connect(self, lost: asyncio.Event) -> AsyncConnection:
        connection = await connect(self._address, self._links.keys, DIAL_TIMEOUT, lost.set, self._links.me.boot)
        connection.set_option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        # The second connection may be idle for hours, and a firewall between the hosts forget it.
        connection.set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.set_option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_AFTER)
        return connection

    def _complain(self, text: str) -> None:
        if text != self._complaint:  # once, not at each dial
            self._complaint = text
            self._links.report(text)
