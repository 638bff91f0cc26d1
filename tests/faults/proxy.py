"""A TCP proxy that delays each direction, records or alters what passes, or resets connections. Bytes stay in order."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from django_clusterstate.wire.address import TcpAddress, UnixAddress
from testproject.processes import free_port

SECONDS = 20.0  # whatever takes longer never ends

Delay = Callable[[], float]
Alter = Callable[[int, bool, bytes], bytes]  # the connection's number, whether its maker says it, and what is said


class Proxy:
    """Listens on `port` of the loopback interface and passes on to another port while its context is entered. Before a
    unix socket it listens beside that: there, what passes isn't sealed."""

    def __init__(
        self,
        target: int | UnixAddress,
        delay: Delay = lambda: 0.0,
        *,
        port: int = 0,
        alter: Alter = lambda number, from_maker, data: data,
    ) -> None:
        self.address: TcpAddress | UnixAddress
        if isinstance(target, UnixAddress):
            self.address, self.port = UnixAddress(f"{target.path}.proxy"), 0
        else:
            self.port = port or free_port()
            self.address = TcpAddress("127.0.0.1", self.port)
        self.connections = 0
        self.sent: list[list[bytes]] = []  # by connection, what its maker said
        self.answered: list[list[bytes]] = []  # and what was said to it
        self.cut = 0  # of how many next answers the connection is reset in their place
        self.cut_on: list[bytes] = []  # once one of these words was sent, the answer to it
        self._passing: list[asyncio.Task[None] | None] = []  # of a reset one asyncio itself keeps no reference
        self._target = target
        self._delay = delay
        self._alter = alter
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(SECONDS)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        if isinstance(self.address, UnixAddress):
            self._server = await asyncio.start_unix_server(self._pass_on, self.address.path)
        else:
            self._server = await asyncio.start_server(self._pass_on, *self.address)

    async def _stop(self) -> None:
        self._server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        self._passing.append(asyncio.current_task())
        self.sent.append([])
        self.answered.append([])
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            there, back = await self._dial()
            with contextlib.closing(back):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pump(reader, back, number, from_maker=True))
                    tasks.create_task(self._pump(there, writer, number, from_maker=False))

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, UnixAddress):
            return await asyncio.open_unix_connection(self._target.path)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, *, from_maker: bool
    ) -> None:
        record = (self.sent if from_maker else self.answered)[number]
        loop = asyncio.get_running_loop()
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                when, data = await due.get()
                await asyncio.sleep(when - loop.time())
                if not data:
                    break
                writer.write(data)
            with contextlib.suppress(OSError):
                writer.write_eof()

        last = 0.0
        delivery = asyncio.create_task(deliver())
        try:
            while True:
                try:
                    data = await reader.read(65536)
                except OSError:
                    data = b""
                if data:
                    data = self._alter(number, from_maker, data)
                    record.append(data)
                if data and from_maker:
                    if any(word in data for word in self.cut_on):
                        self.cut_on.clear()
                        self.cut = 1
                elif data and self.cut:
                    self.cut -= 1
                    _reset(writer)
                    return
                last = max(last, loop.time() + self._delay())
                due.put_nowait((last, data))
                if not data:
                    break
            await delivery
        finally:
            delivery.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a reset in the place of an orderly end."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
