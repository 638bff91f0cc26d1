"""The verdicts of others that this node is down: whether it gives way, and to which nodes.

When a partition heals, both sides have declared each other down, or only one has. A node that was declared down gives
way to the winners, which have served its keys: it joins again, and drops what it had of these. On the side of a mutual
partition that stays, it does no more than refute, and also if it is the other that is cut off from most. A heartbeat
doesn't list the view of its sender, so a node knows the winners when it has heard each of them.
"""

from collections.abc import Iterable, Mapping

from .heartbeat import SERVING, Heartbeat, MemberState, Observation, View
from .members import Member
from .mentions import Mentions

NONE = -1


class Verdicts:
    """The verdicts about this node. Each one is of an incarnation of this node, which it refutes by a higher one."""

    def __init__(self, mentions: Mentions) -> None:
        self._mentions = mentions
        self._settled = NONE  # the last incarnation whose verdicts have had their effect
        self._gave_way_to = NONE  # the verdict that made this node give way, until the winners are known

    def hear(self, seen: Observation, sender: Member | None) -> bool:
        """Notes a verdict; whether it may have an effect."""
        if sender is None or seen.incarnation <= sender.verdict:
            return False
        sender.verdict = seen.incarnation
        return seen.incarnation > self._settled

    def imply(self, sender: Member, incarnation: int) -> bool:
        """Takes a sender for one that has declared this node down before the present incarnation; whether that has an
        effect."""
        sender.verdict = incarnation - 1
        return sender.verdict > self._settled

    def prevails(self, beat: Heartbeat, view: View, members: Mapping[str, Member], now: float, *, mutual: bool) -> bool:
        """Whether this node, with this view, stays though the sender has declared it down. `mutual`: as this node has
        the sender. Nobody gives way to a node that doesn't serve."""
        if beat.state not in SERVING:
            return True
        if mutual:
            return view.outlasts(beat.members, beat.first)
        silent = sum(member.state is MemberState.SUSPECT for member in members.values())
        is_cut_off = 2 * beat.members < len(view.members) or self._mentions.balance(now) > silent
        return self._mentions.disregard(beat.identity.name, is_cut_off=is_cut_off)

    def give_way(self, sender: Member, incarnation: int) -> None:
        """Settles all verdicts of incarnations before the present one."""
        self._settled = incarnation - 1
        self._gave_way_to = sender.verdict

    def winners(self, beat: Heartbeat, members: Mapping[str, Member]) -> frozenset[bytes]:
        """The boot IDs of the winners, if this node has given way and now knows all of them; else none."""
        sender = members.get(beat.identity.name)
        if self._gave_way_to == NONE or sender is None or sender.verdict < self._gave_way_to:
            return frozenset()
        found = members_of_view(beat, members.values())
        if found:
            self._gave_way_to = NONE
        return found


def members_of_view(beat: Heartbeat, members: Iterable[Member]) -> frozenset[bytes]:
    """The boot IDs of the members of the sender's view, from what each has reported last; none unless all have.

    A node that serves is in its own view, so each that reports the sender's epoch is in the sender's view.
    """
    found = [who.identity.boot for who in members if who.state in SERVING and who.epoch == beat.epoch]
    return frozenset(found if len(found) == beat.members else ())
