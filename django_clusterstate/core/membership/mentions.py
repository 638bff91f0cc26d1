"""How others name this node in their heartbeats: whether they hear it."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from .heartbeat import GONE, Observation

MAX_PEERS: Final = 256  # that have named this node last


@dataclass(slots=True)
class Mention:
    """A peer named this node. `heard`: it hears it; None: that isn't known. `disregarded`: it has declared it down, but
    is itself cut off."""

    when: float
    heard: bool | None
    disregarded: bool


class Mentions:
    """The last mention by each peer. One counts for `lifetime` seconds, and hears this node if it has received a
    heartbeat within as many seconds."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._by_peer: OrderedDict[str, Mention] = OrderedDict()  # the last one last

    def hear(self, peer: str, seen: Observation, now: float, resumed: float = -math.inf) -> None:
        """Notes that a peer has named this node. `resumed`: when its heartbeats came again after a gap. Those that come
        next may be as old as the gap is long, since TCP delivers them all in the end."""
        before, gone = self._by_peer.pop(peer, None), seen.state in GONE
        disregarded = gone and before is not None and before.disregarded
        heard: bool | None = not gone and seen.age < self._lifetime
        if heard and now - resumed < self._lifetime:
            heard = None
        self._by_peer[peer] = Mention(now, heard, disregarded)
        if len(self._by_peer) > MAX_PEERS:
            self._by_peer.popitem(last=False)

    def balance(self, now: float) -> int:
        """How many more peers hear this node than don't."""
        counted = (mention for mention in self._by_peer.values() if now - mention.when < self._lifetime)
        return sum(0 if mention.heard is None else 1 if mention.heard else -1 for mention in counted)

    def disregard(self, peer: str, *, is_cut_off: bool) -> bool:
        """Whether to disregard that a peer has just declared this node down: it is the one that is cut off, or was the
        last time, and hasn't heard this node since."""
        mention = self._by_peer[peer]
        mention.disregarded = mention.disregarded or is_cut_off
        return mention.disregarded
