"""Who is in the cluster, as one node sees it: every state of a member, every move between them.

| a member is | and then                                                  | becomes                            |
|-------------|-----------------------------------------------------------|------------------------------------|
| unknown     | is heard                                                  | provisional: no member, only answered |
| provisional | has shown that it runs now                                | what it says: joining, alive, leaving |
| joining     | says that it is alive                                     | alive                              |
| alive       | is silent for `suspect_after`                             | suspect                            |
| suspect     | is heard                                                  | alive                              |
| alive       | says that it is joining: its address is refused           | joining                            |
| any serving | is silent for `down_after`, to us and to all who tell us  | down                               |
| any serving | refuses a fresh link, or another start answers in its place | down                             |
| any serving | says that it leaves                                       | leaving                            |
| leaving     | says that it is gone, is silent for `down_after`, or refuses | left                               |
| down        | is heard with a higher incarnation: it has refuted        | what it says                       |
| down, left, leaving | its name is heard with a new boot id              | replaced by the new boot           |
| any other   | its name is heard with a new boot id                      | as it was: the new boot is its rival |
| suspect     | its rival serves                                          | replaced by its rival              |
| joining     | its rival serves, for `suspect_after`                     | its rival's rival                  |
| left        | -                                                         | stays left                         |

A joining member falls silent and leaves as a serving one does.

Which starts run now stands in `strangers`, when this node serves in `joining`, what becomes of two nodes of one name in
`rivals`. While a member serves whose address isn't a loopback one, those whose addresses are own no keys.

The terms are those of SWIM (Das, Gupta, Motivala 2002) and memberlist. Nobody gossips verdicts: each node judges for
itself. But heartbeats say how long ago their sender heard others, and whoever is heard by anyone that we hear isn't
down: it is suspect, and flagged as unreachable if it should be down by our ears alone. So nodes that can't hear one
of them have the same view as those that can.

Times are monotonic seconds of this node, given by the caller. Methods return what changed; the caller logs,
notifies and sends.
"""

from collections import OrderedDict
from collections.abc import Iterable

from .gossip import Gossip, says_over
from .joining import Joining
from .members import Change, Effects, Member, Namesakes, Start, Timings, Wait, silent_together
from .messages import GONE, SERVING, Heartbeat, Identity, MemberState, Sighting, View, is_loopback
from .namesakes import NameConflicts
from .provisional import ProvisionalStarts

__all__ = ["TICK", "Change", "Effects", "Member", "Membership", "Namesakes", "Timings", "Wait"]

TICK = 0.1  # seconds between two ticks, if their caller doesn't say otherwise
STALL = 0.2  # seconds that a tick is late which say that we ourselves were stopped
TOMBSTONES = 256  # members that are gone stay visible, at most so many
TOMBSTONE_SECONDS = 3600.0
RETIRED_BOOTS = 4096  # a boot that was replaced is remembered, so that its late messages are ignored
MAY_END = (MemberState.JOINING, MemberState.ALIVE)  # states in which this start ends when others have replaced it


