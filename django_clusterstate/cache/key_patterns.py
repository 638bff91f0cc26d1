"""Glob patterns over the keys of a cache: `iter_keys()` and `delete_pattern()`."""

import fnmatch
import re

from ..client.operations import Operation
from ..client.routing import RoutingTable, Target
from ..wire import messages as wire
from .requester import CacheRequester


class KeyPattern:
    """A glob pattern over users' keys, as in `fnmatch.fnmatchcase`.

    `prefix` is the bytes that precede a user's key in its stored form.
    """

    def __init__(self, pattern: str, prefix: bytes) -> None:
        self._prefix = prefix
        self._match = re.compile(fnmatch.translate(pattern)).match
        self._literal_prefix = prefix + re.split(r"[*?[]", pattern, maxsplit=1)[0].encode()

    def first_request(self) -> wire.Scan | None:
        """The request with which a scan of a node begins. None if no stored key can match."""
        return wire.Scan(self._literal_prefix) if len(self._literal_prefix) <= wire.MAX_KEY_BYTES else None

    def take(self, reply: wire.Reply | None) -> tuple[list[bytes], wire.Scan | None]:
        """The matching stored keys in a reply, and the next request; None after the last reply or a failure."""
        if not isinstance(reply, wire.ScanReply):
            return [], None
        keys = [key for key in reply.keys if self._match(self.user_key(key))]
        return keys, None if reply.cursor is None else wire.Scan(self._literal_prefix, reply.cursor)

    def user_key(self, stored: bytes) -> str:
        """The key as the user wrote it."""
        return stored[len(self._prefix) :].decode()


class KeyScan:
    """One walk through the keys that match a pattern, node after node, chunk by chunk as its caller wants them.

    Each key is found once, at its owner.
    """

    def __init__(self, requester: CacheRequester, pattern: KeyPattern) -> None:
        self._requester = requester
        self._pattern = pattern
        self._table: RoutingTable | None = None
        self._targets: list[Target] = []  # the first is being scanned
        self._request = pattern.first_request()
        self._seen: set[bytes] = set()  # of the node that is being scanned

    def next_chunk(self) -> Operation[list[str] | None]:
        """Users' keys from one reply, perhaps none; None at the end of the scan."""
        if self._table is None:
            self._table = yield from self._requester.table()
            self._targets = list(self._table.targets.values())
        if self._request is None:
            self._targets = self._targets[1:]
            self._request = self._pattern.first_request()
            self._seen = set()
        if self._request is None or not self._targets:
            return None
        target = self._targets[0]
        keys, self._request = self._pattern.take((yield from self._requester.call_node(target, self._request)))
        new = [key for key in dict.fromkeys(keys) if key not in self._seen and self._table.owner(key) is target]
        self._seen.update(new)
        return [self._pattern.user_key(key) for key in new]


def delete_pattern(requester: CacheRequester, pattern: KeyPattern) -> Operation[int]:
    """Deletes the keys that match at all nodes. Returns how many entries that were."""
    deleted = 0
    table = yield from requester.table()
    for target in table.targets.values():
        request = pattern.first_request()
        while request is not None:
            keys, request = pattern.take((yield from requester.call_node(target, request)))
            deleted += yield from _delete(requester, target, keys)
    return deleted


def _delete(requester: CacheRequester, target: Target, keys: list[bytes]) -> Operation[int]:
    """Deletes keys at one node, which may delete a few at a time. Returns how many it held."""
    deleted = 0
    while keys:
        reply = yield from requester.call_node(target, wire.Delete(keys))
        if not isinstance(reply, wire.FlagsReply) or not reply.flags:
            break
        deleted += reply.flags.count(True)
        keys = keys[len(reply.flags) :]
    return deleted
