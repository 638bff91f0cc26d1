"""How a joining node takes over its slots before it serves, and a leaving node hands over its own before it goes."""

from collections import OrderedDict
from typing import Final

from .messages import Busy, GiveBack, Leaving, Left, TakeOver, Yours
from .outboxes import Outboxes
from .placement import Placement

NO_PROGRESS: Final = 5.0  # seconds after which a joining node that nobody fills serves all the same
ASK_AGAIN: Final = 0.05  # seconds between two requests of a joining node to take over
GIVE_WAY: Final = 1.0  # seconds for which a joining node lets another one go first
MAX_INSTANCES: Final = 4096
NO_EPOCH: Final = 0
INTENT: Final = 0.2  # seconds within which all should know that a node leaves


class Statements:
    """The epoch for which each instance has last said something. One may say so before it is known as a member."""

    def __init__(self) -> None:
        self._epochs: OrderedDict[bytes, int] = OrderedDict()

    def note(self, boot: bytes, epoch: int) -> None:
        self._epochs[boot] = epoch
        self._epochs.move_to_end(boot)
        if len(self._epochs) > MAX_INSTANCES:
            self._epochs.popitem(last=False)

    def forget(self, boot: bytes) -> None:
        """An instance may have changed its mind before it says something again."""
        self._epochs.pop(boot, None)

    def has_said(self, boot: bytes, epoch: int) -> bool:
        """Whether an instance has said so for this epoch."""
        return self._epochs.get(boot, NO_EPOCH) == epoch


class Joiner:
    """The side of a node that joins. `may_serve`: whether it has taken over from all that serve. `damped`: it was cut
    off or paused, so it is filled, but takes nothing over yet."""

    def __init__(self, placement: Placement, outboxes: Outboxes, now: float) -> None:
        self.may_serve = False
        self.damped = False
        self.progress = now  # when something was received last
        self._placement = placement
        self._outboxes = outboxes
        self._filled_by = Statements()
        self._yours: set[bytes] = set()  # the instances that have handed over in this epoch
        self._asked_at = now

    def begin_epoch(self, now: float) -> None:
        """Other nodes serve than before."""
        self._yours.clear()
        self.may_serve = False
        self._asked_at = self.progress = now

    def filled(self, boot: bytes, epoch: int) -> None:
        """An instance has sent all of its slots that this node has to hold."""
        self._filled_by.note(boot, epoch)

    def note_fill(self, boot: bytes, now: float) -> None:
        """An instance begins with a fill, whatever it has said before."""
        self.lacks(boot)
        self.progress = now

    def note_progress(self, boot: bytes, now: float) -> None:
        """Notes that a fill goes on. What an instance sends once it has filled this node are changes."""
        if not self.is_filled_by(boot):
            self.progress = now

    def is_filled_by(self, boot: bytes) -> bool:
        return self._filled_by.has_said(boot, self._placement.epoch)

    def lacks(self, boot: bytes) -> None:
        """The instance was wrong, and says again when it has filled this node."""
        self._filled_by.note(boot, NO_EPOCH)

    def take(self, boot: bytes, yours: Yours, now: float) -> bool:
        """An instance has handed over slots; whether this node owns them now."""
        if yours.turn != self._placement.turn:
            return False
        self.progress = now
        self._placement.taken[boot] = yours.slots
        if yours.epoch == self._placement.epoch:
            self._yours.add(boot)
        return True

    @property
    def missing(self) -> frozenset[bytes]:
        """The instances that haven't handed over to this node."""
        return self._placement.boots - self._yours

    def wait_for(self, busy: Busy) -> bool:
        """Another joining node takes over now. Of two that wait for each other, the one with the greater name gives
        back what it has; whether this one does."""
        if busy.name >= self._placement.me.name:
            return False
        givers = [boot for boot in self._outboxes.open if boot not in self._placement.joining]
        if not all(map(self._outboxes.flush, givers)):
            return False  # it is told again
        for boot in givers:
            self._outboxes.send(boot, GiveBack())
        self._placement.give_back()
        self._yours.clear()
        self._asked_at = self._outboxes.now + GIVE_WAY
        return True

    def is_stuck(self, now: float) -> bool:
        """Whether nobody fills this node."""
        return now - self.progress > NO_PROGRESS

    def tick(self, now: float) -> None:
        """Takes over once all that serve have filled this node."""
        if self.damped:
            self.progress = now
            return
        self.may_serve = not self.missing or self.is_stuck(now)
        if now >= self._asked_at and all(self.is_filled_by(boot) for boot in self.missing):
            self._asked_at = now + ASK_AGAIN
            for boot in sorted(self.missing):
                if boot in self._outboxes.open:
                    self._outboxes.send(boot, TakeOver(self._placement.epoch, self._placement.turn))


class Leaver:
    """The side of a node that leaves, within `seconds`. `may_leave`: whether it owns nothing any more, and says so;
    `done`: whether it may end."""

    def __init__(self, placement: Placement, outboxes: Outboxes, now: float, seconds: float) -> None:
        self.may_leave = False
        self.done = False
        self._placement = placement
        self._outboxes = outboxes
        self._begun = now
        self._until = now + seconds
        self._left = now
        self._hands_over = False
        placement.leaving.add(placement.me.boot)
        outboxes.post(Leaving())

    @property
    def departed(self) -> bool:
        return self._placement.me.boot in self._placement.departed

    def opened(self, boot: bytes) -> None:
        """There is a connection to an instance, which doesn't know yet."""
        self._outboxes.get(boot).post(Left() if self.departed else Leaving())

    def depart(self, views_agree: bool, now: float) -> bool:
        """Hands over all slots if the next owners have them, or time is up; returns whether it has just done so.
        `views_agree`: so none takes a node that owns slots for one that is still joining."""
        if self.departed:
            return False
        ready = (views_agree or not self._placement.owned) and not self._placement.handed and self._is_known(now)
        ready = ready and all(outbox.is_filled for outbox in self._outboxes.by_boot.values())
        if not ready and now < self._until:
            return False
        flushed = [self._outboxes.flush(boot) for boot in self._outboxes.open]
        if not all(flushed) and now < self._until:
            return False
        self._hands_over = bool(self._placement.owned)
        self._placement.depart(self._placement.me.boot)
        self._outboxes.post(Left())
        self._left = now
        return True

    def _is_known(self, now: float) -> bool:
        return now - self._begun > INTENT or all(outbox.knows_all for outbox in self._outboxes.open.values())

    def tick(self, backed_up: bool, now: float) -> None:
        """Finds out what is acknowledged. `backed_up`: what the next owners have, so it outlives one that is killed."""
        if not self.departed:
            return
        outboxes = self._outboxes.open.values()
        if not any(outbox.busy for outbox in outboxes) or now - self._left > INTENT:
            self.may_leave = True
        sent = all(outbox.is_filled and not outbox.lag for outbox in outboxes)
        self.done = self.may_leave and (now >= self._until or (sent and (backed_up or not self._hands_over)))
