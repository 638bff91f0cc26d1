"""What can go wrong between a requester and a node, and how to tell it from an interruption."""

import inspect
from types import FrameType


class ClusterStateError(Exception):
    """The base of all errors of this package."""


class ProtocolError(ClusterStateError):
    """The other side said something that it must not say: another version, another secret, a broken frame."""


class Unavailable(ClusterStateError, ConnectionError):
    """No answer from a node. The subclasses say why. Also a `ConnectionError`, which health checks understand.

    Only `ConnectionLost` and its subclass `TimedOut` leave open whether the request was executed; after any other
    `Unavailable` it was not.
    """


class NoCluster(Unavailable):
    """No node has been reached yet, or none has joined, so a key has no owner."""


class CircuitOpen(Unavailable):
    """The request was not sent: the node has failed several times in a row, and its circuit breaker is open."""


class Refused(Unavailable):
    """Nothing listens at the address: the process that did has ended, and everything that it held is gone."""


class ConnectionLost(Unavailable):
    """The request was sent, and the connection ended before the reply: it may have been executed or not."""


class TimedOut(ConnectionLost):
    """The request was sent, and no reply came within the deadline: it may have been executed, or may still be."""


def raised_by_signal(error: BaseException) -> bool:
    """Whether a signal handler raised it, or what it was raised from, as the soft time limits of Celery and rq do.

    Such an error says nothing about what was under way when the signal came, so nobody may take it for a failure of
    that. It is told by its traceback: a handler is called with the frame that it interrupts, which is the one that
    called it.
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