class Membership:
    """The members known to the node `me`, and this node's own state."""

    def __init__(self, me: Identity, timings: Timings, now: float, *, must_be_reached: bool = False) -> None:
        self.me = me
        self.timings = timings
        self.state = MemberState.JOINING
        self.incarnation = 0
        self.isolated = False
        self.deaf = False  # set by the caller while the channel layer fails: then silence says nothing
        self.started = now
        self.members: dict[str, Member] = {}
        self.dropped = 0  # heartbeats ignored: repeated, of a retired boot, or of one that is down
        self.restarts = 0  # names that were heard from a new start
        self._sequence = 0
        self._given_up = -1  # the incarnation in which others last held this node for down, as far as it was told
        self._ticked = now
        self._sightings = Gossip()
        self._retired: OrderedDict[bytes, None] = OrderedDict()
        self._strangers = ProvisionalStarts(me.boot, timings.down_after)
        self._rivals = NameConflicts(me, timings.heartbeat, timings.suspect_after, timings.down_after)
        self._joining = Joining(me, timings, now, self._strangers, self._rivals, must_be_reached=must_be_reached)
        self.view = View.of(())  # the members that own keys: the alive and the suspect ones, and this node if it serves

    # -- what is heard --------------------------------------------------------------------------------------

    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        """Takes in an authentic heartbeat. `fresh`: it came over a link to the very start that it speaks for."""
        outcome = Effects()
        sender = beat.identity
        if sender.boot == self.me.boot:
            return outcome
        if sender.boot in self._retired:
            self.dropped += 1
            if beat.state is not MemberState.LEFT:
                self._sightings.tell_over(sender)
                # Of two that have replaced each other, and so take in nothing of each other's, one has to end.
                outcome.over = sender.boot < self.me.boot and self.state in MAY_END and says_over(beat, self.me.boot)
            return outcome
        member = self.members.get(sender.name)
        if (member is None or member.identity.boot != sender.boot) and not self._rivals.of(sender.name, sender.boot):
            if not (fresh or self._strangers.runs(beat, now)):
                self._note_provisional(beat, now, outcome)
                return outcome
            beat = self._strangers.promote(beat)
        if sender.name == self.me.name:
            self._hear_rival(beat, now, outcome)
            outcome.over = self.state in SERVING and self._rivals.is_older(self._sequence, now)
            outcome.dial = beat.state is not MemberState.LEFT
            return outcome
        if member is None:
            self._meet(beat, now, outcome)
        elif member.identity.boot == sender.boot:
            if not self._hear_again(member, beat, now, outcome):
                return outcome
        elif self._gives_way(member, beat, now):
            self._retire(member, now, outcome)
            self._meet(beat, now, outcome)
        else:
            self._hear_rival(beat, now, outcome)
            self._change_places(member, now, outcome)
        outcome.dial = beat.state is not MemberState.LEFT
        if not self._rivals.of(sender.name, sender.boot):  # two rivals would answer each other for ever
            self._take_in(beat.sightings, now, outcome)
        self._settle(outcome)
        return outcome

    def met(self, name: str, boot: bytes, now: float, address: str = "") -> Effects:
        """A handshake has just shown this start of this node, at `address` if that is given. While the connection is
        open, `linked` says so."""
        outcome = Effects()
        if boot == self.me.boot:
            return outcome
        self._strangers.met(name, boot, address, now)
        member, rival = self.members.get(name), self._rivals.of(name, boot)
        if member is not None and member.identity.boot != boot and boot not in self._retired:
            if address == member.identity.address and member.state not in GONE:
                # Nobody but this start can listen there now.
                self._move(member, member.ended, now, outcome)
            if rival is not None and member.state in GONE:
                self._retire(member, now, outcome)
                self._meet(rival.beat, now, outcome)
            self._settle(outcome)
        start = self._strangers.provisional.pop(boot, None)
        if start is not None:
            more = self.heard(start.beat, now, fresh=True)
            more.changes[:0] = outcome.changes
            return more
        return outcome

    def linked(self, boot: bytes, now: float) -> None:
        """The link by which this start was met is still open."""
        self._strangers.linked(boot, now)

    def reached(self, name: str, boot: bytes, now: float) -> Effects:
        """A peer has completed a handshake with us that wanted this very start, at the address that we advertise."""
        self._joining.reached = self._joining.reached or boot != self.me.boot
        return self.met(name, boot, now)

    def _note_provisional(self, beat: Heartbeat, now: float, outcome: Effects) -> None:
        if beat.state is MemberState.LEFT:
            self._ignore(beat.identity.boot)  # authentic, and final, however old it is
            return
        answer = self._strangers.note(beat, now)
        self.dropped += answer is None
        outcome.answer = bool(answer)

    def _gives_way(self, member: Member, beat: Heartbeat, now: float) -> bool:
        """Whether another running start of its name takes a member's place."""
        if member.state in GONE or member.state is MemberState.LEAVING:
            return True
        heard = max(member.heard, member.told)
        return beat.state in SERVING and now - heard >= self.timings.suspect_after

    def _hear_rival(self, beat: Heartbeat, now: float, outcome: Effects) -> None:
        if beat.state is MemberState.LEFT:
            self._ignore(beat.identity.boot)
        outcome.answer = self._rivals.hear(beat, now)

    def _change_places(self, member: Member, now: float, outcome: Effects) -> None:
        """A rival that serves is the member, and one that joins is its rival."""
        who = member.identity
        rival = self._rivals.outlasts(who.name)
        if rival is not None and member.state is MemberState.JOINING:
            beat = Heartbeat(who, member.incarnation, member.sequence, member.state, member.epoch)
            self._move(member, MemberState.DOWN, now, outcome)
            self._meet(rival.beat, now, outcome)
            self._rivals.starts[who.name] = Start(beat, member.since, member.heard)

    def _retire(self, member: Member, now: float, outcome: Effects) -> None:
        self.restarts += 1
        self._ignore(member.identity.boot)
        if member.state not in GONE:
            self._move(member, member.ended, now, outcome)
        del self.members[member.identity.name]

    def _ignore(self, boot: bytes) -> None:
        self._strangers.drop(boot)
        self._retired[boot] = None
        if len(self._retired) > RETIRED_BOOTS:
            self._retired.popitem(last=False)

    def _meet(self, beat: Heartbeat, now: float, outcome: Effects) -> None:
        if beat.state is MemberState.LEFT:
            self._ignore(beat.identity.boot)  # a farewell from someone we never knew; earlier messages may follow
            return
        identity = beat.identity
        self._rivals.drop(identity.name, identity.boot)
        self.members[identity.name] = Member(
            identity, beat.state, beat.incarnation, beat.sequence, heard=now, since=now, epoch=beat.epoch
        )
        self._joining.met(identity.name)
        outcome.changes.append(Change(identity, None, beat.state))
        outcome.answer = True

    def _hear_again(self, member: Member, beat: Heartbeat, now: float, outcome: Effects) -> bool:
        """Whether it is news: what was repeated or overtaken isn't, since a recording would keep the dead alive."""
        if beat.sequence <= member.sequence or member.state is MemberState.LEFT:
            self.dropped += 1
            return False
        member.sequence = beat.sequence
        member.heard = now
        if member.state is MemberState.DOWN and beat.incarnation <= member.incarnation:
            self.dropped += 1
            outcome.answer = True  # it can't know that it is thought down: the answer tells it
            return True
        if member.state is MemberState.DOWN:
            self._sightings.tell_down(member)  # what it has refuted may be a suspicion of before
            outcome.answer = True
        member.incarnation = max(member.incarnation, beat.incarnation)
        member.epoch = beat.epoch
        if member.state is not MemberState.LEAVING or beat.state is MemberState.LEFT:
            self._move(member, beat.state, now, outcome)
        return True

    def _refute(self, sighting: Sighting, outcome: Effects) -> None:
        """Answers whoever doubts us, with a higher incarnation if that doesn't know the present one."""
        match sighting.state:
            case MemberState.SUSPECT:
                outcome.answer = True  # each time, since answers are lost too; any that arrives ends the doubt
            case MemberState.JOINING if self.state in SERVING:
                outcome.answer = True  # it hasn't taken us in yet, or missed that we serve
            case MemberState.LEFT if self.state in MAY_END:
                outcome.over = True  # it has replaced us
        if sighting.state in (MemberState.SUSPECT, MemberState.DOWN) and sighting.incarnation >= self.incarnation:
            self.incarnation += 1
            outcome.answer = True
        if sighting.state is MemberState.DOWN and sighting.incarnation > self._given_up:
            self._given_up, outcome.given_up = sighting.incarnation, True

    def _take_in(self, sightings: Iterable[Sighting], now: float, outcome: Effects) -> None:
        """Takes in when the sender heard other members, and of whom it wants to know when we did. A node hears
        thousands of sightings a second."""
        members, mine, suspect = self.members, self.me.boot, MemberState.SUSPECT
        for sighting in sightings:
            member, state = members.get(sighting.name), sighting.state
            if sighting.boot == mine:
                self._refute(sighting, outcome)
            elif state in GONE:
                continue
            elif sighting.name == self.me.name:
                if state in SERVING and sighting.boot not in self._retired:
                    self._rivals.hear_of_holder(sighting, now)
            elif member is None or member.state in GONE:
                outcome.unmet.append(sighting.address)
                if member is None and state in SERVING and sighting.boot not in self._retired:
                    self._joining.wait_for(sighting.name, now)
            elif member.identity.boot == sighting.boot:
                member.told = max(member.told, now - sighting.age)
                if state is suspect and now - member.heard < self.timings.suspect_after:
                    self._sightings.asked[sighting.name] = None

    # -- what is not heard ----------------------------------------------------------------------------------

    def tick(self, now: float, due: float = TICK) -> Effects:
        """Judges silence. To be called every tenth of a second or so, `due` after the last call; a late call says that
        we were stopped."""
        outcome = Effects()
        late = now - self._ticked
        self._ticked = now
        if late > due + STALL:
            outcome.stalled = late
            self._discount(late, now)
        if self.deaf:
            self._discount(self.timings.suspect_after, now)
        if self.state is MemberState.JOINING and self.waits_for(now) is None:
            self.state = MemberState.ALIVE
            outcome.changes.append(Change(self.me, MemberState.JOINING, MemberState.ALIVE))
        self._judge(now, outcome)
        self._forget(now)
        self._settle(outcome)
        return outcome

    def waits_for(self, now: float) -> Wait | None:
        """Why this node doesn't serve yet; None when it may."""
        return self._joining.waits_for(self.members, now)

    def namesakes(self, now: float) -> list[Namesakes]:
        """The names that two running nodes have."""
        members = self.members.items()
        addresses = {name: member.identity.address for name, member in members if member.state not in GONE}
        return self._rivals.namesakes(self.state, addresses, now)

    def refused_loopbacks(self) -> list[Identity]:
        """The running nodes, this one included, that own no keys since others advertise addresses that hosts reach."""
        known = [member.identity for member in self.members.values() if member.state not in GONE]
        known += [self.me] if self.state not in GONE else []
        loopbacks = [who for who in known if is_loopback(who.address)]
        shown = any(address and not is_loopback(address) for _, address, _ in self._strangers.shown.values())
        return loopbacks if len(loopbacks) < len(known) or shown else []

    def _discount(self, late: float, now: float) -> None:
        """The silence was ours, and what they sent meanwhile is unread. After a long stop every clock starts anew. A
        short one isn't counted; more isn't given, or a node that stalls again and again would find nobody down."""
        patience = self.timings.suspect_after
        for member in self.members.values():
            if member.state not in GONE:
                member.heard = now if late >= patience else max(member.heard + late, now - patience)
        self._rivals.discount(late, now)

    def _judge(self, now: float, outcome: Effects) -> None:
        self.isolated = silent_together(self.members.values(), now, self.timings.suspect_after)
        patience = self.timings.suspect_after if self.isolated else 0.0
        for member in self.members.values():
            silence = now - member.heard
            if member.state in GONE or silence < self.timings.suspect_after:
                member.unreachable = False
                continue
            if member.state is MemberState.ALIVE:
                self._move(member, MemberState.SUSPECT, now, outcome)
            if silence >= self.timings.down_after + patience:
                if now - member.told >= self.timings.down_after + patience:
                    self._move(member, member.ended, now, outcome)
                elif not member.unreachable:
                    member.unreachable = True
                    outcome.unreachable.append(member.identity)

    def _forget(self, now: float) -> None:
        self._rivals.forget(now)
        self._strangers.forget(now)
        gone = [member for member in self.members.values() if member.state in GONE]
        gone.sort(key=lambda member: member.since)
        surplus = len(gone) - TOMBSTONES
        for index, member in enumerate(gone):
            if index < surplus or now - member.since > TOMBSTONE_SECONDS:
                if member.state is MemberState.LEFT:
                    self._ignore(member.identity.boot)
                del self.members[member.identity.name]
                self._rivals.starts.pop(member.identity.name, None)

    def refused(self, name: str, boot: bytes, now: float) -> Effects:
        """The link to this start of the node was closed and a fresh dial refused: its process is gone."""
        outcome = Effects()
        self._strangers.drop(boot)
        self._rivals.drop(name, boot)
        member = self.members.get(name)
        if member is not None and member.identity.boot == boot and member.state not in GONE:
            self._move(member, member.ended, now, outcome)
            self._settle(outcome)
        return outcome

    # -- what is said ---------------------------------------------------------------------------------------

    def heartbeat(self, now: float, channel: str = "", answer_to: Identity | None = None) -> Heartbeat:
        """The next heartbeat to send. One that answers another start names that first, which shows that we run."""
        self._sequence += 1
        sightings = tuple(self._sightings.choose(self.members, answer_to, now))
        return Heartbeat(self.me, self.incarnation, self._sequence, self.state, self.view.epoch, sightings, channel)

    def leave(self) -> Effects:
        """This node owns no keys from now on; it still answers."""
        return self._become(MemberState.LEAVING)

    def leave_done(self) -> Effects:
        """This node stops."""
        return self._become(MemberState.LEFT)

    def _become(self, state: MemberState) -> Effects:
        outcome = Effects([Change(self.me, self.state, state)])
        self.state = state
        self._settle(outcome)
        return outcome

    # -- moves ----------------------------------------------------------------------------------------------

    def _move(self, member: Member, state: MemberState, now: float, outcome: Effects) -> None:
        if member.state is not state:
            outcome.changes.append(Change(member.identity, member.state, state))
            member.state = state
            member.since = now

    def _settle(self, outcome: Effects) -> None:
        """Makes the view anew if who serves may have changed."""
        if not outcome.changes:
            return
        serving = [member.identity for member in self.members.values() if member.state in SERVING]
        if self.state in SERVING:
            serving.append(self.me)
        others = [who for who in serving if not is_loopback(who.address)]
        if others and len(others) < len(serving):
            serving = others
            if self.state in SERVING and is_loopback(self.me.address):
                outcome.changes.append(Change(self.me, self.state, MemberState.JOINING))
                self.state = MemberState.JOINING
        self.view = View.of(serving)
