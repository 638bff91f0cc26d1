"""When a node that has started may serve.

It joins for two heartbeats, and then for as long as another running node has its name, as it advertises a loopback
address while others don't, or as it has heard others and none has connected to its address. It also waits a while for
members that others know and that it hasn't heard yet, since requesters of its host believe its view once it serves.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from .members import Member, Timings, Wait
from .messages import GONE, Identity, is_loopback
from .namesakes import NameConflicts
from .provisional import ProvisionalStarts

UNMET = 256  # members that others know and that are waited for, at most


class Joining:
    """What the node `me` waits for. `must_be_reached`: with others there, one of them has to connect to its address."""

    def __init__(
        self,
        me: Identity,
        timings: Timings,
        now: float,
        strangers: ProvisionalStarts,
        rivals: NameConflicts,
        *,
        must_be_reached: bool,
    ) -> None:
        self.must_be_reached = must_be_reached
        self.reached = False
        self._me = me
        self._timings = timings
        self._started = now
        self._strangers = strangers
        self._rivals = rivals
        self._unmet: OrderedDict[str, float] = OrderedDict()

    def waits_for(self, members: Mapping[str, Member], now: float) -> Wait | None:
        """Why this node doesn't serve yet; None when it may."""
        timings, age = self._timings, now - self._started
        if age < 2 * timings.heartbeat:
            return Wait.YOUNG  # by then whoever discovery found has answered, so we won't own keys of others
        if self._rivals.holder(now):
            return Wait.NAME
        if is_loopback(self._me.address) and any(not is_loopback(address) for address in self._others(members, now)):
            return Wait.LOOPBACK
        if self.must_be_reached and not self.reached and self._has_peers(members, now):
            return Wait.UNREACHED
        if age < 2 * timings.heartbeat + timings.down_after and self._is_missing_some(now):
            return Wait.UNMET
        return None

    def _others(self, members: Mapping[str, Member], now: float) -> Iterator[str]:
        """The addresses of those that have been heard, or that a handshake has shown."""
        yield from (member.identity.address for member in members.values() if member.state not in GONE)
        yield from self._strangers.addresses(now, but=self._me.name)

    def _has_peers(self, members: Mapping[str, Member], now: float) -> bool:
        """Whether anybody is there who should be able to reach us."""
        others = self._others(members, now)
        return any(is_loopback(self._me.address) or not is_loopback(address) for address in others)

    def wait_for(self, name: str, now: float) -> None:
        """Others know this member, which hasn't been heard yet."""
        self._unmet[name] = now
        if len(self._unmet) > UNMET:
            self._unmet.popitem(last=False)

    def met(self, name: str) -> None:
        self._unmet.pop(name, None)

    def _is_missing_some(self, now: float) -> bool:
        """Whether others know a member that we haven't heard, or somebody is about to show that it runs."""
        lately = now - 2 * self._timings.heartbeat
        unmet = any(told >= lately for told in self._unmet.values())
        return unmet or self._strangers.any_since(lately, but=self._me.name)
