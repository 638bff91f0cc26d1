"""The errors of this package, and how to distinguish them from those of signal handlers."""

import inspect
from types import FrameType


class ClusterStateError(Exception):
    """The base of all errors of this package."""


class ProtocolError(ClusterStateError):
    """The other side broke the protocol: a different version, secret or node, or a frame that can't be read."""


class Unavailable(ClusterStateError, ConnectionError):
    """A node did not reply. The subclasses say why. Also a `ConnectionError`, which health checks understand.

    After `ConnectionLost` and its subclass `TimedOut` the request may have been executed, after any other it was not.
    """


class NoCluster(Unavailable):
    """A key has no owner: no node has been reached, or none has joined yet."""

    def __init__(
        self,
        text: str = "no cluster: no node has been reached, or none has joined yet. "
        "Start one with: manage.py clusternode",
    ) -> None:
        super().__init__(text)


class CircuitOpen(Unavailable):
    """The request was not sent: the node has failed several times in a row, and its circuit breaker is open."""


class Unreachable(Unavailable):
    """The request was not sent: no connection to the node could be made in time, or it had ended before."""


class Refused(Unreachable):
    """The request was not sent: nothing listens at the address, so the process that did has ended."""


class ConnectionLost(Unavailable):
    """The request was sent, and the connection ended before the reply: it may have been executed or not."""


class TimedOut(ConnectionLost):
    """The request was sent, and no reply came within the deadline: it may have been executed, or may still be."""


def raised_by_signal(error: BaseException) -> bool:
    """Whether a signal handler raised this error or one of its causes, as the soft time limits of Celery and rq do.

    Such an error is not a failure of the operation that the signal interrupted. Its traceback shows it: a signal
    handler gets the frame that it interrupts as an argument, and this frame is also its caller.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback = cause.__traceback__
        while traceback is not None:
            if _handles_signal(traceback.tb_frame):
                return True
            traceback = traceback.tb_next
        cause = cause.__cause__
    return False


def _handles_signal(frame: FrameType) -> bool:
    code = frame.f_code
    flags, count = code.co_flags, code.co_argcount + code.co_kwonlyargcount
    arguments = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
    if flags & inspect.CO_VARARGS:
        arguments += frame.f_locals.get(code.co_varnames[count]) or ()
    interrupted = frame.f_back
    return interrupted is not None and any(argument is interrupted for argument in arguments)
