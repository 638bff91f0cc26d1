"""Who is in the cluster, as one node sees it: every state of a member, every move between them.

| a member is | and then                                                  | becomes                            |
|-------------|-----------------------------------------------------------|------------------------------------|
| unknown     | is heard                                                  | what it says: joining, alive, leaving |
| joining     | says that it is alive                                     | alive                              |
| alive       | is silent for `suspect_after`                             | suspect                            |
| suspect     | is heard                                                  | alive                              |
| any serving | is silent for `down_after`, to us and to all who tell us  | down                               |
| any serving | refuses a fresh link                                      | down                               |
| any serving | says that it leaves                                       | leaving                            |
| leaving     | says that it is gone, is silent for `down_after`, or refuses | left                               |
| down        | is heard with a higher incarnation: it has refuted        | what it says                       |
| any         | its name is heard with a new boot id                      | down, and the new boot is unknown  |
| left        | -                                                         | stays left                         |

A joining member falls silent and leaves as a serving one does.

The terms are those of SWIM (Das, Gupta, Motivala 2002) and memberlist. Nobody gossips verdicts: each node judges for
itself. But heartbeats say how long ago their sender heard others, and whoever is heard by anyone that we hear isn't
down: it is suspect, and flagged as unreachable if it should be down by our ears alone. So nodes that can't hear one
of them have the same view as those that can.

Times are monotonic seconds of this node, given by the caller. Methods return what changed; the caller logs,
notifies and sends.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .messages import GONE, SERVING, Heartbeat, Identity, Sighting, State, View

TICK = 0.1  # seconds between two ticks, if their caller doesn't say otherwise
STALL = 0.2  # seconds that a tick is late which say that we ourselves were stopped
TOGETHER = 1.0  # peers that fell silent within so many seconds of each other did so for one reason
SIGHTINGS = 8  # a heartbeat names at most so many members, in turn: its size doesn't grow with the cluster
TOMBSTONES = 256  # members that are gone stay visible, at most so many
TOMBSTONE_SECONDS = 3600.0
RETIRED_BOOTS = 4096  # a boot that was replaced is remembered, so that its late messages are ignored
NAMESAKE_BEATS = 3  # one late message of our own former start is no namesake; three in a row are
CURRENT = frozenset({State.JOINING, State.ALIVE, State.LEAVING})  # states of a start that was heard lately


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: between heartbeats, of silence until `suspect`, of silence until `down`."""

    heartbeat: float = 0.5
    suspect_after: float = 1.5
    down_after: float = 3.0

    def __post_init__(self) -> None:
        if self.heartbeat <= 0:
            raise ValueError(f"the heartbeat interval must be above 0 seconds, not {self.heartbeat:g}")
        if self.suspect_after < 2 * self.heartbeat:
            raise ValueError(
                f"suspect after ({self.suspect_after:g} s) must be at least two heartbeats "
                f"({2 * self.heartbeat:g} s), or one lost heartbeat makes a suspect"
            )
        if self.down_after <= self.suspect_after:
            raise ValueError(
                f"down after ({self.down_after:g} s) must be more than suspect after ({self.suspect_after:g} s)"
            )


@dataclass(slots=True)
class Member:
    """One other node as this node sees it. `heard` and `since` are times of this node."""

    identity: Identity
    state: State
    incarnation: int
    sequence: int
    heard: float
    since: float
    epoch: int = 0
    told: float = -math.inf  # when others heard it, as far as they have told us
    unreachable: bool = False  # it should be down, but others hear it


@dataclass(frozen=True, slots=True)
class Change:
    """`identity` went from `old` (None: not known before) to `new`."""

    identity: Identity
    old: State | None
    new: State


@dataclass(slots=True)
class Outcome:
    """What one call brought about.

    `answer`: send the one who was heard a heartbeat now. `given_up`: others held this node for down, and have served
    its keys. `stalled`: seconds that this node was stopped. `namesake`: another running node uses our name, at this
    address. `unreachable`: others hear these, and we don't any more. `unmet`: where members are that others know and we
    don't.
    """

    changes: list[Change] = field(default_factory=list)
    answer: bool = False
    given_up: bool = False
    stalled: float = 0.0
    namesake: str = ""
    unreachable: list[Identity] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)


