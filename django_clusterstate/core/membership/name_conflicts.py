"""Running starts whose name a member has: two nodes of one name, or one that was restarted while nobody noticed.

The instance that has a name keeps it as long as any node receives its heartbeats, and a second one waits. If both
serve, as after a partition, the younger is superseded, and so is a start that others have replaced: its process begins
another start with a new boot id, which waits for its name. Times are monotonic seconds.
"""

from dataclasses import dataclass

from .heartbeat import SERVING, Heartbeat, Identity, MemberState, Observation
from .members import Start

OLDER_BY = 20  # heartbeats: a start that has sent more than that many more is the older one, however late they arrive


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Two running nodes have one name. `holder` and `other` are their addresses."""

    name: str
    holder: str
    other: str


class NameConflicts:
    """The starts in conflict with a member, or with this node: at most one for each name.

    Seconds: `heartbeat` between heartbeats, `settled` until another start may take the place of one in conflict, and
    `lifetime` until one that isn't heard is forgotten.
    """

    def __init__(self, me: Identity, heartbeat: float, settled: float, lifetime: float) -> None:
        self.starts: dict[str, Start] = {}  # by name
        self._me = me
        self._heartbeat = heartbeat
        self._settled = settled
        self._lifetime = lifetime
        self._reported: tuple[str, float] | None = None  # the start that has our name by others: address, last heard

    def get(self, name: str, boot: bytes) -> Start | None:
        """This start, if it is in conflict."""
        start = self.starts.get(name)
        return start if start is not None and start.identity.boot == boot else None

    def hear(self, beat: Heartbeat, now: float) -> bool:
        """Keep a heartbeat of an instance in conflict. Returns whether the instance is new and must be answered."""
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

    def hear_of(self, observation: Observation, now: float) -> None:
        """A member reports that another start has this node's name."""
        heard = now - observation.age
        if self._reported is None or heard > self._reported[1]:
            self._reported = (observation.address, heard)

    def drop(self, name: str, boot: bytes) -> None:
        """Forget a start that has ended, or is a member now."""
        if self.get(name, boot) is not None:
            del self.starts[name]

    def holder(self, now: float) -> str:
        """The address of another start that has this node's name and precedence over a joining one; empty if there is
        none."""
        start = self.starts.get(self._me.name)
        if start is not None and now - start.heard < self._lifetime:
            state = start.beat.state
            if state in SERVING or (state is MemberState.JOINING and start.identity.boot < self._me.boot):
                return start.identity.address
        if self._reported is not None and now - self._reported[1] < self._lifetime:
            return self._reported[0]
        return ""

    def older_start_serves(self, sequence: int, now: float) -> bool:
        """Whether the start of our name that was heard just now serves, and is older than this one, which has sent
        `sequence` heartbeats."""
        start = self.starts.get(self._me.name)
        if start is None or start.heard != now or start.beat.state not in SERVING:
            return False
        if now - start.first_heard < self._heartbeat / 2:
            return False  # perhaps a late message of our own former start
        surplus = start.beat.sequence - sequence
        if abs(surplus) <= OLDER_BY:
            return start.identity.boot < self._me.boot
        return surplus > 0

    def settled(self, name: str) -> Start | None:
        """The instance in conflict for this name, if it has served for `settled` seconds, so by more than one late
        message."""
        start = self.starts.get(name)
        if start is None or start.beat.state not in SERVING or start.heard - start.first_heard < self._settled:
            return None
        return start

    def current(self, own_state: MemberState, addresses: dict[str, str], now: float) -> list[NameConflict]:
        """The names that two running nodes have, given the addresses of the members by name."""
        holder = self.holder(now) if own_state is MemberState.JOINING else ""
        found: list[NameConflict] = []
        for name, start in self.starts.items():
            if now - start.heard >= self._lifetime or start.heard - start.first_heard < self._heartbeat / 2:
                continue  # ended, or heard once only, perhaps by a late message
            address = start.identity.address
            if name != self._me.name:
                if name in addresses:
                    found.append(NameConflict(name, addresses[name], address))
            elif holder == address:
                found.append(NameConflict(name, address, self._me.address))
            else:
                found.append(NameConflict(name, self._me.address, address))
        if holder and not any(conflict.name == self._me.name for conflict in found):
            found.append(NameConflict(self._me.name, holder, self._me.address))
        return found

    def discount(self, seconds: float, now: float) -> None:
        """This node was stopped, and heartbeats that were sent meanwhile are still unread: no silence counts."""
        for start in self.starts.values():
            start.first_heard = min(now, start.first_heard + seconds)
            start.heard = min(now, start.heard + seconds)
        if self._reported is not None:
            address, heard = self._reported
            self._reported = (address, min(now, heard + seconds))

    def expire(self, now: float) -> None:
        self.starts = {name: start for name, start in self.starts.items() if now - start.heard < self._lifetime}
