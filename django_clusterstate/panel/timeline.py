"""What happened in the cluster: the nodes' own accounts, as one."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..core.membership.messages import MemberState
from ..core.membership.timeline import Moment, What
from .formatting import LONGEST

TOGETHER = 10.0  # seconds within which nodes tell of one and the same thing
SHOWN = 50

LABELS: dict[str, str | Promise] = {
    What.JOINED: _("joined"),
    What.SUSPECTED: _("fell silent"),
    What.HEARD_AGAIN: _("was heard again"),
    What.DOWN: _("is down"),
    What.LEFT: _("left"),
    What.ISOLATED: _("was isolated: most peers fell silent at once"),
    What.RECONNECTED: _("was isolated no more"),
    What.STALLED: _("was stopped for a while"),
}

_LOOKS: dict[str, str] = {
    What.JOINED: MemberState.ALIVE,
    What.SUSPECTED: MemberState.SUSPECT,
    What.ISOLATED: MemberState.SUSPECT,
    What.DOWN: MemberState.DOWN,
    What.LEFT: MemberState.LEFT,
}


@dataclass(slots=True)
class Happening:
    """One thing that happened to one start of one node, `ago` seconds before, as the first of `tellers` noticed it. The
    `number`-th of its kind."""

    what: str
    name: str
    boot: bytes
    ago: float
    at: datetime
    number: int
    tellers: list[str] = field(default_factory=list)

    @property
    def label(self) -> str | Promise:
        return LABELS.get(self.what, self.what)

    @property
    def looks(self) -> str:
        """The state whose colours it has."""
        return _LOOKS.get(self.what, "other")

    @property
    def key(self) -> str:
        """What tells it from all others, from one look at the page to the next."""
        return f"{self.what}-{self.boot.hex()}-{self.number}"


def merged(timelines: Mapping[str, Iterable[Moment]], now: datetime) -> list[Happening]:
    """The last SHOWN happenings, the latest first, from what each node tells."""
    happenings: list[Happening] = []
    open_: dict[tuple[str, str, bytes], Happening] = {}
    numbers: Counter[tuple[str, bytes]] = Counter()
    told = sorted(
        ((moment, teller) for teller, moments in timelines.items() for moment in moments),
        key=lambda pair: -pair[0].ago,
    )
    for moment, teller in told:
        what = (moment.what, moment.name, moment.boot)
        known = open_.get(what)
        if known is not None and teller not in known.tellers and known.ago - moment.ago <= TOGETHER:
            known.tellers.append(teller)
            continue
        at = now - timedelta(seconds=min(LONGEST, moment.ago))
        numbers[moment.what, moment.boot] += 1
        number = numbers[moment.what, moment.boot]
        open_[what] = Happening(moment.what, moment.name, moment.boot, moment.ago, at, number, [teller])
        happenings.append(open_[what])
    return happenings[: -SHOWN - 1 : -1]