class Membership:
    """The members known to the node `me`, and this node's own state."""

    def __init__(self, me: Identity, timings: Timings, now: float) -> None:
        self.me = me
        self.timings = timings
        self.state = State.JOINING
        self.incarnation = 0
        self.isolated = False
        self.deaf = False  # set by the caller while the channel layer fails: then silence says nothing
        self.started = now
        self.members: dict[str, Member] = {}
        self.dropped = 0  # heartbeats ignored: repeated, of a retired boot, or of one that is down
        self.restarts = 0  # names that were heard from a new start
        self._sequence = 0
        self._ticked = now
        self._turn = 0
        self._retired: OrderedDict[bytes, None] = OrderedDict()
        self._namesake = b""
        self._namesake_beats = 0
        self._namesake_sequence = 0
        self.view = View.of(())
        """The members that own keys: the alive and the suspect ones, and this node once it has joined."""
        self._asked: dict[str, None] = {}  # members that others doubt and we have heard

    # -- what is heard --------------------------------------------------------------------------------------

    def heard(self, beat: Heartbeat, now: float) -> Outcome:
        """Takes in one heartbeat that has been authenticated."""
        outcome = Outcome()
        sender = beat.identity
        if sender.name == self.me.name:
            self._heard_our_name(beat, outcome)
            return outcome
        if sender.boot in self._retired:
            self.dropped += 1
            return outcome
        member = self.members.get(sender.name)
        if member is not None and member.identity.boot != sender.boot:
            if beat.sequence > member.sequence and member.state in CURRENT:
                # Of two starts, the one that has said less is the newer: this is a late message of the older.
                self.dropped += 1
                return outcome
            self._retire(member, now, outcome)
            member = None
        if member is None:
            self._meet(beat, now, outcome)
        else:
            self._hear_again(member, beat, now, outcome)
        self._take_in(beat.sightings, now, outcome)
        self._settle(outcome)
        return outcome

    def _heard_our_name(self, beat: Heartbeat, outcome: Outcome) -> None:
        sender = beat.identity
        if sender.boot == self.me.boot:
            return
        if sender.boot != self._namesake:
            self._namesake, self._namesake_beats, self._namesake_sequence = sender.boot, 0, 0
        if beat.sequence > self._namesake_sequence:
            self._namesake_sequence = beat.sequence
            self._namesake_beats += 1
            if self._namesake_beats == NAMESAKE_BEATS:
                outcome.namesake = sender.address

    def _retire(self, member: Member, now: float, outcome: Outcome) -> None:
        self.restarts += 1
        self._ignore(member.identity.boot)
        if member.state not in GONE:
            self._move(member, State.LEFT if member.state is State.LEAVING else State.DOWN, now, outcome)
        del self.members[member.identity.name]

    def _ignore(self, boot: bytes) -> None:
        self._retired[boot] = None
        if len(self._retired) > RETIRED_BOOTS:
            self._retired.popitem(last=False)

    def _meet(self, beat: Heartbeat, now: float, outcome: Outcome) -> None:
        if beat.state is State.LEFT:
            self._ignore(beat.identity.boot)  # a farewell from someone we never knew; earlier messages may follow
            return
        identity = beat.identity
        self.members[identity.name] = Member(
            identity, beat.state, beat.incarnation, beat.sequence, heard=now, since=now, epoch=beat.epoch
        )
        outcome.changes.append(Change(identity, None, beat.state))
        outcome.answer = True

    def _hear_again(self, member: Member, beat: Heartbeat, now: float, outcome: Outcome) -> None:
        if beat.sequence <= member.sequence or member.state is State.LEFT:
            self.dropped += 1
            return
        if member.state is State.DOWN and beat.incarnation <= member.incarnation:
            self.dropped += 1
            member.sequence = beat.sequence
            member.heard = now
            outcome.answer = True  # it can't know that it is thought down: the answer tells it
            return
        member.sequence = beat.sequence
        member.incarnation = max(member.incarnation, beat.incarnation)
        member.heard = now
        member.epoch = beat.epoch
        if member.state is State.LEAVING and beat.state is not State.LEFT:
            return
        self._move(member, beat.state, now, outcome)

    def _refute(self, sighting: Sighting, outcome: Outcome) -> None:
        """Answers whoever doubts us, with a higher incarnation if that doesn't know the present one."""
        if sighting.state is State.SUSPECT:
            outcome.answer = True  # each time, since answers are lost too; any that arrives ends the doubt
        if sighting.state in (State.SUSPECT, State.DOWN) and sighting.incarnation >= self.incarnation:
            self.incarnation += 1
            outcome.answer = True
            outcome.given_up = sighting.state is State.DOWN

    def _take_in(self, sightings: Iterable[Sighting], now: float, outcome: Outcome) -> None:
        """Takes in when the sender heard other members, and of whom it wants to know when we did. A node hears
        thousands of sightings a second."""
        members, mine, suspect = self.members, self.me.boot, State.SUSPECT
        for sighting in sightings:
            member, state = members.get(sighting.name), sighting.state
            if sighting.boot == mine:
                self._refute(sighting, outcome)
            elif state in GONE:
                continue
            elif member is None or member.state in GONE:
                outcome.unmet.append(sighting.address)
            elif member.identity.boot == sighting.boot:
                member.told = max(member.told, now - sighting.age)
                if state is suspect and now - member.heard < self.timings.suspect_after:
                    self._asked[sighting.name] = None

    # -- what is not heard ----------------------------------------------------------------------------------

    def tick(self, now: float, due: float = TICK) -> Outcome:
        """Judges silence. To be called every tenth of a second or so, `due` after the last call; a late call says that
        we were stopped."""
        outcome = Outcome()
        late = now - self._ticked
        self._ticked = now
        if late > due + STALL:
            outcome.stalled = late
            self._discount(late, now)
        if self.deaf:
            self._discount(self.timings.suspect_after, now)
        if self.state is State.JOINING and now - self.started >= 2 * self.timings.heartbeat:
            # By now whoever discovery found has answered, so we don't own keys that belong to others.
            self.state = State.ALIVE
            outcome.changes.append(Change(self.me, State.JOINING, State.ALIVE))
        self._judge(now, outcome)
        self._forget(now)
        self._settle(outcome)
        return outcome

    def _discount(self, late: float, now: float) -> None:
        """The silence was ours, and what they sent meanwhile is still unread.

        After a long stop every clock starts anew. A short one isn't counted, and leaves time to read; more isn't
        given, or a node that is short of time again and again would never find anyone down.
        """
        patience = self.timings.suspect_after
        for member in self.members.values():
            if member.state not in GONE:
                member.heard = now if late >= patience else max(member.heard + late, now - patience)

    def _judge(self, now: float, outcome: Outcome) -> None:
        self.isolated = self._silent_together(now)
        patience = self.timings.suspect_after if self.isolated else 0.0
        for member in self.members.values():
            silence = now - member.heard
            if member.state in GONE or silence < self.timings.suspect_after:
                member.unreachable = False
                continue
            if member.state is State.ALIVE:
                self._move(member, State.SUSPECT, now, outcome)
            if silence >= self.timings.down_after + patience:
                if now - member.told >= self.timings.down_after + patience:
                    self._move(member, State.LEFT if member.state is State.LEAVING else State.DOWN, now, outcome)
                elif not member.unreachable:
                    member.unreachable = True
                    outcome.unreachable.append(member.identity)

    def _silent_together(self, now: float) -> bool:
        """Whether most peers fell silent at once: then it is us, or the layer, and verdicts wait."""
        peers = [member for member in self.members.values() if member.state in SERVING]
        silent = [member.heard for member in peers if now - member.heard >= self.timings.suspect_after]
        return len(silent) >= 2 and 2 * len(silent) > len(peers) and max(silent) - min(silent) <= TOGETHER

    def _forget(self, now: float) -> None:
        gone = [member for member in self.members.values() if member.state in GONE]
        if not gone:
            return
        gone.sort(key=lambda member: member.since)
        surplus = len(gone) - TOMBSTONES
        for index, member in enumerate(gone):
            if index < surplus or now - member.since > TOMBSTONE_SECONDS:
                if member.state is State.LEFT:
                    self._ignore(member.identity.boot)
                del self.members[member.identity.name]

    def refused(self, name: str, boot: bytes, now: float) -> Outcome:
        """The link to this start of the node was closed and a fresh dial refused: its process is gone."""
        outcome = Outcome()
        member = self.members.get(name)
        if member is not None and member.identity.boot == boot and member.state not in GONE:
            self._move(member, State.LEFT if member.state is State.LEAVING else State.DOWN, now, outcome)
            self._settle(outcome)
        return outcome

    # -- what is said ---------------------------------------------------------------------------------------

    def heartbeat(self, now: float, channel: str = "") -> Heartbeat:
        """The next heartbeat to send."""
        self._sequence += 1
        sightings = tuple(self._sightings(now))
        return Heartbeat(self.me, self.incarnation, self._sequence, self.state, self.view.epoch, sightings, channel)

    def _sightings(self, now: float) -> Iterator[Sighting]:
        """The doubted first, the latest heard of them before all, since only they can refute; then those that others
        doubt and we have heard; then the others in turn."""
        doubted = [m for m in self.members.values() if m.state in (State.SUSPECT, State.DOWN)]
        doubted.sort(key=lambda member: member.heard, reverse=True)
        others = [m for m in self.members.values() if m.state not in GONE and m.state is not State.SUSPECT]
        chosen = doubted[: SIGHTINGS // 2]
        asked = [self.members[name] for name in self._asked if name in self.members]
        chosen += [m for m in asked if m.state is not State.SUSPECT][: SIGHTINGS // 4]
        self._asked.clear()
        room = min(SIGHTINGS - len(chosen), len(others))
        chosen += [others[(self._turn + step) % len(others)] for step in range(room)]
        self._turn += room
        for member in chosen:
            who = member.identity
            age = now - member.heard
            yield Sighting(who.name, who.boot, who.address, member.state, member.incarnation, age)

    def leave(self) -> Outcome:
        """This node owns no keys from now on; it still answers."""
        return self._become(State.LEAVING)

    def leave_done(self) -> Outcome:
        """This node stops."""
        return self._become(State.LEFT)

    def _become(self, state: State) -> Outcome:
        outcome = Outcome([Change(self.me, self.state, state)])
        self.state = state
        self._settle(outcome)
        return outcome

    # -- moves ----------------------------------------------------------------------------------------------

    def _move(self, member: Member, state: State, now: float, outcome: Outcome) -> None:
        if member.state is not state:
            outcome.changes.append(Change(member.identity, member.state, state))
            member.state = state
            member.since = now

    def _settle(self, outcome: Outcome) -> None:
        """Makes the view anew if who serves may have changed."""
        if outcome.changes:
            serving = [member.identity for member in self.members.values() if member.state in SERVING]
            if self.state in SERVING:
                serving.append(self.me)
            self.view = View.of(serving)
