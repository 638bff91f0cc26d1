"""Which requests may be sent again when the connection was lost before their answer came. Pure.

The node may have executed such a request, so the question is what a second execution does. A request is sent again if
that leaves everything as one execution would, at the moment of the second one; its answer may then say less than the
first one said (`Delete`: nothing was there any more). Any other is sent again only to a node that was started since
then, which has executed nothing of what the one before it was asked.
"""

from typing import assert_never

from .framing import HEADER
from .messages import (
    Clear,
    Delete,
    Deliver,
    FindLimits,
    Flush,
    Forward,
    Get,
    GetEntry,
    GetEvents,
    GetReport,
    GetStatus,
    GetView,
    GetWithTtl,
    GroupAdd,
    GroupDiscard,
    GroupSend,
    Hit,
    Incr,
    Peek,
    Ping,
    Receive,
    Refund,
    Request,
    Reset,
    Scan,
    Send,
    Set,
    Touch,
    Track,
    decode_request,
)


def may_repeat_frame(frame: bytes) -> bool:
    """`may_repeat` for a framed request."""
    return may_repeat(decode_request(frame[HEADER:]))


def may_repeat(request: Request) -> bool:
    """Whether a node may execute a request a second time."""
    match request:
        case (
            # Nothing changes.
            Get() | GetWithTtl() | GetEntry() | Scan() | Peek() | FindLimits() | GetEvents()
            | Ping() | GetStatus() | GetReport()
            # The second execution changes nothing, or what others did between the two.
            | Touch() | Delete() | Clear() | Reset() | Flush() | GroupAdd() | GroupDiscard()
            # The node knows the batch by its number.
            | Track()
        ):  # fmt: skip
            return True
        case Set():
            # The second execution of an addition finds what the first has stored, and says that it was there before.
            return not request.absent or request.or_same
        case GetView():
            return request.tally is None  # the tally would be added twice
        case Hit():
            return not request.cost and not request.remembered
        case (
            Incr() | Refund()
            # A channel message comes once at most.
            | Send() | GroupSend() | Deliver() | Forward()
            # The messages of the lost answer are gone, and whoever receives asks again without being told to.
            | Receive()
        ):  # fmt: skip
            return False
        case _:
            assert_never(request)
