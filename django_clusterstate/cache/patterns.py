"""Glob patterns over the keys of a cache: what the nodes are asked for, and which of their keys are meant."""

import fnmatch
import re

from ..wire import messages as wire


class Pattern:
    """A glob pattern over users' keys, as `fnmatch.fnmatchcase` knows it.

    `before` is what stands before a user's key where it is stored.
    """

    def __init__(self, pattern: str, before: bytes) -> None:
        self._before = len(before)
        self._match = re.compile(fnmatch.translate(pattern)).match
        self._prefix = before + re.split(r"[*?[]", pattern, maxsplit=1)[0].encode()

    def first_request(self) -> wire.Scan | None:
        """None when no key that is stored can match."""
        return wire.Scan(self._prefix) if len(self._prefix) <= wire.MAX_KEY_BYTES else None

    def take(self, reply: wire.Reply | None) -> tuple[list[bytes], wire.Scan | None]:
        """The stored keys in a reply that match, and the next request."""
        if not isinstance(reply, wire.ScanReply):
            return [], None
        keys = [key for key in reply.keys if self._match(self.user_key(key))]
        return keys, None if reply.cursor is None else wire.Scan(self._prefix, reply.cursor)

    def user_key(self, stored: bytes) -> str:
        return stored[self._before :].decode()
