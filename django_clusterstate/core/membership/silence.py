"""Which members are suspect or down because they are silent."""

from collections.abc import Collection, Iterable

from .heartbeat import GONE, SERVING
from .members import Effects, Member, Timings, end, move
from .transitions import when_silent

ISOLATION_WINDOW = 1.0  # seconds: peers that fell silent within it did so for one reason


def judge_silence(members: Collection[Member], timings: Timings, now: float, effects: Effects) -> bool:
    """Moves the members that have been silent for too long. Returns whether this node is isolated: then it declares
    them down later, and all at once, so that they can tell by its view that it is cut off from most."""
    suspect_after, down_after = timings.suspect_after, timings.down_after
    least = least_common_silence(members, suspect_after, now)
    for member in members:
        silence = now - member.heard
        if member.state in GONE or silence < suspect_after:
            member.unreachable = False
            continue
        move(member, when_silent(member.state), now, effects)
        if silence < down_after or (least is not None and least < down_after + suspect_after):
            continue
        if now - member.heard_by_others >= down_after:
            end(member, now, effects)
        elif not member.unreachable:
            member.unreachable = True
            effects.unreachable.append(member.identity)
    return least is not None


def least_common_silence(members: Iterable[Member], suspect_after: float, now: float) -> float | None:
    """The seconds since the last heartbeat of most peers, if they fell silent at once, by a failure of this node or of
    the channel layer."""
    peers = [member for member in members if member.state in SERVING]
    silent = [member.heard for member in peers if now - member.heard >= suspect_after]
    together = len(silent) >= 2 and 2 * len(silent) > len(peers) and max(silent) - min(silent) <= ISOLATION_WINDOW
    return now - max(silent) if together else None


def discount(members: Iterable[Member], seconds: float, suspect_after: float, now: float) -> None:
    """Subtracts a pause of this node from the silence of others. After `suspect_after` all silence starts from zero;
    after less the rest goes on, or a node that pauses again and again would never declare a peer down."""
    for member in members:
        if member.state not in GONE:
            member.heard = now if seconds >= suspect_after else min(now, member.heard + seconds)
