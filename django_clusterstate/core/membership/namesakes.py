"""Running starts whose name another start has: two nodes of one name, or one that was started again unseen.

Who holds a name keeps it while anybody hears it, and a newcomer waits. Of two that serve and have met late, the younger
is over. So is a start that others have replaced. Its process starts anew with a new boot id, and waits for its name.
"""

from .members import Namesakes, Start
from .messages import SERVING, Heartbeat, Identity, MemberState, Sighting

OLDER_BY = 20  # heartbeats: the start that has sent so many more is the older one, however late its messages are


class NameConflicts:
    """At most one for each name, ours among them. Seconds: `beat` between heartbeats, until a rival may be replaced by
    another (`settled`), and until one that isn't heard is gone (`patience`)."""

    def __init__(self, me: Identity, beat: float, settled: float, patience: float) -> None:
        self.starts: dict[str, Start] = {}
        self._me = me
        self._beat = beat
        self._settled = settled
        self._patience = patience
        self._taken: tuple[str, float] | None = None  # by whom others hold our name: its address, and when it was heard

    def of(self, name: str, boot: bytes) -> Start | None:
        """This start, if it is the rival of its name."""
        start = self.starts.get(name)
        return start if start is not None and start.identity.boot == boot else None

    def hear(self, beat: Heartbeat, now: float) -> bool:
        """Whether it is a new one, which is to be answered."""
        name, boot = beat.identity.name, beat.identity.boot
        start = self.starts.get(name)
        if beat.state is MemberState.LEFT:
            self.drop(name, boot)
        elif start is not None and start.identity.boot == boot:
            start.hear(beat, now)
        elif start is None or now - start.heard >= self._settled:
            self.starts[name] = Start(beat, now, now)
            return True
        return False

    def drop(self, name: str, boot: bytes) -> None:
        """This start is gone, or a member now."""
        if self.of(name, boot) is not None:
            del self.starts[name]

    def hear_of_holder(self, sighting: Sighting, now: float) -> None:
        """A member says that another start has our name."""
        heard = now - sighting.age
        if self._taken is None or heard > self._taken[1]:
            self._taken = (sighting.address, heard)

    def holder(self, now: float) -> str:
        """Where another start is that has our name and comes before us as long as we join; empty if there is none."""
        start = self.starts.get(self._me.name)
        if start is not None and now - start.heard < self._patience:
            state = start.beat.state
            if state in SERVING or (state is MemberState.JOINING and start.identity.boot < self._me.boot):
                return start.identity.address
        if self._taken is not None and now - self._taken[1] < self._patience:
            return self._taken[0]
        return ""

    def is_older(self, sent: int, now: float) -> bool:
        """Whether another start of our name, just heard, serves as well and for longer: we have sent so many
        heartbeats."""
        start = self.starts.get(self._me.name)
        if start is None or start.heard != now or start.beat.state not in SERVING:
            return False
        if now - start.first < self._beat / 2:
            return False  # perhaps a late message of our own former start
        by = start.beat.sequence - sent
        return start.identity.boot < self._me.boot if abs(by) <= OLDER_BY else by > 0

    def outlasts(self, name: str) -> Start | None:
        """The rival of this name that serves, and not only by a late message."""
        start = self.starts.get(name)
        if start is None or start.beat.state not in SERVING or start.heard - start.first < self._settled:
            return None
        return start

    def namesakes(self, state: MemberState, addresses: dict[str, str], now: float) -> list[Namesakes]:
        """The names that two running nodes have. `state` is ours, `addresses` are those of the members."""
        found, holder = [], self.holder(now) if state is MemberState.JOINING else ""
        for name, start in self.starts.items():
            if now - start.heard >= self._patience or start.heard - start.first < self._beat / 2:
                continue  # gone, or just one message as yet, perhaps a late one
            there = start.identity.address
            if name == self._me.name:
                ours = self._me.address
                found.append(Namesakes(name, there, ours) if holder == there else Namesakes(name, ours, there))
            elif name in addresses:
                found.append(Namesakes(name, addresses[name], there))
        if holder and not any(twins.name == self._me.name for twins in found):
            found.append(Namesakes(self._me.name, holder, self._me.address))
        return found

    def discount(self, late: float, now: float) -> None:
        """This node was stopped for so long, and what they sent meanwhile is still unread."""
        for start in self.starts.values():
            start.first, start.heard = min(now, start.first + late), min(now, start.heard + late)
        if self._taken is not None:
            self._taken = (self._taken[0], min(now, self._taken[1] + late))

    def forget(self, now: float) -> None:
        for name in [name for name, start in self.starts.items() if now - start.heard >= self._patience]:
            del self.starts[name]
