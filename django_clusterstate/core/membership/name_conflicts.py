"""Running instances whose name a member has: two nodes of one name, or one that was restarted unnoticed.

The instance that has a name keeps it as long as any node receives its heartbeats, and a second one waits. If both
serve, as after a partition, the younger is superseded, and so is an instance that others have replaced: its process
begins another instance with a new boot ID, which waits for its name. Times are monotonic seconds.
"""

from dataclasses import dataclass

from .heartbeat import SERVING, Heartbeat, Identity, MemberState, Observation
from .members import Instance

OLDER_BY = 20  # heartbeats: an instance that has sent more than that many more is older, however late they arrive


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Two running nodes have one name. `holder` and `other` are their addresses."""

    name: str
    holder: str
    other: str


class NameConflicts:
    """The instances in conflict with a member, or with this node: at most one for each name.

    Seconds: `heartbeat` between heartbeats, `settled` until another instance may take the place of one in conflict, and
    `lifetime` until one that isn't heard is forgotten.
    """

    def __init__(self, me: Identity, heartbeat: float, settled: float, lifetime: float) -> None:
        self.instances: dict[str, Instance] = {}  # by name
        self._me = me
        self._heartbeat = heartbeat
        self._settled = settled
        self._lifetime = lifetime
        self._reported: tuple[str, float] | None = (
            None  # another instance of this node's name, by others: address, last heard
        )

    def get(self, name: str, boot: bytes) -> Instance | None:
        """This instance, if it is in conflict."""
        instance = self.instances.get(name)
        return instance if instance is not None and instance.identity.boot == boot else None

    def hear(self, beat: Heartbeat, now: float) -> bool:
        """Keeps a heartbeat of an instance in conflict. Returns whether the instance is new and must be answered."""
        name, boot = beat.identity.name, beat.identity.boot
        instance = self.instances.get(name)
        if beat.state is MemberState.LEFT:
            self.drop(name, boot)
        elif instance is not None and instance.identity.boot == boot:
            instance.hear(beat, now)
        elif instance is None or now - instance.heard >= self._settled:
            self.instances[name] = Instance(beat, now, now)
            return True
        return False

    def hear_of(self, observation: Observation, now: float) -> None:
        """Notes that a member reports another instance with this node's name."""
        heard = now - observation.age
        if self._reported is None or heard > self._reported[1]:
            self._reported = (observation.address, heard)

    def drop(self, name: str, boot: bytes) -> None:
        """Forgets an instance that has ended, or is a member now."""
        if self.get(name, boot) is not None:
            del self.instances[name]

    def holder(self, now: float) -> str:
        """The address of another instance that has this node's name and precedence over a joining one; empty if there
        is none."""
        instance = self.instances.get(self._me.name)
        if instance is not None and now - instance.heard < self._lifetime:
            state = instance.beat.state
            if state in SERVING or (state is MemberState.JOINING and instance.identity.boot < self._me.boot):
                return instance.identity.address
        if self._reported is not None and now - self._reported[1] < self._lifetime:
            return self._reported[0]
        return ""

    def older_instance_serves(self, sequence: int, now: float) -> bool:
        """Whether the other instance of this node's name, if it was heard at `now`, serves and is older than this one,
        which has sent `sequence` heartbeats."""
        instance = self.instances.get(self._me.name)
        if instance is None or instance.heard != now or instance.beat.state not in SERVING:
            return False
        if now - instance.first_heard < self._heartbeat / 2:
            return False  # perhaps a late message of this node's earlier instance
        surplus = instance.beat.sequence - sequence
        if abs(surplus) <= OLDER_BY:
            return instance.identity.boot < self._me.boot
        return surplus > 0

    def settled(self, name: str) -> Instance | None:
        """The instance in conflict for this name, if it has served for `settled` seconds, so by more than one late
        message."""
        instance = self.instances.get(name)
        if instance is None or instance.beat.state not in SERVING:
            return None
        return instance if instance.heard - instance.first_heard >= self._settled else None

    def current(self, own_state: MemberState, addresses: dict[str, str], now: float) -> list[NameConflict]:
        """The names that two running nodes have, given the addresses of the members by name."""
        holder = self.holder(now) if own_state is MemberState.JOINING else ""
        found: list[NameConflict] = []
        for name, instance in self.instances.items():
            if now - instance.heard >= self._lifetime or instance.heard - instance.first_heard < self._heartbeat / 2:
                continue  # ended, or heard once only, perhaps by a late message
            address = instance.identity.address
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
        """Discounts a pause of this node: heartbeats that were sent meanwhile are still unread."""
        for instance in self.instances.values():
            instance.first_heard = min(now, instance.first_heard + seconds)
            instance.heard = min(now, instance.heard + seconds)
        if self._reported is not None:
            address, heard = self._reported
            self._reported = (address, min(now, heard + seconds))

    def expire(self, now: float) -> None:
        self.instances = {
            name: instance for name, instance in self.instances.items() if now - instance.heard < self._lifetime
        }
