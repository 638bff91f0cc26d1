"""Logs and counts the changes of the members of the cluster, and reports them to the process of the node."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..core.membership.heartbeat import Identity, MemberState, View
from ..core.membership.members import Change, Effects
from ..core.membership.membership import Membership
from ..core.membership.timeline import EventKind
from ..wire.status import Stats
from .log import logger
from .problems import Misdirected, problems
from .recent_activity import History

PROBLEM_AGAIN = 60.0  # seconds between two log lines about a problem that lasts

# What a change means in the timeline and the signals, by (old state, new state) or by the new state.
_HAPPENED: dict[tuple[MemberState | None, MemberState] | MemberState, EventKind | None] = {
    (MemberState.SUSPECT, MemberState.ALIVE): EventKind.HEARD_AGAIN,
    (MemberState.LEAVING, MemberState.LEFT): None,
    MemberState.ALIVE: EventKind.JOINED,
    MemberState.SUSPECT: EventKind.SUSPECTED,
    MemberState.DOWN: EventKind.DOWN,
    MemberState.LEAVING: EventKind.LEFT,
    MemberState.LEFT: EventKind.LEFT,
}
# The middle of a log line, by (old state, new state) or by the new state.
_DESCRIPTIONS: dict[tuple[MemberState | None, MemberState] | MemberState, str] = {
    (MemberState.SUSPECT, MemberState.ALIVE): "resumed heartbeats; it keeps its keys",
    (MemberState.DOWN, MemberState.ALIVE): "alive again after it was cut off or paused; its keys move back to it",
    (MemberState.ALIVE, MemberState.JOINING): "joining again; its keys move to other nodes",
    MemberState.JOINING: "joining; it owns no keys yet",
    MemberState.ALIVE: "alive; it owns its share of the keys",
    MemberState.SUSPECT: "suspected after {:.1f} s without heartbeats; it keeps its keys until it is declared down",
    MemberState.LEAVING: "leaving; its keys move to other nodes",
    MemberState.LEFT: "left",
}
_SILENT = "declared down after {:.1f} s without heartbeats; its keys move to other nodes"
_ENDED = "declared down because its process has ended or was replaced; its keys move to other nodes"


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """The members that own keys have changed."""

    old: View
    new: View


@dataclass(frozen=True, slots=True)
class Isolated:
    """This node is isolated: most peers fell silent at once, so it is probably this node that is cut off."""


Notification = Change | ViewChanged | Isolated


def what_happened(change: Change) -> EventKind | None:
    """The event of a state change in the timeline and the signals; None if it only follows from an earlier change."""
    return _HAPPENED.get((change.old, change.new), _HAPPENED.get(change.new))


def describe(change: Change, silence: float, suspect_after: float) -> str:
    """Describes a change of a member that was last heard `silence` seconds ago, and its consequence, for the log."""
    if change.new is MemberState.DOWN:
        text = _SILENT if silence >= suspect_after else _ENDED
    else:
        text = _DESCRIPTIONS.get((change.old, change.new)) or _DESCRIPTIONS[change.new]
    return text.format(silence)


@dataclass(eq=False, repr=False)
class MembershipEvents:
    """Logs the effects of each call of `membership`, counts them in `stats`, and adds them to `history`'s timeline.

    `notify(event)` is called, in order, with each change of state of a member, this node included, and with isolation.
    """

    membership: Membership
    stats: Stats
    history: History
    notify: Callable[[Notification], None]
    clock: Callable[[], float]
    _isolated: bool = False
    _problems: dict[str, float] = field(default_factory=dict)  # when each was last logged

    def take_effects(self, effects: Effects) -> None:
        """Reports stalls, isolation and unreachable peers; `take_change` reports the changes of state."""
        me, timings = self.membership.me, self.membership.timings
        if effects.stalled > timings.suspect_after:
            logger.warning(
                "node %s was paused for %.1f s, so heartbeats missed meanwhile do not count against peers; look for a "
                "suspended machine, swapping or too little CPU", me, effects.stalled,
            )  # fmt: skip
            self._note(EventKind.STALLED, me)
        if self.membership.isolated and not self._isolated:
            logger.warning(
                "node %s isolated: most peers fell silent at once, so they are declared down %.1f s later; check this "
                "host's network and the channel layer", me, timings.suspect_after,
            )  # fmt: skip
            self._note(EventKind.ISOLATED, me)
            self.notify(Isolated())
        elif self._isolated and not self.membership.isolated:
            logger.warning("node %s no longer isolated", me)
            self._note(EventKind.RECONNECTED, me)
        self._isolated = self.membership.isolated
        if effects.declared_down:
            logger.warning(
                "node %s had been declared down by its peers, or had lost most of them: it joins again, and drops the "
                "entries and limits that others have served meanwhile",
                me,
            )
        for peer in effects.unreachable:
            logger.warning(
                "peer %s unreachable: no heartbeat for %.1f s, but other nodes receive them, so it stays a member; "
                "check firewalls and routes from its host to this one", peer, self._silence(peer),
            )  # fmt: skip

    def take_change(self, change: Change) -> None:
        identity, view = change.identity, self.membership.view
        serving = len(view.members)
        logger.log(
            logging.WARNING if change.new in (MemberState.SUSPECT, MemberState.DOWN) else logging.INFO,
            "%s %s %s; %s -> %s, %d %s serving, epoch %016x",
            "node" if identity is self.membership.me else "peer",
            identity,
            describe(change, self._silence(identity), self.membership.timings.suspect_after),
            change.old or "unknown",
            change.new,
            serving,
            "node" if serving == 1 else "nodes",
            view.epoch,
        )
        if (what := what_happened(change)) is not None:
            self._note(what, identity)
        self.notify(change)

    def take_problems(self, misdirected: Mapping[str, Misdirected]) -> None:
        """Logs each problem when it begins, once a minute while it lasts, and when it is solved."""
        now = self.clock()
        found = problems(self.membership, misdirected, now)
        for text in found:
            if now - self._problems.get(text, -PROBLEM_AGAIN) >= PROBLEM_AGAIN:
                self._problems[text] = now
                logger.error("problem: %s", text)
        for text in set(self._problems).difference(found):
            del self._problems[text]
            logger.info("problem resolved: %s", text)

    def _silence(self, identity: Identity) -> float:
        """Seconds since this instance of the node was last heard; 0 if another instance has taken its place."""
        member = self.membership.members.get(identity.name)
        return self.clock() - member.heard if member is not None and member.identity == identity else 0.0

    def _note(self, what: EventKind, identity: Identity) -> None:
        self.history.timeline.note(what, identity.name, identity.boot, self.clock())
        changes = self.stats.changes
        if what in changes.__struct_fields__:
            setattr(changes, what, getattr(changes, what) + 1)
