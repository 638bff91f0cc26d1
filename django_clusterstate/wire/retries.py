"""Which requests may be sent again when the connection was lost before their answer came. Pure.

The node may have executed such a request, so the question is what a second execution does. A request is sent again if
that leaves everything as one execution would, at the moment of the second one; its answer may then say less than the
first one said (`Delete`: nothing was there any more). Any other is sent again only to a node that was started since
then, which has executed nothing of what the one before it was asked.
"""

from typing import assert_never

from . import messages as wire
from .framing import HEADER


def may_repeat_frame(frame: bytes) -> bool:
    """`may_repeat` for a framed request."""
    return may_repeat(wire.decode_request(frame[HEADER:]))


def may_repeat(request: wire.Request) -> bool:
    """Whether a node may execute a request a second time."""
    match request:
        case (
            # Nothing changes.
            wire.Get() | wire.GetWithTtl() | wire.GetEntry() | wire.Scan() | wire.Peek() | wire.FindLimits()
            | wire.GetEvents() | wire.Ping() | wire.GetStatus() | wire.GetReport()
            # The second execution changes nothing, or what others did between the two.
            | wire.Touch() | wire.Delete() | wire.Clear() | wire.Reset() | wire.Flush()
            | wire.GroupAdd() | wire.GroupDiscard()
            # The node knows the batch by its number.
            | wire.Track()
        ):  # fmt: skip
            return True
        case wire.Set():
            # The second execution of an addition finds what the first has stored, and says that it was there before.
            return not request.absent or request.or_same
        case wire.GetView():
            return request.stats is None  # they would be added twice
        case wire.Hit():
            return not request.cost and not request.denied_locally
        case (
            wire.Incr() | wire.Refund()
            # A channel message comes once at most.
            | wire.Send() | wire.GroupSend() | wire.Deliver() | wire.Forward()
            # The messages of the lost answer are gone, and whoever receives asks again without being told to.
            | wire.Receive()
        ):  # fmt: skip
            return False
        case _:
            assert_never(request)
