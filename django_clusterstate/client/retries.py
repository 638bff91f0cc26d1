"""Which failed requests may be sent again: those that can't have been executed, or may be executed twice. Pure.

A request may be executed twice if that leaves the same state as one execution at the moment of the second one; its
reply may then report less than the lost reply did (`Delete`: the key was already gone). Any other request isn't sent
again, not even to a node that has been restarted since then: a copy may have kept the effect of the first execution.
"""

from typing import assert_never

from ..exceptions import ClusterStateError, ConnectionLost, ProtocolError
from ..wire import messages as wire
from ..wire.framing import HEADER
from ..wire.handshake import OtherNode


def may_be_executed(error: ClusterStateError) -> bool:
    """Whether the node may have executed the request that failed with this error, or may yet execute it."""
    if isinstance(error, OtherNode):  # found by the handshake, before a request is sent
        return False
    return isinstance(error, ConnectionLost | ProtocolError)


def may_send_again(request: bytes, error: ClusterStateError) -> bool:
    """Whether the framed request that failed with this error may be sent on a new connection."""
    return not may_be_executed(error) or may_execute_twice(wire.decode_request(request[HEADER:]))


def may_execute_twice(request: wire.Request) -> bool:
    """Whether a node may execute a request a second time."""
    match request:
        case (
            # Nothing changes.
            wire.Get() | wire.GetWithTtl() | wire.GetEntry() | wire.Scan() | wire.Peek() | wire.FindLimits()
            | wire.GetEvents() | wire.Ping() | wire.GetStatus() | wire.GetReport()
            # The second execution changes nothing, or only changes made by others between the two.
            | wire.Touch() | wire.Delete() | wire.Clear() | wire.Reset() | wire.Flush()
            | wire.GroupAdd() | wire.GroupDiscard()
            # The node recognizes the batch by its ID.
            | wire.Track()
        ):  # fmt: skip
            return True
        case wire.Set():
            # The second execution of an addition would find the first one's value, and report that it was there before.
            return not request.absent or request.or_same
        case wire.GetView():
            return request.stats is None  # the counts would be added twice
        case wire.Hit():
            return not request.cost and not request.denied_locally
        case (
            wire.Incr() | wire.Refund()
            # A channel message is delivered at most once.
            | wire.Send() | wire.GroupSend() | wire.Deliver() | wire.Forward()
            # The messages of the lost reply are gone, and the receiver sends its next request by itself.
            | wire.Receive()
            # Nodes send these, and care for their loss themselves.
            | wire.Replicate() | wire.Execute()
        ):  # fmt: skip
            return False
        case _:
            assert_never(request)
