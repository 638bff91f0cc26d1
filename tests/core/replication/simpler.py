"""Simpler rules, each of which some history breaks: a simulation that can't break them proves nothing."""

from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

from django_clusterstate.core.membership.heartbeat import Heartbeat
from django_clusterstate.core.membership.members import Effects
from django_clusterstate.core.membership.membership import Membership
from django_clusterstate.core.replication.cleaning import Cleaner, Filling
from django_clusterstate.core.replication.hand_over import Joiner, Leaver
from django_clusterstate.core.replication.inboxes import Inboxes
from django_clusterstate.core.replication.messages import RecordKey
from django_clusterstate.core.replication.replication import Replication
from django_clusterstate.core.replication.slots import SlotSet
from tests.core.replication.simulation import DataSimulation


class AddsOnly(Replication):
    """A fill drops nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inboxes.cleaner.__class__ = _AddsOnly


class _AddsOnly(Cleaner):
    def _drop(self, filling: Filling, keys: Sequence[RecordKey]) -> int:
        return len(keys)


class ServesUnfilled(Replication):
    """A joining node serves as soon as the membership lets it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.joiner.__class__ = _ServesUnfilled


class _ServesUnfilled(Joiner):
    def tick(self, now: float) -> None:
        self.may_serve = True


class ForgetsCopies(Replication):
    """An entry is good only if this node has owned its slot since it was written."""

    def _plan(self, now: float) -> None:
        super()._plan(now)
        for slot in SlotSet.all() - self.placement.owned:
            self.valid_since[slot] = self.generation + 1


class LeavesAtOnce(Replication):
    """A leaving node hands over without a look at whether the next owners have its entries."""

    @property
    def _is_settled(self) -> bool:
        return True

    def leave(self, seconds: float, now: float) -> Leaver:
        return super().leave(0.0, now)


class JoinersExecute(Replication):
    """A node that joins executes what it can't forward."""

    def destination(self, slot: int, hops: int, merges: bool, is_reached: Callable[[bytes], bool]) -> bytes | None:
        found = super().destination(slot, hops, merges, is_reached)
        joins = not self.placement.serving and self.placement.owner(slot) is not None
        return self.placement.me.boot if found is None and joins else found


class DropsOnce(Replication):
    """What a node doesn't hold is dropped once in each view, also if that comes back."""

    def __init__(self, *args: Any) -> None:
        self.dropped_in: set[int] = set()
        super().__init__(*args)

    def _plan(self, now: float) -> None:
        if self._has_dropped:
            self.dropped_in.add(self.placement.epoch)
        super()._plan(now)
        self._has_dropped = self._has_dropped or self.placement.epoch in self.dropped_in


class TrustsEveryChange(Replication):
    """What other nodes than those of the view have changed here counts as known to the owner."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inboxes.__class__ = _TrustsEveryChange


class _TrustsEveryChange(Inboxes):
    def changed_by_others(self, boots: Set[bytes]) -> SlotSet:
        return SlotSet()


class SendsLate(Replication):
    """Changes are sent a tenth of a second later."""

    late = 0.0

    def tick(self, now: float) -> Iterator[None]:
        if now < self.late:
            return iter(())
        self.late = now + 0.1
        return super().tick(now)


class NoForward(DataSimulation):
    """A node executes what it is asked."""

    forwards = False


class TakesAllForWinners(DataSimulation):
    """A node that was declared down takes all others for winners, also those that were declared down with it."""


class _TakesAllForWinners(Membership):
    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        effects = super().heard(beat, now, fresh=fresh)
        all_others = frozenset(member.identity.boot for member in self.members.values())
        effects.winners = all_others if effects.declared_down else frozenset()
        return effects


TakesAllForWinners.membership = _TakesAllForWinners


class BothSidesGiveWay(DataSimulation):
    """After a partition, both sides empty themselves at once."""


class _BothSidesGiveWay(_TakesAllForWinners):
    def _give_way(self, beat: Heartbeat, now: float, effects: Effects, *, mutual: bool) -> None:
        super()._give_way(beat, now, effects, mutual=False)


BothSidesGiveWay.membership = _BothSidesGiveWay


class OwnsWhileItEmpties(DataSimulation):
    """A node that was declared down refutes as alive, and owns at once what it is about to drop."""


class _OwnsWhileItEmpties(Membership):
    def _give_way(self, beat: Heartbeat, now: float, effects: Effects, *, mutual: bool) -> None:
        pass


OwnsWhileItEmpties.membership = _OwnsWhileItEmpties
