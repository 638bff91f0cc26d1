"""Which unknown instances are proven to run now, and which may be recordings.

A heartbeat of an unknown instance may be a recording. Its sender is proven to run when one of its heartbeats names the
boot ID of this node, or when a handshake has shown its own boot ID. Until then it is provisional: not a member, not
dialed, and not in a name conflict. But it is answered, with a heartbeat that names it first, so an instance that runs
is proven after one and a half round trips. Times are monotonic seconds.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from .heartbeat import Heartbeat
from .members import Instance

MAX_PROVISIONAL = 256  # instances
MAX_PROVEN = 1024  # instances: as many as there are links
ANSWER_EVERY = 0.1  # seconds between two answers to a provisional instance: repeating a recording gains little traffic


class Proof(NamedTuple):
    """A handshake has shown this instance of a node, at `address` if that isn't empty."""

    name: str
    address: str
    when: float


class ProvisionalInstances:
    """Provisional instances, and those that handshakes proved to run in the last `lifetime` seconds, by boot ID."""

    def __init__(self, own_boot: bytes, lifetime: float) -> None:
        self.provisional: OrderedDict[bytes, Instance] = OrderedDict()  # the last heard last
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
        """Keeps a heartbeat of an unproven instance. Returns whether to answer it; None if it was repeated or late."""
        boot = beat.identity.boot
        instance = self.provisional.get(boot)
        if instance is None:
            instance = self.provisional[boot] = Instance(beat, now, now)
            if len(self.provisional) > MAX_PROVISIONAL:
                self.provisional.popitem(last=False)
        elif beat.sequence <= instance.beat.sequence:
            return None
        instance.hear(beat, now)
        self.provisional.move_to_end(boot)
        if now - instance.answered < ANSWER_EVERY:
            return False
        instance.answered = now
        return True

    def promote(self, beat: Heartbeat) -> Heartbeat:
        """The newest heartbeat of an instance that has just been proven to run: `beat`, or an earlier arrival."""
        instance = self.provisional.pop(beat.identity.boot, None)
        return instance.beat if instance is not None and instance.beat.sequence > beat.sequence else beat

    def prove(self, boot: bytes, proof: Proof) -> None:
        self.proven[boot] = proof
        self.proven.move_to_end(boot)
        if len(self.proven) > MAX_PROVEN:
            self.proven.popitem(last=False)

    def renew(self, boot: bytes, now: float) -> None:
        """Notes that the link whose handshake has proven this instance is still open."""
        proof = self.proven.get(boot)
        if proof is not None:
            self.prove(boot, proof._replace(when=now))

    def drop(self, boot: bytes) -> None:
        """Forgets an instance that has ended, or was replaced."""
        self.provisional.pop(boot, None)
        self.proven.pop(boot, None)

    def expire(self, now: float) -> None:
        oldest = now - self._lifetime
        while self.provisional and next(iter(self.provisional.values())).heard <= oldest:
            self.provisional.popitem(last=False)
        while self.proven and next(iter(self.proven.values())).when <= oldest:
            self.proven.popitem(last=False)

    def proven_addresses(self, now: float, except_name: str) -> Iterator[str]:
        """The addresses at which handshakes have proven instances, without those of one name."""
        for name, address, when in self.proven.values():
            if address and name != except_name and now - when < self._lifetime:
                yield address

    def any_heard_since(self, when: float, except_name: str) -> bool:
        """Whether a provisional instance of another name has been heard since then."""
        return any(
            instance.heard >= when and instance.identity.name != except_name for instance in self.provisional.values()
        )
