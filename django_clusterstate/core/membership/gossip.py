"""Which members a heartbeat names: each heartbeat reports a few of the sender's observations."""

from collections.abc import Iterator

from .heartbeat import GONE, MAX_AGE, Heartbeat, Identity, MemberState, Observation
from .members import Member

OBSERVATIONS = 8  # in a heartbeat, at most: its size doesn't grow with the cluster
NOTICES = 2  # in a heartbeat, and heartbeats in which each notice is sent


class Gossip:
    """Chooses the observations of the next heartbeat.

    A notice goes to an instance that may not know how others see it. `suspected_by_others`: names of the members that a
    sender suspects and this node has heard.
    """

    def __init__(self) -> None:
        self.suspected_by_others: dict[str, None] = {}
        self._notices: dict[bytes, tuple[Observation, int]] = {}  # by boot ID, and how often to send it
        self._next = 0  # of the members that are named in turn

    def notify_replaced(self, who: Identity) -> None:
        """Tells an instance that still sends heartbeats: it has left, or was replaced."""
        self._notify(Observation(who.name, who.boot, who.address, MemberState.LEFT, 0, 0.0))

    def notify_down(self, member: Member) -> None:
        """Tells a member whose heartbeats arrive again: it was declared down in this incarnation."""
        who = member.identity
        self._notify(Observation(who.name, who.boot, who.address, MemberState.DOWN, member.incarnation, 0.0))

    def _notify(self, notice: Observation) -> None:
        if len(self._notices) < OBSERVATIONS:
            self._notices[notice.boot] = (notice, NOTICES)

    def choose(self, members: dict[str, Member], answer_to: Identity | None, now: float) -> Iterator[Observation]:
        """At most OBSERVATIONS: first the instance that is answered, and notices. Then suspected and down members,
        those heard last before the others, since only they can refute; then members that others suspect and this node
        has heard; then the remaining members in turn."""
        first = [*_answered(members, answer_to, now), *self._due_notices()]
        yield from first
        room = OBSERVATIONS - len(first)
        suspected = [m for m in members.values() if m.state in (MemberState.SUSPECT, MemberState.DOWN)]
        suspected.sort(key=lambda member: member.heard, reverse=True)
        heard_here = [members[name] for name in self.suspected_by_others if name in members]
        heard_here = [member for member in heard_here if member.state is not MemberState.SUSPECT]
        self.suspected_by_others.clear()
        chosen = (suspected[: OBSERVATIONS // 2] + heard_here[: OBSERVATIONS // 4])[:room]
        others = [m for m in members.values() if m.state not in GONE and m.state is not MemberState.SUSPECT]
        room = min(room - len(chosen), len(others))
        chosen += [others[(self._next + step) % len(others)] for step in range(room)]
        self._next += room
        yield from (_observation(member, now) for member in chosen)

    def _due_notices(self) -> Iterator[Observation]:
        for notice, times in list(self._notices.values())[:NOTICES]:
            yield notice
            if times > 1:
                self._notices[notice.boot] = (notice, times - 1)
            else:
                del self._notices[notice.boot]


def _answered(members: dict[str, Member], who: Identity | None, now: float) -> Iterator[Observation]:
    """The instance that is answered. One that isn't a member is named as joining, which it answers if it serves."""
    if who is None:
        return
    member = members.get(who.name)
    if member is not None and member.identity.boot == who.boot:
        yield _observation(member, now)
    else:
        yield Observation(who.name, who.boot, who.address, MemberState.JOINING, 0, 0.0)


def _observation(member: Member, now: float) -> Observation:
    who = member.identity
    age = min(max(0.0, now - member.heard), MAX_AGE)
    return Observation(who.name, who.boot, who.address, member.state, member.incarnation, age)


def reports_replaced(beat: Heartbeat, boot: bytes) -> bool:
    """Whether the sender has replaced this instance."""
    return any(seen.boot == boot and seen.state is MemberState.LEFT for seen in beat.observations)
