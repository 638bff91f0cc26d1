"""The replies of one connection that wait: for another node, or behind such a reply, since replies leave in order."""

import asyncio
from collections import deque
from collections.abc import Callable

from ..wire.messages import Reply

MAX_WAITING = 64


class LateReplies:
    """`encode(reply)` gives the frame of a reply. `send(frames, was_full)` sends those that wait no longer; `was_full`:
    before that, as many waited as may."""

    def __init__(self, encode: Callable[[Reply], bytes], send: Callable[[bytes, bool], None]) -> None:
        self._encode = encode
        self._send = send
        self._waiting: deque[asyncio.Future[Reply] | bytes] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING

    def add(self, reply: "Reply | asyncio.Future[Reply]") -> None:
        """Sends a reply as soon as it is there, and all before it are sent."""
        if isinstance(reply, asyncio.Future):
            self._waiting.append(reply)
            reply.add_done_callback(self._send_done)
        else:
            self._waiting.append(self._encode(reply))

    def _send_done(self, _: object) -> None:
        frames: list[bytes] = []
        was_full = self.full
        while self._waiting:
            reply = self._waiting[0]
            if isinstance(reply, asyncio.Future):
                if not reply.done():
                    break
                reply = self._encode(reply.result())
            frames.append(reply)
            self._waiting.popleft()
        if frames:
            self._send(b"".join(frames), was_full)
