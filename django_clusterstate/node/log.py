"""The log lines of a node: what it says of the states of members, and lines that are rationed.

`docs/operations.md` lists every line, and tests hold the code to that list.
"""

import logging
import math
from collections.abc import Callable

from ..core.membership.messages import MemberState

logger = logging.getLogger("django_clusterstate.node")

# What a new state means. Of (old state, new state), else of the new state.
STATE_CHANGES: dict[tuple[MemberState | None, MemberState] | MemberState, str] = {
    (MemberState.SUSPECT, MemberState.ALIVE): "heard again; it keeps its keys",
    (MemberState.DOWN, MemberState.ALIVE): "alive again after it was cut off or stopped; its keys move back to it",
    (MemberState.ALIVE, MemberState.JOINING): "joining again, since only its own host can reach its address; "
    "its keys move to other nodes",
    MemberState.JOINING: "joining; it owns no keys yet",
    MemberState.ALIVE: "alive; it owns its share of the keys",
    MemberState.SUSPECT: "suspected after {silence:.1f} s without heartbeats; it keeps its keys until it is declared "
    "down",
    MemberState.LEAVING: "leaving; its keys move to other nodes",
    MemberState.LEFT: "left",
}
SILENT = "declared down after {silence:.1f} s without heartbeats; its keys move to other nodes"
ENDED = "declared down, since its process has ended or was replaced; its keys move to other nodes"


def state_change(old: MemberState | None, new: MemberState, silence: float, suspect_after: float) -> str:
    """What happened to a member that was last heard `silence` seconds ago, and what that means."""
    if new is MemberState.DOWN:
        text = SILENT if silence >= suspect_after else ENDED
    else:
        text = STATE_CHANGES.get((old, new)) or STATE_CHANGES[new]
    return text.format(silence=silence)


class RationedLog:
    """Warnings that may have any number of causes, and must not flood the log.

    Lines about one subject are at least `again` seconds apart, any two at least `spacing` seconds. A line says how many
    were left out before it.
    """

    def __init__(self, clock: Callable[[], float], again: float, spacing: float = 0.0) -> None:
        self._clock = clock
        self._again = again
        self._spacing = spacing
        self._written: dict[str, float] = {}  # by subject, the latest last
        self._last = -math.inf
        self._omitted = 0

    def write(self, text: str, subject: str = "") -> None:
        """Logs the text, unless a line about its subject (by default the text itself) was logged a short time ago."""
        now, subject = self._clock(), subject or text
        self._written = {said: when for said, when in self._written.items() if now - when < self._again}
        if subject in self._written or now - self._last < self._spacing:
            self._omitted += 1
            return
        more = f" (and {self._omitted} more since the last such line)" if self._omitted else ""
        self._written[subject] = self._last = now
        self._omitted = 0
        logger.warning("%s%s", text, more)
