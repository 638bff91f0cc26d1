"""The plan of the copies slot by slot: 200 times slower than `Placement`, and plain to see."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from django_clusterstate.core import rendezvous_hashing
from django_clusterstate.core.membership.heartbeat import NO_VIEW, Identity, View
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.core.replication.placement import MAX_DEPARTED, REMEMBERED_VIEWS


@dataclass(slots=True)
class Wanted:
    """The slots that an instance has to get from this node: of those that this node owns, and of those that it has
    owned and whose present owner may lack entries."""

    owned: set[int] = field(default_factory=set)
    ceded: set[int] = field(default_factory=set)


class SlowPlacement:
    """What `Placement` does, by a look at each slot."""

    def __init__(self, me: Identity, backups: int = 1) -> None:
        self.me = me
        self.backups = backups
        self.view = NO_VIEW
        self.epoch = NO_VIEW.epoch
        self.joining: dict[bytes, Identity] = {}
        self.leaving: set[bytes] = set()
        self.departed: dict[bytes, None] = {}
        self.handed: dict[bytes, set[int]] = {}
        self.taken: dict[bytes, set[int]] = {}
        self.owned: set[int] = set()
        self.held: set[int] = set()
        self.ceded: dict[bytes, set[int]] = {}
        self._members: dict[str, Identity] = {}
        self._weights: dict[str, float] = {}
        self._hashing = Rendezvous({})
        self._hashing_with: dict[bytes, Rendezvous] = {}  # a joining node
        self._past: list[tuple[dict[bytes, str], Rendezvous]] = []

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

    def hand_over(self, joiner: Identity) -> set[int]:
        """Hands a joining node its slots of this node's."""
        hashing = self._hashing_with[joiner.boot]
        slots = {slot for slot in self.owned if hashing.holders(slot)[0] == joiner.name}
        self.handed[joiner.boot] = self.handed.get(joiner.boot, set()) | slots
        return self.handed[joiner.boot]

    def give_back(self) -> None:
        """Gives back all that this node, which joins, has taken over."""
        self.taken.clear()
        self.owned = set()  # so that nothing counts as ceded: it was all sent before

    def remember(self) -> None:
        """All nodes hold what they have to by the present view."""
        self._past.append(({member.boot: name for name, member in self._members.items()}, self._hashing))
        del self._past[:-REMEMBERED_VIEWS]

    def renounce(self) -> None:
        """Others have served the slots of this node."""
        self.owned = set()
        self.handed.clear()
        self.taken.clear()

    def yield_to(self, had: set[int], winners: frozenset[bytes]) -> set[int]:
        """The winners, by boot ID, have served the slots of this node, which `had` all entries of them. Returns those
        whose entries here don't count: all but the ones that no winner held in the last settled view with most of them,
        and that the winners have to get."""
        kept: Iterable[int] = had
        if self._past:
            members, hashing = max(reversed(self._past), key=lambda past: len(past[0].keys() & winners))
            names = {members[boot] for boot in members.keys() & winners}
            kept = [slot for slot in had if names.isdisjoint(hashing.holders(slot)[: 1 + self.backups])]
        self._cede(kept)
        return set(range(rendezvous_hashing.SLOTS)) - self.all_ceded

    @property
    def all_ceded(self) -> set[int]:
        """The slots of which other nodes may lack entries that are here."""
        return {slot for ceded in self.ceded.values() for slot in ceded}

    def _cede(self, slots: Iterable[int]) -> None:
        for slot in slots:
            owner = self.owner(slot)
            self.ceded.setdefault(b"" if owner is None else owner.boot, set()).add(slot)

    # -- the plan -------------------------------------------------------------------------------------------

    def plan(self) -> dict[bytes, Wanted]:
        """Recomputes which slots this node owns and holds. Returns those that other instances have to get from it."""
        self._members = {member.name: member for member in self.view.members if member.boot not in self.departed}
        self.epoch = View.of(self._members.values()).epoch
        weights = {member.name: member.weight for member in self._members.values()}
        if self._weights != weights:
            self._weights, self._hashing = weights, Rendezvous(weights)
        joiners = dict(self.joining)
        if not self.serving and self.me.boot not in self.departed:
            joiners[self.me.boot] = self.me
        self._hashing_with = {boot: Rendezvous({**weights, who.name: who.weight}) for boot, who in joiners.items()}
        self._end_stale_hand_overs()
        wanted: dict[bytes, Wanted] = {}
        owned: set[int] = set()
        held: set[int] = set()
        lost: set[int] = set()
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

    def _revise_ceded(self, lost: set[int]) -> None:
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
            self.handed[boot] = {slot for slot in slots if self._owns_by_view(self.me.boot, slot)}
        for boot, slots in self.taken.items():
            self.taken[boot] = {slot for slot in slots if self._owns_by_view(boot, slot)}
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
            if boot != self.me.boot and joiner.name in self._hashing_with[boot].holders(slot)[: 1 + self.backups]:
                yield boot

    def _next(self, slot: int, owner: Identity) -> list[str]:
        """The names of the nodes that own a slot after this owner: the next one, and while that leaves, the next that
        stays."""
        if not self.backups and owner.boot not in self.leaving:
            return []
        if not self.leaving:
            return [name for name in self._hashing.holders(slot) if name is not None and name != owner.name][:1]
        names = [name for name in self._hashing.ranking_of(slot) if name != owner.name]
        staying = [name for name in names if self._members[name].boot not in self.leaving]
        return list(dict.fromkeys([*names[:1], *staying[:1]]))

    def _holds(self, slot: int, owner: Identity) -> bool:
        if owner.boot in self.handed:
            return True  # as the backup of the one that has taken over
        if self.me.boot in self._hashing_with:
            return self.me.name in self._hashing_with[self.me.boot].holders(slot)[: 1 + self.backups]
        return self.me.boot == owner.boot or self.me.name in self._next(slot, owner)
