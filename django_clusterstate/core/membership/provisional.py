"""Which unknown starts run now, and which may be a recording.

A heartbeat from an unknown start may be a recording. Its sender has shown that it runs when one of its heartbeats names
our boot id, or when a handshake over a link has shown its own. Until then it is provisional: no member, dialled for
nobody, and no namesake. But it gets answers, which name it first, so that a start that runs needs one and a half round
trips.
"""

from collections import OrderedDict
from collections.abc import Iterator

from .members import Start
from .messages import Heartbeat

PROVISIONAL = 256  # starts that haven't shown that they run, at most
SHOWN = 1024  # starts that a handshake has shown lately, at most: as many as there are links
ANSWER_EVERY = 0.1  # seconds between two answers to a provisional start: a recording that is repeated costs little


class ProvisionalStarts:
    """The provisional starts, and those that handshakes have shown in the last `patience` seconds."""

    def __init__(self, mine: bytes, patience: float) -> None:
        self.provisional: OrderedDict[bytes, Start] = OrderedDict()  # by boot, the latest heard last
        self.shown: OrderedDict[bytes, tuple[str, str, float]] = OrderedDict()  # by boot: name, address, and when
        self._mine = mine
        self._patience = patience

    def runs(self, beat: Heartbeat, now: float) -> bool:
        """Whether its sender has shown that it runs now."""
        if any(sighting.boot == self._mine for sighting in beat.sightings):
            return True
        shown = self.shown.get(beat.identity.boot)
        return shown is not None and now - shown[2] < self._patience

    def note(self, beat: Heartbeat, now: float) -> bool | None:
        """Remembers a heartbeat of a start that hasn't. Whether it is to be answered; None if it is no news."""
        boot = beat.identity.boot
        start = self.provisional.get(boot)
        if start is None:
            start = self.provisional[boot] = Start(beat, now, now)
            if len(self.provisional) > PROVISIONAL:
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
        """The newest heartbeat of a start that has just shown that it runs, this one or one of before."""
        start = self.provisional.pop(beat.identity.boot, None)
        return start.beat if start is not None and start.beat.sequence > beat.sequence else beat

    def met(self, name: str, boot: bytes, address: str, now: float) -> None:
        """A handshake has shown this start."""
        self.shown[boot] = (name, address, now)
        self.shown.move_to_end(boot)
        if len(self.shown) > SHOWN:
            self.shown.popitem(last=False)

    def linked(self, boot: bytes, now: float) -> None:
        shown = self.shown.get(boot)
        if shown is not None:
            self.met(shown[0], boot, shown[1], now)

    def drop(self, boot: bytes) -> None:
        """It is gone, or was replaced."""
        self.provisional.pop(boot, None)
        self.shown.pop(boot, None)

    def forget(self, now: float) -> None:
        late = now - self._patience
        while self.provisional and next(iter(self.provisional.values())).heard <= late:
            self.provisional.popitem(last=False)
        while self.shown and next(iter(self.shown.values()))[2] <= late:
            self.shown.popitem(last=False)

    def addresses(self, now: float, but: str) -> Iterator[str]:
        """Where handshakes have shown starts lately, but those of one name."""
        for name, address, when in self.shown.values():
            if address and name != but and now - when < self._patience:
                yield address

    def any_since(self, when: float, but: str) -> bool:
        """Whether a provisional start was heard since then, but those of one name."""
        return any(start.heard >= when and start.identity.name != but for start in self.provisional.values())
