"""Which node owns and which nodes hold each slot, as one node sees it: by its view, and by hand-overs that other views
don't show yet."""

from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field

from .. import rendezvous_hashing
from ..membership.heartbeat import NO_VIEW, Identity, View
from .ranking import Holders, Ranking, Rankings, result
from .slots import SlotSet, union

MAX_DEPARTED = 1000  # instances
MAX_PREPARED = 3  # of the views that follow when one of several leaving nodes has gone
REMEMBERED_VIEWS = 8  # a side of a partition may have come to others, and have lost them, before it gives way


@dataclass(slots=True)
class Wanted:
    """The slots that an instance has to get from this node: of those that this node owns, and of those that it has
    owned and whose present owner may lack entries."""

    owned: SlotSet = field(default_factory=SlotSet)
    ceded: SlotSet = field(default_factory=SlotSet)


class Placement:
    """The slots of the cluster, as the node `me` sees them. `backups`: 1, or 0 if owners have none; nodes that join or
    leave hand over all the same.

    - `joining`, `leaving`, `departed`: the nodes that are about to serve; that are about to hand over what they own;
      and that own nothing any more, though they are in the view. `epoch`: of the view without the departed ones, whose
      instances are `boots`.
    - `handed`: the slots of this node that a joining one owns already. `taken`: the slots that this node owns already,
      though it is joining, by the node that has handed them over. `turn`: how often it has given all of them back.
    - `owned`, `held`: the slots that this node owns; and that it holds as owner or backup, or will when it serves.
      `owns`: a byte for each slot, 1 if this node owns it.
    - `ceded`: the slots that it has owned, by the present owner, which may lack entries. If that one is lost, the next
      owner may; if it hands over, as it does when it leaves, the next owner has what it has.
    """

    def __init__(self, me: Identity, backups: int = 1) -> None:
        self.me = me
        self.view = NO_VIEW
        self.serving = False
        self.epoch = NO_VIEW.epoch
        self.boots: frozenset[bytes] = frozenset()
        self.joining: dict[bytes, Identity] = {}
        self.leaving: set[bytes] = set()
        self.departed: dict[bytes, None] = {}
        self.handed: dict[bytes, SlotSet] = {}
        self.taken: dict[bytes, SlotSet] = {}
        self.turn = 0
        self.owned = SlotSet()
        self.held = SlotSet()
        self.owns = bytearray(rendezvous_hashing.SLOTS)
        self.ceded: dict[bytes, SlotSet] = {}
        self.backups = backups
        self._members: dict[bytes, Identity] = {}
        self._rankings = Rankings()
        self._ranking = self._rankings.get({})
        self._owners: list[Identity | None] = [None]  # by their index in the ranking
        self._joiners: dict[Identity, tuple[SlotSet, SlotSet]] = {}  # what `_slots_of_joiner` gives
        self._challenges: dict[tuple[Ranking, Identity], tuple[SlotSet, SlotSet]] = {}  # what `_challenge` gives
        self._past: list[tuple[dict[bytes, str], Holders]] = []  # views in which all held what they had to
        self._staying = self._ranking.holders  # of the view without the leaving nodes
        self._leaves = SlotSet()  # the slots whose owners leave

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
        return self._owners[self._ranking.first[slot]]

    def lists(self, slot: int) -> bool:
        """Whether this node names the keys of a slot when all nodes are asked: it owns them, or has handed them to a
        node that isn't asked yet."""
        return bool(self.owns[slot]) or any(slot in slots for slots in self.handed.values())

    def by_owner(self, slots: SlotSet) -> dict[bytes, SlotSet]:
        """Some slots by the instance that owns them; those that nobody owns under `b""`."""
        found: dict[bytes, SlotSet] = {}
        for boot, part in self._owned_by_all():
            if slots and (part := part & slots):
                found[boot] = found.get(boot, SlotSet()) | part
                slots = slots - part
        if slots:
            found[b""] = slots
        return found

    def _owned_by_all(self) -> Iterator[tuple[bytes, SlotSet]]:
        yield from self.handed.items()
        yield self.me.boot, union(self.taken.values())
        for boot in self._members:
            yield boot, self._owned_by_view(boot)

    def _owned_by_view(self, boot: bytes) -> SlotSet:
        member = self._members.get(boot)
        return SlotSet() if member is None else self._ranking.holders.owned(member.name)

    # -- changes --------------------------------------------------------------------------------------------

    def update(self, view: View, joining: Iterable[Identity]) -> set[bytes]:
        """Takes in the view and the joining members. Returns the instances that are known."""
        self.view = view
        self.serving = any(member.boot == self.me.boot for member in view.members)
        self.joining = {identity.boot: identity for identity in joining if identity.boot != self.me.boot}
        members = {member.boot for member in view.members}
        known = members | self.joining.keys() | {self.me.boot}
        self.leaving &= known
        for ranking, joiner in list(self._challenges):
            if joiner.boot not in self.joining or ranking not in self._rankings:
                del self._challenges[ranking, joiner]
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

    def reclaim(self, boot: bytes, filled: SlotSet) -> None:
        """An instance is about to depart, and has got only these of the slots that were ceded to it: the owners
        after it get the others."""
        missed = self.ceded.pop(boot, SlotSet()) - filled
        if missed:
            self.ceded[b""] = self.ceded.get(b"", SlotSet()) | missed

    def hand_over(self, joiner: Identity) -> SlotSet:
        """Hands a joining node its slots of this node's."""
        slots, _ = self._slots_of_joiner(joiner)
        self.handed[joiner.boot] = self.handed.get(joiner.boot, SlotSet()) | (slots & self.owned)
        return self.handed[joiner.boot]

    def give_back(self) -> None:
        """Gives back all that this node, which joins, has taken over."""
        self.turn += 1
        self.taken.clear()
        self._set_owned(SlotSet())  # so that nothing counts as ceded: it was all sent before

    def remember(self) -> None:
        """All nodes hold what they have to by the present view."""
        self._past.append(({boot: member.name for boot, member in self._members.items()}, self._ranking.holders))
        del self._past[:-REMEMBERED_VIEWS]

    def renounce(self) -> None:
        """Others have served the slots of this node."""
        self.turn += 1
        self._set_owned(SlotSet())
        self.handed.clear()
        self.taken.clear()

    def yield_to(self, had: SlotSet, winners: frozenset[bytes]) -> SlotSet:
        """The winners, by boot ID, have served the slots of this node, of which it `had` all entries. Returns the slots
        whose entries here don't count: all but those that no winner held in the last settled view with most of them,
        which the winners have to get."""
        if self._past:
            members, holders = max(reversed(self._past), key=lambda past: len(past[0].keys() & winners))
            names = {members[boot] for boot in members.keys() & winners}
            had = had - (holders.held(names) if self.backups else union(map(holders.owned, names)))
        self._cede(had)
        return SlotSet.all() - self.all_ceded

    @property
    def all_ceded(self) -> SlotSet:
        """The slots of which other nodes may lack entries that are here."""
        return union(self.ceded.values())

    def _cede(self, slots: SlotSet) -> None:
        for boot, part in self.by_owner(slots).items():
            self.ceded[boot] = self.ceded.get(boot, SlotSet()) | part

    def _set_owned(self, slots: SlotSet) -> None:
        self.owned = slots
        self.owns[:] = slots.flags()

    # -- the plan -------------------------------------------------------------------------------------------

    def prepare(self, view: View, joining: Iterable[Identity] = (), leaving: Collection[bytes] = ()) -> Iterator[None]:
        """Computes, in steps of a few milliseconds, what `plan()` needs to know of a view and of members that join and
        leave. Without it, `plan()` takes as long as all steps together."""
        members = [member for member in view.members if member.boot not in self.departed]
        weights, leaving = _weights(members), {*self.leaving, *leaving}
        # Those that are certainly needed come last, since few are remembered.
        for gone in [{boot} for boot in sorted(leaving)[:MAX_PREPARED] if len(leaving) > 1] + [leaving]:
            yield from self._rankings.prepare(_weights(_staying(members, gone)))
        ranking = yield from self._rankings.prepare(weights)
        joiners = [joiner for joiner in joining if joiner.boot != self.me.boot]
        if not any(member.boot == self.me.boot for member in view.members):
            joiners = [self.me]
        if len(joiners) == 1:
            yield from self._rankings.prepare({**weights, joiners[0].name: joiners[0].weight})
        else:
            for joiner in joiners:
                yield from self._challenge(ranking, joiner)

    def _challenge(self, ranking: Ranking, joiner: Identity) -> Generator[None, None, tuple[SlotSet, SlotSet]]:
        """Computes, once, what a joining node would own, and what it would hold, of the slots of this node."""
        key = ranking, joiner
        if key not in self._challenges:
            mine = ranking.holders.owned(self.me.name)
            self._challenges[key] = yield from ranking.challenge(joiner.name, joiner.weight, mine)
        return self._challenges[key]

    def plan(self) -> dict[bytes, Wanted]:
        """Recomputes which slots this node owns and holds. Returns those that other instances have to get from it."""
        self._rank()
        self._end_stale_hand_overs()
        handed, taken = union(self.handed.values()), union(self.taken.values())
        before, mine = self.owned, self._owned_by_view(self.me.boot) - handed
        self._set_owned(mine | (taken - handed))
        has_owner = SlotSet.all() if self._members else handed | taken
        if self._joins:
            self.held = handed | (self._slots_of_joiner(self.me)[self.backups] & has_owner)
        else:
            self.held = handed | self.owned | self._kept_by(self.me.name)
        self._revise_ceded((before - self.owned - handed) & has_owner)
        wanted = self._copies(mine - taken)
        for boot, slots in self.ceded.items():
            wanted.setdefault(boot, Wanted()).ceded = slots
        wanted.pop(b"", None)
        return wanted

    def _rank(self) -> None:
        members = [member for member in self.view.members if member.boot not in self.departed]
        self._members = {member.boot: member for member in members}
        self.boots = frozenset(self._members)
        self.epoch = View.of(members).epoch
        weights = _weights(members)
        if self._ranking.weights != weights:
            self._ranking = self._rankings.get(weights)
            self._joiners.clear()
        for joiner in self._joiners.keys() - {self.me, *self.joining.values()}:
            del self._joiners[joiner]
        self._leaves = union(map(self._owned_by_view, self.leaving))
        by_name = {member.name: member for member in members}
        self._owners = [by_name.get(name) for name in self._ranking.names]
        self._staying = self._rankings.get(_weights(_staying(members, self.leaving))).holders

    @property
    def _joins(self) -> bool:
        return not self.serving and self.me.boot not in self.departed

    def _slots_of_joiner(self, joiner: Identity) -> tuple[SlotSet, SlotSet]:
        """The slots that a joining node will own, and those that it will own or back up; of another node, only those
        that this node owns now."""
        if joiner not in self._joiners:
            self._joiners[joiner] = self._compute_slots_of(joiner)
        return self._joiners[joiner]

    def _compute_slots_of(self, joiner: Identity) -> tuple[SlotSet, SlotSet]:
        ranking, name = self._ranking, joiner.name
        if joiner.boot != self.me.boot and len(self.joining) > 1 and name not in ranking.weights:
            return result(self._challenge(ranking, joiner))
        holders = self._rankings.get({**ranking.weights, name: joiner.weight}).holders  # most often of the next view
        return holders.owned(name), holders.held([name])

    def _end_stale_hand_overs(self) -> None:
        """Ends hand-overs of slots that their giver no longer owns: after a crash, a node may serve that hasn't taken
        over from it."""
        for boot, slots in self.handed.items():
            self.handed[boot] = slots & self._owned_by_view(self.me.boot)
        for boot, slots in self.taken.items():
            self.taken[boot] = slots & self._owned_by_view(boot)
            self._cede(slots - self.taken[boot])

    def _revise_ceded(self, lost: SlotSet) -> None:
        before, self.ceded = self.ceded, {}
        orderly = self.me.boot in self.departed
        for boot, slots in before.items():
            if boot in self.departed:
                continue
            if orderly and boot in self.boots:  # its present owners have taken over from there
                self._cede(self.by_owner(slots).get(boot, SlotSet()))
            else:
                self._cede(slots - self.owned)
        self._cede(lost)

    def _copies(self, mine: SlotSet) -> dict[bytes, Wanted]:
        """The slots of this node that others have to hold. `mine`: those that nobody has handed over to it."""
        copies = {boot: slots & self.owned for boot, slots in self.taken.items()}  # nobody but the giver has these
        for boot, member in self._members.items():
            copies[boot] = copies.get(boot, SlotSet()) | (self._kept_by(member.name) & mine)
        for boot, joiner in self.joining.items():
            copies[boot] = copies.get(boot, SlotSet()) | (self._slots_of_joiner(joiner)[self.backups] & mine)
        return {boot: Wanted(slots) for boot, slots in copies.items() if slots}

    def _kept_by(self, name: str) -> SlotSet:
        """The slots that a node holds as the next one in their ranking after the owner; while that one leaves, the next
        that stays holds them too. Without backups, only if the owner leaves."""
        slots = self._leaves & (self._ranking.holders.backed_up(name) | self._staying.owned(name))
        if self.backups:
            slots |= (self._ranking.holders.backed_up(name) | self._staying.backed_up(name)) - self._leaves
        return slots


def _weights(members: Iterable[Identity]) -> dict[str, float]:
    return {member.name: member.weight for member in members}


def _staying(members: Iterable[Identity], leaving: Collection[bytes]) -> list[Identity]:
    return [member for member in members if member.boot not in leaving]
