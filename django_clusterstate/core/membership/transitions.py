"""The states of a member as one node sees it, and every transition between them.

| a member is | event                                                                   | becomes                      |
|-------------|-------------------------------------------------------------------------|------------------------------|
| unknown     | heard                                                                   | provisional: only answered   |
| provisional | proven to run now                                                       | the state that it reports    |
| joining     | reports that it is alive                                                | alive                        |
| alive       | silent for `suspect_after`                                              | suspect                      |
| suspect     | heard                                                                   | alive                        |
| alive       | reports that it is joining: its loopback address owns no keys           | joining                      |
| joining, alive, suspect | silent for `down_after`, to this node and all that report it | down                        |
| joining, alive, suspect | refuses a fresh link, or another instance answers in its place | down                      |
| joining, alive, suspect | reports that it leaves                                      | leaving                      |
| leaving     | reports that it has left, is silent for `down_after`, or refuses a link | left                         |
| down        | heard with a higher incarnation: it has refuted                         | the state that it reports    |
| down, left, leaving | its name is heard with a new boot ID                            | replaced by the new instance |
| any other   | its name is heard with a new boot ID                                    | unchanged: a name conflict   |
| suspect     | the instance in conflict with it serves                                 | replaced by that instance    |
| joining     | the instance in conflict with it serves, for `suspect_after`            | the one in conflict          |
| left        | any                                                                     | left                         |

If it rejoins, a member that is down has refuted when it reports that it joins, or once more after it was told that it
is down: otherwise it may have refuted only an earlier suspicion. `damping` decides how long it joins.

`provisional_instances` decides which instances are proven to run now, `joining` when this node serves, and
`name_conflicts` which of two instances keeps a name. While a member serves whose address isn't a loopback one, those
with loopback addresses own no keys.

The terms are those of SWIM (Das, Gupta, Motivala 2002) and memberlist. Unlike there, no node adopts a verdict of
others: each judges by silence. But heartbeats report how long ago their sender heard other members, and a member that
any peer of this node hears isn't declared down: it is suspect, and unreachable if only this node would declare it down.
So nodes that can't hear a member have the same view as nodes that can.
"""

from typing import assert_never

from .heartbeat import MemberState


def when_heard(state: MemberState, reported: MemberState, *, refuted: bool) -> MemberState:
    """The state of a member after a heartbeat of its own, which reports a state, perhaps with a higher incarnation."""
    match state:
        case MemberState.JOINING | MemberState.ALIVE | MemberState.SUSPECT:
            return reported
        case MemberState.LEAVING:
            return MemberState.LEFT if reported is MemberState.LEFT else MemberState.LEAVING
        case MemberState.DOWN:
            return reported if refuted else MemberState.DOWN
        case MemberState.LEFT:
            return MemberState.LEFT
        case _:
            assert_never(state)


def when_silent(state: MemberState) -> MemberState:
    """The state of a member after silence for `suspect_after`."""
    return MemberState.SUSPECT if state is MemberState.ALIVE else state


def when_ended(state: MemberState) -> MemberState:
    """The state of a member whose process has ended, or that was silent for `down_after`."""
    match state:
        case MemberState.JOINING | MemberState.ALIVE | MemberState.SUSPECT | MemberState.DOWN:
            return MemberState.DOWN
        case MemberState.LEAVING | MemberState.LEFT:
            return MemberState.LEFT
        case _:
            assert_never(state)
