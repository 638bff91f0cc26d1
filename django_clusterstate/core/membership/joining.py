"""When a node that has started may serve.

It joins for two heartbeat intervals, and then for as long as another running node has its name, it advertises a
loopback address while others don't, or it has heard others and none has connected to its address. For `down_after` it
also waits for members that others know and that it hasn't heard, because requesters of its host use its view once it
serves. A node that was cut off or paused joins again, and waits as long as `damping` says.
"""

import enum
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .damping import Damping
from .heartbeat import GONE, SERVING, Identity, MemberState, is_loopback
from .members import Member, Timings
from .name_conflicts import NameConflicts
from .provisional_instances import ProvisionalInstances

MAX_AWAITED = 256  # members that others know


class WaitReason(enum.Enum):
    """Why a node doesn't serve yet."""

    STARTING = "it has just started"
    NAME_TAKEN = "another running node has its name"
    LOOPBACK_ADDRESS = "its address is a loopback one, and those of others are not"
    UNREACHED = "no member has connected to its address"
    UNKNOWN_MEMBERS = "it has not heard all members yet"
    DAMPED = "it was cut off or paused, and has not been heard for long enough since"
    FILLING = "it receives the entries that it will own"


@dataclass(eq=False, repr=False, slots=True)
class Joining:
    """The conditions for which the joining node `me` waits. `must_be_reached`: if it knows other nodes, one of them
    must connect to its address."""

    me: Identity
    timings: Timings
    started: float
    provisional: ProvisionalInstances
    conflicts: NameConflicts
    damping: Damping
    must_be_reached: bool
    reached: bool = False
    filled: bool = True
    _awaited: OrderedDict[str, float] = field(default_factory=OrderedDict)  # names, and when others last reported them

    def wait_for(self, name: str, now: float) -> None:
        """Notes that other nodes know this member, from which no heartbeat has arrived yet."""
        self._awaited[name] = now
        if len(self._awaited) > MAX_AWAITED:
            self._awaited.popitem(last=False)

    def heard(self, name: str) -> None:
        self._awaited.pop(name, None)

    def wait_reason(self, members: Mapping[str, Member], now: float) -> WaitReason | None:
        """Why this node doesn't serve yet; None when it may."""
        timings, age = self.timings, now - self.started
        if age < 2 * timings.heartbeat:
            return WaitReason.STARTING  # by then all nodes that discovery found have answered, and own their keys
        if self.conflicts.holder(now):
            return WaitReason.NAME_TAKEN
        unreachable = self._unreachable(members, now)
        if unreachable is not None:
            return unreachable
        if age < 2 * timings.heartbeat + timings.down_after and self._awaits_members(now):
            return WaitReason.UNKNOWN_MEMBERS
        if self.is_damped(members, now):
            return WaitReason.DAMPED
        return None if self.filled else WaitReason.FILLING

    def _unreachable(self, members: Mapping[str, Member], now: float) -> WaitReason | None:
        """Why others can't reach the address of this node."""
        others = list(self._other_addresses(members, now))
        loopback, others_loopback = is_loopback(self.me.address), all(map(is_loopback, others))
        if loopback and not others_loopback:
            return WaitReason.LOOPBACK_ADDRESS
        expects_links = bool(others) if loopback else not others_loopback
        if self.must_be_reached and not self.reached and expects_links:
            return WaitReason.UNREACHED
        return None

    def is_damped(self, members: Mapping[str, Member], now: float) -> bool:
        """Whether this node was cut off or paused, and waits for longer. It doesn't if no other serves, unless all that
        are gone fell silent: then it may be this node that is cut off."""
        if not self.damping.waits(now):
            return False
        running = {member.state for member in members.values() if member.state not in GONE}
        return bool(running & SERVING) if running else any(map(self._fell_silent, members.values()))

    def _fell_silent(self, member: Member) -> bool:
        return member.state is MemberState.DOWN and member.since - member.heard >= self.timings.suspect_after

    def refused_loopbacks(self, members: Mapping[str, Member], state: MemberState) -> list[Identity]:
        """The running nodes that own no keys because only their addresses are loopback ones: members, and this node, by
        its `state`."""
        running = [member.identity for member in members.values() if member.state not in GONE]
        if state not in GONE:
            running.append(self.me)
        loopbacks = [who for who in running if is_loopback(who.address)]
        proven = (proof.address for proof in self.provisional.proven.values())
        if len(loopbacks) < len(running) or any(address and not is_loopback(address) for address in proven):
            return loopbacks
        return []

    def _other_addresses(self, members: Mapping[str, Member], now: float) -> Iterator[str]:
        """The addresses of members that run, and of instances that a handshake has proven to run."""
        yield from (member.identity.address for member in members.values() if member.state not in GONE)
        yield from self.provisional.proven_addresses(now, except_name=self.me.name)

    def _awaits_members(self, now: float) -> bool:
        """Whether others have just reported an unheard member, or an unproven instance has just been heard."""
        recently = now - 2 * self.timings.heartbeat
        return any(reported >= recently for reported in self._awaited.values()) or (
            self.provisional.any_heard_since(recently, except_name=self.me.name)
        )
