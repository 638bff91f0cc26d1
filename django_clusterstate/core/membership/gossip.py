"""Which members a heartbeat names, and why those."""

from collections.abc import Iterator

from .members import Member
from .messages import GONE, MAX_AGE, Heartbeat, Identity, MemberState, Sighting

SIGHTINGS = 8  # a heartbeat names at most so many members, in turn: its size doesn't grow with the cluster
VERDICTS = 2  # that their subject may not know: so many in a heartbeat, and each so often


class Gossip:
    """What the next heartbeat says of others. `asked`: members that others doubt and we have heard."""

    def __init__(self) -> None:
        self.asked: dict[str, None] = {}
        self._verdicts: dict[bytes, tuple[Sighting, int]] = {}  # by boot: what it is told, and how often still
        self._turn = 0

    def tell_over(self, who: Identity) -> None:
        """It talks, though it has left or was replaced."""
        self._tell(Sighting(who.name, who.boot, who.address, MemberState.LEFT, 0, 0.0))

    def tell_down(self, member: Member) -> None:
        """It is back, and was down in the incarnation that is known of it here."""
        who = member.identity
        self._tell(Sighting(who.name, who.boot, who.address, MemberState.DOWN, member.incarnation, 0.0))

    def _tell(self, verdict: Sighting) -> None:
        if len(self._verdicts) < SIGHTINGS:
            self._verdicts[verdict.boot] = (verdict, VERDICTS)

    def choose(self, members: dict[str, Member], answer_to: Identity | None, now: float) -> Iterator[Sighting]:
        """First the start that is answered, and verdicts that their subjects may not know. Then the doubted, the latest
        heard of them before all, since only they can refute; then those that others doubt and we have heard; then the
        others in turn."""
        first = [*self._answered(members, answer_to, now), *self._told()]
        yield from first
        doubted = [m for m in members.values() if m.state in (MemberState.SUSPECT, MemberState.DOWN)]
        doubted.sort(key=lambda member: member.heard, reverse=True)
        others = [m for m in members.values() if m.state not in GONE and m.state is not MemberState.SUSPECT]
        chosen = doubted[: SIGHTINGS // 2]
        asked = [members[name] for name in self.asked if name in members]
        chosen += [m for m in asked if m.state is not MemberState.SUSPECT][: SIGHTINGS // 4]
        chosen = chosen[: SIGHTINGS - len(first)]
        self.asked.clear()
        room = min(SIGHTINGS - len(first) - len(chosen), len(others))
        chosen += [others[(self._turn + step) % len(others)] for step in range(room)]
        self._turn += room
        yield from (_sighting(member, now) for member in chosen)

    def _answered(self, members: dict[str, Member], who: Identity | None, now: float) -> Iterator[Sighting]:
        """A start that isn't a member here is named as joining, which it answers if it serves."""
        if who is not None:
            member = members.get(who.name)
            if member is not None and member.identity.boot == who.boot:
                yield _sighting(member, now)
            else:
                yield Sighting(who.name, who.boot, who.address, MemberState.JOINING, 0, 0.0)

    def _told(self) -> Iterator[Sighting]:
        for verdict, times in list(self._verdicts.values())[:VERDICTS]:
            yield verdict
            if times > 1:
                self._verdicts[verdict.boot] = (verdict, times - 1)
            else:
                del self._verdicts[verdict.boot]


def _sighting(member: Member, now: float) -> Sighting:
    who = member.identity
    age = min(max(0.0, now - member.heard), MAX_AGE)
    return Sighting(who.name, who.boot, who.address, member.state, member.incarnation, age)


def says_over(beat: Heartbeat, boot: bytes) -> bool:
    """Whether its sender has replaced this start."""
    return any(sighting.boot == boot and sighting.state is MemberState.LEFT for sighting in beat.sightings)
