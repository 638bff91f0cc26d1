"""The members of the cluster as one node sees them: the effects of each heartbeat, handshake and silence.

`transitions` lists the states and their transitions. Times are monotonic seconds of this node, given by the caller.
Methods return what changed; the caller logs, notifies and sends.
"""

from collections import OrderedDict

from .damping import Damping
from .gossip import Gossip, reports_replaced
from .heartbeat import GONE, SERVING, Heartbeat, Identity, MemberState, Observation, View
from .joining import Joining, WaitReason
from .members import Change, Effects, Instance, Member, Timings, end, expired_tombstones, move, owners
from .mentions import Mentions
from .name_conflicts import NameConflict, NameConflicts
from .provisional_instances import Proof, ProvisionalInstances
from .silence import discount, judge_silence
from .transitions import when_heard
from .verdicts import Verdicts

TICK = 0.1  # seconds between two ticks, unless the caller gives another interval
STALL = 0.2  # seconds: a tick that is later than this means that this node was stopped
RETIRED_BOOTS = 4096  # boot IDs that were replaced or have left, so that their late messages are ignored; at most
MAY_END = (MemberState.JOINING, MemberState.ALIVE)  # states in which this instance ends when it is superseded


class Membership:
    """The members known to the node `me`, and this node's own state.

    `view`: the members that own keys, which are the alive and the suspect ones, and this node if it serves.
    `layer_failing`: set by the caller while no heartbeat can arrive: missing ones count against no member. `dropped`:
    heartbeats that were ignored: repeated, of a retired boot ID, or of a member that is down. `restarts`: how many
    members were replaced by a different instance. `rejoins`: this node joins again when it was declared down.
    """

    def __init__(
        self, me: Identity, timings: Timings, now: float, *, must_be_reached: bool = False, rejoins: bool = False
    ) -> None:
        self.me = me
        self.timings = timings
        self.rejoins = rejoins
        self.state = MemberState.JOINING
        self.incarnation = 0
        self.isolated = False
        self.layer_failing = False
        self.started = now
        self.members: dict[str, Member] = {}
        self.view = View.of(())
        self.dropped = 0
        self.restarts = 0
        self._sequence = 0
        self._ticked = now
        self._gossip = Gossip()
        self._mentions = Mentions(timings.suspect_after)
        self._verdicts = Verdicts(self._mentions)
        self._retired: OrderedDict[bytes, None] = OrderedDict()
        self._provisional = ProvisionalInstances(me.boot, timings.down_after)
        self._conflicts = NameConflicts(me, timings.heartbeat, timings.suspect_after, timings.down_after)
        self.damping = Damping(timings, self._mentions)
        self.joining = Joining(
            me, timings, now, self._provisional, self._conflicts, self.damping, must_be_reached=must_be_reached
        )

    # -- heartbeats and handshakes --------------------------------------------------------------------------

    def heard(self, beat: Heartbeat, now: float, *, fresh: bool = False) -> Effects:
        """Processes an authentic heartbeat. `fresh`: it came over a link to the very instance that sends it."""
        effects = Effects()
        sender = beat.identity
        if sender.boot == self.me.boot:
            return effects
        if sender.boot in self._retired:
            self._hear_retired(beat, effects)
            return effects
        member = self.members.get(sender.name)
        is_member = member is not None and member.identity.boot == sender.boot
        was_down = member is not None and member.state is MemberState.DOWN
        if not is_member and self._conflicts.get(sender.name, sender.boot) is None:
            if not fresh and not self._provisional.is_proven(beat, now):
                self._hear_provisional(beat, now, effects)
                return effects
            beat = self._provisional.promote(beat)
        if sender.name == self.me.name:
            self._hear_conflicting(beat, now, effects)
            effects.superseded = self.state in SERVING and self._conflicts.older_instance_serves(self._sequence, now)
            effects.dial = beat.state is not MemberState.LEFT
            return effects
        if member is None:
            self._add(beat, now, effects)
        elif is_member:
            if not self._hear_member(member, beat, now, effects):
                return effects
        elif self._is_replaced_by(member, beat, now):
            self._retire(member, now, effects)
            self._add(beat, now, effects)
        else:
            self._hear_conflicting(beat, now, effects)
            self._replace_joining(member, now, effects)
        effects.dial = beat.state is not MemberState.LEFT
        if self._conflicts.get(sender.name, sender.boot) is None:  # two in conflict would answer each other forever
            self._take_in(beat, now, effects)
        if effects.declared_down:
            self._give_way(beat, now, effects, mutual=was_down)
        self._settle(effects)
        effects.winners = self._verdicts.winners(beat, self.members)
        return effects

    def _give_way(self, beat: Heartbeat, now: float, effects: Effects, *, mutual: bool) -> None:
        """Joins again, because others have declared this node down; but not on the side of a partition that stays."""
        if self.rejoins and self._verdicts.prevails(beat, self.view, self.members, now, mutual=mutual):
            effects.declared_down = False
            return
        self._verdicts.give_way(self.members[beat.identity.name], self.incarnation)
        if self.rejoins:
            self.damping.cut_off(now)
            if self.state in SERVING:
                self._join_again(effects)
                self.joining.started = now

    def _join_again(self, effects: Effects) -> None:
        effects.changes.append(Change(self.me, self.state, MemberState.JOINING))
        self.state = MemberState.JOINING

    def identified(self, name: str, boot: bytes, now: float, address: str = "") -> Effects:
        """Notes that a handshake has proven that an instance runs, at `address` if given; `still_linked` renews it."""
        effects = Effects()
        if boot == self.me.boot:
            return effects
        self._provisional.prove(boot, Proof(name, address, now))
        member = self.members.get(name)
        if member is not None and member.identity.boot != boot and boot not in self._retired:
            if address == member.identity.address and member.state not in GONE:
                end(member, now, effects)  # no other instance can listen there now
            instance = self._conflicts.get(name, boot)
            if instance is not None and member.state in GONE:
                self._retire(member, now, effects)
                self._add(instance.beat, now, effects)
            self._settle(effects)
        instance = self._provisional.provisional.pop(boot, None)
        if instance is not None:
            changes = effects.changes
            effects = self.heard(instance.beat, now, fresh=True)
            effects.changes[:0] = changes
        return effects

    def still_linked(self, boot: bytes, now: float) -> None:
        """Notes that the link whose handshake has identified this instance is still open."""
        self._provisional.renew(boot, now)

    def reached_by(self, name: str, boot: bytes, now: float) -> Effects:
        """Notes that a peer has completed a handshake with this instance at the address that this one advertises."""
        if boot != self.me.boot:
            self.joining.reached = True
        return self.identified(name, boot, now)

    def refused(self, name: str, boot: bytes, now: float) -> Effects:
        """Notes that the process of an instance has ended: the link to it was closed and a new dial refused."""
        effects = Effects()
        self._provisional.drop(boot)
        self._conflicts.drop(name, boot)
        member = self.members.get(name)
        if member is not None and member.identity.boot == boot and member.state not in GONE:
            end(member, now, effects)
            self._settle(effects)
        return effects

    # -- the passing of time --------------------------------------------------------------------------------

    def tick(self, now: float, due: float = TICK) -> Effects:
        """Updates members whose heartbeats have been missing for too long. The caller calls it about every TICK
        seconds; `due` is the planned interval, and a call that is much later means that this node was paused."""
        effects = Effects()
        late = now - self._ticked
        self._ticked = now
        if late > due + STALL:
            effects.stalled = late
            self._discount(late, now)
            if late >= self.timings.suspect_after:
                for member in self.members.values():
                    member.resumed = now
        if self.layer_failing:
            self._discount(self.timings.suspect_after, now)
        if self.state is MemberState.JOINING:
            self._join(now, effects)
        self._update_silent(now, effects)
        self._expire(now)
        self._settle(effects)
        return effects

    def _join(self, now: float, effects: Effects) -> None:
        """Serves if nothing prevents it."""
        if any(member.state not in GONE for member in self.members.values()):
            self.damping.tick(now)
        if self.wait_reason(now) is None:
            self.damping.serve(now)
            self.state = MemberState.ALIVE
            effects.changes.append(Change(self.me, MemberState.JOINING, MemberState.ALIVE))

    def _discount(self, seconds: float, now: float) -> None:
        """Discounts a pause of this node: heartbeats that were sent meanwhile are still unread."""
        discount(self.members.values(), seconds, self.timings.suspect_after, now)
        self._conflicts.discount(seconds, now)

    def _update_silent(self, now: float, effects: Effects) -> None:
        self.isolated = judge_silence(self.members.values(), self.timings, now, effects)

    def _expire(self, now: float) -> None:
        self._conflicts.expire(now)
        self._provisional.expire(now)
        for member in expired_tombstones(self.members.values(), now):
            if member.state is MemberState.LEFT:
                self._ignore(member.identity.boot)
            del self.members[member.identity.name]
            self._conflicts.instances.pop(member.identity.name, None)

    # -- this node ------------------------------------------------------------------------------------------

    def wait_reason(self, now: float) -> WaitReason | None:
        """Why this node doesn't serve yet; None when it may."""
        return self.joining.wait_reason(self.members, now)

    def name_conflicts(self, now: float) -> list[NameConflict]:
        """The names that two running nodes have."""
        running = (member.identity for member in self.members.values() if member.state not in GONE)
        return self._conflicts.current(self.state, {who.name: who.address for who in running}, now)

    def heartbeat(self, now: float, channel: str = "", answer_to: Identity | None = None) -> Heartbeat:
        """The next heartbeat to send. It lists the instance `answer_to` first: that proves to it that this one runs."""
        self._sequence += 1
        observations = tuple(self._gossip.choose(self.members, answer_to, now))
        members = self.view.members
        return Heartbeat(
            self.me, self.incarnation, self._sequence, self.state, self.view.epoch, observations, channel,
            len(members), self.view.first,
        )  # fmt: skip

    def leave(self) -> Effects:
        """Marks this node as leaving: it owns no keys, but still answers."""
        return self._become(MemberState.LEAVING)

    def leave_done(self) -> Effects:
        """Marks this node as left."""
        return self._become(MemberState.LEFT)

    def _become(self, state: MemberState) -> Effects:
        effects = Effects([Change(self.me, self.state, state)])
        self.state = state
        self._settle(effects)
        return effects

    # -- heartbeats, by their sender ------------------------------------------------------------------------

    def _hear_retired(self, beat: Heartbeat, effects: Effects) -> None:
        self.dropped += 1
        if beat.state is MemberState.LEFT:
            return
        self._gossip.notify_replaced(beat.identity)
        # Two that have replaced each other take in no heartbeat of each other, so one of them has to end.
        if beat.identity.boot < self.me.boot and self.state in MAY_END:
            effects.superseded = reports_replaced(beat, self.me.boot)

    def _hear_provisional(self, beat: Heartbeat, now: float, effects: Effects) -> None:
        if beat.state is MemberState.LEFT:
            self._ignore(beat.identity.boot)  # authentic, and final, however old it is
            return
        answer = self._provisional.hear(beat, now)
        if answer is None:
            self.dropped += 1
        effects.answer = answer is True

    def _hear_conflicting(self, beat: Heartbeat, now: float, effects: Effects) -> None:
        if beat.state is MemberState.LEFT:
            self._ignore(beat.identity.boot)
        effects.answer = self._conflicts.hear(beat, now)

    def _hear_member(self, member: Member, beat: Heartbeat, now: float, effects: Effects) -> bool:
        """Whether the heartbeat counts. A repeated or overtaken one doesn't: a recording would keep a member alive."""
        if beat.sequence <= member.sequence or member.state is MemberState.LEFT:
            self.dropped += 1
            return False
        member.sequence = beat.sequence
        if now - member.heard >= self.timings.suspect_after:
            member.resumed = now
        member.heard = now
        refuted = beat.incarnation > member.incarnation
        if member.state is MemberState.DOWN:
            effects.answer = True  # the answer says that it was declared down, which it can't know otherwise
            if self.rejoins and not member.notified and beat.state is not MemberState.JOINING:
                member.notified, refuted = True, False  # it may have refuted only an earlier suspicion
                member.incarnation = max(member.incarnation, beat.incarnation)
            if not refuted:
                self.dropped += 1
                return True
            self._gossip.notify_down(member)  # it may have refuted only an earlier suspicion
            if self.rejoins and 2 * len(self.view.members) < beat.members:
                self._notice_loss(member, now, effects)
        member.incarnation = max(member.incarnation, beat.incarnation)
        member.epoch = beat.epoch
        move(member, when_heard(member.state, beat.state, refuted=refuted), now, effects)
        return True

    def _notice_loss(self, member: Member, now: float, effects: Effects) -> None:
        """A member is back that was down only here: it is this node that was cut off from most, which is as good as a
        verdict if it has served meanwhile."""
        self.damping.cut_off(now)
        if self.state in SERVING:
            self.incarnation += 1
            effects.declared_down = self._verdicts.imply(member, self.incarnation)

    def _is_replaced_by(self, member: Member, beat: Heartbeat, now: float) -> bool:
        """Whether another running instance of its name takes a member's place."""
        if member.state in GONE or member.state is MemberState.LEAVING:
            return True
        heard = max(member.heard, member.heard_by_others)
        return beat.state in SERVING and now - heard >= self.timings.suspect_after

    def _replace_joining(self, member: Member, now: float, effects: Effects) -> None:
        """Lets an instance in conflict that serves take the place of a joining member, which is then in conflict."""
        who = member.identity
        instance = self._conflicts.settled(who.name)
        if instance is not None and member.state is MemberState.JOINING:
            beat = Heartbeat(who, member.incarnation, member.sequence, member.state, member.epoch)
            end(member, now, effects)
            self._add(instance.beat, now, effects)
            self._conflicts.instances[who.name] = Instance(beat, member.since, member.heard)

    def _take_in(self, beat: Heartbeat, now: float, effects: Effects) -> None:
        """Processes a sender's observations of other members. A node receives thousands of observations a second."""
        members, own_boot, suspect = self.members, self.me.boot, MemberState.SUSPECT
        for seen in beat.observations:
            member, state = members.get(seen.name), seen.state
            if seen.boot == own_boot:
                sender = members.get(beat.identity.name)
                if sender is not None:
                    self._mentions.hear(sender.identity.name, seen, now, sender.resumed)
                self._refute(seen, sender, effects)
            elif state in GONE:
                continue
            elif seen.name == self.me.name:
                if state in SERVING and seen.boot not in self._retired:
                    self._conflicts.hear_of(seen, now)
            elif member is None or member.state in GONE:
                effects.unknown_addresses.append(seen.address)
                if member is None and state in SERVING and seen.boot not in self._retired:
                    self.joining.wait_for(seen.name, now)
            elif member.identity.boot == seen.boot:
                member.heard_by_others = max(member.heard_by_others, now - seen.age)
                if state is suspect and now - member.heard < self.timings.suspect_after:
                    self._gossip.suspected_by_others[seen.name] = None

    def _refute(self, seen: Observation, sender: Member | None, effects: Effects) -> None:
        """Answers a peer that suspects this node, and one that declared it down by a higher incarnation, which shows
        that this node knows: so an old suspicion that comes late must not raise it."""
        match seen.state:
            case MemberState.SUSPECT:
                effects.answer = True  # each time, because answers are lost too; any that arrives refutes
            case MemberState.JOINING if self.state in SERVING:
                effects.answer = True  # it hasn't taken this node in yet, or missed that it serves
            case MemberState.LEFT if self.state in MAY_END:
                effects.superseded = True
        if seen.state is MemberState.DOWN:
            if seen.incarnation >= self.incarnation:
                self.incarnation, effects.answer = seen.incarnation + 1, True
            effects.declared_down = self._verdicts.hear(seen, sender) or effects.declared_down

    # -- changes of the members -----------------------------------------------------------------------------

    def _add(self, beat: Heartbeat, now: float, effects: Effects) -> None:
        if beat.state is MemberState.LEFT:
            self._ignore(beat.identity.boot)  # the last heartbeat of an unknown node, which earlier ones may follow
            return
        identity = beat.identity
        self._conflicts.drop(identity.name, identity.boot)
        self.members[identity.name] = Member(
            identity, beat.state, beat.incarnation, beat.sequence, heard=now, since=now, epoch=beat.epoch
        )
        self.joining.heard(identity.name)
        effects.changes.append(Change(identity, None, beat.state))
        effects.answer = True

    def _retire(self, member: Member, now: float, effects: Effects) -> None:
        """Removes a member whose place another instance takes."""
        self.restarts += 1
        self._ignore(member.identity.boot)
        end(member, now, effects)
        del self.members[member.identity.name]

    def _ignore(self, boot: bytes) -> None:
        self._provisional.drop(boot)
        self._retired[boot] = None
        if len(self._retired) > RETIRED_BOOTS:
            self._retired.popitem(last=False)

    def _settle(self, effects: Effects) -> None:
        """Renews the view if the members that serve may have changed."""
        if not effects.changes:
            return
        self.view = View.of(serving := owners(self.members.values(), self.me if self.state in SERVING else None))
        if self.state in SERVING and self.me not in serving:
            self._join_again(effects)
