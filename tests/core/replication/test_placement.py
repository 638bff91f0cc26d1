"""The plan of the copies against a model that looks at each slot."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core import rendezvous_hashing
from django_clusterstate.core.membership.heartbeat import Identity, View
from django_clusterstate.core.replication.placement import Placement
from django_clusterstate.core.replication.ranking import Ranking
from django_clusterstate.core.replication.slots import SlotSet
from tests.core.replication.simulation import few_slots
from tests.core.replication.slow_placement import SlowPlacement

NAMES = "abcdef"
ME = Identity("c", b"c" * 16, "c:4370")


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    """One of a few nodes, or another instance of it; most are of the same weight."""
    name = draw(st.sampled_from(NAMES))
    if name == ME.name and draw(st.booleans()):
        return ME
    boot = name.upper() if draw(st.integers(0, 3)) == 3 else name
    return Identity(name, boot.encode() * 16, f"{name}:4370", draw(st.sampled_from([1.0] * 6 + [0.5, 2.0])))


@st.composite
def updates(draw: st.DrawFn) -> tuple[str, View, list[Identity]]:
    least = draw(st.sampled_from([3, 2, 2, 0]))
    members = draw(st.lists(identities(), min_size=least, max_size=6, unique_by=lambda member: member.name))
    if draw(st.booleans()):
        members = [ME, *(member for member in members if member.name != ME.name)]
    boots = {member.boot for member in members}
    joining = draw(st.lists(identities(), max_size=4, unique_by=lambda member: member.boot))
    return "update", View.of(members), [joiner for joiner in joining if joiner.boot not in boots]


OPERATIONS = st.one_of(
    updates(),
    st.tuples(st.sampled_from(["leave", "depart", "take", "take"]), st.integers(0, 2)),
    st.tuples(st.just("hand over"), st.integers(0, 1)),
    st.tuples(st.just("lose"), st.frozensets(identities().map(lambda identity: identity.boot))),
    st.tuples(st.sampled_from(["give back", "plan", "remember"])),
)


def act(placement: Any, operation: tuple[Any, ...]) -> Any:
    """What an operation returns, at `Placement` or its model. An index is that of a member, or of a joining one."""
    members, joining = placement.view.members, list(placement.joining.values())
    match operation:
        case "update", view, joining:
            return placement.update(view, joining)
        case "leave", index if index < len(members):
            placement.leaving.add(members[index].boot)
        case "depart", index if index < len(members):
            placement.depart(members[index].boot)
        case "hand over", index if index < len(joining) and placement.serving:
            return set(placement.hand_over(joining[index]))
        case "take", index if index < len(members) and not placement.serving:
            slots = range(index, rendezvous_hashing.SLOTS, 2)
            placement.taken[members[index].boot] = type(placement.owned)(slots)
        case "lose", winners:
            had = placement.owned
            placement.renounce()
            return set(placement.yield_to(had, winners))
        case ("remember",):
            placement.remember()
        case ("give back",):
            placement.give_back()
    return None


def seen(placement: Any) -> dict[str, Any]:
    """What a plan brings."""
    wanted = {boot: (set(want.owned), set(want.ceded)) for boot, want in placement.plan().items()}
    return {
        "wanted": {boot: want for boot, want in wanted.items() if any(want)},
        "owned": set(placement.owned),
        "held": set(placement.held),
        "ceded": {boot: set(slots) for boot, slots in placement.ceded.items() if slots},
        "handed": {boot: set(slots) for boot, slots in placement.handed.items()},
        "taken": {boot: set(slots) for boot, slots in placement.taken.items()},
        "owners": [placement.owner(slot) for slot in range(rendezvous_hashing.SLOTS)],
        "epoch": (placement.epoch, placement.boots, placement.serving),
    }


@given(updates(), st.lists(OPERATIONS, max_size=12), st.sampled_from([0, 1]), st.booleans())
def test_a_plan_is_what_a_look_at_each_slot_would_bring(
    first: tuple[Any, ...], operations: list[tuple[Any, ...]], backups: int, prepares: bool
) -> None:
    with few_slots():
        placement, model = Placement(ME, backups), SlowPlacement(ME, backups)
        for operation in [first, *operations]:
            if prepares and operation[0] == "update":
                list(placement.prepare(*operation[1:]))
            elif prepares and operation[0] == "leave":
                list(placement.prepare(placement.view, leaving=[member.boot for member in placement.view.members[:2]]))
            assert act(placement, operation) == act(model, operation)
            assert seen(placement) == seen(model)
            assert list(placement.owns) == [slot in placement.owned for slot in range(rendezvous_hashing.SLOTS)]
            parts = placement.by_owner(SlotSet.all())
            owners = [owner.boot if (owner := placement.owner(slot)) else b"" for slot in SlotSet.all()]
            assert {boot: set(part) for boot, part in parts.items()} == {
                boot: {slot for slot, owner in enumerate(owners) if owner == boot} for boot in owners
            }


def test_a_plan_computes_no_ranking_that_was_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, d = (Identity(name, name.encode() * 16, f"{name}:4370") for name in "abd")
    with few_slots():
        for view, joining, leaving in [
            (View.of([a, b]), [], []),  # this node joins
            (View.of([a, b, ME]), [d], []),
            (View.of([a, b, ME, d]), [], []),
            (View.of([a, b, ME, d]), [], [b.boot]),
            (View.of([a, ME, d]), [], []),
        ]:
            placement = Placement(ME)
            list(placement.prepare(view, joining, leaving))
            placement.leaving.update(leaving)
            placement.update(view, joining)
            with monkeypatch.context() as patch:
                patch.setattr(Ranking, "derive", lambda *_: pytest.fail("computed again"))
                placement.plan()
