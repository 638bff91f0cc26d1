"""Which node owns and which nodes hold each slot, as one node sees it: by its view, and by hand-overs that other views
don't show yet."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .. import rendezvous_hashing
from ..membership.heartbeat import NO_VIEW, Identity, View
from ..rendezvous_hashing import Rendezvous
from .slots import SlotSet

MAX_DEPARTED = 1000  # instances
REMEMBERED_VIEWS = 8  # a side of a partition may have come to others, and have lost them, before it gives way


@dataclass(slots=True)
class Wanted:
    """The slots that an instance has to get from this node: of those that this node owns, and of those that it has
    owned and whose present owner may lack entries."""

    owned: SlotSet = field(default_factory=SlotSet)
    ceded: SlotSet = field(default_factory=SlotSet)


class Placement:
    """The slots of the cluster, as the node `me` sees them.

    - `joining`, `leaving`, `departed`: the nodes that are about to serve; that are about to hand over what they own;
      and that own nothing any more, though they are in the view. `epoch`: of the view without the departed ones.
    - `handed`: the slots of this node that a joining one owns already. `taken`: the slots that this node owns already,
      though it is joining, by the node that has handed them over.
    - `owned`, `held`: the slots that this node owns; and that it holds as owner or backup, or will when it serves.
    - `ceded`: the slots that it has owned, by the present owner, which may lack entries. If that one is lost, the next
      owner may; if it hands over, as it does when it leaves, the next owner has what it has.
    """

    def __init__(self, me: Identity) -> None:
        self.me = me
        self.view = NO_VIEW
        self.epoch = NO_VIEW.epoch
        self.joining: dict[bytes, Identity] = {}
        self.leaving: set[bytes] = set()
        self.departed: dict[bytes, None] = {}
        self.handed: dict[bytes, SlotSet] = {}
        self.taken: dict[bytes, SlotSet] = {}
        self.owned = SlotSet()
        self.held = SlotSet()
        self.ceded: dict[bytes, SlotSet] = {}
        self._members: dict[str, Identity] = {}
        self._hashing = Rendezvous({})
        self._hashing_with: dict[bytes, Rendezvous] = {}  # a joining node
        self._past: list[tuple[dict[bytes, str], Rendezvous]] = []  # views in which all held what they had to

    @property
    def serving(self) -> bool:
        return any(member.boot == self.me.boot for member in self.view.members)

    @property
    def boots(self) -> set[bytes]:
        """The instances that own slots by the view."""
        return {member.boot for member in self._members.values()}

    def is_owner(self, boot: bytes, slot: int) -> bool:
        owner = self.owner(slot)
        return owner is not None and owner.boot == boot

    def owner(self, slot: int) -> Identity | None:
        """The node that executes requests for a slot."""
        for boot, slots in self.handed.items():
            if slot in slots:
                return self.joining[boot]
        for slots in self.taken.values():
            if slot in slots:
                return self.me
        return self._owner_by_view(slot)

    def _owner_by_view(self, slot: int) -> Identity | None:
        name = self._hashing.holders(slot)[0]
        return None if name is None else self._members[name]

    # -- changes --------------------------------------------------------------------------------------------

    def update(self, view: View, joining: Iterable[Identity]) -> set[bytes]:
        """Takes in the view and the joining members. Returns the instances that are known."""
        self.view = view
        self.joining = {identity.boot: identity for identity in joining if identity.boot != self.me.boot}
        members = {member.boot for member in view.members}
        known = members | self.joining.keys() | {self.me.boot}
        self.leaving &= known
        self.handed = {
            boot: slots for boot, slots in self.handed.items() if boot in self.joining and boot not in members
        }
        if self.serving:
            self.taken.clear()
        for boot in [boot for boot in self.taken if boot not in members]:
            self._cede(self.taken.pop(boot))  # the next owner lacks what has changed since
        return known

    def depart(self, boot: bytes) -> None:
        """An instance owns nothing any more."""
        self.leaving.add(boot)
        self.departed[boot] = None
        if len(self.departed) > MAX_DEPARTED:
            del self.departed[next(iter(self.departed))]

    def hand_over(self, joiner: Identity) -> SlotSet:
        """Hands a joining node its slots of this node's."""
        hashing = self._hashing_with[joiner.boot]
        slots = SlotSet(slot for slot in self.owned if hashing.holders(slot)[0] == joiner.name)
        self.handed[joiner.boot] = self.handed.get(joiner.boot, SlotSet()) | slots
        return self.handed[joiner.boot]

    def give_back(self) -> None:
        """Gives back all that this node, which joins, has taken over."""
        self.taken.clear()
        self.owned = SlotSet()  # so that nothing counts as ceded: it was all sent before

    def remember(self) -> None:
        """All nodes hold what they have to by the present view."""
        self._past.append(({member.boot: name for name, member in self._members.items()}, self._hashing))
        del self._past[:-REMEMBERED_VIEWS]

    def renounce(self) -> None:
        """Others have served the slots of this node."""
        self.owned = SlotSet()
        self.handed.clear()
        self.taken.clear()

    def lose(self, had: SlotSet, winners: frozenset[bytes]) -> SlotSet:
        """The winners, by boot ID, have served the slots of this node, which `had` all entries of them. Returns those
        whose entries here don't count: all but the ones that no winner held in the last settled view with most of them,
        and that the winners have to get."""
        kept: Iterable[int] = had
        if self._past:
            members, hashing = max(reversed(self._past), key=lambda past: len(past[0].keys() & winners))
            names = {members[boot] for boot in members.keys() & winners}
            kept = [slot for slot in had if names.isdisjoint(hashing.holders(slot))]
        self._cede(kept)
        return SlotSet.all() - self.all_ceded

    @property
    def all_ceded(self) -> SlotSet:
        """The slots of which other nodes may lack entries that are here."""
        slots = SlotSet()
        for ceded in self.ceded.values():
            slots = slots | ceded
        return slots

    def _cede(self, slots: Iterable[int]) -> None:
        for slot in slots:
            owner = self.owner(slot)
            self.ceded.setdefault(b"" if owner is None else owner.boot, SlotSet()).add(slot)

    # -- the plan -------------------------------------------------------------------------------------------

    def plan(self) -> dict[bytes, Wanted]:
        """Recomputes which slots this node owns and holds. Returns those that other instances have to get from it."""
        self._members = {member.name: member for member in self.view.members if member.boot not in self.departed}
        self.epoch = View.of(self._members.values()).epoch
        weights = {member.name: member.weight for member in self._members.values()}
        if set(self._hashing.names) != weights.keys():
            self._hashing = Rendezvous(weights)
        joiners = dict(self.joining)
        if not self.serving and self.me.boot not in self.departed:
            joiners[self.me.boot] = self.me
        self._hashing_with = {boot: Rendezvous({**weights, who.name: who.weight}) for boot, who in joiners.items()}
        self._end_stale_hand_overs()
        wanted: dict[bytes, Wanted] = {}
        owned, held, lost = SlotSet(), SlotSet(), SlotSet()
        for slot in range(rendezvous_hashing.SLOTS):
            owner = self.owner(slot)
            if owner is None:
                continue
            if owner.boot == self.me.boot:
                owned.add(slot)
                for boot in self._copies(slot, joiners):
                    wanted.setdefault(boot, Wanted()).owned.add(slot)
            elif slot in self.owned and owner.boot not in self.handed:
                lost.add(slot)
            if self._holds(slot, owner):
                held.add(slot)
        self.owned, self.held = owned, held
        self._revise_ceded(lost)
        for boot, slots in self.ceded.items():
            wanted.setdefault(boot, Wanted()).ceded = slots
        wanted.pop(b"", None)
        return wanted

    def _revise_ceded(self, lost: SlotSet) -> None:
        before, self.ceded = self.ceded, {}
        boots, orderly = self.boots, self.me.boot in self.departed
        for boot, slots in before.items():
            if boot in self.departed:
                continue
            if orderly and boot in boots:  # whoever owns a slot of it by now has taken it over from there
                self._cede(slot for slot in slots if self.is_owner(boot, slot))
            else:
                self._cede(slots - self.owned)
        self._cede(lost)

    def _end_stale_hand_overs(self) -> None:
        """Ends hand-overs of slots that their giver no longer owns: after a crash, a node may serve that hasn't taken
        over from it."""
        for boot, slots in self.handed.items():
            self.handed[boot] = SlotSet(slot for slot in slots if self._owns_by_view(self.me.boot, slot))
        for boot, slots in self.taken.items():
            self.taken[boot] = SlotSet(slot for slot in slots if self._owns_by_view(boot, slot))
            self._cede(slots - self.taken[boot])

    def _owns_by_view(self, boot: bytes, slot: int) -> bool:
        owner = self._owner_by_view(slot)
        return owner is not None and owner.boot == boot

    def _copies(self, slot: int, joiners: Mapping[bytes, Identity]) -> Iterator[bytes]:
        """The other instances that have to hold a slot of this node."""
        for giver, slots in self.taken.items():
            if slot in slots:
                yield giver  # the only one that has it
                return
        yield from (self._members[name].boot for name in self._next(slot, self.me))
        for boot, joiner in joiners.items():
            if boot != self.me.boot and joiner.name in self._hashing_with[boot].holders(slot):
                yield boot

    def _next(self, slot: int, owner: Identity) -> list[str]:
        """The names of the nodes that own a slot after this owner: the next one, and while that leaves, the next that
        stays."""
        if not self.leaving:
            return [name for name in self._hashing.holders(slot) if name is not None and name != owner.name][:1]
        names = [name for name in self._hashing.ranking_of(slot) if name != owner.name]
        staying = [name for name in names if self._members[name].boot not in self.leaving]
        return list(dict.fromkeys([*names[:1], *staying[:1]]))

    def _holds(self, slot: int, owner: Identity) -> bool:
        if owner.boot in self.handed:
            return True  # as the backup of the one that has taken over
        if self.me.boot in self._hashing_with:
            return self.me.name in self._hashing_with[self.me.boot].holders(slot)
        return self.me.boot == owner.boot or self.me.name in self._next(slot, owner)
