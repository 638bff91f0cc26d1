"""Which unknown starts are proven to run now, and which may be recordings.

A heartbeat of an unknown start may be a recording. Its sender is proven to run when one of its heartbeats names our
boot id, or when a handshake has shown its own boot id. Until then it is provisional: not a member, not dialed, and not
in a name conflict. But it is answered, with a heartbeat that names it first, so a start that runs is proven after one
and a half round trips. Times are monotonic seconds.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from .heartbeat import Heartbeat
from .members import Start

MAX_PROVISIONAL = 256  # starts
MAX_PROVEN = 1024  # starts: as many as there are links
ANSWER_EVERY = 0.1  # seconds between two answers to a provisional start: repeating a recording gains little traffic


class Proof(NamedTuple):
    """A handshake has shown this start of a node, at `address` if that isn't empty."""

    name: str
    address: str
    when: float


class ProvisionalStarts:
    """Provisional starts, and those that handshakes have proven to run, in the last `lifetime` seconds. By boot id."""

    def __init__(self, own_boot: bytes, lifetime: float) -> None:
        self.provisional: OrderedDict[bytes, Start] = OrderedDict()  # the last heard last
        self.proven: OrderedDict[bytes, Proof] = OrderedDict()  # the last proven last
        self._own_boot = own_boot
        self._lifetime = lifetime

    def is_proven(self, beat: Heartbeat, now: float) -> bool:
        """Whether the sender is proven to run now."""
        if any(observation.boot == self._own_boot for observation in beat.observations):
            return True
        proof = self.proven.get(beat.identity.boot)
        return proof is not None and now - proof.when < self._lifetime

    def hear(self, beat: Heartbeat, now: float) -> bool | None:
        """Keep a heartbeat of an unproven start. Whether to answer it; None if it was repeated or overtaken."""
        boot = beat.identity.boot
        start = self.provisional.get(boot)
        if start is None:
            start = self.provisional[boot] = Start(beat, now, now)
            if len(self.provisional) > MAX_PROVISIONAL:
                self.provisional.popitem(last=False)
        elif beat.sequence <= start.beat.sequence:
            return None
        start.hear(beat, now)
        self.provisional.move_to_end(boot)
        if now - start.answered < ANSWER_EVERY:
            return False
        start.answered = now
        return True

    def promote(self, beat: Heartbeat) -> Heartbeat:
        """The newest heartbeat of a start that has just been proven to run: this one or one that came before it."""
        start = self.provisional.pop(beat.identity.boot, None)
        return start.beat if start is not None and start.beat.sequence > beat.sequence else beat

    def prove(self, boot: bytes, proof: Proof) -> None:
        self.proven[boot] = proof
        self.proven.move_to_end(boot)
        if len(self.proven) > MAX_PROVEN:
            self.proven.popitem(last=False)

    def renew(self, boot: bytes, now: float) -> None:
        """The link whose handshake has proven this start is still open."""
        proof = self.proven.get(boot)
        if proof is not None:
            self.prove(boot, proof._replace(when=now))

    def drop(self, boot: bytes) -> None:
        """Forget a start that has ended, or was replaced."""
        self.provisional.pop(boot, None)
        self.proven.pop(boot, None)

    def expire(self, now: float) -> None:
        oldest = now - self._lifetime
        while self.provisional and next(iter(self.provisional.values())).heard <= oldest:
            self.provisional.popitem(last=False)
        while self.proven and next(iter(self.proven.values())).when <= oldest:
            self.proven.popitem(last=False)

    def proven_addresses(self, now: float, except_name: str) -> Iterator[str]:
        """The addresses at which handshakes have proven starts, without those of one name."""
        for name, address, when in self.proven.values():
            if address and name != except_name and now - when < self._lifetime:
                yield address

    def any_heard_since(self, when: float, except_name: str) -> bool:
        """Whether a provisional start of another name has been heard since then."""
        return any(start.heard >= when and start.identity.name != except_name for start in self.provisional.values())
